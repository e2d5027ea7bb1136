"""Parts of a sweep in a folder, so that a killed one goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from .._errors import ArtifactError, SpecError
from .._files import clear_leftovers
from ..table import Table


@final
class Store:
    """A folder with a parquet file for each part of a sweep; `pandas.read_parquet(folder)` reads them all.

    Args:
        folder: made if it is not there.
        study: JSON-able facts that make a sweep what it is; parts of another one are refused.

    Raises:
        SpecError: the folder holds parts of another sweep, or is a file.
        ArtifactError: a part is damaged.
    """

    def __init__(self, folder: str | os.PathLike[str], study: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.study = json.loads(json.dumps(dict(study)))
        if self.folder.exists() and not self.folder.is_dir():
            raise SpecError(f"store={os.fspath(folder)!r} is a file; a sweep is stored as a folder of parquet files")
        clear_leftovers(self.folder)
        for path in sorted(self.folder.glob("part-*.parquet"))[:1]:
            self._load(path)

    def load(self, number: int, cells: int) -> Table | None:
        """Return a part as it was saved; `None` if it is still to be done.

        Args:
            number: of the part.
            cells: how many rows it has to have.

        Raises:
            SpecError: it is of another sweep, or was cut otherwise.
            ArtifactError: it is damaged.
        """
        path = self._path(number)
        table = self._load(path) if path.exists() else None
        if table is not None and len(table) != cells:
            raise SpecError(
                f"{path} has {len(table)} cells, not {cells}: it was stored by a version of the library that made "
                "parts of other sizes; give another store=, or remove it"
            )
        return table

    def save(self, number: int, table: Table) -> None:
        """Write a part in one step."""
        Table.from_dict({"rows": list(table.rows()), "meta": {**table.meta, "study": self.study}}).save(
            self._path(number)
        )

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:05d}.parquet"

    def _load(self, path: Path) -> Table:
        try:
            table = Table.load(path)
        except ArtifactError as error:
            raise ArtifactError(f"{error}: remove it, and its part of the sweep is made again") from error
        found = table.meta.get("study")
        found = found if isinstance(found, dict) else {}
        other = [name for name in self.study if found.get(name) != self.study[name]]
        if other:
            raise SpecError(
                f"{path} belongs to another sweep, with another {', '.join(other)}: give another store=, or remove it"
            )
        return table
