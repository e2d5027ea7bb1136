"""How every command goes: a bar while it runs, then the files, then the picture or one JSON object."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from .._bar import bar
from .._files import write_atomically

if TYPE_CHECKING:
    from ..report import Picture
    from ..studies import Circuit, Scan
    from ..table import Table

INTERRUPTED = 130  # exit status after Ctrl-C, as shells have it


@dataclass(frozen=True)
class CircuitFound:
    """A circuit, and what was measured of it."""

    circuit: Circuit
    table: Table


@dataclass(frozen=True)
class Job:
    """A command's work and where its results go.

    Args:
        name: of the command, and of the files.
        out: the folder for these.
        as_json: print one JSON object.
        quiet: print nothing.
        value: which number is drawn; default: the study's main one.
    """

    name: str
    out: Path
    as_json: bool
    quiet: bool
    value: str | None = None

    def run(self, model: str, study: Callable[..., Any], doing: str = "running") -> None:
        """Load a model, carry a study out, and write and show what it found.

        Files are written one by one, each in one step: who interrupts leaves no half of one.

        Args:
            model: name or folder.
            study: called with the model, and `tokenizer` and `progress` as studies take them; gives a table,
                a scan, or a circuit with its table.
            doing: what the bar says meanwhile.

        Raises:
            AlignError: the user asked for something that cannot be done.
            OSError: the folder cannot be written to.
        """
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            with self._progress(doing) as (say, advance):
                say(f"loading {model}")
                loaded, tokenizer = _load(model)
                found = study(loaded, tokenizer=tokenizer, progress=advance)
                say("writing the files")
                kept = self._kept(found)
            if self.as_json:
                print(json.dumps(kept.data()))
            elif not self.quiet:
                _show(kept)
        except KeyboardInterrupt as stopped:
            print("align-transformers: interrupted", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from stopped

    def _kept(self, found: Any) -> _Kept:
        if isinstance(found, CircuitFound):
            return self._kept_circuit(found)
        return self._kept_scan(found) if hasattr(found, "report") else self._kept_table(found)

    def _kept_circuit(self, found: CircuitFound) -> _Kept:
        """Write a circuit's edge list, its figure and page, and the table of what was measured."""
        from ..report import Shown, image_of

        circuit, table, drawn = found.circuit, found.table, _picture(found.table, None)
        places = {ending: self.out / f"{self.name}.{ending}" for ending in ("json", "png", "html", "parquet")}
        circuit.save(places["json"])
        table.save(places["parquet"])
        write_atomically(places["png"], image_of(circuit.plot()))
        circuit.page(places["html"], findings=drawn.findings)
        kinds = {"circuit": "json", "figure": "png", "page": "html", "table": "parquet"}
        files = {kind: str(places[ending]) for kind, ending in kinds.items()}
        edges = [list(edge) for edge in circuit.edges()]
        return _Kept(files, Shown(drawn), drawn.findings, lambda: {**described(table, files), "circuit": edges})

    def _kept_table(self, table: Table) -> _Kept:
        """Write a table, its figure and its page."""
        from ..report import Shown, figure_of, image_of, page_of
        from ..report.views import views_of

        files = {"table": str(table.save(self.out / f"{self.name}.parquet"))}  # it may have no picture
        drawn = _picture(table, self.value)
        made = {
            "figure": ("png", image_of(figure_of(drawn))),
            "page": ("html", page_of(views_of(table, self.value)).encode()),
        }
        for kind, (ending, content) in made.items():
            files[kind] = str(write_atomically(self.out / f"{self.name}.{ending}", content))
        return _Kept(files, Shown(drawn), drawn.findings, lambda: described(table, files, self.value))

    def _kept_scan(self, found: Scan) -> _Kept:
        """Write a scan and its page."""
        from ..report import ChaptersShown

        files = {"scan": str(found.save(self.out / f"{self.name}.json"))}
        files["page"] = str(found.page(self.out / f"{self.name}.html"))
        return _Kept(files, ChaptersShown(found.report), (), lambda: {**found.to_dict(), "files": files})

    @contextmanager
    def _progress(self, doing: str) -> Iterator[tuple[Callable[[str], None], Callable[[int, int], None]]]:
        """Show what is being done, and how long it will take, on stderr; nothing is left of it afterwards."""
        from rich.console import Console

        console = Console(stderr=True)
        hidden = self.quiet or self.as_json or not console.is_terminal
        with bar(self.name, console, hidden=hidden, transient=True) as advance:
            yield lambda what: advance(None, None, what), lambda done, total: advance(done, total, doing)


def described(table: Table, files: dict[str, str], value: str | None = None) -> dict[str, Any]:
    """Return what `--json` prints: the table, the main findings, and the files."""
    from ..report import facts

    return {**table.to_dict(), "summary": facts(table, value=value), "files": files}


def _picture(table: Table, value: str | None) -> Picture:
    from ..report import picture

    return picture(table, value)


@dataclass(frozen=True)
class _Kept:
    """What was written: by kind the files, what the terminal shows, and what `--json` prints."""

    files: dict[str, str]
    shown: Any
    findings: tuple[str, ...]
    data: Callable[[], dict[str, Any]]


def _show(kept: _Kept) -> None:
    from rich.console import Console

    console = Console()
    console.print(kept.shown)
    console.print()
    if kept.findings:
        console.print("\n".join(kept.findings), markup=False, highlight=False)
    console.print(f"Written: {', '.join(kept.files.values())}", markup=False, highlight=False, soft_wrap=True)


def _load(model: str) -> tuple[Any, Any]:
    from ..models.load import load_model

    return load_model(model)
