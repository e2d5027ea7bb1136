"""Evaluations of circuits: faithfulness beside what is left without the circuit and beside random ones, and by size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .panels import Bar, Bars, Curve, CurveLine, CurvePoint, Panel, Picture
from .tabular import Tabular
from .words import precise, with_interval

_LINES = {"top by score": False, "top by |score|": False, "random of a size": True}
_MOST = 20


def picture_of_circuit_evaluation(table: Tabular, value: str | None) -> Picture:
    """Return bars of the circuit and those beside it, a curve by size, and the edges that matter most.

    Args:
        table: of `evaluate_circuit`.
        value: which number; default: faithfulness.
    """
    asked, meta = value or "faithfulness", table.meta
    rows = list(table.rows())
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        kinds.setdefault(row["circuit"], []).append(row)
    bars = [_bar(row, asked) for name in ("circuit", "complement") for row in kinds[name]]
    bars += [_bar(row, asked, control=True) for row in kinds.get("random", ())]
    level = kinds["full"][0][asked]
    panels: list[tuple[Panel, ...]] = [(Bars("", asked, tuple(bars), level=level, level_name="whole model"),)]
    curves = tuple(_line(name, kinds[name], asked, control) for name, control in _LINES.items() if name in kinds)
    if curves:
        panels.append((Curve("", "log10 of the share of edges", asked, curves),))
    edges = sorted(kinds.get("without an edge", ()), key=lambda row: -abs(row["effect"]))
    if edges:
        few = tuple(
            Bar(f"{one['sender']} \N{RIGHTWARDS ARROW} {one['receiver']}", one["effect"], *_ends(one, "effect"))
            for one in edges[:_MOST]
        )
        of = f"the {len(few)} of {len(edges)} edges that matter most" if len(edges) > len(few) else "each edge"
        panels.append((Bars(f"left out: {of}", "change of faithfulness", few),))
    about = f"{meta['kept']} of {meta['edges']} edges of {meta['model']}, absent ones: {meta['ablation']}"
    return Picture(
        f"What {meta['kept']} of the {meta['edges']} edges of {meta['model']} keep",
        tuple(panels),
        about=about,
        caption=_caption(meta),
        findings=tuple(findings_of_circuit(table)),
        facts={"metric": str(meta["metric"]), "ablation": str(meta["ablation"]), "pairs": str(meta["pairs"])},
    )


def findings_of_circuit(table: Tabular) -> list[str]:
    """Return what was measured of a circuit, a line each."""
    meta = table.meta
    rows = {row["circuit"]: row for row in table.rows() if row["circuit"] in ("circuit", "complement")}
    circuit, rest = rows["circuit"], rows["complement"]
    share = "" if circuit["parameters"] is None else f", {100 * circuit['parameters']:.3g} % of the nodes' parameters"
    lines = [
        f"faithfulness {_told(circuit)} over {circuit['n']} pairs, with {circuit['edges']} of {meta['edges']} edges "
        f"({100 * circuit['share']:.3g} %{share})",
        f"without the circuit: {_told(rest)} (0 where it is complete)",
    ]
    drawn = [row["faithfulness"] for row in table.rows() if row["circuit"] == "random"]
    if drawn:
        lines.append(f"random circuits of as many edges: {precise(min(drawn))} to {precise(max(drawn))}")
    if meta.get("cpr"):
        lines.append(
            f"CPR {_area(meta['cpr'])}, CMD {_area(meta['cmd'])}, f from {precise(meta['f'][0])} to "
            f"{precise(meta['f'][1])} (CPR alone rewards a circuit that overdoes what the model does)"
        )
    if meta.get("truth"):
        truth = meta["truth"]
        lines.append(
            f"against the {truth['edges']} edges that are right: precision {precise(truth['precision'])}, recall "
            f"{precise(truth['recall'])}, AUROC by size of the score {precise(truth.get('auroc_of_size'))}"
        )
    return [*lines, meta["held_out"]["note"], *([meta["warning"]] if "warning" in meta else [])]


def _told(row: Mapping[str, Any]) -> str:
    return with_interval(row["faithfulness"], row["low"], row["high"])


def _area(area: Mapping[str, Any]) -> str:
    beside = f"random {precise(area['random'])}, whole model {precise(area['full'])}"
    return f"{with_interval(area['value'], area['low'], area['high'])} ({beside})"


def _ends(row: Mapping[str, Any], value: str) -> tuple[Any, Any]:
    names = ("low", "high") if value == "faithfulness" else (f"{value}_low", f"{value}_high")
    return row.get(names[0]), row.get(names[1])


def _bar(row: Mapping[str, Any], value: str, *, control: bool = False) -> Bar:
    names = {"complement": "without the circuit", "random": f"random {row['draw']}"}
    low, high = _ends(row, value)
    details = (with_interval(row[value], low, high), f"{row['edges']} edges", f"n = {row['n']}")
    return Bar(names.get(row["circuit"], "the circuit"), row[value], low, high, control, details)


def _line(name: str, rows: Sequence[Mapping[str, Any]], value: str, control: bool) -> CurveLine:
    points = tuple(
        CurvePoint(math.log10(row["size"]), row[value], *_ends(row, value), (f"{row['edges']} edges",))
        for row in rows
        if row["size"] > 0
    )
    return CurveLine(name, points, control)


def _caption(meta: Mapping[str, Any]) -> str:
    return (
        "Faithfulness is the share of the way from the empty circuit (0) to the whole model (1) that the metric goes, "
        "a ratio of means over pairs; bars and bands: 95 % bootstrap over pairs. Grey: random connected circuits. "
        f"{meta['held_out']['note'].capitalize()}."
    )
