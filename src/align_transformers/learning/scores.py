"""`Scores`: the result of an evaluation: means with bootstrap intervals, by mask and by subset of the examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .._checked import checked
from .._errors import SpecError, UnknownNameError, near_misses
from .._optional import optional
from .._summarised import Summarised, Summary

if TYPE_CHECKING:
    import pandas

_DRAWN_AT_ONCE = 2_000_000  # numbers of a chunk of resamples


@dataclass(frozen=True)
class Interval:
    """A mean over examples with its bootstrap interval.

    Args:
        mean: the mean.
        low: lower end.
        high: upper end.
        n: number of examples.
    """

    mean: float
    low: float
    high: float
    n: int


@checked
def bootstrap(
    values: Float[Tensor, " examples"], *, resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Return the mean of `values` with its percentile bootstrap interval.

    Equal numbers of examples and equal seeds draw the same examples, so intervals of two metrics are of paired draws.

    Args:
        values: one number an example.
        resamples: how often the examples are drawn again, with replacement.
        confidence: share of the resamples inside the interval.
        seed: of the draws.

    Raises:
        SpecError: there is no example, or `confidence` is not between 0 and 1.

    Efron 1979, doi:10.1214/aos/1176344552.

    >>> bootstrap(torch.ones(20))
    Interval(mean=1.0, low=1.0, high=1.0, n=20)
    """
    count = len(values)
    if count == 0 or not 0 < confidence < 1 or resamples < 1:
        raise SpecError(f"a bootstrap needs examples, resamples and a confidence between 0 and 1; found {count}, "
                        f"{resamples} and {confidence}")  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    known, at_once = values.detach().cpu().double(), max(1, _DRAWN_AT_ONCE // count)
    sizes = [min(at_once, resamples - start) for start in range(0, resamples, at_once)]
    means = [known[torch.randint(count, (rows, count), generator=generator)].mean(1) for rows in sizes]
    tail = (1 - confidence) / 2
    low, high = torch.quantile(torch.cat(means), torch.tensor([tail, 1 - tail], dtype=torch.double)).tolist()
    return Interval(known.mean().item(), low, high, count)


@dataclass(frozen=True, eq=False, repr=False)
class Scores(Summarised, Mapping[str, float]):
    """What an evaluation found; as a mapping, the mean of each metric over all examples, with soft masks.

    Args:
        numbers: by mask (`soft`; `hard` where an intervention has a hard version), then by metric: one an example.
        whole: metrics that gave one number a batch: their means are weighted, and they have no intervals.
        solved: which examples the plain model answers right, base and sources; `None` where nothing tells.
        changed: which examples have a counterfactual label other than the base's; `None` where nothing tells.
        dimensions: by key of the intervention, how many dimensions its hard version works in.
        resamples: of the bootstrap.
        confidence: of its intervals.
        seed: of its draws.
    """

    numbers: Mapping[str, Mapping[str, Float[Tensor, " examples"]]]
    whole: frozenset[str] = frozenset()
    solved: Bool[Tensor, " examples"] | None = None
    changed: Bool[Tensor, " examples"] | None = None
    dimensions: Mapping[str, int] = field(default_factory=dict)
    resamples: int = 1000
    confidence: float = 0.95
    seed: int = 0

    def _summary(self) -> Summary:
        several = len(self.numbers) > 1
        told = [(mask, name, own) for mask, metrics in self.numbers.items() for name, own in metrics.items()]
        facts = [
            (f"{name}, {mask}" if several else name, f"{own.double().mean().item():.3g}{self._around(name, mask)}")
            for mask, name, own in told
        ]
        if self.trivial is not None:
            facts.append(("trivial", f"{self.trivial:.3g} (what an intervention scores that does nothing)"))
        count = max((len(own) for _, name, own in told if name not in self.whole), default=None)
        return f"Scores of {'batches' if count is None else f'{count} examples'}", facts

    def _around(self, name: str, mask: str) -> str:
        """Return a metric's interval, where it has one, for a line of text."""
        if name in self.whole or not len(self.numbers[mask][name]):
            return ""
        found = self.interval(name, mask=mask)
        return f" [{found.low:.3g}, {found.high:.3g}]"

    def __getitem__(self, name: str) -> float:
        """Return the mean of a metric over all examples."""
        if name not in self.numbers["soft"]:
            raise KeyError(f"no metric {name!r}; {near_misses(name, self.numbers['soft'])}")
        return self.numbers["soft"][name].double().mean().item()

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the metrics."""
        return iter(self.numbers["soft"])

    def __len__(self) -> int:
        """Return the number of metrics."""
        return len(self.numbers["soft"])

    @property
    def trivial(self) -> float | None:
        """The share of examples whose counterfactual label is the base's: what an inert intervention scores."""
        return None if self.changed is None else (~self.changed).double().mean().item()

    def interval(self, name: str, *, mask: str = "soft", subset: str = "all") -> Interval:
        """Return a metric's mean and interval over a subset of the examples.

        Args:
            name: the metric.
            mask: `soft` or `hard`.
            subset: `all`, `solved` or `changed`.

        Raises:
            UnknownNameError: there is no such metric, mask or subset.
            SpecError: the metric is of whole batches, or the subset is empty.
        """
        subsets = self._subsets()
        if subset not in subsets:
            raise UnknownNameError(f"no subset {subset!r}; {near_misses(subset, subsets)}")
        values = self._of_examples(name, mask)
        chosen = subsets[subset]
        return self._interval(values if chosen is None else values[chosen.to(values.device)])

    def rows(self) -> list[dict[str, Any]]:
        """Return one row for each metric, mask and subset: `metric`, `mask`, `subset`, `n`, `mean`, `low`, `high`."""
        rows = []
        for mask, metrics in self.numbers.items():
            for name, values in metrics.items():
                for subset, chosen in self._subsets().items():
                    picked = values if chosen is None else values[chosen.to(values.device)]
                    row: dict[str, Any] = {"metric": name, "mask": mask, "subset": subset, "n": len(picked)}
                    if name in self.whole:
                        if chosen is None:
                            rows.append({**row, "mean": picked.double().mean().item(), "low": None, "high": None})
                    elif len(picked):
                        found = self._interval(picked)
                        rows.append({**row, "mean": found.mean, "low": found.low, "high": found.high})
                    else:
                        rows.append({**row, "mean": None, "low": None, "high": None})
        return rows

    def to_frame(self) -> pandas.DataFrame:
        """Return the rows as a `pandas.DataFrame`.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        frame: pandas.DataFrame = optional("pandas", extra="tables").DataFrame(self.rows())
        return frame

    def minus(self, other: Scores, name: str, *, mask: str = "soft") -> Interval:
        """Return by how much a metric is larger here than in `other`, with the interval of paired draws.

        Args:
            other: scores of the same examples in the same order.
            name: the metric.
            mask: `soft` or `hard`.

        Raises:
            UnknownNameError: one of them has no such metric or mask.
            SpecError: the numbers of examples differ, or the metric is of whole batches.
        """
        first, second = self._of_examples(name, mask), other._of_examples(name, mask)
        if len(first) != len(second):
            raise SpecError(f"paired scores are of the same examples; found {len(first)} and {len(second)}")
        return self._interval(first.cpu() - second.cpu())

    def _of_examples(self, name: str, mask: str) -> Tensor:
        """Return a metric's number for each example."""
        if mask not in self.numbers or name not in self.numbers[mask]:
            raise UnknownNameError(
                f"no scores {name!r} with mask {mask!r}: there are {list(self)} and {list(self.numbers)}"
            )
        if name in self.whole:
            raise SpecError(f"{name!r} gave one number a batch, so examples cannot be drawn again")
        return self.numbers[mask][name]

    def _interval(self, values: Tensor) -> Interval:
        return bootstrap(values, resamples=self.resamples, confidence=self.confidence, seed=self.seed)

    def _subsets(self) -> dict[str, Tensor | None]:
        """Return by name which examples are in a subset; `None` for all."""
        found: dict[str, Tensor | None] = {"all": None}
        if self.solved is not None:
            found["solved"] = self.solved
        if self.changed is not None:
            found["changed"] = self.changed
        return found
