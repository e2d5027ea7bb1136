"""`AlignmentResult`: the table of a search, and the interventions that it found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..._errors import SpecError
from ...config import RepresentationConfig
from ...intervenable import IntervenableModel
from ...table import Table
from .hypothesis import Candidate
from .statistics import entity_bootstraps, p_value

if TYPE_CHECKING:
    from .search import Finding, Search


@dataclass(frozen=True, eq=False)
class AlignmentResult:
    """What a search found.

    Args:
        table: a row a hypothesis; its columns are explained in `docs/alignment.md`.
        findings: for each row what was found.
        search: what was asked.
    """

    table: Table
    findings: tuple[Finding, ...]
    search: Search

    @classmethod
    def of(cls, search: Search, findings: Sequence[Finding], meta: Mapping[str, Any]) -> AlignmentResult:
        """Make the table of a search."""
        from .search import best_of_each

        chosen = {id(one) for one in best_of_each(findings, methods=False)}
        rows = [_row(one, search, findings, id(one) in chosen) for one in findings]
        return cls(Table.from_rows(rows, meta={**meta, **_facts(search)}), tuple(findings), search)

    def best(self, variables: str | Sequence[str] | None = None) -> dict[str, Any]:
        """Return the row that was chosen for some variables on the validation pairs.

        Args:
            variables: a name, or several; default: the only ones of the search.

        Raises:
            SpecError: there are several, or none of these.
        """
        return dict(list(self.table.rows())[self._chosen(variables)])

    def intervenable(self, variables: str | Sequence[str] | None = None) -> IntervenableModel:
        """Return the chosen interchange as an intervenable model: to be run, saved and shared as any.

        Args:
            variables: as for `best`.
        """
        finding = self.findings[self._chosen(variables)]
        assert finding.candidate is not None
        return _intervenable(finding.candidate, self.search)

    def _chosen(self, variables: str | Sequence[str] | None) -> int:
        named = None if variables is None else variables if isinstance(variables, str) else ", ".join(variables)
        rows = list(self.table.rows())
        found = [number for number, row in enumerate(rows) if row["chosen"] and named in (None, row["variables"])]
        if len(found) != 1:
            known = [row["variables"] for row in rows if row["chosen"]]
            raise SpecError(
                f"variables={variables!r}: the search chose a spot for {'; '.join(known) or 'none'}: name one"
            )
        return found[0]


def _intervenable(candidate: Candidate, search: Search) -> IntervenableModel:
    spot, task = candidate.hypothesis.spot, search.task
    units, _ = task.width(spot)
    config = RepresentationConfig(
        layer=spot.site.layer,
        component=spot.site.component,
        unit="pos" if spot.head is None else "h.pos",
        max_number_of_units=units if spot.head is None else 1,
        intervention=candidate.intervention,
        call=spot.site.call,
    )
    return IntervenableModel(config, task.model)


def _row(one: Finding, search: Search, findings: Sequence[Finding], chosen: bool) -> dict[str, Any]:
    hypothesis, test = one.hypothesis, search.task.parts["test"]
    interval = None
    if "test" in one.hits:
        rows = test.of(hypothesis.variables)
        interval = entity_bootstraps(
            one.hits["test"][None],
            test.entities[0][rows],
            test.source_entities(hypothesis.variables)[rows],
            resamples=search.resamples,
            confidence=search.confidence,
            seed=search.seed,
        )[0]
    largest = [
        max(numbers)
        for numbers in zip(
            *(
                other.random
                for other in findings
                if other.hypothesis.variables == hypothesis.variables and other.random
            ),
            strict=True,
        )
    ]
    dimensions = None if one.candidate is None else getattr(one.candidate.intervention, "dimensions", None)
    return {
        **hypothesis.cell(),
        "status": one.status,
        "chosen": chosen,
        "train": one.mean("train"),
        "validation": one.mean("validation"),
        "iia": None if interval is None else interval.mean,
        "low": None if interval is None else interval.low,
        "high": None if interval is None else interval.high,
        "n": None if interval is None else interval.n,
        "soft": None if one.soft is None else float(one.soft.mean()),
        "dimensions": dimensions,
        "full": None if one.full is None else float(one.full.mean()),
        "random": float(np.mean(one.random)) if one.random else None,
        "random_high": max(one.random) if one.random else None,
        "p": p_value(one.first, one.random) if one.random and one.first is not None else None,
        "p_corrected": p_value(one.first, largest) if one.random and one.first is not None else None,
        "permuted": one.permuted,
        "reinitialised": float(one.again["test"].mean()) if one.again else None,
        "reinitialised_train": float(one.again["train"].mean()) if one.again else None,
        "flags": "",
    }


def _facts(search: Search) -> dict[str, Any]:
    """Return what a table says of the whole search."""
    task = search.task
    data: dict[str, Any] = {}
    for name, pairs in task.parts.items():
        entities = {*pairs.entities[0].tolist(), *(n for of in pairs.entities[1].values() for n in of.tolist())}
        data[name] = {"pairs": len(pairs), "entities": len(entities)}
    test = task.parts["test"]
    counts = Counter(test.labels.tolist())
    return {
        "data": {
            **data,
            "facts": {name: dict(facts) for name, facts in search.facts.items()},
            "trivial": float((test.labels == test.base_labels).double().mean()),
            "chance": max(counts.values()) / len(test),
        },
        "settings": {**search.settings.to_dict(), "batch_size": search.batch_size},
    }
