"""Which head does a channel belong to? Asked of the model itself, by finite differences, with nothing of the library.

One forward pass holds many copies of one example. In each copy but the first the reported projection's output is moved
at one position: all channels of one reported head (a copy for each head), one channel of every head (a copy for each
place in a head), and all channels that are in no head. Then the heads of q, k and v that reach the attention
(transformers' attention interface, or `scaled_dot_product_attention`, or else the softmax) are compared with the first
copy's. The channels of a head must move that head alone, each of them must move it, and the others none.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers.modeling_utils import AttentionInterface

from .inputs import BATCH
from .taps import Tap, attach
from .verify import Failure, representatives

ROLES = ("query_output", "key_output", "value_output")
_MANY_NUMBERS = 2_000_000
_STEP = 0.3  # of the projection's usual size
_DOMINANT = 0.34  # a norm over all heads moves the others too, but less
_IDLE = 0.01


@dataclass
class Event:
    """What one attention call was given, `(copies, heads, positions, head_dim)` each; else the softmax's pattern."""

    query: Tensor | None = None
    key: Tensor | None = None
    value: Tensor | None = None
    pattern: Tensor | None = None


@dataclass
class Outcome:
    """What the finite differences say about one model: `counts` of maps that agree, disagree or cannot be checked."""

    failures: list[Failure] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: {"agree": 0, "differ": 0, "unchecked": 0})


class _BlockDone(Exception):
    """The block whose attention is watched has returned."""


class _Watch(TorchFunctionMode):
    """Notes the attention calls that happen while it is armed."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []
        self.armed = False
        self._inside = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if not self.armed or self._inside:
            return result
        if name == "scaled_dot_product_attention":
            given = [*args, *(kwargs[key] for key in ("query", "key", "value")[len(args) :])]
            self.note(*given[:3])
        elif name in ("softmax", "_softmax") and result.ndim >= 3:
            self.events.append(Event(pattern=result.detach().clone()))
        return result

    def note(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        self.events.append(Event(*(tensor.detach().clone() for tensor in (query, key, value))))

    @contextmanager
    def on(self, block: Any) -> Iterator[None]:
        """Watch one call of one block, and raise `_BlockDone` at its end."""
        original, calls = AttentionInterface.get_interface, 0

        def get_interface(interface: Any, name: str, default: Any) -> Any:
            function = original(interface, name, default)

            def watched(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
                if self.armed:
                    self.note(query, key, value)
                self._inside += 1
                try:
                    return function(module, query, key, value, *args, **kwargs)
                finally:
                    self._inside -= 1

            return watched

        def enter(_: nn.Module, _args: Any) -> None:
            nonlocal calls
            self.armed, calls = calls == block.call, calls + 1

        def leave(_: nn.Module, _args: Any, _output: Any) -> None:
            if self.armed:
                raise _BlockDone

        module = block.module
        handles = [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
        AttentionInterface.get_interface = get_interface  # type: ignore[method-assign]
        try:
            with self:
                yield
        except _BlockDone:
            pass
        finally:
            AttentionInterface.get_interface = original  # type: ignore[method-assign]
            for handle in handles:
                handle.remove()


@dataclass(frozen=True)
class _BlockCall:
    module: nn.Module
    call: int


def check(model: nn.Module, inputs: Mapping[str, Any], components: Any, skip: Container[str] = ()) -> Outcome:
    """Compare the q/k/v head maps of every block kind with finite differences, except for the stacks in `skip`."""
    outcome = Outcome()
    for stack, blocks in components.stacks.items():
        if stack in skip:
            continue
        for number in representatives(blocks):
            block = blocks[number]
            called = _BlockCall(model.get_submodule(block.path), block.call or 0)
            for name in (*ROLES, *(f"cross_{role}" for role in ROLES)):
                slot = block.slots.get(name)
                if slot is None or slot.heads is None:
                    continue
                verdict = _check_slot(model, inputs, called, name, slot)
                key = {"": "agree", None: "unchecked"}.get(verdict, "differ")
                outcome.counts[key] += 1
                if key == "differ":
                    outcome.failures.append(Failure(stack, number, name, "finite difference", str(verdict)))
    return outcome


def _check_slot(model: nn.Module, inputs: Mapping[str, Any], block: _BlockCall, name: str, slot: Any) -> str | None:
    """Return what is wrong with a head map, "" when nothing is, `None` when it cannot be told."""
    width = int(slot.module.weight.shape[-1 if hasattr(slot.module, "nf") else 0]) if _is_linear(slot.module) else 0
    if not width or slot.side != "output" or int(slot.heads.max()) >= width:
        return None
    moves = _moves(slot.heads, width)
    events = _events(model, inputs, block, slot, moves)
    if events is None:
        return None
    role = name.removeprefix("cross_").removesuffix("_output")
    called = any(event.query is not None for event in events)
    for event in events:
        if event.pattern is not None:
            if called or not _is_square(event.pattern):
                continue  # a softmax that is no attention
            return None if role == "value" else _pattern_verdict(event.pattern, slot.heads)
        moved = {part: _moved(getattr(event, part), len(moves)) for part in ("query", "key", "value")}
        if any(matrix is None for matrix in moved.values()):
            return None
        if any(bool(matrix.any()) for matrix in moved.values() if matrix is not None):
            return _verdict(moved, role, slot.heads)  # the first attention call that the projection reaches
    return f"no attention call of the block depends on {slot.path}" if called else None


def _moves(heads: Tensor, width: int) -> Tensor:
    """Return `(copies, channels)`: what is added in each copy, in parts of the projection's usual size."""
    count, size = heads.shape
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(width, generator=generator)  # a norm over a head would not see all its channels move alike
    sign = torch.where(torch.rand(width, generator=generator) < 0.5, -1.0, 1.0)
    moves = torch.zeros(1 + count + size + 1, width)
    moves[-1] = noise
    moves[-1, heads.flatten()] = 0.0
    for number, head in enumerate(heads):
        moves[1 + number, head] = noise[head]
    for place, channels in enumerate(heads.T):
        moves[1 + count + place, channels] = sign[channels]
    return _STEP * moves


