"""`align-transformers lens`: the logit lens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._errors import UnknownNameError, near_misses
from .options import (
    AsJson,
    ComponentNames,
    LayerNumbers,
    ModelName,
    OutFolder,
    PositionNumbers,
    PromptTexts,
    Quiet,
    names,
    numbers,
    texts,
)  # fmt: skip
from .running import Job

if TYPE_CHECKING:
    from ..table import Table

_VALUES = ("probability", "rank", "logit")


def lens(
    prompts: PromptTexts,
    model: ModelName = "smollm2-135m",
    answer: Annotated[
        str | None, typer.Option(help="The token to look for, with its leading space. Default: what the model says.")
    ] = None,
    value: Annotated[
        str, typer.Option(help="What the colours show: probability, rank or logit of the answer.")
    ] = "probability",
    component: ComponentNames = None,
    layers: LayerNumbers = None,
    positions: PositionNumbers = None,
    out: OutFolder = Path("."),
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """What would the model say if it ended after this layer?

    The state of every token after every layer is read with the model's own final norm and unembedding. The map shows
    the most probable token in each cell; of several prompts a curve shows the answer at the last token, with a 95 %
    band over prompts. `lens.parquet`, `lens.png` and `lens.html` are written.

    **Examples**

    `align-transformers lens "The capital of Spain is"`

    `align-transformers lens "The capital of Spain is" --answer " Madrid" --value rank`
    """
    if value not in _VALUES:
        raise UnknownNameError(f"--value {value!r}: {near_misses(value, _VALUES)}")
    read = texts(prompts, "PROMPT")
    asked: dict[str, Any] = {
        "components": names(component, ["block_output"]),
        "layers": numbers(layers, "--layers"),
        "positions": numbers(positions, "--positions"),
        "answers": answer,
    }

    def study(loaded: Any, **given: Any) -> Table:
        from ..studies import logit_lens

        return logit_lens(loaded, read, **asked, **given)

    Job("lens", out, as_json, quiet, value).run(model, study, "reading")
