"""Edits that stay while other code calls the model: each of its calls is a run of its own, whoever makes it."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from functools import partial, wraps
from typing import Any

from torch import Tensor, nn

from ._errors import NeverFiredError, PlanError
from .compose import Call, Timing, constants_of
from .engine import Bound, Effect, Inputs, batch_size
from .engine.bind import BoundEdit
from .engine.edits import Record, Window, edit_tap
from .engine.generate import clocked
from .engine.hooks import tapped
from .engine.ledger import Tally
from .engine.places import Places
from .engine.run import check_steps
from .models import uncompiled
from .models.calls import (
    TOKENS,
    arguments_given,
    cache_given,
    cache_length,
    caches_returned,
    inputs_given,
    prompt_given,
    tokens_given,
)
from .models.detours import detour
from .models.recomputing import computed_once
from .models.scope import Scope, acting, scope
from .plan import Edit
from .positions import read_steps
from .representations import Representation

_CALL, _FORWARD, _GENERATE = "_call_impl", "forward", "generate"
"""Ways into a model: `model(...)` goes through the first of these methods; a wrapper may call the second itself."""


@dataclass(eq=False)
class _CachedText:
    """What a cache holds: a prompt, the first call's, and the tokens that came after it.

    Args:
        edits: at their places in the prompt.
        batch: examples of the prompt.
        prompt: its columns, and those that the cache held before it.
        done: columns that a pass has worked on.
    """

    edits: Sequence[BoundEdit]
    batch: int
    prompt: int
    done: int = 0


@dataclass(eq=False)
class _ModelCall:
    """One call of the model, under the edits of one context.

    Args:
        inputs: of the model, as far as edits rest on them.
        edits: what is done.
        record: of that.
        text: what its cache holds; `None` for a whole generation, and where it has no tokens.
    """

    inputs: Inputs
    edits: Sequence[BoundEdit]
    record: Record
    text: _CachedText | None = None


@dataclass(eq=False)
class _Total:
    """What one edit did in all calls so far."""

    edit: Edit
    collects: bool
    fired: int = 0
    rows: int = 0
    positions: int = 0
    squares: float = 0.0
    collected: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def add(self, record: Record) -> None:
        """Add what it did in one."""
        name = self.edit.name
        if name in record.tallies:
            counts = record.tallies[name].counts()
            self.fired += counts.fired
            self.rows += int(counts.touched.sum())
            self.positions += int(counts.places.sum())
            self.squares += float(counts.squares.sum())
            self.collected += record.collected.get(name, ())


class AppliedEdits:
    """Edits that act in every call of a model while `IntervenableModel.applied` is open, and what they did so far.

    Args:
        model: the user's.
        bind: makes the edits fit the inputs of a call.
        on_prompt: the tokens of a first pass are edited, too, not only those that are generated after it.

    Attributes:
        calls: how often the model was called: forward passes, and whole generations.
    """

    def __init__(self, model: nn.Module, bind: Callable[[Inputs], Bound], on_prompt: bool) -> None:
        self.calls = 0
        self._model, self._bind, self._on_prompt = model, bind, on_prompt
        self._scope = Scope(lasting=True, holder=self)
        self._totals: dict[str, _Total] = {}
        self._texts: dict[int, tuple[Callable[[], Any], _CachedText]] = {}
        self._lock = threading.Lock()
        self._closed = False

    @property
    def effects(self) -> tuple[Effect, ...]:
        """The ledger: what every edit did, summed over the calls so far; `changes` by example are left out."""
        return tuple(
            Effect(name, str(one.edit.site), one.fired, one.rows, one.positions, one.squares**0.5)
            for name, one in self._totals.items()
        )

    @property
    def collected_activations(self) -> list[list[Tensor]]:
        """For each collecting intervention, in order, one tensor `(rows, units, width)` a firing; zeros at padding."""
        return [[values for values, _ in one.collected] for one in self._totals.values() if one.collects]

    @property
    def collected_masks(self) -> list[list[Tensor]]:
        """For each of these `(rows, units)`, False at padding."""
        return [[real for _, real in one.collected] for one in self._totals.values() if one.collects]

    def in_context(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that runs under the edits in whatever thread it is called: a new thread has no context.

        Args:
            function: such as `model.generate`, for a thread beside the one that reads from a streamer.

        Raises:
            PlanError: when it is called, the edits are no longer applied.
        """
        context = copy_context()

        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            if self._closed:
                raise PlanError("the edits are no longer applied: wait for the thread before the context is left")
            return context.copy().run(function, *args, **kwargs)

        return run

    def _through(self, way: str, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a method of the model under all edits that are applied to it here, and are not part of this call yet."""
        model = self._model
        # The last of them begins the call for all, so that their hooks stand in one line.
        waiting = _waiting(model, way) if _applied_to(model)[-1] is self else []
        if not waiting:
            return method(*args, **kwargs)
        given = arguments_given(method if way == _GENERATE else model.forward, args, kwargs)
        calls = [edits._begin(given, way == _GENERATE) for edits in waiting]
        taps = [edit_tap(call.record, edit) for call in calls for edit in call.edits]
        try:
            with ExitStack() as stack:
                stack.enter_context(scope(Scope(of=tuple(edits._scope for edits in waiting), holder=way)))
                stack.enter_context(computed_once(model, (tap.slot.module for tap in taps)))
                restart = stack.enter_context(tapped(taps))
                for call in calls if way == _GENERATE else ():
                    stack.enter_context(clocked(call.record, model, call.inputs, restart))
                output = method(*args, **kwargs)
            for edits, call in zip(waiting, calls, strict=True):
                check_steps(call.record, [edit.edit.name for edit in call.edits], call.inputs)
                edits._keep(call, [one for one in (cache_given(given), *caches_returned(output)) if one is not None])
        finally:
            for edits, call in zip(waiting, calls, strict=True):
                edits._end(call)
        return output

    @contextmanager
    def _open(self) -> Iterator[AppliedEdits]:
        try:
            with scope(self._scope), ExitStack() as stack:
                for way in (_CALL, _FORWARD, _GENERATE):
                    if callable(getattr(self._model, way, None)):
                        stack.enter_context(detour(self._model, way, partial(partial, self._through, way)))
                yield self
        finally:
            self._closed = True
            self._texts.clear()
        self._check_fired()

    def _check_fired(self) -> None:
        if not self.calls:
            raise NeverFiredError(
                f"the {type(self._model).__name__} was not called while edits were applied to it: they act in the "
                "thread or task that applied them, in others through edits.in_context(function)"
            )
        silent = [str(one.edit.site) for one in self._totals.values() if not one.positions]
        if silent:
            raise NeverFiredError(
                f"never reached in {self.calls} calls of the model: {'; '.join(silent)}. The module was not called, or "
                "no token came by that is edited, so nothing was changed"
            )

    # --- one call -----------------------------------------------------------------------------------------------------

    def _begin(self, given: Mapping[str, Any], generates: bool) -> _ModelCall:
        """Return what a call with these arguments is edited by, before anything of it is run."""
        cache = cache_given(given)
        text = None if generates else self._known(cache)
        if text is None:
            inputs = prompt_given(self._model, given) if generates else inputs_given(given)
            edits: Sequence[BoundEdit] = tuple(self._bind(inputs).edits.values())
            start, tokens = (0, None) if generates else (cache_length(cache), tokens_given(given))
            if start:  # columns of somebody else's stand before the prompt
                edits = [replace(edit, places=_behind(edit.places, start)) for edit in edits]
            if tokens is not None:
                text = _CachedText(edits, batch_size(inputs), start + int(tokens.shape[1]), start)
            if not start:
                seen = edits if generates or self._on_prompt else ()
                return self._noted(_ModelCall(inputs, seen, Record({}), text), edits)
        assert text is not None
        return self._noted(_going_on(text, given, cache), text.edits)

    def _noted(self, call: _ModelCall, edits: Sequence[BoundEdit]) -> _ModelCall:
        call.record.tallies.update((edit.edit.name, Tally()) for edit in call.edits)
        with self._lock:
            for edit in edits:
                self._totals.setdefault(edit.edit.name, _Total(edit.edit, not edit.intervention.writes))
        return call

    def _end(self, call: _ModelCall) -> None:
        """Count what was done, also in a call that failed."""
        with self._lock:
            self.calls += 1
            for total in self._totals.values():
                total.add(call.record)

    def _known(self, cache: Any) -> _CachedText | None:
        """Return the text that a cache holds, if it was made in a call under these edits and not emptied since."""
        held, text = self._texts.get(id(cache), (None, None))
        return text if held is not None and held() is cache and cache_length(cache, 1) else None

    def _keep(self, call: _ModelCall, caches: Sequence[Any]) -> None:
        """Remember which caches hold a text, without holding on to them."""
        text = call.text
        if text is None:
            return
        if not text.done:
            text.prompt = text.done = max([text.prompt, *map(cache_length, caches)])
        for cache in caches:
            try:
                held: Callable[[], Any] = weakref.ref(cache, partial(self._texts.pop, id(cache)))
            except TypeError:  # a tuple, which knows of no weak references
                held = partial(lambda kept: kept, cache)
            self._texts[id(cache)] = held, text


def _waiting(model: nn.Module, way: str) -> list[AppliedEdits]:
    """Return the edits that a call of the model begins a run of, in the order in which they were applied.

    A generation calls the model for its steps, and the model its own `forward`: these are parts of the same call.
    """
    within = [call for call in acting() if call.of and (way == _FORWARD or call.holder == _GENERATE)]
    return [edits for edits in _applied_to(model) if not any(edits._scope in call.of for call in within)]


def _applied_to(model: nn.Module) -> list[AppliedEdits]:
    """Return the edits that are applied to a model in this context."""
    holders = [one.holder for one in acting()]
    return [one for one in holders if isinstance(one, AppliedEdits) and one._model is model]


def _going_on(text: _CachedText, given: Mapping[str, Any], cache: Any) -> _ModelCall:
    """Return a call that goes on with a text.

    Raises:
        PlanError: it has other examples than the text, and the edits are of single ones; or no tokens.
    """
    tokens = tokens_given(given)
    if tokens is None:
        raise PlanError(f"a call with a cache needs tokens, to know which of the text it is about: one of {TOKENS}")
    rows, length = int(tokens.shape[0]), int(tokens.shape[1])
    repeats, rest = divmod(rows, text.batch)
    if rest and any(map(_by_example, text.edits)):
        raise PlanError(
            f"the cache was made of {text.batch} examples and is continued with {rows}, but what is applied differs "
            "between examples (heads, subspaces or a constant source)"
        )
    start = cache_length(cache, text.done)
    window = Window(start, length, text.done, text.prompt, 1 if rest else repeats)
    text.done = max(text.done, start + length)
    return _ModelCall({"input_ids": tokens}, text.edits, Record({}, window=window), text)


def _by_example(edit: BoundEdit) -> bool:
    """Whether an edit of a generated token is not the same for all examples."""
    channels, constant = edit.places.channels, edit.constant
    wide = constant is not None and constant.ndim > 2 and constant.shape[0] > 1
    return wide or edit.edit.subspace is not None or (channels is not None and channels.ndim > 1)


def _behind(places: Places, columns: int) -> Places:
    """Return places that stand so many columns further on."""
    if places.index is None or not places.reach:
        return places
    return replace(places, index=places.index + columns, reach=places.reach + columns, column=None)


# --- for users --------------------------------------------------------------------------------------------------------


def applied(
    intervenable: Any,
    unit_locations: Any = None,
    source_representations: Any = None,
    subspaces: Any = None,
    *,
    intervene_on_prompt: bool = True,
    steps: int | Sequence[int] | str | None = None,
) -> AbstractContextManager[AppliedEdits]:
    """Let the interventions act in every call of the model, whoever makes it, while the context is open.

    For code that calls the model by itself: an evaluation harness, a pipeline, `Trainer.evaluate`, a loop of one's own.
    Each forward pass and each whole generation is a run of its own: locations are looked up in its inputs, so that
    batches of any size and length go with `-1`, with slices, or with nothing said. A forward pass that is handed the
    cache of an earlier one goes on with its text: its tokens are generated tokens. (A copy of a cache is a new one.)
    The edits act in the thread or asyncio task that opened the context, and in tasks that it starts. Contexts in one
    another act in the order in which they were opened; runs of an `IntervenableModel` in here see the edited model.

    Args:
        intervenable: the model with its interventions; as a method, `intervenable.applied(...)`.
        unit_locations: as for `forward`, but of the base alone; locations written out for each example fit calls with
            that many examples only. In a generation they are places of the prompt.
        source_representations: as for `forward`: an intervention that takes its value from a source has to have it
            here, since calls of the model bring no sources.
        subspaces: as for `forward`.
        intervene_on_prompt: edit the tokens of a first pass; otherwise only those that are generated after it.
        steps: which generated tokens to edit, as for `generate`. Default: all, unless `unit_locations` name positions.

    Returns:
        A context manager. It gives what tells of the edits: `effects`, the ledger; `collected_activations` and
        `collected_masks`; `in_context`, which takes a function along into another thread.

    Raises:
        PlanError: an intervention needs a source run; or the model is compiled. Locations that do not fit a call are an
            error in that call, before it is run.
        NeverFiredError: when the context is left, and not by an exception: an edit was reached in no call.

    >>> import torch
    >>> from align_transformers import AdditionIntervention, IntervenableModel
    >>> mlp = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    >>> spec = {"component": "0.output", "intervention": AdditionIntervention(source_representation=torch.ones(4))}
    >>> with IntervenableModel(spec, mlp).applied() as edits:
    ...     steered = mlp(torch.zeros(5, 3))
    >>> torch.equal(steered, (mlp[0].bias + 1).relu().expand(5, 4)), edits.effects[0].fired, edits.effects[0].rows
    (True, 1, 5)
    """
    model, listed = intervenable.model, intervenable.representations
    _check_compiled(model)
    _check_sources(listed, constants_of(source_representations, listed))
    named = unit_locations is not None and any(one.addressed.unit != "h" for one in listed)
    timing = Timing(intervene_on_prompt, read_steps(steps, () if named and intervene_on_prompt else "all"))
    if intervenable.config.mode == "parallel" and not isinstance(unit_locations, Mapping):
        unit_locations = {"base": unit_locations}
    call = Call(None, None, unit_locations, source_representations, subspaces, timing)
    edits = AppliedEdits(model, lambda inputs: intervenable._bind(replace(call, base=inputs)), intervene_on_prompt)
    return edits._open()


def _check_compiled(model: nn.Module) -> None:
    """Refuse a model whose code does not see edits that are applied later."""
    if uncompiled(model) is not model or any(module._compiled_call_impl is not None for module in model.modules()):
        raise PlanError(
            f"{type(model).__name__} is compiled, and compiled code does not see edits that are applied later: apply "
            "them to the model as it was before torch.compile, and call that"
        )


def _check_sources(representations: Sequence[Representation], constants: Mapping[str, Tensor]) -> None:
    """Refuse interventions that would need a source run in every call."""
    for one in representations:
        if one.intervention.source_kind in ("run", "constant") and one.key not in constants:
            raise PlanError(
                f"{type(one.intervention).__name__} at {one.site} needs a source, and calls of the model bring none: "
                "give source_representations=..., such as activations collected before, or an instance constructed "
                "with source_representation="
            )
