"""Plain PyTorch hooks that read and write the tensors a component map points at. No code of the library."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import AttentionInterface

from .tiny import output_of

Edit = Callable[[Tensor], Tensor]
_CLOCK = count()
SEEN_INSIDE = ("query_rotary", "key_rotary", "head_output")
"""What is read and written in transformers' attention interface. Of the rest (patterns, scores, the neurons of experts)
plain hooks see nothing: the engine's own tests are about those."""


@dataclass(eq=False)
class Tap:
    """One place to read, and perhaps to write, in a forward pass.

    Args:
        slot: what the component map says; read by its attributes only.
        edit: what to write; `None` reads only.
    """

    slot: Any
    edit: Edit | None = None
    values: list[Tensor] = field(default_factory=list)
    calls: int = 0
    time: int = 0  # when it last read: later is larger

    @property
    def value(self) -> Tensor:
        """What was read (before the edit), in the only call that was asked for."""
        return self.values[-1]

    def see(self, container: Any) -> Any:
        """Read the tensor in a container; return the container with the edit written, `None` where nothing changes."""
        number, self.calls = self.calls, self.calls + 1
        if self.slot.call is not None and number != self.slot.call:
            return None
        leaf = self.slot.leaf if self.slot.leaf is not None else first_leaf(container)
        value = container
        for step in leaf:
            value = value[step]
        shown = value * self.slot.scale if self.slot.scale != 1.0 else value
        self.values.append(shown.detach().clone())
        self.time = next(_CLOCK)
        if self.edit is None:
            return None
        new = self.edit(shown)
        if shown is not value:
            new = torch.where(new == shown, value, new / self.slot.scale)
        for place in (leaf, *self.slot.also):
            container = _with(container, place, new)
        return container


def first_leaf(container: Any) -> tuple[Any, ...]:
    """Return the way to the first floating-point tensor."""
    found = next(_leaves(container, ()), None)
    if found is None:
        raise LookupError(f"no floating-point tensor in {type(container).__name__}")
    return found


def _leaves(value: Any, at: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield at
    elif isinstance(value, tuple | list):
        for index, item in enumerate(value):
            yield from _leaves(item, (*at, index))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, (*at, key))


def _with(container: Any, leaf: Sequence[Any], tensor: Tensor) -> Any:
    if not leaf:
        return tensor
    step, rest = leaf[0], leaf[1:]
    new = _with(container[step], rest, tensor)
    if isinstance(container, Mapping):
        items = {key: new if key == step else item for key, item in container.items()}
        return items if type(container) is dict else type(container)(**items)
    items_list = [new if number == step else item for number, item in enumerate(container)]
    return type(container)(*items_list) if hasattr(container, "_fields") else type(container)(items_list)


def attach(stack: ExitStack, tap: Tap) -> None:
    """Register a tap's hook for as long as the stack is open."""
    module: nn.Module = tap.slot.module
    if is_inside(tap.slot):
        stack.enter_context(_watched_attention(tap))
        return
    if tap.slot.side == "input":

        def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
            return tap.see((args, kwargs))

        handle = module.register_forward_pre_hook(before, with_kwargs=True)
    else:

        def after(_: nn.Module, _args: Any, output: Any) -> Any:
            return tap.see(output)

        handle = module.register_forward_hook(after)
    stack.callback(handle.remove)


def is_inside(slot: Any) -> bool:
    """Return whether a slot is a tensor inside an interface of transformers, and no module's input or output."""
    return getattr(slot, "via", "module") != "module"


@contextmanager
def _watched_attention(tap: Tap) -> Iterator[None]:
    """Let a tap see a tensor of its module's attention, as `(batch, positions, heads * size)`."""
    original = AttentionInterface.get_interface

    def get_interface(interface: Any, *names: Any) -> Any:
        function = original(interface, *names)

        def attend(module: nn.Module, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Any:
            if module is not tap.slot.module:
                return function(module, query, key, *args, **kwargs)
            if tap.slot.via == "query_rotary":
                query = _see_heads(tap, query)
            if tap.slot.via == "key_rotary":
                key = _see_heads(tap, key)
            core, *rest = function(module, query, key, *args, **kwargs)
            if tap.slot.via == "head_output":
                core = _see_heads(tap, core.transpose(1, 2)).transpose(1, 2)
            return (core, *rest)

        return attend

    AttentionInterface.get_interface = get_interface  # type: ignore[method-assign]
    try:
        yield
    finally:
        AttentionInterface.get_interface = original  # type: ignore[method-assign]


def _see_heads(tap: Tap, tensor: Tensor) -> Tensor:
    """Show `(batch, heads, positions, size)` to a tap as the map counts its channels."""
    flat = tensor.transpose(1, 2).flatten(2)
    new = tap.see(flat)
    if new is None:
        return tensor
    return new.view(*flat.shape[:2], tensor.shape[1], -1).transpose(1, 2)


def run(model: nn.Module, inputs: Mapping[str, Any], taps: Sequence[Tap] = ()) -> Tensor:
    """Run the model under its taps and return its logits or last hidden state."""
    with torch.no_grad(), ExitStack() as stack:
        for tap in taps:
            tap.values.clear()
            tap.calls = 0
            attach(stack, tap)
        torch.manual_seed(0)  # diffusion models draw at random
        return output_of(model(**inputs)).clone()


def channels_of(slot: Any, value: Tensor) -> Tensor:
    """Return the numbers of the last-axis channels that are a slot's."""
    return torch.arange(value.shape[-1]) if slot.channels is None else slot.channels


def overwrite(channels: Tensor, new: float | Tensor) -> Edit:
    """Return an edit that writes `new` into some channels of the last axis."""

    def edit(value: Tensor) -> Tensor:
        value = value.clone()
        value[..., channels] = new
        return value

    return edit
