"""The one file that registers hooks. All of a pass stand before it starts, and exactly those are removed after."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..models import Slot, find_leaf, replace_leaf

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
                    container = replace_leaf(container, leaf, new)
        return container


@contextmanager
def tapped(taps: Sequence[Tap]) -> Iterator[Callable[[], None]]:
    """Hold the hooks of one pass.

    Args:
        taps: what to do where; taps at the same side of the same module act in this order.

    Yields:
        A function that sets all call counts back to 0: a new forward pass begins.
    """
    groups: dict[tuple[int, str], list[Tap]] = {}
    for tap in taps:
        groups.setdefault((id(tap.slot.module), tap.slot.side), []).append(tap)
    visits = [_Visit(group) for group in groups.values()]

    def restart() -> None:
        for visit in visits:
            visit.calls = 0

    with ExitStack() as stack:
        for visit in visits:
            slot = visit.taps[0].slot
            register = _watch_output if slot.side == "output" else _watch_input
            stack.enter_context(register(slot.module, visit))
        yield restart


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
