"""`AlignmentResult`: the table of a search, and the interventions that it found."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..._errors import ArtifactError, SpecError
from ..._summarised import Summarised, Summary
from ...config import RepresentationConfig
from ...intervenable import IntervenableModel
from ...report.page import save_page
from ...report.verdicts import verdict
from ...table import Table
from .facts import facts_of
from .finding import Finding, best_of_each
from .hypothesis import Candidate
from .methods import hard
from .regions import Regions
from .statistics import p_value

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .search import Search


@dataclass(frozen=True, eq=False, repr=False)
class AlignmentResult(Summarised):
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
        chosen = best_of_each(findings, methods=False)
        rows = [_row(one, search, findings, one in chosen) for one in findings]
        facts = {**meta, **facts_of(search, findings, chosen)}
        facts["verdict"] = list(verdict(rows, facts))
        return cls(Table.from_rows(rows, meta=facts), tuple(findings), search)

    def _summary(self) -> Summary:
        chosen = [row for row in self.table.rows() if row["chosen"]]
        said = zip((row["variables"] for row in chosen), self.verdict, strict=False)
        return f"AlignmentResult: {len(self.table)} hypotheses about {self.table.meta.get('model', '?')}", said

    def best(self, variables: str | Sequence[str] | None = None) -> dict[str, Any]:
        """Return the row that was chosen for some variables on the validation pairs.

        Args:
            variables: a name, or several; default: the only ones of the search.

        Raises:
            SpecError: there are several, or none of these.
        """
        return dict(list(self.table.rows())[self._chosen(variables)])

    def buckets(self, variables: str | Sequence[str] | None = None) -> Regions | None:
        """Return where the chosen interchange works: between which bases and sources, and what these have in common.

        Args:
            variables: as for `best`.

        Returns:
            The regions; `None` where no interchange changes the label.
        """
        return self.findings[self._chosen(variables)].regions

    def intervenable(self, variables: str | Sequence[str] | None = None) -> IntervenableModel:
        """Return the chosen interchange as an intervenable model: to be run, saved and shared as any.

        Args:
            variables: as for `best`.
        """
        finding = self.findings[self._chosen(variables)]
        assert finding.candidate is not None
        return _intervenable(hard(finding.candidate), self.search)

    @property
    def verdict(self) -> tuple[str, ...]:
        """A sentence for each set of variables: what was shown, and what was not."""
        return tuple(self.table.meta["verdict"])

    def plot(self, value: str | None = None) -> Figure:
        """Draw the scores of all hypotheses, and return matplotlib's figure.

        Args:
            value: a column; default: `iia`.
        """
        return self.table.plot(value)

    def report(self, path: str | os.PathLike[str]) -> Path:
        """Write the search as one HTML page: verdict, hypothesis, data, scores, controls, flags, regions, pictures.

        Args:
            path: of the page.

        Returns:
            The path.
        """
        return save_page(self.table, path)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the table, and what was chosen for each set of variables as an intervention that can be loaded alone.

        The table is `table.parquet`, which `Table.load` reads; what was chosen is in a folder for each set of
        variables, which `IntervenableModel.load` reads.

        Args:
            folder: made if it is not there.

        Returns:
            The folder.

        Raises:
            ArtifactError: it is a file.
        """
        where = Path(folder)
        if where.exists() and not where.is_dir():
            raise ArtifactError(f"folder={os.fspath(folder)!r} is a file: a search is saved as a folder")
        where.mkdir(parents=True, exist_ok=True)
        for variables in dict.fromkeys(row["variables"] for row in self.table.rows() if row["chosen"]):
            names, row = variables.split(", "), self.best(variables.split(", "))
            scores = {name: row[name] for name in ("iia", "low", "high", "n") if row[name] is not None}
            self.intervenable(names).save(where / "-".join(names), metrics=scores, overwrite=True)
        self.table.save(where / "table.parquet")
        return where

    def _chosen(self, variables: str | Sequence[str] | None) -> int:
        named = None if variables is None else variables if isinstance(variables, str) else ", ".join(variables)
        rows = list(self.table.rows())
        found = [number for number, row in enumerate(rows) if row["chosen"] and named in (None, row["variables"])]
        if len(found) != 1:
            known = [row["variables"] for row in rows if row["chosen"]]
            raise SpecError(
                f"variables={variables!r}: the search chose a container for {'; '.join(known) or 'none'}: name one"
            )
        return found[0]


def _intervenable(candidate: Candidate, search: Search) -> IntervenableModel:
    configs = []
    for one in candidate.parts:
        container = one.hypothesis.container
        units, _ = search.task.width(container)
        config = RepresentationConfig(
            layer=container.site.layer,
            component=container.site.component,
            unit="pos" if container.head is None else "h.pos",
            max_number_of_units=units if container.head is None else 1,
            intervention=one.intervention,
            call=container.site.call,
        )
        configs.append(config)
    return IntervenableModel(configs if len(configs) > 1 else configs[0], search.task.model)


def _row(one: Finding, search: Search, findings: Sequence[Finding], chosen: bool) -> dict[str, Any]:
    hypothesis, test = one.hypothesis, search.task.parts["test"]
    interval = None
    if "test" in one.hits:
        interval = search.interval(hypothesis.variables, test, one.hits["test"])
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
        "permuted": None if one.by_heart is None else float(one.by_heart.mean()),
        **{
            f"reinitialised{end}": max((float(found.mean()) for found in one.again.get(part, ())), default=None)
            for end, part in (("", "test"), ("_train", "train"))
        },
        "flags": ", ".join(check.flag for check in one.checks if check.raised) if one.checks else None,
    }
