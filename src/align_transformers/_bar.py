"""A bar for what takes long, in the terminal or a notebook (rich)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from html import escape
from typing import Any, Protocol, TypeVar, runtime_checkable

from ._optional import optional

T = TypeVar("T")
Advance = Callable[[int | None, int | None, str], None]
"""Called with what is done, of how much (`None`: as before), and some words on how it goes."""
_PAUSE = 0.2  # seconds between two updates of a notebook
HowFar = Callable[[int, int], None]
"""Called with what is done, and of how much."""


@runtime_checkable
class Tell(Protocol):
    """Called with what is done, of how much, and some words on how it goes, which a bar alone shows."""

    def __call__(self, done: int, total: int, words: str = "") -> None:
        """Tell."""


@contextmanager
def telling(what: str, progress: HowFar | bool | None) -> Iterator[Tell]:
    """Hold what is told how far something is: a bar for `True`, a function of the caller's, or else nothing.

    Args:
        what: the bar's name.
        progress: as studies take it.

    Raises:
        MissingExtraError: there is to be a bar, and rich is not installed.

    >>> with telling("work", print) as tell:
    ...     tell(1, 2)
    1 2
    """
    if callable(progress):
        yield lambda done, total, words="": progress(done, total)
    elif progress:
        with bar(what) as advance:
            yield lambda done, total, words="": advance(done, total, words)
    else:
        yield lambda done, total, words="": None


@contextmanager
def bar(what: str, console: Any = None, *, hidden: bool = False, transient: bool = False) -> Iterator[Advance]:
    """Hold a bar with what is done, words on how it goes, and the time that remains at the latest pace.

    It is on stderr, or in the notebook's output; where that is neither a terminal nor a notebook, nothing is shown.

    Args:
        what: its name.
        console: a `rich.console.Console`; default: one for stderr.
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
    console = console or optional("rich.console", extra="report").Console(stderr=True)
    if console.is_jupyter and not hidden:
        yield _NotebookBar(what)
        return
    hidden = hidden or not console.is_terminal
    with rich.Progress(*columns, console=console, disable=hidden, transient=transient) as shown:
        task = shown.add_task(what, total=None, words="")

        def advance(done: int | None, total: int | None, words: str) -> None:
            shown.update(task, completed=done, total=total, words=words)

        yield advance


def each(items: Iterable[T], what: str, progress: HowFar | bool | None) -> Iterator[T]:
    """Yield items, and tell after each how many are done, and of how many; where that is not known, of as many.

    Args:
        items: any.
        what: the bar's name.
        progress: as studies take it.

    Raises:
        MissingExtraError: as for `telling`.

    >>> list(each("ab", "letters", print))
    1 2
    2 2
    ['a', 'b']
    """
    total = len(items) if isinstance(items, Sized) else 0
    with telling(what, progress) as tell:
        for done, item in enumerate(items, 1):
            yield item
            tell(done, max(done, total))


class _NotebookBar:
    """A bar in a notebook's output, of plain HTML: no widgets are needed.

    Args:
        what: its name.
    """

    def __init__(self, what: str) -> None:
        self._what, self._at = what, 0.0
        self._shown: Any = None
        self._done: int | None = 0
        self._total: int | None = None

    def __call__(self, done: int | None, total: int | None, words: str) -> None:
        """Show what is done, a few times a second at most, and at the end."""
        self._done = self._done if done is None else done
        self._total = self._total if total is None else total
        if self._done != self._total and time.monotonic() - self._at < _PAUSE:
            return
        self._at = time.monotonic()
        display = optional("IPython.display", extra="report")
        length = "" if self._total is None else f' value="{self._done}" max="{self._total}"'
        count = f"{self._done}/{self._total or '?'}"
        html = display.HTML(f"<div>{escape(self._what)} <progress{length}></progress> {count} {escape(words)}</div>")
        if self._shown is None:
            self._shown = display.display(html, display_id=True)
        else:
            self._shown.update(html)
