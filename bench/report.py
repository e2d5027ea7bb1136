"""The results as lines, as a page and as a figure; nothing is measured here."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
_COLOURS = {"ours": "#1b6ca8", "hooks": "#777777"}
_INTRODUCTION = """# Benchmark

Made by `make bench`. SmolLM2-135M, float32, {cpu}, one contestant computing at a time, repetitions taking
turns; figures are medians. Every contestant's values are compared with those of hand-written hooks in the same run,
which stops where one differs by more than 0.001 (the last table has the largest differences). Peers: pyvene 0.1.8
(transformers 4.57.6), nnsight 0.8.1, TransformerLens 4.3.0; their programs are in `bench/peers/`.

The *limit* is what the work cannot avoid. For a grid of N layers and P positions: the N(N-1)/2 x P(P+1)/2 token-layers
above the edits and the 2NP of the two captures, at the cost of a token-layer at full batch measured in the same run
(the cheapest of 400, 1200 and 4000 tokens). For the head grid: one token in the blocks above each head. For a training
step: the blocks above the edit on the positions from it on, forwards and backwards, and the unembedding of the last
position. The models named *wide* have 4 layers of width 1,024 and random weights; their grids are of every tenth
position of 200, and the others do a sample of the cells. Values in bfloat16 may differ by four times what batching
alone changes.

A *study* is measured against the loop that a careful person writes with hooks: what all cells share is computed once,
every cell is a pass of its own, logits are those of the last token; where it says so on a sample of the cells.

*Before* and (in brackets) are the figures of commit 8a9b573, `bench/previous.json`. That may have been another machine:
compare ratios.
"""


def judged(row: Row) -> list[dict[str, Any]]:
    """Return what became of each goal of a row: its text, what was achieved, whether it was met, by how much missed."""
    figures, found = row["figures"], []
    for goal in row["goals"]:
        kind, factor = goal["kind"], goal["factor"]
        if "ours" not in figures or goal.get("against", "ours") not in figures:
            continue
        if kind == "faster":
            text, achieved = f"{factor:g} x faster than {goal['against']}", figures[goal["against"]] / figures["ours"]
        elif kind == "at most":
            text, achieved = f"at most {factor:g} x {goal['against']}", figures["ours"] / figures[goal["against"]]
        else:
            text, achieved = f"limit / achieved at least {factor:g}", row["limit"] / figures["ours"]
        enough = achieved <= factor if kind == "at most" else achieved >= factor
        missed = achieved / factor if kind == "at most" else factor / achieved
        found.append({"goal": text, "achieved": achieved, "met": enough, "missed": missed})
    return found


def line(row: Row) -> str:
    """Return a row as text for the terminal."""
    figures = ", ".join(f"{name} {value:.3g}" for name, value in row["figures"].items())
    parts = [f"{row['work']}: {figures} {row['unit']}" if figures else row["work"]]
    if row["limit"] is not None:
        parts.append(f"limit {row['limit']:.3g}")
    parts += [f"{one['goal']}: {one['achieved']:.3g}, {_verdict(one)}" for one in judged(row)]
    return "; ".join(parts + ([f"PENDING: {row['pending']}"] if row["pending"] else []))


def page(results: Mapping[str, Any], previous: Mapping[str, Any]) -> str:
    """Return the page.

    Args:
        results: by section.
        previous: by work the unit, figures and limit of an older version.
    """
    rows = [row for section in results.values() for row in section["rows"]]
    parts = [_INTRODUCTION.format(cpu=_processor()), "## Goals\n", *_goals(rows, previous)]
    parts += ["\n## Figures\n", *_figures(rows, previous)]
    parts += ["\n![the figures, with the limits](results.png)\n", "## Same work\n", *_agreement(rows)]
    parts += ["\n## When\n", "| section | measured | rounds | threads | load before |", "|---|---|---|---|---|"]
    for name, one in results.items():
        rounds = f"{one['rounds']}{', quick' if one['quick'] else ''}"
        parts.append(f"| {name} | {one['when']} | {rounds} | {one['threads']} | {one['load before']:.1f} |")
    profiles = [row for row in rows if row["profile"]]
    if profiles:
        parts.append("\n## Where the time goes where a goal is missed\n")
        parts.append("`cProfile`, by own time; the profiler itself slows small functions down.\n")
    for row in profiles:
        parts += [f"### {row['work']}\n", "```", *_lines_of(row["profile"]), "```\n"]
    return "\n".join(parts).rstrip() + "\n"


def _goals(rows: Sequence[Row], previous: Mapping[str, Any]) -> Iterator[str]:
    yield from ("| work | goal | before | achieved | |", "|---|---|---|---|---|")
    for row in rows:
        old = {
            one["goal"]: one["achieved"]
            for one in judged({**previous.get(row["work"], NOTHING), "goals": row["goals"]})
        }
        for one in judged(row):
            before = f"{old[one['goal']]:.3g}" if one["goal"] in old else ""
            yield f"| {row['work']} | {one['goal']} | {before} | {one['achieved']:.3g} | {_verdict(one)} |"
        if row["pending"]:
            yield f"| {row['work']} | | | | pending: {row['pending']} |"


def _figures(rows: Sequence[Row], previous: Mapping[str, Any]) -> Iterator[str]:
    yield "| work | unit | contestants | before: ours | ours | limit | limit / ours | before |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in rows:
        old = previous.get(row["work"], NOTHING)
        others = ", ".join(_beside(name, value, old) for name, value in row["figures"].items() if name != "ours")
        name = row["work"] + (f" ({row['note']})" if row.get("note") else "")
        shown = [_number(old["figures"].get("ours")), _number(row["figures"].get("ours")), _number(row["limit"])]
        yield f"| {name} | {row['unit']} | {others} | {' | '.join(shown)} | {_share(row)} | {_share(old)} |"


NOTHING: Row = {"figures": {}, "limit": None}


def _beside(name: str, value: float, old: Row) -> str:
    """Return a contestant's figure, and that of before in brackets."""
    before = old["figures"].get(name)
    return f"{name} {value:.3g}" + ("" if before is None else f" ({before:.3g})")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _share(row: Row) -> str:
    """Return how much of the time the limit is."""
    ours, limit = row["figures"].get("ours"), row["limit"]
    return f"{limit / ours:.2f}" if ours and limit else ""


