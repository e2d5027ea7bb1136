"""Where a search stood, in a folder, so that a killed one goes on to the same result."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..._errors import ArtifactError, SpecError
from ..._files import clear_leftovers, write_atomically

_KEY = "align_transformers.circuit"


class Stood(NamedTuple):
    """What a part of a search had found.

    Args:
        tensors: by name.
        data: JSON-able.
    """

    tensors: dict[str, Tensor]
    data: dict[str, Any]


class SearchFolder:
    """A folder with a file for each part of a search, written in one step.

    Args:
        folder: made if it is not there; `None`: nothing is kept.
        search: JSON-able facts that make a search what it is; parts of another one are refused.

    Raises:
        SpecError: the folder is a file.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, search: Mapping[str, Any]) -> None:
        self.folder = None if folder is None else Path(folder)
        self.search = json.loads(json.dumps(dict(search)))
        if self.folder is not None and self.folder.exists() and not self.folder.is_dir():
            raise SpecError(f"store={os.fspath(self.folder)!r} is a file; a search is stored as a folder")
        if self.folder is not None:
            clear_leftovers(self.folder)

    def load(self, part: str) -> Stood | None:
        """Return where a part stood; `None` if it has not begun.

        Args:
            part: its name.

        Raises:
            SpecError: it is of another search.
            ArtifactError: the file is damaged.
        """
        path = self._path(part)
        if path is None or not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as stream:
                told = json.loads((stream.metadata() or {})[_KEY])
                tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (a file, no dict)
            found, data = told["search"], dict(told["data"])
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{path} is damaged ({error}): remove it, and its part is searched again") from error
        other = [name for name in self.search if found.get(name) != self.search[name]]
        if other:
            raise SpecError(
                f"{path} belongs to another search, with another {', '.join(other)}: give another store=, or remove it"
            )
        return Stood(tensors, data)

    def save(self, part: str, tensors: Mapping[str, Tensor], data: Mapping[str, Any]) -> None:
        """Write where a part stands."""
        path = self._path(part)
        if path is not None:
            told = json.dumps({"search": self.search, "data": dict(data)})
            held = {name: one.contiguous() for name, one in tensors.items()}
            write_atomically(path, save(held, metadata={_KEY: told}))

    def _path(self, part: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{part}.safetensors"
