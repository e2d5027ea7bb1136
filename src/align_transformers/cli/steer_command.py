"""`align-transformers steer`: a direction added while the model goes on with prompts, dose by dose."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._errors import SpecError
from .options import AsJson, ModelName, OutFolder, PromptTexts, Quiet, doses, numbers, texts, two
from .running import Job

if TYPE_CHECKING:
    from ..table import Table


def steer(
    prompts: PromptTexts,
    toward: Annotated[list[str], typer.Option(help="A text to steer towards, or @file; may be given several times.")],
    away: Annotated[list[str], typer.Option(help="A text to steer away from, or @file; likewise.")],
    answers: Annotated[
        str, typer.Option(help="What is measured: the second token's logit minus the first's, such as ' bad, good'.")
    ],
    layers: Annotated[str, typer.Option(help="Where the direction is added, such as 12 or 10,14; each by itself.")],
    model: ModelName = "smollm2-135m",
    component: Annotated[str, typer.Option(help="What is steered.")] = "block_output",
    direction: Annotated[str, typer.Option(help="How it is fitted: mean, pca or probe.")] = "mean",
    amounts: Annotated[
        str, typer.Option("--doses", help="In units of the stream's mean norm, such as -1,-0.5,0.5,1.")
    ] = "-1,-0.5,0.5,1",
    tokens: Annotated[int, typer.Option(help="Length of the continuations.")] = 20,
    seed: Annotated[int, typer.Option(help="Of the random directions that are the control.")] = 0,
    out: OutFolder = Path("."),
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """What does each dose of a direction do to the answer, and to the text?

    The direction is fitted to the contrast of two sets of texts and added while the model goes on with the prompts.
    The curve shows the effect by dose with a 95 % band over prompts, and that of random directions as long; below it
    the perplexity and the repetition of the text. `steer.parquet` (with all continuations), `steer.png` and
    `steer.html` are written.

    **Examples**

    `align-transformers steer "The film was" "I thought the play was" --toward "I love it" --away "I hate it"
    --answers " bad, good" --layers 12`

    `align-transformers steer @prompts.txt --toward @glad.txt --away @sad.txt --answers " bad, good" --layers 12
    --doses=-0.5,0.5`
    """
    ends, chosen = two(answers), numbers(layers, "--layers")
    if ends is None or chosen == "all":
        raise SpecError("--layers names the layers that are steered, such as 12: each is steered by itself")
    asked: dict[str, Any] = {
        "positive": texts(toward, "--toward"),
        "negative": texts(away, "--away"),
        "layers": chosen,
        "component": component,
        "direction": direction,
        "doses": doses(amounts, "--doses"),
        "max_new_tokens": tokens,
        "control": True,
        "seed": seed,
    }
    read = texts(prompts, "PROMPT")

    def study(loaded: Any, *, tokenizer: Any, **given: Any) -> Table:
        from ..metrics import logit_difference
        from ..studies import steer as steering

        metric = logit_difference(ends[1], ends[0], tokenizer=tokenizer)
        return steering(loaded, read, metric, tokenizer=tokenizer, **asked, **given)

    Job("steer", out, as_json, quiet).run(model, study, "steering")
