"""`evaluate`: how often the intervened model says what the causal model says, and how sure that is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from .._bar import each
from .._checked import checked
from .._errors import SpecError
from ..engine import Inputs, batch_size
from ..interventions import Intervention, TrainableIntervention
from ..models import evaluating
from .batches import Batch
from .columns import ColumnRule, Readout, label_column
from .forward import BatchForward, Collator, Intervened, MemoryRule, Reader, forward_with, memory_of
from .held import frozen
from .losses import ComputeMetrics, Measure, iia, measure_of, numbers_of, per_example
from .scores import Scores

_OPTIONAL = ("base_labels", "source_labels")
"""Label columns that a batch may have or not, but then every batch."""


@checked
@torch.no_grad()
def evaluate(
    intervened: Intervened,
    loader: Iterable[Any],
    *,
    metrics: Measure | Mapping[str, Measure] = iia,
    positions: ColumnRule = "last",
    collator: Collator | None = None,
    forward: BatchForward | None = None,
    memory: MemoryRule = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    progress: Callable[[int, int], None] | bool | None = None,
) -> Scores:
    """Measure an alignment on data that it was not fitted to.

    Where an intervention has a hard version (a mask), everything is measured with the soft and with the hard one. With
    a column `base_labels` the scores also tell the trivial share: examples whose counterfactual label is the base's;
    and the model is run plainly, to tell the examples whose base (and with `source_labels` whose sources) it solves.
    Either column is in every batch, or in none. Model and interventions are in eval mode meanwhile.

    Args:
        intervened: an `IntervenableModel`.
        loader: gives batches; their columns are explained in `learning.batches`.
        metrics: `(logits, labels)` -> one number a row, one for the batch, or a dict of these; or several by name.
        positions: which logits are read, as for `fit`.
        collator: makes a batch of what the loader gives.
        forward: how a batch is run with soft masks; default: as `memory` says.
        memory: where what the model makes of each example below the interventions is kept, for the same example in
            another batch, and for the hard masks: `True` for a new one, `"auto"` for one if examples of the loader
            repeat; default: none.
        resamples: of the bootstrap.
        confidence: of its intervals.
        seed: of its draws.
        progress: called with the batches done and those in all, as far as that is known; `True` for a bar (rich).

    Returns:
        The scores of every example.

    Raises:
        SpecError: the loader is empty, a batch lacks a column or has one that other batches lack, or label columns have
            shapes that cannot be compared.
    """
    kept = memory_of(memory, Reader(intervened, collator), loader)
    versions = versions_of(intervened)
    readers = {mask: Reader(one, collator, forward_with(one, kept)) for mask, one in versions.items()}
    if forward is not None:
        readers["soft"] = Reader(intervened, collator, forward)
    sheet, plain = ScoreSheet(metrics), PlainAnswers(readers["soft"], positions)
    with frozen(intervened.model), evaluating(*modules_of(versions.values())):
        for item in each(loader, "evaluate", progress):
            batch = readers["soft"].collate(item)
            plain.add(batch)
            for mask, reader in readers.items():
                sheet.add(mask, *reader.read(batch, positions))
    return sheet.scores(plain, dimensions_of(intervened), resamples, confidence, seed)


def evaluate_call(
    intervened: Intervened,
    loader: Iterable[Any] | None,
    compute_metrics: ComputeMetrics | None,
    collator: Collator | None,
    options: Mapping[str, Any],
) -> Scores:
    """Carry out `intervenable.evaluate(eval_dataloader=..., ...)`; the arguments are those of `fit_call`."""
    if loader is None:
        raise SpecError("evaluate needs data: eval_dataloader=...")
    given = {"positions": "last" if compute_metrics is None else "all", **options}
    return evaluate(intervened, loader, metrics=measure_of(compute_metrics), collator=collator, **given)


def versions_of(intervened: Intervened) -> dict[str, Intervened]:
    """Return by mask what is measured: `soft` as it is, and `hard` where an intervention has a hard version."""
    return {"soft": intervened, **({"hard": intervened.hardened()} if dimensions_of(intervened) else {})}


def modules_of(several: Iterable[Intervened]) -> list[Intervention]:
    """Return all interventions of some intervenable models."""
    return [one for intervened in several for one in intervened.interventions.values()]


def dimensions_of(intervened: Intervened) -> dict[str, int]:
    """Return by key how many dimensions the hard version of an intervention works in."""
    learned = {k: one for k, one in intervened.interventions.items() if isinstance(one, TrainableIntervention)}
    return {key: one.dimensions for key, one in learned.items() if one.dimensions is not None}


class ScoreSheet:
    """The numbers of one intervenable model, batch by batch.

    Args:
        metrics: as for `evaluate`.
    """

    def __init__(self, metrics: Measure | Mapping[str, Measure]) -> None:
        named = metrics if isinstance(metrics, Mapping) else {getattr(metrics, "__name__", "metric"): metrics}
        self._measures: Mapping[str, Measure] = named
        self._whole: set[str] = set()
        self._found: dict[str, dict[str, list[Tensor]]] = {}

    def add(self, mask: str, read: Readout) -> None:
        """Add a batch's numbers; note the metrics that gave one number for all of it.

        Raises:
            SpecError: the batch has no labels, or the metrics gave other names than before.
        """
        if read.labels is None:
            raise SpecError("the batch has no column 'labels', which the metrics compare with")
        measured = (per_example(measure, read, name) for name, measure in self._measures.items())
        numbers = {key: one for found in measured for key, one in found.items()}
        found = self._found.setdefault(mask, {})
        if found and numbers.keys() != found.keys():
            odd = ", ".join(map(repr, sorted(numbers.keys() ^ found.keys())))
            raise SpecError(f"the metrics gave {odd} for some batches only; give it for every batch")
        for key, one in numbers.items():
            found.setdefault(key, []).append(one.values.float().cpu())
            if one.whole:
                self._whole.add(key)

    def scores(
        self, plain: PlainAnswers, dimensions: Mapping[str, int], resamples: int, confidence: float, seed: int
    ) -> Scores:
        """Return the scores of all batches.

        Raises:
            SpecError: there was none.
        """
        if not self._found:
            raise SpecError("the loader is empty")
        values = {mask: {name: torch.cat(parts) for name, parts in one.items()} for mask, one in self._found.items()}
        facts, hard = (plain.solved(), plain.changed()), MappingProxyType(dict(dimensions))
        return Scores(MappingProxyType(values), frozenset(self._whole), *facts, hard, resamples, confidence, seed)


class PlainAnswers:
    """Which examples the plain model solves, and which have a counterfactual label other than the base's.

    Args:
        reader: runs the plain model.
        positions: which logits are read.
    """

    def __init__(self, reader: Reader, positions: ColumnRule) -> None:
        self._reader = reader
        self._where: ColumnRule = "last" if positions == "all" else positions
        self._told: Collection[str] | None = None
        self._solved: list[Tensor] = []
        self._changed: list[Tensor] = []

    def solved(self) -> Tensor | None:
        """Return which examples the model answers right, base and sources; `None` where nothing tells."""
        return torch.cat(self._solved) if self._solved else None

    def changed(self) -> Tensor | None:
        """Return which examples have another label than their base; `None` where nothing tells."""
        return torch.cat(self._changed) if self._changed else None

    def add(self, batch: Batch) -> None:
        """Look at a batch, if it tells what the plain model should say.

        Raises:
            SpecError: label columns cannot be compared, or are in some batches only.
        """
        self._told = _told(batch, self._told)
        if batch.get("base_labels") is None:
            return
        reader, where = self._reader, self._where
        call = reader.call(batch)
        count = batch_size(call.base)
        labels, base_labels = (label_column(name, batch[name], where, count) for name in ("labels", "base_labels"))
        if labels.shape != base_labels.shape:
            raise SpecError(
                "'labels' and 'base_labels' are compared with each other, so they need one shape; found "
                f"{tuple(labels.shape)} and {tuple(base_labels.shape)}"
            )
        solved = _solves(reader, call.base, base_labels, where)
        for source, wanted in _sources(call.sources, batch.get("source_labels"), where):
            solved = solved & _solves(reader, source, wanted, where)  # a single source is every example's
        different = labels.cpu() != base_labels.cpu()
        self._solved.append(solved)
        self._changed.append(different if different.ndim == 1 else different.any(-1))


def _told(batch: Batch, before: Collection[str] | None) -> Collection[str]:
    """Return which optional label columns a batch has.

    Args:
        batch: the columns.
        before: those of the batches before it; `None` for the first.

    Raises:
        SpecError: the batches before it had others: what a column tells would be of some examples only.
    """
    told = {name for name in _OPTIONAL if batch.get(name) is not None}
    if before is not None and told != before:
        names = sorted(told ^ set(before))
        raise SpecError(
            f"{', '.join(map(repr, names))} is in some batches only, so shares of all examples cannot be told: give it "
            "in every batch or in none, or evaluate them one after the other"
        )
    return told


def _solves(reader: Reader, inputs: Inputs, labels: Tensor, where: ColumnRule) -> Tensor:
    """Return for each example whether the plain model says its labels, all of them."""
    return numbers_of(iia, reader.plain(inputs, labels, where), "solved").cpu() == 1


def _sources(sources: Any, labels: Any, where: ColumnRule) -> Sequence[tuple[Inputs, Tensor]]:
    """Return each source with what the plain model should say of it.

    Raises:
        SpecError: there are not as many of one as of the other, or a column has another shape.
    """
    if labels is None or sources is None:
        return ()
    listed = list(sources) if isinstance(sources, list | tuple) else [sources]
    if isinstance(labels, list | tuple) and all(isinstance(one, Tensor) for one in labels):
        columns = list(labels)
    else:
        given = torch.as_tensor(labels)
        several = given.ndim > (2 if where == "labels" else 1) and given.shape[1] == len(listed)
        columns = list(given.unbind(1)) if several else [given]
    if len(columns) != len(listed):
        raise SpecError(f"source_labels has {len(columns)} columns for {len(listed)} sources")
    sized = [(source, column, batch_size(source)) for source, column in zip(listed, columns, strict=True)]
    return [(source, label_column("source_labels", column, where, size)) for source, column, size in sized]
