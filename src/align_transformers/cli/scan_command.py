"""`align-transformers scan`: a first look at a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._errors import SpecError
from .options import AsJson, ModelArgument, OutFolder, Quiet
from .running import Job

if TYPE_CHECKING:
    from ..studies import Scan


def scan(
    model: ModelArgument,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What the model reads.")],
    against: Annotated[
        str | None, typer.Option(help="Another prompt, with another answer: what makes the difference?")
    ] = None,
    answers: Annotated[
        str | None,
        typer.Option(
            help="The answer to each prompt, with its leading space: ' Madrid, Rome'. Default: what the model says."
        ),
    ] = None,
    verify: Annotated[int, typer.Option(help="How many swaps of heads, and how many of MLPs, are measured.")] = 32,
    seed: Annotated[int, typer.Option(help="Of the drawing of these.")] = 0,
    out: OutFolder = Path("."),
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """The first five minutes: what does the model say, and which layers, heads and tokens make it say so?

    Of one prompt: the most probable next tokens, what the model would say after each layer, what each part adds to the
    answer, and where the heads look that matter. With `--against` also: where the difference between the two prompts
    sits, through which tokens it travels, and which heads and MLPs carry it. Below each picture stands the line of
    Python that repeats it. `scan.html` and `scan.json` are written.

    **Examples**

    `align-transformers scan smollm2-135m "The capital of Spain is"`

    `align-transformers scan smollm2-135m "The capital of Spain is" --against "The capital of Italy is"`
    """
    given = None if answers is None else answers.split(",")
    if given is not None and len(given) != 1 + (against is not None):
        raise SpecError(f"--answers {answers!r}: give one token for each prompt, with a comma between two")

    def study(loaded: Any, **options: Any) -> Scan:
        from ..studies import scan as scanned

        return scanned(loaded, prompt, against, answers=given, verify=verify, seed=seed, **options)

    Job("scan", out, as_json, quiet).run(model, study, "looking")
