"""How a batch is run, and which of its logits come back: everything of a fit that runs the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import Tensor, nn

from .._bar import each
from .._checked import checked
from .._errors import SpecError
from ..compose import Call, Composed, compose
from ..config import IntervenableConfig
from ..engine import Inputs, batch_size, bind, execute, logits_of, logits_stack
from ..interventions import Intervention
from ..models import resolve, uncompiled
from ..models.added_columns import leading_columns
from ..models.arguments import forward_parameters, without_cache
from ..models.devices import input_device
from ..plan import Logits
from ..planners import HAS_FAST
from ..representations import Representation
from .batches import Batch, read_batch
from .checkpoints import BatchOrder
from .columns import ColumnRule, LogitColumns, Readout, columns_of, labels_at, rows_of
from .held import frozen
from .settings import Settings

if HAS_FAST:
    from ..fast import ActivationCache, Remembered, planned, remembered
    from ..fast.cache import row_keys

MemoryRule = Any
"""Where states of examples are kept: an `ActivationCache`, `True` for a new one, `False`, `"auto"`, or `None`."""

Collator = Callable[[Any], Any]
"""Makes a batch of what a data loader gives: a dict whose columns are explained in `batches`."""


@runtime_checkable
class Intervened(Protocol):
    """What can be aligned: an `IntervenableModel`, or anything with the same names."""

    @property
    def config(self) -> IntervenableConfig:
        """How the representations are combined."""

    @property
    def model(self) -> nn.Module:
        """The user's model."""

    @property
    def representations(self) -> Sequence[Representation]:
        """Where each intervention is."""

    @property
    def interventions(self) -> Mapping[str, Intervention]:
        """Each intervention, by key."""

    def __call__(
        self, base: Any, sources: Any = ..., unit_locations: Any = ..., *, subspaces: Any = ..., return_dict: Any = ...
    ) -> Any:
        """Return the plain output (or `None`) and the counterfactual one."""

    def hardened(self) -> Intervened:
        """Return the same with every intervention as it is to be used after a fit."""


@dataclass(frozen=True, eq=False)
class LogitRequest:
    """What is wanted of one batch: the intervened model's logits at some columns.

    Args:
        batch: the batch as the collator gave it.
        call: the arguments of the call.
        columns: the columns that are read, one row each; `None`: the last, or all.
        where: which rule gave them.
    """

    batch: Batch
    call: Call
    columns: LogitColumns | None
    where: ColumnRule


BatchForward = Callable[[LogitRequest], Tensor]
"""How a batch is run: returns the logits that are read, `(rows, vocab)`, or all where everything is read."""


@final
class FullForward:
    """Run every batch through the whole model, and compute no more logits than are read.

    Args:
        intervened: the intervenable model.
    """

    def __init__(self, intervened: Intervened) -> None:
        self._intervened = intervened

    def __call__(self, request: LogitRequest) -> Tensor:
        """Return the logits that are asked for."""
        call = request.call
        base, columns = fewer_logits(self._intervened.model, call.base, request.columns)
        _, output = self._intervened(
            base, call.sources, call.unit_locations, subspaces=call.subspaces, return_dict=False
        )
        logits = logits_of(output)
        return rows_of(logits, _behind_added(self._intervened.model, base, columns, logits), request.where)


@final
class CachedForward:
    """Run every batch from its first intervention on, and only for the logits at the last real tokens.

    Source activations, and the base's states below the interventions, are kept for each example the first time it is
    met, so the model must not change meanwhile: `fit` freezes it. What cannot be run in part is run in full.

    Args:
        intervened: the intervenable model.
        memory: keeps the states; default: in memory, up to 2 GiB.
    """

    def __init__(self, intervened: Intervened, memory: ActivationCache | None = None) -> None:
        self._intervened = intervened
        self._memory = ActivationCache() if memory is None else memory
        self._full = FullForward(intervened)
        resolve(intervened.model)

    def __call__(self, request: LogitRequest) -> Tensor:
        """Return the logits that are asked for."""
        if request.where != "last":
            return self._full(request)
        face, composed = self._intervened, self._composed(request.call)
        found = self._remembered(composed)
        bound = bind(face.model, found.plan, composed.inputs, composed.interventions, found.constants)
        logits: Tensor = execute(bound, partial(planned, known=found.known)).outputs["base"]
        return logits

    def prepare(self, call: Call) -> None:
        """Keep what is needed of a batch, without running it."""
        self._remembered(self._composed(call))

    def _remembered(self, composed: Composed) -> Remembered:
        model = self._intervened.model
        return remembered(model, composed.plan, composed.inputs, composed.constants, self._memory)

    def _composed(self, call: Call) -> Composed:
        composed = compose(self._intervened.config, self._intervened.representations, call)
        return replace(composed, plan=replace(composed.plan, logits=Logits()))


