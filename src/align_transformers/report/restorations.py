"""Causal tracing: maps of restored states by layer and token, and curves at the last tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .._errors import SpecError
from .layer_map import Row, averaged, interval_of, largest, layer_map, line_of, prompts_of, token_labels
from .panels import Curve, HeatMap, Labels, Panel, Picture, signed_scale
from .tabular import Tabular
from .words import precise, spoken, visible

_ENDS = ("last subject token", "last token")
_ORDER = (
    "before the subject", "first subject token", "middle subject tokens", "last subject token",
    "first subsequent token", "further tokens", "last token",
)  # fmt: skip


def picture_of_restorations(table: Tabular, value: str | None) -> Picture:
    """Return a map of each component by layer and token; of several prompts by what a token is to the subject.

    Raises:
        SpecError: the noise was drawn once for one prompt, so that nothing is known of its interval.
    """
    asked = value or "indirect_effect"
    prompts = sorted(set(table.columns["prompt"]))
    column = "place" if "place" in table.columns else "position" if len(prompts) == 1 else "role"
    if len(prompts) == 1:
        rows, labels = _of_one(table, prompts[0], asked, column)
    else:
        rows, labels = _of_several(table, asked, column)
    ends, side = (_ENDS, "role") if column != "place" else (tuple(labels[1]), "place")
    scale = signed_scale(asked.replace("_", " "), (row[asked] for row in rows))
    maps: list[HeatMap] = []
    curves: list[Panel] = []
    for name in table.components():
        own = [row for row in rows if row["component"] == name]
        maps.append(layer_map(own, asked, labels, lambda row: row[column], scale, title=name, details=_details))
        lines = [line_of(str(end), [row for row in own if row[side] == end], asked) for end in ends]
        curves.append(Curve(name, "layer", scale.name, tuple(line for line in lines if line.points)))
    return Picture(
        _title(table, prompts),
        (tuple(maps), tuple(curves)),
        prompts=prompts_of(_chosen(table, prompts)),
        about=f"{', '.join(table.components())} of {table.meta['model']}, restored in the corrupted run",
        caption=_caption(table, prompts, asked),
        notes=("* = a token of the subject, which is corrupted",) if column == "position" else (),
        findings=tuple(_findings(table, prompts, rows, asked)),
        facts={"noise": precise(table.meta.get("noise")), "draws": str(table.meta.get("draws", "-"))},
    )


def _of_one(table: Tabular, prompt: int, value: str, column: str) -> tuple[Sequence[Row], tuple[Labels, Sequence[Any]]]:
    """Return rows and columns of one prompt; the interval is over the draws of the noise."""
    noisy, draws = table.meta.get("noise") is not None, table.meta.get("draws", 1)
    if noisy and draws < 2:
        raise SpecError(
            "one draw of the noise has no interval, and other draws move single values by much: trace with draws=10, "
            "or several prompts"
        )
    rows = [{**row, "count": row["draws"]} for row in table.rows()]
    if value != "indirect_effect":  # the interval is that of the indirect effect
        rows = [{**row, "low": None, "high": None} for row in rows]
    if column == "place":
        return rows, _named(table)
    places = sorted({row["position"] for row in rows})
    names = token_labels(table.meta["tokens"][prompt], places, table.meta["subject"][prompt])
    return rows, (names, places)


def _named(table: Tabular) -> tuple[Labels, Sequence[Any]]:
    names = list(dict.fromkeys(table.columns["place"]))
    return Labels("place", tuple((str(name),) for name in names), tuple(range(len(names)))), names


def _of_several(table: Tabular, value: str, column: str) -> tuple[Sequence[Row], tuple[Labels, Sequence[Any]]]:
    """Return means over prompts by place, or what a token is to the subject; the interval is over prompts."""
    rows = averaged(table, ["component", "layer", column], value, "prompt")
    if column == "place":
        return rows, _named(table)
    roles = [role for role in _ORDER if role in {row["role"] for row in rows}]
    numbers = tuple(range(len(roles)))
    return rows, (Labels("token", tuple((role,) for role in roles), numbers), roles)


def _details(row: Row) -> list[str]:
    lines = [str(row["role"])] if row.get("role") and "position" in row else []
    return [*lines, f"probability {precise(row['restored'])}"] if "restored" in row else lines


def _chosen(table: Tabular, prompts: Sequence[int]) -> dict[str, Any]:
    return {name: [table.meta[name][n] for n in prompts] for name in ("prompts", "answers") if name in table.meta}


def _title(table: Tabular, prompts: Sequence[int]) -> str:
    if len(prompts) > 1:
        return f"Which restored states bring the answer back: means over {len(prompts)} prompts"
    return f"Which restored state brings “{spoken(table.meta['answers'][prompts[0]])}” back"


def _caption(table: Tabular, prompts: Sequence[int], value: str) -> str:
    meta, draws = table.meta, table.meta.get("draws")
    noisy = meta.get("noise") is not None
    how = f"{draws} draws of noise, sd {precise(meta['noise'])}" if noisy else "another prompt's tokens"
    over = f"over {len(prompts)} prompts" if len(prompts) > 1 else f"over {draws} draws of noise"
    sure = f"Bands and brackets: 95 % intervals (bootstrap {over}). " if noisy or len(prompts) > 1 else ""
    widths = ", ".join(f"{name} {width}" for name, width in dict(meta.get("window", {})).items())
    what = "probability of the answer" + (" minus that of the corrupted run" if value == "indirect_effect" else "")
    return (
        f"{meta['model']}: the subject's tokens are corrupted ({how}), and the state of one token is restored to what "
        f"it was in the clean run, in a window of layers ({widths}). Colours: {what}. {sure}Deepest layer on top."
    )


def _findings(table: Tabular, prompts: Sequence[int], rows: Sequence[Row], value: str) -> list[str]:
    meta = table.meta
    clean, corrupted, total = (
        sum(meta[name][n] for n in prompts) / len(prompts) for name in ("clean", "corrupted", "total_effect")
    )
    lines = [f"P(answer): {precise(clean)} clean, {precise(corrupted)} corrupted; total effect {precise(total)}."]
    for name in table.components():
        for row in largest((row for row in rows if row["component"] == name), value, 1):
            known = row.get("position") is not None
            where = f"token {row['position']} ({visible(row['token'])})" if known else row.get("place", row.get("role"))
            lines.append(f"{name}: layer {row['layer']}, {where}: {interval_of(row, value, value.replace('_', ' '))}.")
    return lines
