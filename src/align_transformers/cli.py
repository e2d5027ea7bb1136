"""The command line: `align-transformers trace BASE SOURCE`, `align-transformers describe MODEL`.

Nothing heavy is imported before there is something to do, so that `--help` answers at once.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._bar import Bar, bar
from ._errors import AlignError, SpecError
from ._version import library_version

if TYPE_CHECKING:
    from .table import Table

MISTAKE = 2  # exit status where the user asked for something that cannot be done

app = typer.Typer(
    name="align-transformers",
    help="Interventions on the internals of neural networks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def main() -> None:
    """Run the command line; a user's mistake ends it with status 2 and one line on stderr."""
    try:
        app()
    except (AlignError, OSError) as error:
        message = " ".join(str(error).split())
        print(f"align-transformers: error: {message}", file=sys.stderr)
        sys.exit(MISTAKE)


def _version(asked: bool) -> bool:
    if asked:
        print(f"align-transformers {library_version()}")
        raise typer.Exit
    return asked


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """Interventions on the internals of neural networks: what happens if this activation had been another one?"""


@app.command(no_args_is_help=True)
def trace(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The prompt whose run is edited.")],
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="The prompt whose activations are put in.")],
    model: Annotated[
        str, typer.Option(help="smollm2-135m (embedded), a local folder, or a name on the model hub.")
    ] = "smollm2-135m",
    component: Annotated[
        str, typer.Option(help="What is swapped: block_output, mlp_output, attention_output, ...")
    ] = "block_output",
    layers: Annotated[str | None, typer.Option(help="Such as 0-10 or 0,4,8-12. Default: all.")] = None,
    positions: Annotated[
        str | None, typer.Option(help="Tokens of the base, from 0, such as 3,4; -1 is the last. Default: all.")
    ] = None,
    last: Annotated[
        int | None, typer.Option(help="Compare the last N tokens, aligned from the end: for prompts of unequal length.")
    ] = None,
    answers: Annotated[
        str | None,
        typer.Option(help="The base's answer and the source's, with their leading spaces: ' Madrid, Rome'. "
                     "Default: what the model says."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for trace.parquet, trace.png and trace.html.")] = Path("."),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of the heat map.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar and no heat map; the files alone.")] = False,
) -> None:  # fmt: skip
    """Where does one swapped activation turn the base's answer into the source's?

    Both prompts are run. Then, for every layer and every token, the base is run again with **one** activation
    replaced by the one that the source has there. The heat map shows how far each swap moves the model from the base's
    answer (0) to the source's (1). Three files are written: `trace.parquet` (the table), `trace.png` (the figure) and
    `trace.html` (the same, interactive).

    **Examples**

    `align-transformers trace "The capital of Spain is" "The capital of Italy is"`

    `align-transformers trace "The capital of Spain is" "The capital of Italy is" --component mlp_output --layers 0-10`

    `align-transformers trace "Paris is in" "The city of Rome is in" --last 3 --out results`

    `align-transformers trace "..." "..." --model ./my-model --json --quiet | jq .summary`
    """
    wanted = {"layers": numbers(layers, "--layers"), "positions": numbers(positions, "--positions")}
    named = None if answers is None else _two(answers)
    out.mkdir(parents=True, exist_ok=True)
    with _progress(quiet or as_json) as progress:
        table = _sweep(base, source, model, component, progress, last=last, answers=named, **wanted)
        progress.name("writing the files")
        files = _write(table, out)
    if as_json:
        print(json.dumps(_described(table, files)))
    elif not quiet:
        _show(table, files)


@app.command(no_args_is_help=True)
def describe(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="smollm2-135m (embedded), a local folder, or a name on the model hub."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the tree.")] = False,
) -> None:
    """Which components does a model have, where are they, and what is not to be had and why?

    **Examples**

    `align-transformers describe smollm2-135m`

    `align-transformers describe ./my-model --json | jq .stacks`
    """
    from .models import describe as description_of
    from .models import load_model

    loaded, _ = load_model(model)
    found = description_of(loaded)
    if as_json:
        print(json.dumps(found.to_dict()))
        return
    from rich.console import Console

    Console().print(found)


def _sweep(base: str, source: str, model: str, component: str, progress: Bar, **options: Any) -> Table:
    """Load the model and run the study."""
    from .models.load import load_model
    from .sites import Site
    from .studies import grid

    Site(component, 0)  # a misspelt name is worth no waiting for the model
    progress.name(f"loading {model}")
    loaded, tokenizer = load_model(model)
    progress.name("swapping")
    return grid(loaded, base, source, tokenizer=tokenizer, components=[component], top=5, progress=progress, **options)


def _write(table: Table, out: Path) -> dict[str, str]:
    from .report import save_heat_map, save_page

    return {
        "table": str(table.save(out / "trace.parquet")),
        "figure": str(save_heat_map(table, out / "trace.png")),
        "page": str(save_page(table, out / "trace.html")),
    }


def _described(table: Table, files: dict[str, str]) -> dict[str, Any]:
    from .report import facts

    return {**table.to_dict(), "summary": facts(table), "files": files}


def _show(table: Table, files: dict[str, str]) -> None:
    from rich.console import Console

    from .report import heat_map, summary

    console = Console()
    console.print(heat_map(table))
    console.print()
    console.print(summary(table), markup=False, highlight=False)
    console.print(f"Written: {', '.join(files.values())}", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _progress(hidden: bool) -> Iterator[Bar]:
    """Show what is being done, and how long it will take, on stderr; nothing is left of it afterwards."""
    from rich.console import Console

    console = Console(stderr=True)
    with bar("starting", console, fleeting=True, hidden=hidden or not console.is_terminal) as shown:
        yield shown


def numbers(text: str | None, option: str) -> list[int] | str:
    """Read a list of numbers and ranges, both ends included; `None` is `"all"`.

    Raises:
        SpecError: the text is not such a list.

    >>> numbers("0-3,8,-1", "--layers"), numbers(None, "--layers")
    ([0, 1, 2, 3, 8, -1], 'all')
    """
    if text is None or text.strip() == "all":
        return "all"
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(-?\d+)(?:-(\d+))?\s*", part)
        if match is None:
            raise SpecError(f"{option} {text!r}: give numbers and ranges, such as 0-10 or 0,4,8-12")
        first = int(match[1])
        end = first if match[2] is None else int(match[2])
        if end < first or (first < 0 and match[2] is not None):
            raise SpecError(f"{option} {text!r}: the range {part.strip()!r} runs backwards")
        found += range(first, end + 1)
    return found


def _two(text: str) -> tuple[str, str]:
    parts = text.split(",")
    if len(parts) != 2:
        raise SpecError(f"--answers {text!r}: give two tokens with a comma between them, such as ' Madrid, Rome'")
    return parts[0], parts[1]
