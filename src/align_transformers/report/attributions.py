"""Direct logit attribution: what heads and MLPs add to a logit, as a map, layer by layer, and in all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .layer_map import Row, averaged, interval_of, largest, layer_map, line_of, prompts_of, units
from .panels import Bar, Bars, Curve, CurveLine, Labels, Panel, Picture, signed_scale
from .tabular import Tabular
from .words import spoken

_KINDS = {
    "block_input": "embeddings",
    "head_contribution": "attention heads",
    "attention_contribution": "attention",
    "attention_bias": "attention biases",
    "mlp_contribution": "MLPs",
    "constant": "constant",
}


def picture_of_attribution(table: Tabular, value: str | None) -> Picture:
    """Return a map of the parts by layer and head, bars of the kinds of parts, and what each layer adds."""
    asked = value or "contribution"
    prompts = units(table, "prompt")
    rows = averaged(table, ["component", "layer", "head"], asked, "prompt")
    placed = [row for row in rows if row["component"] not in ("block_input", "constant", "attention_bias")]
    scale = signed_scale("logits", (row[asked] for row in placed))
    panels: list[tuple[Panel, ...]] = []
    if placed:
        panels.append((layer_map(placed, asked, _labels(placed), _column, scale),))
    panels.append((_bars(table, asked, prompts), _curve(table, asked)))
    sure = f"Means over {prompts} prompts; intervals and bands: 95 % (bootstrap over prompts). " if prompts > 1 else ""
    what = _target(table)
    best = largest(placed, asked, 5)
    return Picture(
        f"What each part adds to {what}",
        tuple(panels),
        prompts=prompts_of(table.meta),
        about=f"parts of the residual stream of {table.meta['model']} through the frozen final norm",
        caption=(
            f"{table.meta['model']}: what each head and MLP adds to {what} through the final norm with its scale as it "
            f"was. All parts sum up to it. {sure}Deepest layer on top."
        ),
        findings=tuple(f"{part_name(row)}: {interval_of(row, asked, 'adds')}" for row in best),
    )


def _target(table: Tabular) -> str:
    answers, others = table.meta.get("answers") or [], table.meta.get("against") or []
    name = f"the logit of “{spoken(answers[0])}”" if len(set(answers)) == 1 else "the logit of the answer"
    if others:
        name += f" minus that of “{spoken(others[0])}”" if len(set(others)) == 1 else " minus that of the other one"
    return name


def _labels(rows: Sequence[Row]) -> tuple[Labels, Sequence[Any]]:
    heads = sorted({row["head"] for row in rows if row["head"] is not None})
    keys: list[Any] = [*heads, *dict.fromkeys(_column(row) for row in rows if row["head"] is None)]
    return Labels("head", tuple((str(key),) for key in keys)), keys


def _column(row: Row) -> Any:
    if row["head"] is not None:
        return row["head"]
    component = str(row["component"])
    return "MLP" if component.startswith("mlp") else component.removesuffix("_contribution")


def part_name(row: Row) -> str:
    """Return what a part of the residual stream is called: `layer 23, head 4`, `layer 3, MLP`."""
    part = _column(row) if row["head"] is None else f"head {row['head']}"
    return f"layer {row['layer']}, {part}"


def _bars(table: Tabular, value: str, prompts: int) -> Bars:
    """Return what the kinds of parts add in all, and the sum."""
    sums: dict[str, dict[int, float]] = {}
    for row in table.rows():
        for kind in (_KINDS.get(row["component"], row["component"]), "in all"):
            of_kind = sums.setdefault(kind, {})
            of_kind[row["prompt"]] = of_kind.get(row["prompt"], 0.0) + row[value]
    rows = [
        {"component": kind, "prompt": prompt, value: total}
        for kind, each in sums.items()
        for prompt, total in each.items()
    ]
    found = averaged(table.from_rows(rows, meta={}), ["component"], value, "prompt")
    order = [*dict.fromkeys(_KINDS.values()), *(kind for kind in sums if kind not in _KINDS.values())]
    found.sort(key=lambda row: order.index(row["component"]) if row["component"] != "in all" else len(order))
    bars = tuple(Bar(row["component"], row[value], row["low"], row["high"]) for row in found)
    return Bars("in all layers", "logits" + ", 95 % intervals" * (prompts > 1), bars)


def _curve(table: Tabular, value: str) -> Curve:
    """Return what attention and MLP of each layer add."""
    sums: dict[tuple[str, int, int], float] = {}
    for row in table.rows():
        kind = "MLP" if row["component"].startswith("mlp") else "attention"
        if row["layer"] is not None and row["component"] != "block_input":
            key = kind, row["layer"], row["prompt"]
            sums[key] = sums.get(key, 0.0) + row[value]
    rows = [{"component": k, "layer": n, "prompt": p, value: total} for (k, n, p), total in sums.items()]
    lines: list[CurveLine] = []
    for name in dict.fromkeys(kind for kind, _, _ in sums):
        own = table.from_rows((row for row in rows if row["component"] == name), meta={})
        lines.append(line_of(name, averaged(own, ["layer"], value, "prompt"), value))
    return Curve("layer by layer", "layer", "logits", tuple(lines))
