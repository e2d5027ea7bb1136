"""What reports ask of a table. They know no more of the library, so that a table can draw itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Tabular(Protocol):
    """A `Table`."""

    @property
    def columns(self) -> Mapping[str, tuple[Any, ...]]:
        """Values by name of the column."""

    @property
    def meta(self) -> Mapping[str, Any]:
        """Facts about the whole."""

    def __len__(self) -> int: ...

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield each row."""

    def components(self) -> list[str]:
        """Return the distinct components."""

    def select(self, component: str | None = None, where: Mapping[str, Any] | None = None) -> Tabular:
        """Return the table of some rows."""

    def from_rows(self, rows: Iterable[Mapping[str, Any]], *, meta: Mapping[str, Any]) -> Tabular:
        """Return a table of other rows."""

    def mean(self, by: Iterable[str] = ..., *, value: str = ..., draws: int = ...) -> Tabular:
        """Return means over the rows that agree elsewhere, with intervals."""
