"""`Scan`: the tables of a first look at a model, and how they are shown and kept."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._checked import checked
from .._errors import ArtifactError, SpecError, UnknownNameError, near_misses
from .._files import write_atomically
from .._version import library_version
from ..report.chapters import Chapter, Chapters
from ..report.page import page_of_chapters
from ..report.scans import chapters_of_scan
from ..table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 80


@dataclass(frozen=True, eq=False, repr=False)
class Scan:
    """What `scan` found.

    Args:
        tables: by name of a section: `says`, `lens`, `parts`, `attention`; of two prompts `swaps`, `route`, `carriers`.
        code: by name of a section, the line of Python that repeats it.
        missing: by name of a section, why there is no table.
    """

    tables: Mapping[str, Table]
    code: Mapping[str, str]
    missing: Mapping[str, str]

    @property
    def report(self) -> Chapters:
        """All of it in words and pictures, as data."""
        return chapters_of_scan(self.tables, self.code, self.missing)

    def __getitem__(self, section: str) -> Table:
        if section not in self.tables:
            why = self.missing.get(section)
            told = f"could not be had: {why}" if why else f"is not there; {near_misses(section, self.tables)}"
            raise UnknownNameError(f"the section {section!r} {told}")
        return self.tables[section]

    def __repr__(self) -> str:
        report = self.report
        lines = [f"Scan of {self.tables['says'].meta['model']}: {', '.join(self.tables)}"]
        for one in report.chapters:
            lines += [f"  {one.name}: {line}" for line in one.findings[:2]]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        report = self.report
        words = "".join(f"<p>{escape(line)}</p>" for line in report.words)
        return f"<div><h3>{escape(report.title)}</h3>{words}{''.join(map(_shown, report.chapters))}</div>"

    @checked
    def plot(self, section: str | None = None) -> Figure:
        """Draw a section, and return matplotlib's figure.

        Args:
            section: default: the swaps, or of one prompt the lens.

        Raises:
            UnknownNameError: there is no such section.
            MissingExtraError: matplotlib is not installed.
        """
        from ..report.figure import figure_of

        chosen = section or ("swaps" if "swaps" in self.tables else "lens")
        self[chosen]
        drawn = next(one.picture for one in self.report.chapters if one.name == chosen)
        assert drawn is not None
        return figure_of(drawn)

    @checked
    def page(self, path: str | os.PathLike[str]) -> Path:
        """Write all of it as one HTML page that asks no network for anything.

        Args:
            path: of the page.

        Returns:
            The path.

        Raises:
            OSError: the folder cannot be written to.
        """
        return write_atomically(path, page_of_chapters(self.report).encode())

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON-able data; `from_dict` is the inverse."""
        tables = {name: table.to_dict() for name, table in self.tables.items()}
        said = {"code": dict(self.code), "missing": dict(self.missing)}
        return {"study": "scan", "version": library_version(), "tables": tables, **said}

    @classmethod
    @checked
    def from_dict(cls, data: Mapping[str, Any]) -> Scan:
        """Build the scan that `to_dict` described.

        Raises:
            SpecError: `data` is not of that form.
        """
        if data.get("study") != "scan" or not all(
            isinstance(data.get(one), dict) for one in ("tables", "code", "missing")
        ):
            raise SpecError(
                f"a scan's dict has the keys study, version, tables, code, missing; this one {sorted(data)}"
            )
        tables = {str(name): Table.from_dict(table) for name, table in data["tables"].items()}
        return cls(tables, dict(data["code"]), dict(data["missing"]))

    @checked
    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write all of it as one JSON file, in one step; `load` reads it.

        Args:
            path: of the file.

        Returns:
            The path.

        Raises:
            OSError: the folder cannot be written to.
        """
        return write_atomically(path, json.dumps(self.to_dict()).encode())

    @classmethod
    @checked
    def load(cls, path: str | os.PathLike[str]) -> Scan:
        """Read what `save` wrote. Nothing that the file says is run.

        Args:
            path: of the file.

        Raises:
            ArtifactError: it is damaged.
            SpecError: it was written by something else.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ArtifactError(f"{os.fspath(path)} is damaged, or no JSON file ({error})") from error
        if not isinstance(data, dict):
            raise SpecError(f"{os.fspath(path)} holds no scan; was it written by Scan.save?")
        return cls.from_dict(data)


def _shown(one: Chapter) -> str:
    """Return a chapter for a notebook: its words, its figure as an image, its findings and its line."""
    from .._optional import MissingExtraError
    from ..report.figure import figure_of, image_of

    words, found = ("".join(f"<p>{escape(line)}</p>" for line in lines) for lines in (one.words, one.findings))
    image = ""
    if one.picture is not None:
        try:
            data = base64.b64encode(image_of(figure_of(one.picture), dpi=_DPI)).decode()
            image = f'<img alt="{escape(one.picture.title)}" src="data:image/png;base64,{data}">'
        except MissingExtraError as error:
            image = f"<p>{escape(str(error))}</p>"
    return f"<h4>{escape(one.title)}</h4>{words}{image}{found}<pre>{escape(one.code)}</pre>"
