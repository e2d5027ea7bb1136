"""`align-transformers probe`: what can be read off states, and what the model makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import AsJson, ComponentNames, LayerNumbers, ModelName, OutFolder, Quiet, labelled, names, numbers
from .running import Job

if TYPE_CHECKING:
    from ..table import Table


def probe(
    data: Annotated[
        Path, typer.Argument(metavar="FILE.csv", help="Columns prompt and label; group: prompts that belong together.")
    ],
    model: ModelName = "smollm2-135m",
    component: ComponentNames = None,
    layers: LayerNumbers = None,
    positions: Annotated[str, typer.Option(help="Tokens, from 0, such as 3,4; -1 is the last; all.")] = "-1",
    estimator: Annotated[str, typer.Option(help="logistic_regression or difference_of_means.")] = "logistic_regression",
    folds: Annotated[int, typer.Option(help="Of the cross-validation.")] = 5,
    draws: Annotated[int, typer.Option(help="How often folds, control labels and partners are drawn.")] = 3,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    out: OutFolder = Path("."),
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Can a label be read off a state, could anything, and does the model use the direction it is read along?

    Probes are cross-validated by group; the control is on labels drawn at random; the causal half swaps and erases the
    probes' directions in the model's run. The picture shows both. `probe.parquet`, `probe.png` and `probe.html` are
    written.

    **Examples**

    `align-transformers probe capitals.csv --layers 0,10,20,29`

    `align-transformers probe capitals.csv --component mlp_output --positions 3`
    """
    read = labelled(data)
    asked: dict[str, Any] = {
        "components": names(component, ["block_output"]),
        "layers": numbers(layers, "--layers"),
        "positions": numbers(positions, "--positions"),
        "groups": read.get("group"),
        "estimator": estimator,
        "folds": folds,
        "draws": draws,
        "seed": seed,
    }

    def study(loaded: Any, **given: Any) -> Table:
        from ..studies import probe as probing

        return probing(loaded, read["prompt"], read["label"], **asked, **given)

    Job("probe", out, as_json, quiet).run(model, study, "probing")
