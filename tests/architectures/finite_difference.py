"""Which head does a channel belong to? Asked of the model itself, by finite differences, with nothing of the library.

One forward pass holds many copies of one example. In copy `c` the reported projection's output is moved in its
channel `c` at one position. Then the heads of q, k and v that reach the attention (transformers' attention interface,
or `scaled_dot_product_attention`, or else the softmax) are compared with the first copy's: the heads that moved are
those the channel belongs to. This is compared with the heads that the component map reports.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
_MANY_CHANNELS = 700
_MANY_NUMBERS = 2_000_000
_STEP = 0.3  # of the projection's usual size
_DOMINANT = 0.34  # a norm over all heads moves the others too, but less


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


def check(model: nn.Module, inputs: Mapping[str, Any], components: Any) -> Outcome:
    """Compare the q/k/v head maps of every block kind with finite differences."""
    outcome = Outcome()
    for stack, blocks in components.stacks.items():
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
    if not 0 < width <= _MANY_CHANNELS or slot.side != "output":
        return None
    events = _events(model, inputs, block, slot, width)
    if events is None:
        return None
    role = name.removeprefix("cross_").removesuffix("_output")
    for event in events:
        moved = {part: _moved(getattr(event, part), width) for part in ("query", "key", "value")}
        if event.pattern is not None:
            return None if role == "value" else _pattern_verdict(event.pattern, width, slot.heads)
        if any(matrix is None for matrix in moved.values()):
            return None
        if any(bool(matrix.any()) for matrix in moved.values() if matrix is not None):
            return _verdict(moved, role, slot.heads)  # the first attention call that the projection reaches
    return f"no attention call of the block depends on {slot.path}" if events else None


def _is_linear(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2


def _events(
    model: nn.Module, inputs: Mapping[str, Any], block: _BlockCall, slot: Any, width: int
) -> list[Event] | None:
    """Run one copy of the first example per channel; `None` when the model does not take copies."""
    copies = torch.zeros(width + 1, dtype=torch.long)
    if sum(value[:1].numel() for value in inputs.values() if isinstance(value, Tensor)) * len(copies) > _MANY_NUMBERS:
        return None
    batch = {key: _copy(value, copies) for key, value in inputs.items()}
    fits = True

    def move(value: Tensor) -> Tensor:
        nonlocal fits
        if value.ndim < 3 or value.shape[0] != width + 1:
            fits = False
            return value
        value = value.clone()
        channel = torch.arange(width)
        value[channel + 1, value.shape[1] // 2, ..., channel] += _STEP * value[0].std()
        return value

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


def _moved(tensor: Tensor | None, width: int) -> Tensor | None:
    """Return how much each channel moved each head, `(channels, heads)`; `None` for a layout that is not known."""
    if tensor is None or tensor.ndim != 4 or tensor.shape[0] != width + 1:
        return None
    size = (tensor[1:] - tensor[:1]).abs().amax((2, 3))
    noise = 1e-5 * tensor[:1].abs().max().clamp(min=1e-6)
    return torch.where(size > noise, size, torch.zeros_like(size))


def _verdict(moved: Mapping[str, Tensor | None], role: str, heads: Tensor) -> str:
    mine = moved[role]
    assert mine is not None
    count = heads.shape[0]
    if mine.shape[1] % count:
        return f"{count} heads are reported, the attention is given {mine.shape[1]}"
    others = torch.stack([m.amax(1) for part, m in moved.items() if part != role and m is not None]).amax(0)
    dominant = (mine > _DOMINANT * mine.amax(1, keepdim=True)) & (mine > 0)
    groups: list[tuple[int, ...]] = []
    for number, head in enumerate(heads):
        owners = {tuple(dominant[channel].nonzero().flatten().tolist()) for channel in head.tolist()}
        if len(owners) != 1 or () in owners:
            return f"channels of head {number} belong to heads {sorted(owners)}"
        groups.append(owners.pop())
        if bool((others[head] > _DOMINANT * mine[head].amax(1)).any()):
            return f"channels of head {number} are another role's too"
    flat = [head for group in groups for head in group]
    if len(set(flat)) != len(flat) or len(flat) != mine.shape[1]:
        return f"heads are those of {groups}"
    if groups != sorted(groups):
        return f"heads are in the order {groups}"
    left = torch.ones(mine.shape[0], dtype=torch.bool)
    left[heads.flatten()] = False
    missed = left & (dominant.sum(1) == mine.shape[1] // count) & (mine.amax(1) > _DOMINANT * others)
    full = mine.amax(1)[heads.flatten()].median()
    missed &= mine.amax(1) > _DOMINANT * full
    return f"channels {missed.nonzero().flatten().tolist()[:6]} belong to heads too" if bool(missed.any()) else ""


def _pattern_verdict(pattern: Tensor, width: int, heads: Tensor) -> str | None:
    """Compare with the softmax alone: it tells the head, not the role."""
    if pattern.ndim == 3 and pattern.shape[0] % (width + 1) == 0:
        pattern = pattern.view(width + 1, -1, *pattern.shape[1:])
    if pattern.ndim != 4 or pattern.shape[0] != width + 1 or pattern.shape[1] % heads.shape[0]:
        return None
    size = (pattern[1:] - pattern[:1]).abs().amax((2, 3))
    if not bool((size > 1e-6).any()):
        return None
    owned: list[int] = []
    for number, head in enumerate(heads):
        strength = size[head].amax(0)
        owners = (strength > 0.1 * strength.max()).nonzero().flatten().tolist()
        if len(owners) != pattern.shape[1] // heads.shape[0]:
            return f"channels of head {number} move the patterns of heads {owners}"
        owned += owners
    return "" if owned == sorted(set(owned)) else f"the patterns are moved in the order {owned}"
