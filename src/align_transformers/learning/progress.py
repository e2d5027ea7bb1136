"""What a fit tells while it runs: one row a step, to a function, or to a bar in the terminal (rich)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from .._bar import bar

Row = Mapping[str, Any]
"""One optimiser step of the history."""

Progress = Callable[[Row, int], None]
"""Called after every optimiser step with its row and the number of all steps."""


@contextmanager
def reporter(progress: Progress | bool | None) -> Iterator[Progress]:
    """Hold what is called after every step: a function as it is, a bar for `True`, or nothing."""
    if callable(progress):
        yield progress
    elif progress:
        with progress_bar() as shown:
            yield shown
    else:
        yield lambda _row, _total: None


@contextmanager
def progress_bar(console: Any = None) -> Iterator[Progress]:
    """Hold a bar in the terminal with loss, metric, validation and throughput.

    Args:
        console: a `rich.console.Console`; default: the terminal.

    Raises:
        MissingExtraError: rich is not installed.
    """
    with bar("fit", console) as advance:
        yield lambda row, total: advance(row["step"], total, numbers(row))


def numbers(row: Row) -> str:
    """Return the numbers of one step as a line.

    >>> numbers({"loss": 0.25, "metric": 0.5, "validation": None, "examples_per_second": 1234.5})
    'loss 0.2500  metric 0.500  1234 examples/s'
    """
    parts = [f"loss {row['loss']:.4f}", f"metric {row['metric']:.3f}"]
    if row["validation"] is not None:
        parts.append(f"validation {row['validation']:.3f}")
    return "  ".join([*parts, f"{row['examples_per_second']:.0f} examples/s"])
