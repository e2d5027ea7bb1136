"""The hooks of a pass. All of them stand before it starts, and exactly those are removed after."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from torch import nn

from ..models import Slot, find_leaf, replace_leaf
from ..models.inside_attention import Visit, Visits, around_attention, attend
from ..models.inside_experts import around_experts, consult, inside_router
from ..models.interfaces import Around
from ..models.recurrent_cells import by_cells
from ..models.scope import Scope, after_call, before_call, hook_after, hook_before, innermost
from ..models.shown import Act, WithBatchAxis, head_shares, scaled
from ..models.slot import Leaf


class Tap(NamedTuple):
    """One thing to do at one slot."""

    slot: Slot
    act: Act


class _ModuleVisit:
    """The taps of one side of one module, and how often it has been called."""

    def __init__(self, taps: Sequence[Tap]) -> None:
        self.taps = taps
        self.calls = 0

    def __call__(self, container: Any) -> Any:
        """Return the container with every tap's leaf replaced; the same object where nothing was written."""
        call, self.calls = self.calls, self.calls + 1
        owned: Leaf | None = None  # where in the container a tensor of ours is
        for slot, act in self.taps:
            if slot.call is None or slot.call == call:
                leaf, tensor = find_leaf(container, slot.leaf, slot)
                new = act(tensor, call, leaf == owned)
                if new is not None:
                    container, owned = replace_leaf(container, leaf, new), leaf
                    for place in slot.also:
                        container = replace_leaf(container, place, new)
        return container

    @contextmanager
    def after(self, taps: Sequence[Tap]) -> Iterator[None]:
        """Act after some other taps while the context is open."""
        own = self.taps
        self.taps = [*taps, *own]
        try:
            yield
        finally:
            self.taps = own

    def hold(self) -> Callable[[], None]:
        """Stand at the module, and return what ends that."""
        slot = self.taps[0].slot
        if slot.side == "output":
            # First in line, so that hooks of others, such as those that record hidden states, see the edited output.
            return hook_after(slot.module, self._after, first=True)
        return hook_before(slot.module, self._before)

    def _after(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        return self(output)

    def _before(self, _module: nn.Module, args: Any, kwargs: Any) -> Any:
        return self((args, kwargs))


@contextmanager
def tapped(taps: Sequence[Tap]) -> Iterator[Callable[[], None]]:
    """Hold the hooks of one pass.

    In a call of a model under edits that stay, which is a part of a pass, the taps stand in one line with those of the
    pass, before them: the pass sees the model as it is under those edits.

    Args:
        taps: what to do where; taps at the same side of the same module act in this order.

    Yields:
        A function that sets all call counts back to 0: a new forward pass begins.
    """
    with ExitStack() as stack:
        groups: dict[tuple[int, str, str], list[Tap]] = {}
        fused: dict[int, nn.Module] = {}
        for tap in taps:
            slot = tap.slot
            if slot.scale != 1.0:
                tap = Tap(slot, scaled(tap.act, slot.scale))
            if slot.around is not None:
                shown = WithBatchAxis(tap.act)
                stack.enter_context(before_call(slot.around, shown.note))
                tap = Tap(slot, shown.act)
            if slot.fused is not None:
                fused[id(slot.fused)] = slot.fused
            groups.setdefault((id(slot.module), slot.side, slot.via), []).append(tap)
        for module in fused.values():
            stack.enter_context(by_cells(module))
        line = _held_here()
        new = {key: _ModuleVisit(group) for key, group in groups.items() if key not in line.visits}
        for key in groups.keys() - new.keys():
            stack.enter_context(line.visits[key].after(groups[key]))
        inside: dict[int, dict[str, Visit]] = {}
        ends: list[Callable[[], None]] = []
        stack.callback(_end, ends)
        for visit in new.values():
            slot = visit.taps[0].slot
            if slot.via == "module":
                ends.append(visit.hold())
            elif slot.via == "router_output":
                stack.enter_context(inside_router(slot.module, visit))
            elif slot.via == "head_contribution":
                stack.enter_context(after_call(slot.module, head_shares(slot, visit), first=True))
            else:
                inside.setdefault(id(slot.module), {})[slot.via] = visit
        if line.inside:
            stack.enter_context(_joined(line.inside, inside))
        elif inside:
            stack.enter_context(_inside_interfaces(inside))
        stack.enter_context(_holding(_HeldTaps(innermost(), {**line.visits, **new}, line.inside or inside)))
        yield partial(_restart, [visit for key, visit in {**line.visits, **new}.items() if key in groups])


@dataclass(frozen=True, eq=False)
class _HeldTaps:
    """What stands where in a pass.

    Args:
        scope: of the pass.
        visits: by module, side and way in.
        inside: those of them that stand inside attention and experts, by `id` of the module.
    """

    scope: Scope | None = None
    visits: Mapping[tuple[int, str, str], _ModuleVisit] = field(default_factory=dict)
    inside: dict[int, dict[str, Visit]] = field(default_factory=dict)


_held_taps: ContextVar[_HeldTaps | None] = ContextVar("_held_taps", default=None)


def _held_here() -> _HeldTaps:
    """Return what stands in the pass of which this is a call; an empty line for a pass of its own."""
    line = _held_taps.get()
    return line if line is not None and innermost().of and line.scope is not None and line.scope.acts else _HeldTaps()


@contextmanager
def _holding(line: _HeldTaps) -> Iterator[None]:
    before = _held_taps.get()
    _held_taps.set(line)
    try:
        yield
    finally:
        _held_taps.set(before)


@contextmanager
def _joined(standing: dict[int, dict[str, Visit]], new: Mapping[int, Mapping[str, Visit]]) -> Iterator[None]:
    """Let more stand inside attention and experts while the context is open."""
    before = {module: dict(visits) for module, visits in standing.items()}
    for module, visits in new.items():
        standing[module] = {**standing.get(module, {}), **visits}
    try:
        yield
    finally:
        standing.clear()
        standing.update(before)


def _end(held: Sequence[Callable[[], None]]) -> None:
    for end in reversed(held):
        end()


def _restart(visits: Sequence[_ModuleVisit]) -> None:
    for visit in visits:
        visit.calls = 0


@contextmanager
def _inside_interfaces(visits: Mapping[int, Visits]) -> Iterator[None]:
    """Let the modules asked for show what is inside them while the context is open.

    Args:
        visits: by `id` of the attention or experts module.
    """

    def visited(go: Callable[..., Any]) -> Around:
        def call(
            function: Callable[..., Any],
            default: Callable[..., Any],
            module: nn.Module,
            inputs: tuple[Any, ...],
            options: dict[str, Any],
        ) -> Any:
            asked = visits.get(id(module))
            if asked is None:
                return function(module, *inputs, **options)
            return go(asked, function, default, module, *inputs, **options)

        return call

    with around_attention(visited(attend)), around_experts(visited(consult)):
        yield


# --- passes that are not as the model wrote them ----------------------------------------------------------------------


class Stopped(BaseException):
    """Raised inside a pass that has gone as far as it needs to; never seen by a user."""


@contextmanager
def stopping(module: nn.Module, *, before: bool) -> Iterator[None]:
    """End every pass at a module while the context is open, by raising `Stopped`.

    Args:
        module: no further than this.
        before: before it is called rather than after.
    """
    with before_call(module, _stop) if before else after_call(module, _stop):
        yield


def _stop(*_: Any) -> None:
    raise Stopped