def _agreement(rows: Sequence[Row]) -> Iterator[str]:
    yield from ("| work | contestant | largest difference from the hand-written hooks |", "|---|---|---|")
    for row in rows:
        for name, text in row["agreement"].items():
            yield f"| {row['work']} | {name} | {text} |"


def _verdict(one: Mapping[str, Any]) -> str:
    return "met" if one["met"] else f"missed by a factor of {one['missed']:.3g}"


def _lines_of(profile: str, count: int = 12) -> list[str]:
    """Return the table of a profile, without what stands above it."""
    lines = [text.rstrip() for text in profile.splitlines() if text.strip()]
    start = next(number for number, text in enumerate(lines) if "tottime" in text)
    return lines[start : start + 1 + count]


def _processor() -> str:
    names = [text.split(":")[1].strip() for text in _lines("/proc/cpuinfo") if text.startswith("model name")]
    return names[0] if names else platform.machine()


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def figure(results: Mapping[str, Any], path: Path) -> None:
    """Draw the figures as bars on a logarithmic scale, with the limits, and how the cost of a cell grows."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = {name: section["rows"] for name, section in results.items()}
    bars = [
        row
        for name in ("blocks", "heads", "training", "interchange", "generation", "wide")
        for row in rows.get(name, [])
    ]
    panels = len(bars) + bool(rows.get("growth"))
    if not panels:
        return
    across = min(3, panels)
    down = -(-panels // across)
    drawing, axes = plt.subplots(down, across, figsize=(5.2 * across, 3.2 * down), squeeze=False, layout="constrained")
    for axis in axes.flat[panels:]:
        axis.axis("off")
    for axis, row in zip(axes.flat, bars, strict=False):
        _draw_bars(axis, row)
    if rows.get("growth"):
        _draw_growth(axes.flat[len(bars)], rows["growth"])
    drawing.savefig(path, dpi=110)
    plt.close(drawing)


def _draw_bars(axis: Any, row: Row) -> None:
    names = sorted(row["figures"], key=lambda name: row["figures"][name])
    values = [row["figures"][name] for name in names]
    axis.barh(names, values, color=[_COLOURS.get(name, "#b9b9b9") for name in names], height=0.65)
    axis.set_xscale("log")
    axis.xaxis.set_minor_formatter("")
    for name, value in zip(names, values, strict=True):
        axis.annotate(f" {value:.3g}", (value, name), va="center", fontsize=8)
    low = min([*values, row["limit"] or values[0]])
    axis.set_xlim(low / 2.5, max(values) * 3)
    if row["limit"]:
        axis.axvline(row["limit"], color="#c0392b", linestyle="--", linewidth=1.2)
        axis.annotate("limit", (row["limit"], 1), (2, -2), xycoords=("data", "axes fraction"), va="top",
                      textcoords="offset points", fontsize=8, color="#c0392b")  # fmt: skip
    axis.set_title(row["work"] + ("" if "ours" in row["figures"] else " (ours: pending)"), fontsize=9)
    axis.set_xlabel(row["unit"], fontsize=8)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_growth(axis: Any, rows: Sequence[Row]) -> None:
    """Draw the cost of a cell against the positions, one shade a number of layers; the limit dashed."""
    sizes = [(int(words[1]), int(words[4])) for words in (row["work"].split() for row in rows)]
    layers = sorted({size[0] for size in sizes})
    for shade, count in enumerate(layers):
        alpha = 0.35 + 0.65 * shade / max(1, len(layers) - 1)
        chosen = [(size[1], row) for size, row in zip(sizes, rows, strict=True) if size[0] == count]
        places = [place for place, _ in chosen]
        for name, colour in (("hooks", "#777777"), ("ours", _COLOURS["ours"])):
            costs = [row["figures"][name] for _, row in chosen]
            axis.plot(places, costs, "o-", color=colour, alpha=alpha, markersize=4, label=f"{name}, {count} layers")
        limits = [row["limit"] for _, row in chosen]
        axis.plot(places, limits, "--", color="#c0392b", alpha=alpha, label=f"limit, {count} layers")
    axis.set(xscale="log", yscale="log", xlabel="positions", ylabel="ms a cell")
    axis.set_title("how the cost of a cell grows", fontsize=9)
    axis.set_xticks(sorted({size[1] for size in sizes}), sorted({size[1] for size in sizes}))
    axis.minorticks_off()
    axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
