"""`align-transformers trace`: swaps of one activation at every layer and token; with `--noise` causal tracing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._errors import SpecError
from .options import (
    AsJson,
    BasePrompt,
    ComponentNames,
    LastTokens,
    LayerNumbers,
    ModelName,
    OutFolder,
    PositionNumbers,
    Quiet,
    TwoAnswers,
    names,
    numbers,
    two,
)  # fmt: skip
from .running import Job

if TYPE_CHECKING:
    from ..table import Table


def trace(
    base: BasePrompt,
    source: Annotated[
        str | None, typer.Argument(metavar="[SOURCE]", help="The prompt whose activations are put in.")
    ] = None,
    model: ModelName = "smollm2-135m",
    component: ComponentNames = None,
    layers: LayerNumbers = None,
    positions: PositionNumbers = None,
    last: LastTokens = None,
    answers: TwoAnswers = None,
    noise: Annotated[
        float | None,
        typer.Option(help="Causal tracing: corrupt --subject with noise of so many standard deviations, such as 3."),
    ] = None,
    subject: Annotated[str | None, typer.Option(help="The piece of BASE that noise corrupts.")] = None,
    draws: Annotated[int, typer.Option(help="How often noise is drawn.")] = 10,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    out: OutFolder = Path("."),
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Where does one swapped activation turn the base's answer into the source's?

    Both prompts are run. Then, for every layer and every token, the base is run again with **one** activation
    replaced by the one that the source has there. The heat map shows how far each swap moves the model from the base's
    answer (0) to the source's (1). Three files are written: `trace.parquet` (the table), `trace.png` (the figure) and
    `trace.html` (the same, interactive).

    With `--noise` there is no SOURCE: the tokens of `--subject` are corrupted with noise, and states of the clean run
    are restored one at a time (causal tracing, Meng et al. 2022).

    **Examples**

    `align-transformers trace "The capital of Spain is" "The capital of Italy is"`

    `align-transformers trace "The capital of Spain is" "The capital of Italy is" --component mlp_output --layers 0-10`

    `align-transformers trace "Paris is in" "The city of Rome is in" --last 3 --out results`

    `align-transformers trace "The Space Needle is in downtown" --noise 3 --subject "The Space Needle"`

    `align-transformers trace "..." "..." --model ./my-model --json --quiet | jq .summary`
    """
    where: dict[str, Any] = {
        "layers": numbers(layers, "--layers"),
        "positions": numbers(positions, "--positions"),
    }
    job = Job("trace", out, as_json, quiet)
    if noise is None:
        _swap(job, model, base, source, component, subject, {**where, "last": last, "answers": two(answers)})
        return
    if source is not None or subject is None or answers is not None or last is not None:
        raise SpecError(
            "--noise corrupts --subject in one prompt, and the answer is the model's own: give --noise and --subject, "
            "and no SOURCE, --answers or --last"
        )
    _restore(job, model, base, subject, component, {**where, "noise": noise, "draws": draws, "seed": seed})


def _swap(
    job: Job,
    model: str,
    base: str,
    source: str | None,
    component: str | None,
    subject: str | None,
    options: dict[str, Any],
) -> None:
    if source is None:
        raise SpecError("trace takes BASE and SOURCE; with one prompt, --noise and --subject are needed")
    if subject is not None:
        raise SpecError("--subject is what --noise corrupts: give --noise, such as --noise 3, and no SOURCE")
    components = _components(component, ["block_output"])

    def study(loaded: Any, **given: Any) -> Table:
        from ..studies import grid

        return grid(loaded, base, source, components=components, top=5, **options, **given)

    job.run(model, study, "swapping")


def _restore(job: Job, model: str, prompt: str, subject: str, component: str | None, options: dict[str, Any]) -> None:
    components = _components(component, ["block_output", "mlp_output", "attention_output"])

    def study(loaded: Any, **given: Any) -> Table:
        from ..studies import causal_tracing

        return causal_tracing(loaded, prompt, subject, components=components, **options, **given)

    job.run(model, study, "restoring")


def _components(given: str | None, default: list[str]) -> list[str]:
    """Return names of components; a misspelt one is worth no waiting for the model."""
    from ..sites import Site

    chosen = names(given, default)
    for name in chosen:
        Site(name, 0)
    return chosen