def forward_of(
    intervened: Intervened, settings: Settings, memory: MemoryRule, loader: Iterable[Any], collator: Collator | None
) -> BatchForward:
    """Return how a fit runs its batches: from the interventions on, if what lies below them is needed again.

    Args:
        intervened: the intervenable model.
        settings: how often the data is gone through, and whether blocks are computed again in the backward pass.
        memory: what the caller of `fit` says.
        loader: the data.
        collator: makes a batch of what the loader gives.
    """
    batches = len(loader) if isinstance(loader, Sized) else None
    again = settings.epochs > 1 and (batches is None or settings.steps(batches) * settings.accumulate > batches)
    if memory in (None, "auto") and settings.gradient_checkpointing:
        memory = False
    elif memory is None:
        memory = again
    return forward_with(intervened, memory_of(memory, Reader(intervened, collator), loader, again=again))


def forward_with(intervened: Intervened, memory: ActivationCache | None) -> BatchForward:
    """Return how batches are run with a memory, or without one: a planner that is named runs them as it says."""
    said = getattr(intervened, "planner", None)
    if memory is None or (said is not None and said is not planned):
        return FullForward(intervened)
    return CachedForward(intervened, memory)


def memory_of(
    memory: MemoryRule, reader: Reader, loader: Iterable[Any], *, again: bool = False
) -> ActivationCache | None:
    """Return the memory that a caller asks for, if there can be one.

    Args:
        memory: the caller's word for it.
        reader: makes calls of batches.
        loader: the data.
        again: the data is gone through more than once.

    Raises:
        SpecError: it is no memory.
    """
    plain = memory is None or isinstance(memory, bool) or (isinstance(memory, str) and memory == "auto")
    if not plain and not (HAS_FAST and isinstance(memory, ActivationCache)):
        raise SpecError(f"memory is an ActivationCache, True, False or 'auto'; found {memory!r}")
    if not HAS_FAST or memory is None or memory is False:
        return None
    if plain and memory == "auto" and not repeats(reader, loader, 2 if again else 1):
        return None
    if not isinstance(memory, ActivationCache):
        return ActivationCache(alone=True)
    memory.take_up(reader.intervened.model)
    return memory


_LOOKED_AT = 64  # batches of a pass over a loader: that of 2,000 examples none comes again is no chance


def repeats(reader: Reader, loader: Iterable[Any], passes: int) -> bool:
    """Whether an example of a loader comes again: the same base, or the same source, by its contents.

    The model is not run, and the generators of random numbers are put back. What can be gone through only once is left
    alone, and not taken to repeat.

    Args:
        reader: makes calls of batches.
        loader: gives batches; no more than the first 64 of a pass are looked at.
        passes: over it.
    """
    order = BatchOrder.of(loader)
    before, seen = order.now(), set[bytes]()
    try:
        for _ in range(passes):
            batches = iter(loader)
            if batches is loader:
                return False
            for item in islice(batches, _LOOKED_AT):
                call = reader.call(reader.collate(item))
                sources = call.sources if isinstance(call.sources, list | tuple) else [call.sources]
                keys = [key for one in sources if one is not None for key in row_keys(one, "source")]
                keys += row_keys(call.base, "base")
                if len(seen | set(keys)) < len(seen) + len(keys):
                    return True
                seen.update(keys)
    finally:
        order.set(before)
    return False


