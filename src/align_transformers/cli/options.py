"""What commands share: their options, and how the words behind these are read."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from .._errors import SpecError

MODELS = "smollm2-135m (embedded), a local folder, or a name on the model hub."

ModelName = Annotated[str, typer.Option("--model", help=MODELS)]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=MODELS)]
ComponentNames = Annotated[
    str | None, typer.Option("--component", help="Which states: block_output, mlp_output, attention_output, ...")
]
LayerNumbers = Annotated[str | None, typer.Option("--layers", help="Such as 0-10 or 0,4,8-12. Default: all.")]
PositionNumbers = Annotated[
    str | None, typer.Option("--positions", help="Tokens, from 0, such as 3,4; -1 is the last. Default: all.")
]
LastTokens = Annotated[
    int | None, typer.Option("--last", help="Compare the last N tokens, aligned from the end: for unequal lengths.")
]
TwoAnswers = Annotated[
    str | None,
    typer.Option("--answers", help="The base's answer and the source's, with their leading spaces: ' Madrid, Rome'. "
                 "Default: what the model says."),
]  # fmt: skip
BasePrompt = Annotated[str, typer.Argument(metavar="BASE", help="The prompt whose run is edited.")]
SourcePrompt = Annotated[str, typer.Argument(metavar="SOURCE", help="The prompt whose activations are put in.")]
PromptTexts = Annotated[
    list[str], typer.Argument(metavar="PROMPT...", help="One or several; @file for those of a file, one a line.")
]
OutFolder = Annotated[Path, typer.Option("--out", help="Folder for the .parquet, .png and .html that are written.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the picture.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar and no picture; the files alone.")]


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


def doses(text: str, option: str) -> list[float]:
    """Read numbers with commas between them.

    Raises:
        SpecError: the text is not such a list.

    >>> doses("-1,-0.5,1", "--doses")
    [-1.0, -0.5, 1.0]
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise SpecError(f"{option} {text!r}: give numbers with commas between them, such as -1,-0.5,0.5,1") from error


def names(text: str | None, default: Sequence[str]) -> list[str]:
    """Read names with commas between them.

    >>> names("mlp_output, block_output", []), names(None, ["block_output"])
    (['mlp_output', 'block_output'], ['block_output'])
    """
    return list(default) if text is None else [part.strip() for part in text.split(",")]


def two(text: str | None) -> tuple[str, str] | None:
    """Read two answers with a comma between them.

    Raises:
        SpecError: there are not two.

    >>> two(" Madrid, Rome")
    (' Madrid', ' Rome')
    """
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 2:
        raise SpecError(f"--answers {text!r}: give two tokens with a comma between them, such as ' Madrid, Rome'")
    return parts[0], parts[1]


def texts(given: Sequence[str], what: str) -> list[str]:
    """Read texts as they are; `@file` stands for the lines of a file.

    Raises:
        SpecError: there are none.
        OSError: the file cannot be read.
    """
    found: list[str] = []
    for text in given:
        lines = Path(text[1:]).read_text(encoding="utf-8").splitlines() if text.startswith("@") else [text]
        found += [line for line in lines if line.strip()] if text.startswith("@") else lines
    if not found:
        raise SpecError(f"{what} names no text: give texts, or @file with one a line")
    return found


def labelled(path: Path) -> dict[str, list[Any]]:
    """Read a CSV file with the columns `prompt` and `label`, and `group` where prompts belong together.

    Raises:
        SpecError: it lacks a column, or has no lines.
        OSError: the file cannot be read.
    """
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        columns = list(reader.fieldnames or ())
        missing = [name for name in ("prompt", "label") if name not in columns]
        if missing:
            raise SpecError(f"{path} has the columns {columns}; it needs a first line with prompt, label (and group)")
        rows = list(reader)
    if not rows:
        raise SpecError(f"{path} has no lines below the first")
    return {name: [row[name] for row in rows] for name in ("prompt", "label", "group") if name in columns}
