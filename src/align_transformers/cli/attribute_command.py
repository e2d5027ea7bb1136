"""`align-transformers attribute`: swaps, or edges, estimated from gradients."""

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
    SourcePrompt,
    TwoAnswers,
    names,
    numbers,
    two,
)  # fmt: skip
from .running import Job

if TYPE_CHECKING:
    from ..table import Table


def attribute(
    base: BasePrompt,
    source: SourcePrompt,
    model: ModelName = "smollm2-135m",
    component: ComponentNames = None,
    layers: LayerNumbers = None,
    positions: PositionNumbers = None,
    heads: Annotated[
        str | None, typer.Option(help="Swap single heads, at all tokens or at one: all, or such as 0-3.")
    ] = None,
    method: Annotated[str, typer.Option(help="atp, atp*, ig; with --edges eap, eap-ig (default: the first).")] = "",
    rule: Annotated[
        str,
        typer.Option(help="Of the backward pass: true, frozen_norm, relp, gim, or switches with commas: norm,half."),
    ] = "true",
    verify: Annotated[int, typer.Option(help="So many swaps are measured exactly, to check the estimates.")] = 32,
    seed: Annotated[int, typer.Option(help="Of the drawing of those; of intervals.")] = 0,
    edges: Annotated[bool, typer.Option("--edges", help="Score edges between heads, MLPs and logits instead.")] = False,
    last: LastTokens = None,
    answers: TwoAnswers = None,
    out: OutFolder = Path("."),
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """What would each swap do, by gradients: an estimate for all of them at once, and how good it is.

    The map is that of `trace`, at the cost of two runs and one backward pass; `--verify` swaps are made for the check,
    and how estimates and these agree is told above. `--edges` scores what each head and MLP tells each other one
    (edge attribution patching); those estimates are not checked. `attribute.parquet`, `attribute.png` and
    `attribute.html` are written.

    **Examples**

    `align-transformers attribute "The capital of Spain is" "The capital of Italy is"`

    `align-transformers attribute "Spain is in" "Italy is in" --component attention_value_output --heads all`

    `align-transformers attribute "The capital of Spain is" "The capital of Italy is" --edges --method eap-ig`
    """
    chosen = two(answers)  # a mistake here is worth no waiting for the model
    rules: Any = names(rule, [])
    shared: dict[str, Any] = {"answers": chosen, "rule": rules[0] if len(rules) == 1 else rules, "seed": seed}
    swaps = {"component": component, "layers": layers, "positions": positions, "heads": heads, "last": last}
    if edges and any(given is not None for given in swaps.values()):
        told = ", ".join(f"--{name}" for name, given in swaps.items() if given is not None)
        raise SpecError(f"--edges scores all edges at all tokens: leave out {told}")

    def study(loaded: Any, **given: Any) -> Table:
        from ..studies import attribution, edge_attribution

        if edges:
            named: Any = method or "eap"
            return edge_attribution(loaded, base, source, method=named, **shared, **given)
        asked: dict[str, Any] = {
            "components": names(component, ["block_output"]),
            "layers": numbers(layers, "--layers"),
            "positions": None if heads is not None and positions is None else numbers(positions, "--positions"),
            "heads": None if heads is None else numbers(heads, "--heads"),
            "method": method or "atp",
        }
        return attribution(loaded, base, source, last=last, verify=verify, **asked, **shared, **given)

    Job("attribute", out, as_json, quiet).run(model, study, "measuring")