@final
class Reader:
    """From a batch to the logits that are read.

    Args:
        intervened: the intervenable model.
        collator: makes a batch of what the data loader gives.
        forward: how a batch is run; default: the whole model, each time.
    """

    def __init__(
        self, intervened: Intervened, collator: Collator | None = None, forward: BatchForward | None = None
    ) -> None:
        self.intervened = intervened
        self._collator = collator
        self._forward = forward or FullForward(intervened)

    def collate(self, batch: Any) -> Batch:
        """Return the batch that a data loader's item stands for.

        Raises:
            SpecError: it is no dict.
        """
        found = batch if self._collator is None else self._collator(batch)
        if not isinstance(found, Mapping):
            raise SpecError(
                f"a batch is a dict of columns; found {type(found).__name__}: pass a collator that makes one"
            )
        return found

    def call(self, batch: Batch) -> Call:
        """Return the arguments of the call that a batch asks for."""
        return read_batch(batch, self.intervened.model, self.intervened.config, self.intervened.representations)

    def read(self, batch: Batch, *wheres: ColumnRule) -> list[Readout]:
        """Run a batch once with the interventions, and return what is read by each of some rules, with the labels."""
        call, labels = self.call(batch), batch.get("labels")
        if len(set(wheres)) == 1:
            columns = columns_of(wheres[0], call.base, labels)
            logits = self._forward(LogitRequest(batch, call, columns, wheres[0]))
            return [readout(logits, columns, wheres[0], labels, call.base)] * len(wheres)
        logits = self._forward(LogitRequest(batch, call, None, "all"))
        found = [(where, columns_of(where, call.base, labels)) for where in wheres]
        return [readout(rows_of(logits, columns, where), columns, where, labels, call.base) for where, columns in found]

    def plain(self, inputs: Inputs, labels: Any, where: ColumnRule) -> Readout:
        """Run an input without interventions, and read it likewise."""
        columns = columns_of(where, inputs, labels)
        lean, places = fewer_logits(self.intervened.model, inputs, columns)
        output = self.intervened.model(lean) if isinstance(lean, Tensor) else self.intervened.model(**lean)
        logits = logits_of(output)
        places = _behind_added(self.intervened.model, lean, places, logits)
        return readout(rows_of(logits, places, where), columns, where, labels, inputs)


@checked
def precompute(
    intervened: Intervened,
    loader: Iterable[Any],
    *,
    collator: Collator | None = None,
    memory: ActivationCache | None = None,
    progress: Callable[[int, int], None] | bool | None = None,
) -> ActivationCache:
    """Keep what a fit on a data set needs of the frozen model: source activations, and the base's unedited states.

    `fit(..., memory=...)` then runs no block below the interventions. It fills a memory by itself, too, as it goes.

    Args:
        intervened: an `IntervenableModel`.
        loader: gives batches, as for `fit`.
        collator: makes a batch of what the loader gives.
        memory: is filled; default: a new one, 2 GiB of memory at most. One with a folder goes on in files.
        progress: called with the batches done and those in all, as far as that is known; `True` for a bar (rich).

    Returns:
        The memory.
    """
    memory = ActivationCache() if memory is None else memory
    memory.take_up(intervened.model)
    reader, forward = Reader(intervened, collator), CachedForward(intervened, memory)
    with frozen(intervened.model):
        for batch in each(loader, "precompute", progress):
            forward.prepare(reader.call(reader.collate(batch)))
    return memory


def fewer_logits(model: nn.Module, base: Inputs, columns: LogitColumns | None) -> tuple[Inputs, LogitColumns | None]:
    """Return an input that asks the model for the logits of some columns only, and where these then stand.

    A model whose `forward` has no `logits_to_keep` gives them all. None keeps keys and values: nothing is generated.
    """
    if not isinstance(base, Mapping):
        return base, columns
    model = uncompiled(model)
    lean = dict(without_cache(model, base))
    if columns is not None and "logits_to_keep" in forward_parameters(model).keys() - base.keys():
        wanted, place = torch.unique(columns.column, return_inverse=True)
        lean["logits_to_keep"] = wanted.to(input_device(model))
        columns = LogitColumns(columns.example, place)
    return lean, columns


def _behind_added(
    model: nn.Module, inputs: Inputs, columns: LogitColumns | None, logits: Tensor
) -> LogitColumns | None:
    """Return columns of tokens as columns of logits, of which a model may have more, such as a soft prompt's."""
    fewer = isinstance(inputs, Mapping) and "logits_to_keep" in inputs
    if columns is None or logits.ndim != 3 or fewer:
        return columns
    lead = leading_columns(uncompiled(model), inputs, int(logits.shape[1]), logits_stack(inputs))
    return LogitColumns(columns.example, columns.column + lead)


def readout(logits: Tensor, columns: LogitColumns | None, where: ColumnRule, labels: Any, base: Inputs) -> Readout:
    """Return logits that were read, with the labels that belong to them.

    Args:
        logits: those that are read.
        columns: where they were read.
        where: which rule said so.
        labels: of the batch.
        base: the base's inputs.
    """
    count = batch_size(base)
    wanted = labels_at(where, columns, labels, count, logits.device)
    example = columns.example if columns is not None and where == "labels" else None
    return Readout(logits, wanted, example, count)