def _is_square(pattern: Tensor) -> bool:
    return pattern.shape[-1] in (pattern.shape[-2], pattern.shape[-2] + 1) or pattern.ndim == 4


def _is_linear(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2


def _events(
    model: nn.Module, inputs: Mapping[str, Any], block: _BlockCall, slot: Any, moves: Tensor
) -> list[Event] | None:
    """Run copies of the first example, each moved; `None` when the model does not take copies."""
    copies = torch.zeros(len(moves), dtype=torch.long)
    if sum(value[:1].numel() for value in inputs.values() if isinstance(value, Tensor)) * len(copies) > _MANY_NUMBERS:
        return None
    batch = {key: _copy(value, copies) for key, value in inputs.items()}
    fits = True

    def move(value: Tensor) -> Tensor:
        nonlocal fits
        if value.ndim < 3 or value.shape[0] != len(moves) or not torch.allclose(value[1:], value[:1], atol=1e-4):
            fits = False  # rows that are no copies: a model that draws at random, or has a row per token
            return value
        flat = value.flatten(1, -2).clone()
        flat[:, flat.shape[1] // 2] += moves * value[0].std()
        return flat.view(value.shape)

    watch = _Watch()
    try:
        with torch.no_grad(), ExitStack() as stack:
            attach(stack, Tap(slot, move))
            stack.enter_context(watch.on(block))
            torch.manual_seed(0)
            model(**batch)
    except Exception:  # inputs that cannot be copied row by row
        return None
    return watch.events if fits else None


def _copy(value: Any, rows: Tensor) -> Any:
    if isinstance(value, Tensor) and value.ndim and value.shape[0] == BATCH:
        return value[rows]
    return value


def _moved(tensor: Tensor | None, copies: int) -> Tensor | None:
    """Return how much each copy moved each head, `(copies - 1, heads)`; `None` for a layout that is not known."""
    if tensor is None or tensor.ndim != 4 or tensor.shape[0] != copies:
        return None
    size = (tensor[1:] - tensor[:1]).abs().amax((2, 3))
    noise = 1e-5 * tensor[:1].abs().max().clamp(min=1e-6)
    return torch.where(size > noise, size, torch.zeros_like(size))


def _verdict(moved: Mapping[str, Tensor | None], role: str, heads: Tensor) -> str:
    mine = moved[role]
    assert mine is not None
    count = len(heads)
    if mine.shape[1] % count:
        return f"{count} heads are reported, the attention is given {mine.shape[1]}"
    others = torch.stack([m.amax(1) for part, m in moved.items() if part != role and m is not None]).amax(0)
    owned, problem = _owners(mine[:count], _DOMINANT)
    if problem:
        return problem
    if bool((others[:count] > _DOMINANT * mine[:count].amax(1)).any()):
        return "channels of its heads are another role's too"
    places = torch.stack([mine[count:-1, group].amax(1) for group in owned], 1)
    idle = (places < _IDLE * places.median()).nonzero().tolist()
    if idle:
        return f"channel {idle[0][0]} of head {idle[0][1]} does not belong to it ({len(idle)} such)"
    missed = mine[-1] > _DOMINANT * mine[:count].amax()
    if bool(missed.any()) and bool(mine[-1].amax() > _DOMINANT * others[-1]):
        return f"channels that are in no head move heads {missed.nonzero().flatten().tolist()}"
    return ""


def _owners(strength: Tensor, dominant: float) -> tuple[list[list[int]], str]:
    """Return which of the attention's heads each reported head moves, and what is wrong with that."""
    share = strength.shape[1] // len(strength)
    groups = [(row > dominant * row.max()).nonzero().flatten().tolist() for row in strength]
    for number, group in enumerate(groups):
        if len(group) != share:
            return groups, f"head {number} moves heads {group}"
    flat = [head for group in groups for head in group]
    fine = len(set(flat)) == len(flat) and groups == sorted(groups)
    return groups, "" if fine else f"the heads are in the order {groups}"


def _pattern_verdict(pattern: Tensor, heads: Tensor) -> str | None:
    """Compare with the softmax alone: it tells the head, not the role."""
    copies = 2 + heads.shape[0] + heads.shape[1]
    if pattern.ndim == 3 and pattern.shape[0] % copies == 0:
        pattern = pattern.view(copies, -1, *pattern.shape[1:])
    if pattern.ndim != 4 or pattern.shape[0] != copies or pattern.shape[1] % len(heads):
        return None
    size = (pattern[1:] - pattern[:1]).abs().amax((2, 3))
    if not bool((size > 1e-6).any()):
        return None
    return _owners(size[: len(heads)], 0.1)[1]
