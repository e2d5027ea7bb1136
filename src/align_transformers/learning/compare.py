"""`compare`: several intervenable models of one model on the same data, in the same passes, with paired intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._bar import each
from .._checked import checked
from .._errors import SpecError, UnknownNameError, near_misses
from .._optional import optional
from .._summarised import Summarised, Summary, numbers
from ..compose import Composed, compose
from ..config import IntervenableConfig
from ..engine import Planner, bind, logits_of
from ..interventions import Intervention
from ..models import evaluating
from ..plan import Constant, Edit, Logits, Plan, Run
from ..planners import execute
from ..representations import Representation
from ..subspaces import Choice
from .batches import Batch
from .columns import ColumnRule, Readout, columns_of, rows_of
from .evaluate import PlainAnswers, ScoreSheet, dimensions_of, versions_of
from .forward import Collator, Intervened, Reader, readout
from .held import frozen
from .losses import Measure, iia
from .scores import Scores

if TYPE_CHECKING:
    import pandas

RANDOM = "random"
"""The name of the row of a candidate in a random basis."""


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Summarised, Mapping[str, Scores]):
    """What a comparison found; as a mapping, the scores of each candidate, of the same examples in the same order.

    Args:
        scores: by name of the candidate.
        against: the candidate that the others are compared with in `rows`; `None` for none.
    """

    scores: Mapping[str, Scores]
    against: str | None

    def _summary(self) -> Summary:
        said = f", against {self.against}" if self.against is not None else ""
        return f"Comparison of {len(self.scores)}{said}", ((name, numbers(own)) for name, own in self.scores.items())

    def __getitem__(self, name: str) -> Scores:
        """Return the scores of a candidate."""
        if name not in self.scores:
            raise UnknownNameError(f"no candidate {name!r}; {near_misses(name, self.scores)}")
        return self.scores[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the candidates."""
        return iter(self.scores)

    def __len__(self) -> int:
        """Return the number of candidates."""
        return len(self.scores)

    def rows(self, *, subset: str = "all") -> list[dict[str, Any]]:
        """Return one row for each candidate, metric and mask: the mean and its interval, and those of the difference.

        Args:
            subset: of the examples, `all`, `solved` or `changed`; differences are of all.

        Returns:
            Rows of `name`, `metric`, `mask`, `n`, `mean`, `low`, `high`, and `difference`, `difference_low`,
            `difference_high`: by how much the metric is larger than that of `against`, from paired draws. `None` where
            there is nothing to compare with, and for metrics of whole batches.
        """
        found = []
        for name, scores in self.scores.items():
            for row in scores.rows():
                if row["subset"] == subset:
                    plain = {key: value for key, value in row.items() if key != "subset"}
                    found.append({"name": name, **plain, **self._difference(name, row["metric"], row["mask"])})
        return found

    def to_frame(self, *, subset: str = "all") -> pandas.DataFrame:
        """Return the rows as a `pandas.DataFrame`.

        Args:
            subset: as for `rows`.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        frame: pandas.DataFrame = optional("pandas", extra="tables").DataFrame(self.rows(subset=subset))
        return frame

    def _difference(self, name: str, metric: str, mask: str) -> dict[str, float | None]:
        keys = ("difference", "difference_low", "difference_high")
        scores, other = self.scores[name], None if self.against is None else self.scores[self.against]
        if other is None or name == self.against or metric in scores.whole or metric not in other.numbers["soft"]:
            return dict.fromkeys(keys)
        # One that has no hard version is the same with either mask.
        numbers = other.numbers if mask in other.numbers else {mask: other.numbers["soft"]}
        found = scores.minus(replace(other, numbers=numbers), metric, mask=mask)
        return dict(zip(keys, (found.mean, found.low, found.high), strict=True))


@checked
@torch.no_grad()
def compare(
    candidates: Mapping[str, Intervened],
    loader: Iterable[Any],
    *,
    metrics: Measure | Mapping[str, Measure] = iia,
    positions: ColumnRule = "last",
    random: str | bool = True,
    collator: Collator | None = None,
    planner: Planner | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    progress: Callable[[int, int], None] | bool | None = None,
) -> Comparison:
    """Measure several intervenable models of one model on the same examples.

    A batch is one plan: its bases and sources are run once for all candidates. By default there is one candidate more,
    `"random"`: the first one in a random basis of the same space, the floor that a subspace which was found has to be
    above. A swap of whole vectors is the same in every basis.

    Args:
        candidates: `IntervenableModel`s by name, all of the same model.
        loader: gives batches, as for `evaluate`.
        metrics: as for `evaluate`.
        positions: which logits are read, as for `fit`.
        random: whether there is a random row, or the name of the candidate that it is of.
        collator: makes a batch of what the loader gives.
        planner: as for `execute`.
        resamples: of the bootstrap.
        confidence: of its intervals.
        seed: of its draws, and of the random basis.
        progress: called with the batches done and those in all, as far as that is known; `True` for a bar (rich).

    Returns:
        The scores of each candidate; `rows()` has them, with paired differences from the random row.

    Raises:
        SpecError: there is no candidate, they are of several models, or as for `evaluate`.
        UnknownNameError: `random` names no candidate.

    >>> from align_transformers import IntervenableModel, VanillaIntervention, ZeroIntervention
    >>> mlp = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> def at(kind):
    ...     return IntervenableModel({"component": "1.output", "intervention_type": kind}, mlp)
    >>> base, source = torch.randn(2, 4, 2)
    >>> batch = {"base": base, "sources": source, "labels": mlp(source).argmax(-1)}
    >>> found = compare({"swap": at(VanillaIntervention), "zero": at(ZeroIntervention)}, [batch])
    >>> list(found), found["swap"]["iia"]
    (['swap', 'zero', 'random'], 1.0)
    """
    names = _check(candidates, random)
    versions = {name: versions_of(one) for name, one in candidates.items()}
    made = {name: [_Version.of(mask, one) for mask, one in several.items()] for name, several in versions.items()}
    if names:
        made[RANDOM] = [one.turned(seed) for one in made[names[0]]]
    first = next(iter(candidates.values()))
    reader = Reader(first, collator)
    plain, sheets = PlainAnswers(reader, positions), {name: ScoreSheet(metrics) for name in made}
    with frozen(first.model), evaluating(*(k for several in made.values() for one in several for k in one.modules())):
        for item in each(loader, "compare", progress):
            batch = reader.collate(item)
            plain.add(batch)
            for name, mask, read in _read(reader, batch, made, positions, planner):
                sheets[name].add(mask, read)
    dimensions = {name: dimensions_of(candidates[names[0] if name == RANDOM and names else name]) for name in made}
    scores = {
        name: sheet.scores(plain, dimensions[name], resamples, confidence, seed) for name, sheet in sheets.items()
    }
    return Comparison(MappingProxyType(scores), RANDOM if names else None)


def _check(candidates: Mapping[str, Intervened], random: str | bool) -> list[str]:
    """Return the candidate that the random row is of, in a list; an empty one for no such row."""
    if not isinstance(candidates, Mapping) or not candidates:
        raise SpecError(f"candidates are intervenable models by name, at least one; found {candidates!r}")
    if len({id(one.model) for one in candidates.values()}) > 1:
        raise SpecError("the candidates are of several models: only those of one can share its passes")
    if isinstance(random, str) and random not in candidates:
        raise UnknownNameError(f"random names no candidate: {random!r}; {near_misses(random, candidates)}")
    if random and RANDOM in candidates:
        raise SpecError(f"a candidate is called {RANDOM!r}, and so is the random row: give random=False, or rename it")
    return [random if isinstance(random, str) else next(iter(candidates))] if random else []


@dataclass(frozen=True, eq=False)
class _Version:
    """A candidate with one of its masks.

    Args:
        mask: `soft` or `hard`.
        intervened: the candidate.
        representations: where its interventions are.
    """

    mask: str
    intervened: Intervened
    representations: Sequence[Representation]

    @classmethod
    def of(cls, mask: str, intervened: Intervened) -> _Version:
        return cls(mask, intervened, intervened.representations)

    @property
    def config(self) -> IntervenableConfig:
        return self.intervened.config

    def modules(self) -> list[Intervention]:
        return [one.intervention for one in self.representations]

    def turned(self, seed: int) -> _Version:
        """Return the same in a random basis."""
        bases = {one: InRandomBasis(one, seed) for one in dict.fromkeys(self.modules())}
        listed = [replace(one, intervention=bases[one.intervention]) for one in self.representations]
        return replace(self, representations=listed)


class InRandomBasis(Intervention):
    """An intervention that is made in a random orthonormal basis of the space of its vectors.

    Args:
        inner: what is done there.
        seed: of the basis.
    """

    def __init__(self, inner: Intervention, seed: int) -> None:
        super().__init__(keep_last_dim=inner.keep_last_dim)
        self.inner, self.seed = inner, seed
        self.source_kind = "none" if inner.source_representation is not None else inner.source_kind
        self.source_width = inner.source_width
        self._bases: dict[int, Tensor] = {}

    @property
    def writes(self) -> bool:  # type: ignore[override]  # a fact of what is inside
        """Whether what is inside does."""
        return self.inner.writes

    @property
    def reads_module_input(self) -> bool:  # type: ignore[override]  # a fact of what is inside
        """Whether what is inside does."""
        return self.inner.reads_module_input

    @property
    def repeatable(self) -> bool:  # type: ignore[override]  # a fact of what is inside
        """Whether what is inside is."""
        return self.inner.repeatable

    def forward(self, base: Tensor, source: Tensor | None = None, subspaces: Choice | None = None) -> Tensor:
        """Return the base with what is inside done to it in the basis."""
        basis, wide = self._basis(base), base.float()
        turned = wide @ basis
        if source is not None:
            source = source.to(turned)
            source = source @ basis if source.shape[-1] == len(basis) else source
        new = self.inner(turned, source, subspaces) if subspaces is not None else self.inner(turned, source)
        return (wide + (new - turned) @ basis.T).to(base.dtype)

    def _basis(self, base: Tensor) -> Tensor:
        width = base.shape[-1]
        if width not in self._bases:
            drawn = torch.randn(width, width, generator=torch.Generator().manual_seed(self.seed))
            self._bases[width] = torch.linalg.qr(drawn)[0]
        self._bases[width] = self._bases[width].to(base.device)
        return self._bases[width]


def _read(
    reader: Reader,
    batch: Batch,
    made: Mapping[str, Sequence[_Version]],
    positions: ColumnRule,
    planner: Planner | None,
) -> Iterator[tuple[str, str, Readout]]:
    """Yield what is read of a batch for each candidate and mask; all are runs of one plan."""
    call, labels = reader.call(batch), batch.get("labels")
    runs: list[Run] = []
    inputs, interventions, constants = dict[str, Any](), dict[str, Intervention](), dict[str, Tensor]()
    listed = [(name, one) for name, several in made.items() for one in several]
    for number, (_, one) in enumerate(listed):
        own = replace(Reader(one.intervened).call(batch), base=call.base, sources=call.sources)
        composed = _renamed(compose(one.config, one.representations, own), f"{number} ")
        runs += composed.plan.runs
        inputs.update(composed.inputs)
        constants.update(composed.constants)
        interventions.update(composed.interventions)
    outputs = tuple(f"{number} base" for number in range(len(listed)))
    plan = Plan(tuple(runs), outputs, Logits() if positions == "last" else None)
    outcome = execute(bind(reader.intervened.model, plan, inputs, interventions, constants), planner)
    columns = columns_of(positions, call.base, labels)
    for name, (candidate, one) in zip(outputs, listed, strict=True):
        output = outcome.outputs[name]
        logits = output if positions == "last" else rows_of(logits_of(output), columns, positions)
        yield candidate, one.mask, readout(logits, columns, positions, labels, call.base)


def _renamed(composed: Composed, prefix: str) -> Composed:
    """Return a plan with a prefix before all names, with its inputs, interventions and constants."""

    def renamed(edit: Edit) -> Edit:
        source = edit.source
        if isinstance(source, Constant):
            edit = replace(edit, source=Constant(prefix + source.name))
        edit = edit.reading(lambda read: replace(read, run=prefix + read.run))
        return replace(edit, name=prefix + edit.name, intervention=prefix + edit.intervention)

    runs = []
    for run in composed.plan.runs:
        edits = tuple(map(renamed, run.edits))
        runs.append(replace(run, name=prefix + run.name, input=prefix + run.input, edits=edits))
    plan = Plan(tuple(runs), tuple(prefix + name for name in composed.plan.outputs))
    inputs = {prefix + name: value for name, value in composed.inputs.items()}
    interventions = {prefix + name: value for name, value in composed.interventions.items()}
    constants = {prefix + name: value for name, value in composed.constants.items()}
    return Composed(plan, inputs, interventions, constants)
