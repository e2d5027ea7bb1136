"""`align-transformers lens`: the logit lens, and the parts of a logit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._errors import SpecError, UnknownNameError, near_misses
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
        str | None, typer.Option(help="What the colours show: probability (default), rank or logit of the answer.")
    ] = None,
    component: ComponentNames = None,
    layers: LayerNumbers = None,
    positions: PositionNumbers = None,
    parts: Annotated[
        bool, typer.Option("--parts", help="Take the answer's logit apart: what does each head and MLP add to it?")
    ] = False,
    against: Annotated[str | None, typer.Option(help="With --parts: a token whose logit is taken off.")] = None,
    out: OutFolder = Path("."),
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """What would the model say if it ended after this layer?

    The state of every token after every layer is read with the model's own final norm and unembedding. The map shows
    the most probable token in each cell; of several prompts a curve shows the answer at the last token, with a 95 %
    band over prompts. `lens.parquet`, `lens.png` and `lens.html` are written.

    With `--parts` the same norm and unembedding take one logit apart, that of the last token or of the one that
    `--positions` names: the map shows what each head and MLP adds to it (direct logit attribution).

    **Examples**

    `align-transformers lens "The capital of Spain is"`

    `align-transformers lens "The capital of Spain is" --answer " Madrid" --value rank`

    `align-transformers lens "The capital of Spain is" --answer " Madrid" --against " Rome" --parts`
    """
    read, at = texts(prompts, "PROMPT"), numbers(positions, "--positions")
    if against is not None and not parts:
        raise SpecError("--against is a token that --parts takes off: give --parts")
    if parts and (component, layers, value) != (None, None, None):
        raise SpecError("--parts tells all heads and MLPs in logits: give no --component, --layers or --value")
    if parts and at != "all" and len(at) != 1:
        raise SpecError(f"--parts takes the logit of one token apart: give one of --positions; found {positions!r}")
    if value is not None and value not in _VALUES:
        raise UnknownNameError(f"--value {value!r}: {near_misses(value, _VALUES)}")

    def look(loaded: Any, **given: Any) -> Table:
        from ..studies import logit_lens

        components = names(component, ["block_output"])
        asked: dict[str, Any] = {"layers": numbers(layers, "--layers"), "positions": at, "answers": answer}
        return logit_lens(loaded, read, components=components, **asked, **given)

    def take_apart(loaded: Any, *, progress: Any, **given: Any) -> Table:
        from ..studies import direct_logit_attribution

        one: Any = -1 if at == "all" else at[0]
        table = direct_logit_attribution(loaded, read, answers=answer, against=against, at=one, **given)
        progress(1, 1)
        return table

    study, shown = (take_apart, None) if parts else (look, value or "probability")
    Job("lens", out, as_json, quiet, shown).run(model, study, "reading")
