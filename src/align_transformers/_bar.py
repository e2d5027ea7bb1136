"""A bar for what takes long, in the terminal or a notebook (rich)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ._optional import optional

Advance = Callable[[int | None, int | None, str], None]
"""Called with what is done, of how much (`None`: as before), and some words on how it goes."""


@contextmanager
def bar(what: str, console: Any = None, *, hidden: bool = False, transient: bool = False) -> Iterator[Advance]:
    """Hold a bar with what is done, words on how it goes, and the time that remains at the latest pace.

    Args:
        what: its name.
        console: a `rich.console.Console`; default: the terminal.
        hidden: show nothing.
        transient: leave nothing behind.

    Raises:
        MissingExtraError: rich is not installed.
    """
    rich = optional("rich.progress", extra="report")
    columns = (
        rich.TextColumn("{task.description}"),
        rich.BarColumn(bar_width=20),
        rich.MofNCompleteColumn(),
        rich.TextColumn("{task.fields[words]}"),
        rich.TimeRemainingColumn(),
    )
    with rich.Progress(*columns, console=console, disable=hidden, transient=transient) as shown:
        task = shown.add_task(what, total=None, words="")

        def advance(done: int | None, total: int | None, words: str) -> None:
            shown.update(task, completed=done, total=total, words=words)

        yield advance
