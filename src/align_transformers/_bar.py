"""A bar for what takes long, in the terminal or a notebook (rich): of fits, of sweeps, and of the command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

from ._optional import optional


@final
class Bar:
    """A bar that is being shown; called with what is done, of how much, and some words on how it goes.

    Args:
        shown: a `rich.progress.Progress`.
        task: the number of its only task.
    """

    def __init__(self, shown: Any, task: Any) -> None:
        self._shown = shown
        self._task = task

    def __call__(self, done: int, total: int, words: str = "") -> None:
        """Show how far it is."""
        self._shown.update(self._task, completed=done, total=total, words=words)

    def name(self, what: str) -> None:
        """Say what is being done now."""
        self._shown.update(self._task, description=what)


@contextmanager
def bar(what: str, console: Any = None, *, fleeting: bool = False, hidden: bool = False) -> Iterator[Bar]:
    """Hold a bar with what is done, words on how it goes, and the time that remains at the latest pace.

    Args:
        what: its name.
        console: a `rich.console.Console`; default: the terminal.
        fleeting: nothing is left of it afterwards.
        hidden: it is not shown at all.

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
    with rich.Progress(*columns, console=console, transient=fleeting, disable=hidden) as shown:
        yield Bar(shown, shown.add_task(what, total=None, words=""))
