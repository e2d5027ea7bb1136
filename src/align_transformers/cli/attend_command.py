"""`align-transformers attend`: attention patterns."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import AsJson, LayerNumbers, ModelName, OutFolder, Quiet, numbers
from .running import Job

if TYPE_CHECKING:
    from ..table import Table


def attend(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What the model reads.")],
    model: ModelName = "smollm2-135m",
    layers: LayerNumbers = None,
    heads: Annotated[str | None, typer.Option(help="Such as 0-3 or 5. Default: all.")] = None,
    out: OutFolder = Path("."),
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """From which tokens does each head take what it gives?

    A row is a query, a column the key that it looks at. Up to twelve heads are drawn each by itself; of more the mean
    of each layer; of more than twelve layers the mean of all. `attend.parquet` (all of them), `attend.png` and
    `attend.html` are written.

    **Examples**

    `align-transformers attend "The capital of Spain is" --layers 20 --heads 0-8`

    `align-transformers attend "The capital of Spain is" --layers 20-25`
    """
    asked: dict[str, Any] = {"layers": numbers(layers, "--layers"), "heads": numbers(heads, "--heads")}

    def study(loaded: Any, *, progress: Any, **given: Any) -> Table:
        from ..studies import attention_patterns

        table = attention_patterns(loaded, prompt, **asked, **given)
        progress(1, 1)
        return table

    Job("attend", out, as_json, quiet).run(model, study, "attending")
