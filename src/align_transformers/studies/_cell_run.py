"""`CellRun`: a run whose examples are cells of a table, and how it is divided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .._errors import SpecError
from ..plan import Edit, Read, Run
from ..positions import Positions


@dataclass(frozen=True)
class CellRun:
    """A run, each example of which is a cell: a copy of an example of its input that is edited in its own way.

    Args:
        run: with a line for each cell in all that goes by example. What it reads of runs that are not in `through` says
            which example each cell reads (`Read.examples`).
        cells: for each example the columns that say in the table which cell it is.
        through: further runs with an example for each cell, that this one reads or that one of these reads: they come
            between it and what is clean.

    Raises:
        SpecError: it is not said which example is a cell, or which one a cell reads.

    >>> cells = CellRun(Run("copies", "x", examples=(0, 0, 1)), ({"n": 0}, {"n": 1}, {"n": 2}))
    >>> part = cells.part(1, 3)
    >>> part.run.name, part.run.examples, part.cells
    ('copies [1:3]', (0, 1), ({'n': 1}, {'n': 2}))
    """

    run: Run
    cells: tuple[Mapping[str, Any], ...]
    through: tuple[Run, ...] = ()

    def __post_init__(self) -> None:
        own = {run.name for run in (*self.through, self.run)}
        for run in (*self.through, self.run):
            if run.examples is not None and len(run.examples) != len(self.cells):
                raise SpecError(
                    f"run {run.name!r} has {len(run.examples)} examples for {len(self.cells)} cells; give one for each"
                )
            for read in (read for edit in run.edits for read in edit.reads):
                if (read.examples is None) != (read.run in own):
                    raise SpecError(
                        f"run {run.name!r} reads run {read.run!r}: of a run in `through` and of their own cells "
                        "read the line of the same number, examples=None; of others name for each cell an example"
                    )

    def __len__(self) -> int:
        return len(self.cells)

    def part(self, begin: int, end: int) -> CellRun:
        """Return some of the cells, under names of their own; itself if it is all of them.

        Args:
            begin: the first cell.
            end: one past the last.
        """
        return self.take(range(begin, end), f"{begin}:{end}")

    def take(self, cells: Sequence[int], name: str = "some") -> CellRun:
        """Return some of the cells, under names of their own; itself if it is all of them.

        Args:
            cells: their numbers.
            name: what stands behind the names of runs and edits.
        """
        if list(cells) == list(range(len(self))):
            return self
        lines = _Lines(tuple(cells), name, len(self), frozenset(run.name for run in (*self.through, self.run)))
        through = tuple(map(lines.of_run, self.through))
        return CellRun(lines.of_run(self.run), tuple(self.cells[cell] for cell in cells), through)


@dataclass(frozen=True)
class _Lines:
    """Some of the lines of runs that have `count` of them; those named `own` are divided alike."""

    chosen: tuple[int, ...]
    name: str
    count: int
    own: frozenset[str]

    def of_run(self, run: Run) -> Run:
        examples = self._some(tuple(range(self.count)) if run.examples is None else run.examples)
        return Run(self._name(run.name), run.input, tuple(map(self._edit, run.edits)), examples)

    def _edit(self, edit: Edit) -> Edit:
        positions, subspace = self._positions(edit.positions), self._some(edit.subspace)
        return replace(edit.reading(self._read), name=self._name(edit.name), positions=positions, subspace=subspace)

    def _read(self, read: Read) -> Read:
        name = self._name(read.run) if read.run in self.own else read.run
        return replace(read, run=name, positions=self._positions(read.positions), examples=self._some(read.examples))

    def _positions(self, positions: Positions) -> Positions:
        return replace(positions, rows=self._some(positions.rows), heads=self._some(positions.heads))

    def _some(self, lines: Any) -> Any:
        """Return the lines of what has one for each cell; what is the same for all stays as it is."""
        if lines is None or len(lines) != self.count:
            return lines
        return tuple(lines[line] for line in self.chosen)

    def _name(self, name: str) -> str:
        return f"{name} [{self.name}]"
