"""The one file that registers hooks. All of a pass stand before it starts, and exactly those are removed after."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..models import Slot, find_leaf, replace_leaf
from .interface import Visit, inside_interfaces, inside_router
from .steps import by_cells

Act = Callable[[Tensor, int], Tensor | None]
"""Called with the tensor at a slot and the number of earlier calls of the module in this pass; returns the new tensor,
or `None` to leave it alone."""


@dataclass(frozen=True, eq=False)
class Tap:
    """One thing to do at one slot."""

    slot: Slot
    act: Act


class _Visit:
    """The taps of one side of one module, and how often it has been called."""

    def __init__(self, taps: Sequence[Tap]) -> None:
        self.taps = taps
        self.calls = 0

    def __call__(self, container: Any) -> Any:
        """Return the container with every tap's leaf replaced; the same object where nothing was written."""
        call, self.calls = self.calls, self.calls + 1
        for tap in self.taps:
            if tap.slot.call is None or tap.slot.call == call:
                leaf, tensor = find_leaf(container, tap.slot.leaf, f"{tap.slot.path}.{tap.slot.side}")
                new = tap.act(tensor, call)
                if new is not None:
                    for place in (leaf, *tap.slot.also):
                        container = replace_leaf(container, place, new)
        return container


@contextmanager
def tapped(taps: Sequence[Tap]) -> Iterator[Callable[[], None]]:
    """Hold the hooks of one pass.

    Args:
        taps: what to do where; taps at the same side of the same module act in this order.

    Yields:
        A function that sets all call counts back to 0: a new forward pass begins.
    """
    with ExitStack() as stack:
        groups: dict[tuple[int, str, str], list[Tap]] = {}
        for tap in taps:
            slot = tap.slot
            if slot.around is not None:
                tap = Tap(slot, stack.enter_context(_with_batch_axis(slot.around, tap.act)))
            groups.setdefault((id(slot.module), slot.side, slot.via), []).append(tap)
        for fused in {id(tap.slot.fused): tap.slot.fused for tap in taps if tap.slot.fused is not None}.values():
            stack.enter_context(by_cells(fused))
        visits = [_Visit(group) for group in groups.values()]
        inside: dict[int, dict[str, Visit]] = {}
        for visit in visits:
            slot = visit.taps[0].slot
            if slot.via == "module":
                register = _watch_output if slot.side == "output" else _watch_input
                stack.enter_context(register(slot.module, visit))
            elif slot.via == "router_output":
                stack.enter_context(inside_router(slot.module, visit))
            else:
                inside.setdefault(id(slot.module), {})[slot.via] = visit
        if inside:
            stack.enter_context(inside_interfaces(inside))

        def restart() -> None:
            for visit in visits:
                visit.calls = 0

        yield restart


@contextmanager
def _with_batch_axis(around: nn.Module, act: Act) -> Iterator[Act]:
    """Show tokens without a batch axis `(tokens, channels)` as `(batch, length, channels)`.

    Args:
        around: the module whose input `(batch, length, ...)` tells batch and length.
        act: what sees them so.
    """
    shape: list[int] = []

    def note(_module: nn.Module, args: Any, kwargs: Any) -> None:
        shape[:] = find_leaf((args, kwargs), None, "its input")[1].shape[:2]

    def show(tokens: Tensor, call: int) -> Tensor | None:
        new = act(tokens.view(*shape, tokens.shape[-1]), call)
        return None if new is None else new.reshape(tokens.shape)

    with around.register_forward_pre_hook(note, with_kwargs=True):
        yield show


def _watch_output(module: nn.Module, visit: _Visit) -> Any:
    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        return visit(output)

    # First in line, so that hooks of others, such as those that record hidden states, see the edited output.
    return module.register_forward_hook(hook, prepend=True)


def _watch_input(module: nn.Module, visit: _Visit) -> Any:
    def hook(_module: nn.Module, args: Any, kwargs: Any) -> Any:
        return visit((args, kwargs))

    return module.register_forward_pre_hook(hook, with_kwargs=True)


@contextmanager
def before_forward(model: nn.Module, act: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Call `act` with the keyword arguments of every forward pass of the model while the context is open."""

    def hook(_module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        act(kwargs)

    with model.register_forward_pre_hook(hook, with_kwargs=True, prepend=True):
        yield


@contextmanager
def before_call(module: nn.Module, act: Callable[[nn.Module, Any], Any]) -> Iterator[None]:
    """Call `act(module, (args, kwargs))` before every call of a module while the context is open.

    What it returns, if not `None`, are the arguments that the module gets.
    """

    def hook(_module: nn.Module, args: Any, kwargs: Any) -> Any:
        return act(module, (args, kwargs))

    with module.register_forward_pre_hook(hook, with_kwargs=True):
        yield


@contextmanager
def after_call(module: nn.Module, act: Callable[[nn.Module, Any, Any], Any], *, first: bool = False) -> Iterator[None]:
    """Call `act(module, (args, kwargs), output)` after every call of a module while the context is open.

    What it returns, if not `None`, is what the module returns.

    Args:
        module: any.
        act: to be called.
        first: before the hooks that stand already, not after them.
    """

    def hook(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        return act(module, (args, kwargs), output)

    with module.register_forward_hook(hook, prepend=first, with_kwargs=True):
        yield
