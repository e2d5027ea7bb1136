"""Percent scripts: cells of code and of prose, run as a notebook runs them. Only prints and figures are output.

A line `# %%` begins a cell of code, `# %% [markdown]` one of prose, as jupytext reads them.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

_BEGINS = re.compile(r"^# %%(.*)$")
_NUMBER = re.compile(r"(?<![\w.:-])\d{1,3}\.\d{1,3}(?![\d.]*\d)")


@dataclass(frozen=True)
class Cell:
    """A cell of a percent script.

    Args:
        line: number of its first line, behind the marker, from 1.
        text: its lines; prose without the comment signs.
        prose: whether it is prose.
    """

    line: int
    text: str
    prose: bool


@dataclass(frozen=True)
class Ran:
    """What came of a script.

    Args:
        figures: files that its figures were written to.
        unsaid: numbers in the prose that no cell above had printed.
        said: what it printed.
    """

    figures: list[Path]
    unsaid: list[str]
    said: str


def cells(script: str) -> Iterator[Cell]:
    """Yield the cells of a script."""
    lines = script.splitlines()
    starts = [number for number, line in enumerate(lines) if _BEGINS.match(line)]
    if not starts or any(line.strip() for line in lines[: starts[0]]):
        raise ValueError("a percent script begins with a line `# %%` or `# %% [markdown]`")
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        prose = "[markdown]" in lines[start]
        inside = lines[start + 1 : end]
        if prose and not all(line.startswith("#") or not line for line in inside):
            raise ValueError(f"line {start + 1}: a cell of prose has lines that are no comments")
        yield Cell(start + 2, "\n".join(line[2:] if prose else line for line in inside), prose)


def run(script: Path, folder: Path) -> Ran:
    """Run a script cell by cell, write its figures into a folder, and return what came of it.

    A warning is an error. So is a value at the end of a cell that is no figure: a notebook would show it.
    """
    import matplotlib

    matplotlib.use("Agg")
    names: dict[str, Any] = {"__name__": "__main__", "__file__": str(script)}
    figures: list[Path] = []
    unsaid: list[str] = []
    said = StringIO()
    for cell in cells(script.read_text(encoding="utf-8")):
        if cell.prose:
            unsaid += [number for number in _NUMBER.findall(cell.text) if number not in said.getvalue()]
            continue
        with warnings.catch_warnings(), redirect_stdout(_Both(said)):
            warnings.simplefilter("error")
            # transformers 5.24 calls it `cache` (pyproject.toml says the same of the tests)
            warnings.filterwarnings("ignore", ".(past_key_values|cache_params). is deprecated", FutureWarning)
            value = _execute(cell, names, script)
            figures += [_write(figure, script, folder, len(figures) + n) for n, figure in enumerate(_shown(value))]
    return Ran(figures, unsaid, said.getvalue())


def _execute(cell: Cell, names: dict[str, Any], script: Path) -> Any:
    """Run a cell; return the value of the expression that it ends with, as a notebook shows it."""
    parsed = ast.increment_lineno(ast.parse(cell.text), cell.line - 1)
    last = parsed.body.pop() if parsed.body and isinstance(parsed.body[-1], ast.Expr) else None
    exec(compile(parsed, script, "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), script, "eval"), names)


def _shown(value: Any) -> list[Any]:
    """Return the figures that a notebook would show after a cell: its value, and those of pyplot."""
    from matplotlib import pyplot
    from matplotlib.figure import Figure

    open_ones = [pyplot.figure(number) for number in pyplot.get_fignums()]
    pyplot.close("all")
    if value is not None and not isinstance(value, Figure):
        raise TypeError(f"a cell ends with a {type(value).__name__}, which a notebook shows; only figures are shown")
    if value in open_ones:
        raise TypeError("a cell ends with a figure of pyplot, which a notebook shows twice")
    return open_ones if value is None else [*open_ones, value]


def _write(figure: Any, script: Path, folder: Path, number: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{script.stem}-{number + 1}.png"
    figure.savefig(path, dpi=80)
    return path


class _Both(StringIO):
    """Writes to the terminal, and keeps what is written."""

    def __init__(self, kept: StringIO) -> None:
        import sys

        super().__init__()
        self.kept, self.shown = kept, sys.stdout

    def write(self, text: str, /) -> int:
        self.kept.write(text)
        return self.shown.write(text)

    def flush(self) -> None:
        self.shown.flush()
