"""Measure align-transformers against its peers and against the physical limit; write results.json, .md and .png.

    python bench/run.py [--only SECTION ...] [--repeat N] [--quick]

Every contestant is a process of its own (`server.py`, kept by `driver.py`), one computes at a time, and their
repetitions take turns, so that every ratio comes from one run. Figures are medians. Only what is named with `--only` is
measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from statistics import median
from typing import Any

import work
from driver import FOLDER, QUIET, Bench
from work import HEADS, LAYERS, POSITIONS, SMOLLM2, Shape

import report

TOLERANCE = 1e-3  # of a logit difference; contestants that differ by more do not do the same work


@dataclass
class Row:
    """One line of the results.

    Args:
        work: what was done.
        unit: of the figures, such as `ms a cell`.
        figures: median by contestant.
        limit: the physical limit in the same unit, if it is known.
        goals: what is wanted, against whom and by which factor; see `report.judged`.
        agreement: by contestant how its values compare with the hand-written ones.
        pending: what the library cannot do yet.
        profile: where the library's time goes, if it missed a goal.
    """

    work: str
    unit: str
    figures: dict[str, float] = field(default_factory=dict)
    limit: float | None = None
    goals: list[dict[str, Any]] = field(default_factory=list)
    agreement: dict[str, str] = field(default_factory=dict)
    pending: str = ""
    profile: str = ""


def seconds(answers: Sequence[Mapping[str, Any]], skip: int = 1) -> float:
    """Return the median time; the first round is not counted."""
    return median(answer["seconds"] for answer in answers[skip:])


def cells(layers: Iterable[int], places: Iterable[int]) -> list[tuple[int, int]]:
    """Return all cells of some layers and places, layer by layer."""
    places = list(places)
    return [(layer, place) for layer in layers for place in places]


def agreement(name: str, values: Any, truth: Any) -> str:
    """Return the largest difference from the hand-written values.

    Raises:
        SystemExit: the contestant does other work than the others.
    """
    values, truth = (v if isinstance(v, list) else [v] for v in (values, truth))
    if len(values) != len(truth):
        sys.exit(f"bench: {name} gave {len(values)} values, the hand-written loop {len(truth)}")
    apart = [abs(a - b) for a, b in zip(values, truth, strict=True)]
    wrong = [one for one in apart if not one <= TOLERANCE]  # what is not a number is not equal either
    if wrong:
        sys.exit(f"bench: the values of {name} differ from the hand-written ones by {wrong[0]:.2g}")
    return f"{max(apart):.1e}"


def distances(values: Sequence[float], width: int) -> list[list[float]]:
    """Return for each layer how far each place's value is from the layer's median."""
    rows = [values[n : n + width] for n in range(0, len(values), width)]
    return [[abs(value - median(row)) for value in row] for row in rows]


def grid_agreement(values: dict[str, list[float]], width: int) -> dict[str, str]:
    """Return for each contestant the largest difference, and in how many layers the strongest cell is the same.

    Raises:
        SystemExit: in some layer the strongest cell is another, and not because two are equally strong.
    """
    truth, same = distances(values["hooks"], width), {}
    for name, own in values.items():
        if name != "hooks":
            worst = agreement(name, own, values["hooks"])
            equal = 0
            for mine, hand in zip(distances(own, width), truth, strict=True):
                found = mine.index(max(mine))
                equal += found == hand.index(max(hand))
                if max(hand) - hand[found] > TOLERANCE:
                    sys.exit(f"bench: {name} finds another strongest cell than the hand-written loop in some layer")
            cells = len(values["hooks"])
            same[name] = f"{worst} over {cells} cells; strongest cell equal in {equal} of {len(truth)} layers"
    return same


def token_layer(bench: Bench, shape: Shape = SMOLLM2, **options: Any) -> float:
    """Return what one token costs in one block at full batch, in seconds: the cheapest of three sizes of batch.

    Args:
        bench: the processes.
        shape: of the model.
        **options: the `task`, if it is not SmolLM2's; or `positions`, if prompts are of so many tokens.
    """
    positions = options.get("positions") or options.get("task", {}).get("positions", POSITIONS)
    sizes = [max(1, tokens // positions) for tokens in (400, 1200, 4000)]
    works = {str(rows): ("hooks", "token_layers", {"rows": rows, **options}) for rows in sizes}
    answers = bench.turns(works, 1 if bench.quick else 3)
    return min(seconds(answers[str(rows)]) / (rows * positions * shape.layers) for rows in sizes)


def unavoidable(layers: int, positions: int) -> int:
    """Return the token-layers of a block grid: the blocks above each edit, the positions from it on, two captures."""
    return layers * (layers - 1) // 2 * positions * (positions + 1) // 2 + 2 * layers * positions


def sampled(
    bench: Bench, contestants: Mapping[str, tuple[str, str]], all_cells: list[Any], sample: list[Any], own: str
):
    """Measure a grid: ours whole, the others on a sample of its cells, with what they do once a grid counted once.

    Returns:
        Seconds a cell by contestant; by contestant the values of the whole grid (in a quick run, of the sample).
    """
    whole = sample if bench.quick else all_cells
    values = {label: bench.ask(name, what, cells=whole)["values"] for label, (name, what) in contestants.items()}
    works = {label: (name, what, {"cells": sample}) for label, (name, what) in contestants.items()}
    works |= {f"{label} once": (name, what, {"cells": []}) for label, (name, what) in contestants.items()}
    answers = bench.turns({**works, "ours": ("ours", own, {})})
    costs = {}
    for label in contestants:
        once = seconds(answers[f"{label} once"])
        costs[label] = once / len(all_cells) + (seconds(answers[label]) - once) / len(sample)
    if "ours" in answers:
        costs["ours"] = seconds(answers["ours"]) / len(all_cells)
        mine = dict(zip(map(tuple, all_cells), answers["ours"][-1]["values"], strict=True))
        values["ours"] = [mine[tuple(cell)] for cell in whole]
    return costs, values


def faster(against: str, factor: float) -> dict[str, Any]:
    """Return the goal of being `factor` times faster than another contestant."""
    return {"kind": "faster", "against": against, "factor": factor}


def at_most(against: str, factor: float) -> dict[str, Any]:
    """Return the goal of costing at most `factor` times what another does."""
    return {"kind": "at most", "against": against, "factor": factor}


def blocks(bench: Bench) -> list[Row]:
    """The block grid."""
    peers = {
        "hooks": ("hooks", "block_grid"),
        "pyvene": ("pyvene", "block_grid"),
        "TransformerLens": ("lens", "block_grid"),
        "nnsight": ("nnsight", "block_grid"),
        "nnsight, batched": ("nnsight", "block_grid_batched"),
    }
    every, sample = cells(range(LAYERS), range(POSITIONS)), cells([7, 22], range(POSITIONS))
    costs, values = sampled(bench, peers, every, sample, "block_grid")
    row = Row(f"block_output grid, {LAYERS} x {POSITIONS}", "ms a cell", {k: 1e3 * v for k, v in costs.items()})
    row.limit = 1e3 * token_layer(bench) * unavoidable(LAYERS, POSITIONS) / len(every)
    row.goals = [faster("hooks", 32), faster("pyvene", 32), faster("TransformerLens", 20)]
    row.goals += [faster("nnsight, batched", 5), {"kind": "limit", "factor": 0.85}]
    row.agreement = grid_agreement(values, POSITIONS)
    return [finished(bench, row, "block_grid")]


def heads(bench: Bench) -> list[Row]:
    """The head grid at the last token."""
    peers = {"hooks": ("hooks", "head_grid"), "TransformerLens": ("lens", "head_grid")}
    every, sample = cells(range(LAYERS), range(HEADS)), cells([7, 22], range(HEADS))
    costs, values = sampled(bench, peers, every, sample, "head_grid")
    row = Row(f"head grid, {LAYERS} x {HEADS}, last token", "ms a cell", {k: 1e3 * v for k, v in costs.items()})
    needed = LAYERS * (LAYERS - 1) // 2 * HEADS + 2 * LAYERS * POSITIONS
    row.limit = 1e3 * token_layer(bench) * needed / len(every)
    row.goals = [faster("TransformerLens", 15)]
    row.agreement = grid_agreement(values, HEADS)
    return [finished(bench, row, "head_grid")]


def pairs(bench: Bench) -> list[Row]:
    """The block grid over 32 prompt pairs in one call, against one pair."""
    many = 4 if bench.quick else 32
    row = Row(f"block_output grid over {many} prompt pairs", "s a pair")
    works = {n: ("ours", "block_grid", {"pairs": n}) for n in (1, many)}
    answers = bench.turns({str(n): one for n, one in works.items()}, 1)
    if str(many) in answers:
        row.figures = {"one pair": seconds(answers["1"]), "ours": seconds(answers[str(many)]) / many}
        memory = bench.alone("ours", "block_grid", {"pairs": 1, "layers": [29]}, {"pairs": many})
        row.work += f" (peak {(memory['peak'] - memory['before']) / 2**20:.0f} MiB above the loaded model)"
        sample = cells([7, 22], range(POSITIONS))
        truth = [bench.ask("hooks", "block_grid", cells=sample, pair=pair)["values"] for pair in (0, many - 1)]
        values = answers[str(many)][-1]["values"]  # layer by layer, pair by pair
        mine = [values[(layer * many + pair) * POSITIONS + at] for pair in (0, many - 1) for layer, at in sample]
        row.agreement = {"ours": agreement("ours", mine, [*truth[0], *truth[1]])}
    row.limit = token_layer(bench) * unavoidable(LAYERS, POSITIONS)
    row.goals = [at_most("one pair", 1.0)]
    return [finished(bench, row, "block_grid", pairs=2)]


def training(bench: Bench) -> list[Row]:
    """Training steps: source pass, edited pass, backwards, Adam; batch 16, position 12 of 20."""
    rows = []
    for what, layer, factor in (("das", 15, 6), ("das", 27, 18), ("rotation", 15, 7), ("boundless", 15, 7)):
        names = {"das": "DAS step, rank 16", "rotation": "full rotation step, d=576", "boundless": "Boundless DAS step"}
        args = {"layer": layer}
        works = {name: (name, what, args) for name in ("hooks", "pyvene", "ours")}
        works["floor"] = ("hooks", "training_floor", args)
        answers = bench.turns(works)
        row = Row(f"{names[what]}, block {layer}", "ms a step")
        row.limit = 1e3 * seconds(answers.pop("floor"))
        row.figures = {name: 1e3 * seconds(one) for name, one in answers.items()}
        row.goals = [faster("pyvene", factor)]
        truth = answers["hooks"][0]["values"]
        same = ["ours"] if what == "boundless" else [name for name in answers if name != "hooks"]  # masks differ
        row.agreement = {name: agreement(name, answers[name][0]["values"], truth) for name in same}
        rows.append(finished(bench, row, what, **args))
    return rows


def interchange(bench: Bench) -> list[Row]:
    """One interchange of a batch."""
    answers = bench.turns({name: (name, "interchange", {}) for name in ("hooks", "ours")}, 3 * bench.repeat)
    row = Row("one interchange, batch 16, block 15", "ms", {n: 1e3 * seconds(a) for n, a in answers.items()})
    row.goals = [at_most("hooks", 1.02)]
    row.agreement = {"ours": agreement("ours", answers["ours"][0]["values"], answers["hooks"][0]["values"])}
    return [finished(bench, row, "interchange")]


def generation(bench: Bench) -> list[Row]:
    """Generation with an addition at every step."""
    works = {
        "plain": ("hooks", "generate_plain", {}),
        "hooks": ("hooks", "generate", {}),
        "ours": ("ours", "generate", {}),
    }
    answers = bench.turns(works)
    row = Row("64 tokens with an addition at every step", "s", {n: seconds(a) for n, a in answers.items()})
    row.goals = [at_most("plain", 1.05)]
    row.agreement = {"ours": agreement("ours", answers["ours"][0]["values"], answers["hooks"][0]["values"])}
    return [finished(bench, row, "generate")]


def memory(bench: Bench) -> list[Row]:
    """Highest resident set above that of the loaded model, each in a process of its own."""
    one = bench.alone("hooks", "one_pass", {"layer": 15, "positions": 2}, {"layer": 15})
    grid = bench.alone("ours", "block_grid", {"layers": [29], "positions": 2}, {})
    text = "peak memory of the block grid; one full-batch pass = 20 rows (one a position) x 20 tokens, all logits"
    row = Row(text, "MiB above the loaded model")
    row.figures = {name: (a["peak"] - a["before"]) / 2**20 for name, a in (("one pass", one), ("ours", grid))}
    row.goals = [at_most("one pass", 1.5)]
    return [finished(bench, row, "")]


def overhead(bench: Bench) -> list[Row]:
    """Time of the framework in one interchange call on a tiny model."""
    rows = []
    for edits in (1, 12, 100):
        rounds = [bench.ask("ours", "overhead", edits=edits)["microseconds"] for _ in range(bench.repeat)]
        by_hand, ours = (median(one[name] for one in rounds) for name in ("hooks", "ours"))
        row = Row(f"framework time of a call with {edits} edit{'s' * (edits > 1)}, tiny model", "us")
        row.figures = {"hooks": by_hand, "call": ours, "ours": ours - by_hand, "allowed": 60 + 4.0 * edits}
        row.goals = [at_most("allowed", 1.0)]
        rows.append(finished(bench, row, "overhead", edits=edits, repeat=20))
    return rows


def growth(bench: Bench) -> list[Row]:
    """How the cost of a cell grows with layers and positions, on random models of SmolLM2's widths."""
    rows = []
    for positions in (5, 20) if bench.quick else (5, 20, 80):
        cost = token_layer(bench, positions=positions)
        for layers in (6, 12) if bench.quick else (6, 12, 30):
            task = {"shape": asdict(replace(SMOLLM2, layers=layers, vocab=8192)), "positions": positions}
            sample = cells([layers // 4, layers - 2], [0, positions // 2, positions - 1])
            big = layers * positions >= 900
            works = {
                "hooks": ("hooks", "block_grid", {"task": task, "cells": sample}),
                "ours": ("ours", "block_grid", {"task": task}),
            }
            if big:
                answers = {label: [bench.ask(name, what, **args)] for label, (name, what, args) in works.items()}
            else:
                answers = bench.turns(works, min(3, bench.repeat))
            times = {label: seconds(one, skip=0 if big else 1) for label, one in answers.items()}
            row = Row(f"growth: {layers} layers x {positions} positions", "ms a cell")
            row.figures = {
                "hooks": 1e3 * times["hooks"] / len(sample),
                "ours": 1e3 * times["ours"] / (layers * positions),
            }
            row.limit = 1e3 * cost * unavoidable(layers, positions) / (layers * positions)
            mine = [answers["ours"][-1]["values"][layer * positions + place] for layer, place in sample]
            row.agreement = {"ours": agreement("ours", mine, answers["hooks"][-1]["values"])}
            rows.append(finished(bench, row, ""))
    return rows


def finished(bench: Bench, row: Row, what: str, **args: Any) -> Row:
    """Return the row with a profile where a goal is missed, or with what is pending."""
    if "ours" not in row.figures:
        try:
            bench.ask("ours", what, **args)
        except work.Pending as missing:
            row.pending = str(missing)
    elif what and not all(judged["met"] for judged in report.judged(asdict(row))):
        row.profile = bench.profile(what, **args)
    print(report.line(asdict(row)), flush=True)
    return row


SECTIONS: dict[str, Callable[[Bench], list[Row]]] = {
    "blocks": blocks,
    "heads": heads,
    "training": training,
    "interchange": interchange,
    "generation": generation,
    "memory": memory,
    "overhead": overhead,
    "pairs": pairs,
    "growth": growth,
}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="sections to measure")
    parser.add_argument("--repeat", type=int, default=5, help="rounds that count")
    parser.add_argument("--quick", action="store_true", help="fewer cells, models and rounds; figures are rough")
    options = parser.parse_args()
    os.environ.update(QUIET)
    from align_transformers.models.embedded import embedded_checkpoint

    work.prepare(str(embedded_checkpoint("smollm2-135m")))
    (FOLDER / "logs").mkdir(exist_ok=True)
    store = FOLDER / "results.json"
    results = json.loads(store.read_text()) if store.exists() else {}
    with ExitStack() as stack:
        bench = Bench(1 if options.quick else options.repeat, options.quick, stack)
        for name in options.only:
            facts = {
                "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "rounds": bench.repeat,
                "quick": bench.quick,
                "threads": int(os.environ.get("OMP_NUM_THREADS", "2")),
                "load before": os.getloadavg()[0],  # what others were doing on this machine
            }
            results[name] = {**facts, "rows": [asdict(row) for row in SECTIONS[name](bench)]}
            store.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    ordered = {name: results[name] for name in SECTIONS if name in results}
    (FOLDER / "results.md").write_text(report.page(ordered), encoding="utf-8")
    report.figure(ordered, FOLDER / "results.png")
    print(f"written: {store}, results.md, results.png")


if __name__ == "__main__":
    main()
