"""`align-transformers report`: an index page of a folder of results."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._errors import AlignError, ArtifactError, SpecError
from .._files import write_atomically

if TYPE_CHECKING:
    from ..report.index_page import IndexEntry

_DPI = 45
_INDEX = "index.html"


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of results, and all that is in it.")],
) -> None:
    """Make an index page of a folder of results: a sentence, a small picture and a link of each.

    Tables (`.parquet`), scans (`.json`) and saved interventions are found. Pages that are there are linked; those of
    tables and scans that are not there are written beside them. `index.html` is written. Nothing that a file says is
    run.

    **Examples**

    `align-transformers report results`
    """
    if not folder.is_dir():
        raise SpecError(f"DIR is a folder of results; there is no folder {str(folder)!r}")
    index = folder / _INDEX
    if index.exists() and not _is_ours(index):
        raise SpecError(f"{index} is there, and no index of results: rename it, it would be lost")
    from ..report.index_page import index_page

    entries: list[IndexEntry] = []
    left: list[tuple[str, str]] = []
    for path in _candidates(folder):
        name = path.relative_to(folder).as_posix()
        try:
            entries.append(_entry(path, name))
        except (AlignError, LookupError, TypeError, ValueError, AttributeError) as error:  # whatever a file may hold
            left.append((name, str(error) if isinstance(error, AlignError) else repr(error)))
    if not entries and not left:
        raise SpecError(f"{folder} holds no results: no .parquet, no scan and no saved intervention")
    write_atomically(index, index_page(f"Results in {folder.resolve().name}", entries, left).encode())
    print(
        f"{len(entries)} result{'s' * (len(entries) != 1)}{f', {len(left)} not shown' * bool(left)}. Written: {index}"
    )


def _candidates(folder: Path) -> Iterator[Path]:
    """Yield the files that may hold a result, in the order of their names; links to elsewhere are not followed."""
    for above, folders, files in os.walk(folder):
        folders[:] = sorted(one for one in folders if not one.startswith("."))
        for name in sorted(files):
            path = Path(above, name)
            if name.startswith(".") or path.is_symlink() or path.suffix not in (".parquet", ".json"):
                continue
            if path.suffix == ".parquet" or name == "intervention.json" or _may_be_a_scan(path):
                yield path


def _may_be_a_scan(path: Path) -> bool:
    with path.open("rb") as stream:
        return b'"study": "scan"' in stream.read(200)


def _is_ours(index: Path) -> bool:
    from ..report.index_page import GENERATOR

    with index.open("rb") as stream:
        return f'content="{GENERATOR}"'.encode() in stream.read(2000)


def _entry(path: Path, name: str) -> IndexEntry:
    """Return a result; its page is written if it is not there.

    Raises:
        AlignError: it cannot be read.
    """
    if path.name == "intervention.json":
        return _of_intervention(path, name)
    return _of_table(path, name) if path.suffix == ".parquet" else _of_scan(path, name)


def _of_table(path: Path, name: str) -> IndexEntry:
    from ..report import figure_of, image_of, page_of, picture
    from ..report.index_page import IndexEntry
    from ..report.views import views_of
    from ..table import Table

    table = Table.load(path)
    facts = f"{table.meta.get('model', '')} {table.meta.get('study', '')}".strip()
    try:
        drawn = picture(table)
    except AlignError as error:  # it is a result all the same
        title = f"{table.meta.get('study', 'A table')}: {len(table)} rows"
        return IndexEntry(name, title, "", f"There is no picture of it: {error}", facts=facts)
    link = _linked(path, name, lambda: page_of(views_of(table)))
    said = " ".join(dict.fromkeys(line for line in (drawn.findings or (drawn.about,)) if line.endswith(".")))
    said = said or next(iter(drawn.findings), drawn.about)
    return IndexEntry(name, drawn.title, link, said, image_of(figure_of(drawn), dpi=_DPI), facts=facts)


def _of_scan(path: Path, name: str) -> IndexEntry:
    from ..report import image_of, page_of_chapters
    from ..report.index_page import IndexEntry
    from ..studies import Scan

    found = Scan.load(path)
    made = found.report
    said = made.chapters[-1].findings[0] if len(made.prompts) == 1 else " ".join(made.chapters[0].findings)
    link = _linked(path, name, lambda: page_of_chapters(made))
    return IndexEntry(name, made.title, link, said, image_of(found.plot(), dpi=_DPI), facts=made.facts.get("model", ""))


def _of_intervention(path: Path, name: str) -> IndexEntry:
    from ..report.index_page import IndexEntry
    from ..storage.read import read_record

    record = read_record(path)
    try:
        model, kinds = record["model"], [one["class"] for one in record["interventions"]]
        scores = _numbers(record["metrics"])
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"it is no record of an intervention: {error!r}") from error
    count = f"{len(kinds)} saved intervention{'s' * (len(kinds) != 1)}"
    card = name.rpartition("/")[0] + "/README.md"
    return IndexEntry(
        name,
        f"{count} on a {model['class']}",
        card.lstrip("/") if path.with_name("README.md").is_file() else "",
        ", ".join(dict.fromkeys(map(str, kinds))) + ".",
        number=next(scores, ("", "")),
        facts=str(model.get("name") or ""),
    )


def _numbers(metrics: Any, above: str = "") -> Iterator[tuple[str, str]]:
    """Yield the numbers of an artifact's scores, with their names."""
    for name, value in metrics.items() if isinstance(metrics, Mapping) else ():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{above}{name} ")
        elif isinstance(value, int | float):
            yield f"{above}{name}", f"{value:.3g}"


def _linked(path: Path, name: str, page: Any) -> str:
    """Return where the page of a result is; it is written if it is not there."""
    target = path.with_suffix(".html")
    if not target.exists():
        write_atomically(target, page().encode())
    return str(Path(name).with_suffix(".html").as_posix())
