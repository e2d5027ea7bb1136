"""Measure align-transformers against its peers and against the physical limit; write results.json, .md and .png.

    python bench/run.py [--only SECTION ...] [--repeat N] [--quick] [--out FOLDER]

Every contestant is a process of its own (`server.py`, kept by `driver.py`), one computes at a time, and their
repetitions take turns, so that every ratio comes from one run. Figures are medians. Only what is named with `--only` is
measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

import sections
import work
from counterfactuals import PAIRS
from driver import FOLDER, QUIET, Bench
from sections import Case, Row, agreement, at_most, cells, faster, finished, seconds, token_layer, unavoidable
from whole_searches import PAIRS as A_STEP
from whole_searches import STEPS
from work import LAYERS, POSITIONS, SMOLLM2, WIDE

import report
import studies

EVERY = range(POSITIONS)
SMOL = Case("", SMOLLM2, POSITIONS, places=EVERY, sample=[7, 22], whole=True, pair_places=EVERY, peers=["pyvene"])


def there(peers: dict[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """Return the contestants whose environment is there, and say which are left out."""
    made = {"hooks", *(path.parent.parent.name for path in (FOLDER / "venvs").glob("*/bin/python"))}
    absent = [name for name, (kind, _) in peers.items() if kind not in made]
    if absent:
        sys.stdout.write(f"left out, since their environments are not there: {', '.join(absent)}\n")
    return {name: what for name, what in peers.items() if name not in absent}


def blocks(bench: Bench) -> list[Row]:
    """The block grid."""
    peers = {
        "hooks": ("hooks", "block_grid"),
        "pyvene": ("pyvene", "block_grid"),
        "TransformerLens": ("lens", "block_grid"),
        "nnsight": ("nnsight", "block_grid"),
        "nnsight, batched": ("nnsight", "block_grid_batched"),
    }
    goals = [faster("hooks", 32), faster("pyvene", 32), faster("TransformerLens", 20), faster("nnsight, batched", 5)]
    return [sections.blocks(bench, SMOL, there(peers), [*goals, {"kind": "limit", "factor": 0.85}])]


def heads(bench: Bench) -> list[Row]:
    """The head grid at the last token."""
    peers = {"hooks": ("hooks", "head_grid"), "TransformerLens": ("lens", "head_grid")}
    return [sections.heads(bench, SMOL, there(peers), [faster("TransformerLens", 15)])]


def pairs(bench: Bench) -> list[Row]:
    """The block grid over 32 prompt pairs in one call, against one pair."""
    case = replace(SMOL, pairs=4 if bench.quick else 32)
    row = sections.pairs(bench, case, [at_most("one pair", 1.0)])
    memory = bench.alone("ours", "block_grid", {"pairs": 1, "layers": [LAYERS - 1]}, {"pairs": case.pairs})
    row.note = f"peak {(memory['peak'] - memory['before']) / 2**20:.0f} MiB above the loaded model"
    return [row]


def training(bench: Bench) -> list[Row]:
    """Training steps; batch 16, position 12 of 20."""
    steps = (("das", 15, 6), ("das", 27, 18), ("rotation", 15, 7), ("boundless", 15, 7))
    return [sections.training(bench, SMOL, what, layer, [faster("pyvene", factor)]) for what, layer, factor in steps]


def interchange(bench: Bench) -> list[Row]:
    """One interchange of a batch."""
    return [sections.interchange(bench, SMOL, [at_most("hooks", 1.02)])]


def generation(bench: Bench) -> list[Row]:
    """Generation with an addition at every step."""
    return [sections.generation(bench, SMOL, [at_most("plain", 1.05)])]


def memory(bench: Bench) -> list[Row]:
    """Highest resident set above that of the loaded model, each in a process of its own."""
    one = bench.alone("hooks", "one_pass", {"layer": 15, "positions": 2}, {"layer": 15})
    grid = bench.alone("ours", "block_grid", {"layers": [29], "positions": 2}, {})
    text = "peak memory of the block grid; one full-batch pass = 20 rows (one a position) x 20 tokens, all logits"
    row = Row(text, "MiB above the loaded model")
    row.figures = {name: (a["peak"] - a["before"]) / 2**20 for name, a in (("one pass", one), ("ours", grid))}
    row.goals = [at_most("one pass", 1.5)]
    return [finished(bench, row, "")]


def wide(bench: Bench) -> list[Row]:
    """A 4-layer model of width 1,024 with random weights, prompts of 200 tokens, 64 pairs; float32 and bfloat16.

    The grids are of every tenth position; the others do a sample of their cells. Of 64 pairs, at two positions.
    """
    rows = []
    for dtype in ("float32", "bfloat16"):
        size = {"positions": 40, "pairs": 4} if bench.quick else {"positions": 200, "pairs": 64}
        last, places = (
            size["positions"] - 1,
            range(size["positions"] // 20 - 1, size["positions"], size["positions"] // 20),
        )
        task = {"shape": asdict(WIDE), "dtype": dtype, **size, "batch": 4, "place": last // 2}
        case = Case(f"wide {dtype}, {last + 1} tokens: ", WIDE, last + 1, batch=4, task=task, places=list(places))
        case = replace(case, sample=[0, 2], sample_places=[places[4], places[-1]])
        case = replace(case, pairs=size["pairs"], pair_places=[last // 2, last], tokens=32)
        facts = bench.ask("hooks", "batching", task=task, cells=cells([0, 2], places))["values"]
        case = replace(case, allowed=work.allowed(dtype, facts), peers=["pyvene"] if dtype == "float32" else [])
        both = {"hooks": ("hooks", "block_grid"), "pyvene": ("pyvene", "block_grid")}
        rows.append(sections.blocks(bench, case, both))
        rows.append(sections.heads(bench, replace(case, sample=[2]), {"hooks": ("hooks", "head_grid")}))
        rows.append(sections.training(bench, case, "das", 2))
        rows.append(sections.interchange(bench, case))
        rows.append(sections.pairs(bench, case))
    return rows


def growth(bench: Bench) -> list[Row]:
    """How the cost of a cell grows with layers and positions, on random models of SmolLM2's widths."""
    rows = []
    for positions in (5, 20) if bench.quick else (5, 20, 80):
        cost = token_layer(bench, positions=positions)
        for layers in (6, 12) if bench.quick else (6, 12, 30):
            rows.append(_grown(bench, layers, positions, cost))
    return rows


def _grown(bench: Bench, layers: int, positions: int, cost: float) -> Row:
    task = {"shape": asdict(replace(SMOLLM2, layers=layers, vocab=8192)), "positions": positions}
    sample = cells([layers // 4, layers - 2], [0, positions // 2, positions - 1])
    big = layers * positions >= 900
    works = {
        "hooks": ("hooks", "block_grid", {"task": task, "cells": sample}),
        "ours": ("ours", "block_grid", {"task": task}),
    }
    if big:
        answers: dict[str, Any] = {n: [bench.ask(name, what, **args)] for n, (name, what, args) in works.items()}
    else:
        answers = bench.turns(works, min(3, bench.repeat))
    times = {label: 1e3 * seconds(one, skip=0 if big else 1) for label, one in answers.items()}
    row = Row(f"growth: {layers} layers x {positions} positions", "ms a cell")
    row.figures = {"hooks": times["hooks"] / len(sample), "ours": times["ours"] / (layers * positions)}
    row.limit = 1e3 * cost * unavoidable(layers, positions) / (layers * positions)
    mine = [answers["ours"][-1]["values"][layer * positions + place] for layer, place in sample]
    row.agreement = {"ours": agreement("ours", mine, answers["hooks"][-1]["values"])}
    return finished(bench, row, "")


def causal(bench: Bench) -> list[Row]:
    """A million counterfactuals of a small causal model, and a data set of as many pairs."""
    count = 20_000
    works: dict[str, Any] = {
        "ours": ("ours", "counterfactuals", {}),
        "hooks": ("hooks", "counterfactuals", {"count": count}),
        "drawn": ("ours", "counterfactual data", {}),
    }
    answers = bench.turns(works)
    times = {label: seconds(one) / (count if label == "hooks" else PAIRS) for label, one in answers.items()}
    row = Row("a counterfactual of a + b + c, of a million; the loop through dictionaries: of 20,000", "us")
    row.figures = {"loop": 1e6 * times["hooks"], "ours": 1e6 * times["ours"]}
    row.goals = [faster("loop", 50)]
    row.agreement = {"ours": agreement("ours", answers["ours"][-1]["values"], answers["hooks"][-1]["values"])}
    made = Row("a data set of a million pairs: drawn, labelled, without the trivial ones, counted", "s")
    made.figures = {"ours": PAIRS * times["drawn"]}
    return [finished(bench, row, "counterfactuals"), finished(bench, made, "")]


def searching(bench: Bench) -> list[Row]:
    """Steps of an alignment search: a rotation at the last token of every block."""
    rows = []
    for count, factor in ((16, 2.0), (32, 1.5)):
        args = {"pairs": 4 if bench.quick else count}
        layers = [LAYERS // 4, LAYERS - 1 - LAYERS // 4]
        fitted = [LAYERS // 6, LAYERS // 2, LAYERS - 1 - LAYERS // 6]  # their mean depth is that of all
        works: dict[str, Any] = {
            "ours": ("ours", "fits together", args),
            "fit": ("ours", "fits alone", {**args, "layers": fitted}),
            "answers": ("ours", "fits together", {**args, "answers": True}),
            "hooks": ("hooks", "fits", {**args, "layers": layers}),
            "floor": ("hooks", "floor of fits", args),
        }
        answers = bench.turns(works, 1 if bench.quick else min(2, bench.repeat))
        step = {label: 1e3 * median(one["step"] for one in answers[label][1:]) for label in ("ours", "fit", "answers")}
        text = f"alignment search, a step of 30 fits of rank 16, last of 20 tokens, {count} pairs"
        row = Row(f"{text} (hooks: two of them, fit: three)", "ms a step of all")
        row.figures = {"hooks": 1e3 * seconds(answers["hooks"]) * LAYERS / len(layers)}
        row.figures |= {"fit": step["fit"] * LAYERS / len(fitted)}
        row.figures |= {"ours": step["ours"], "ours, loss over answers": step["answers"]}
        row.limit = 1e3 * seconds(answers["floor"])
        row.goals = [faster("hooks", 25), faster("fit", factor), {"kind": "limit", "factor": 0.8}]
        mine = answers["ours"][-1]["values"]
        row.agreement = {
            "ours": agreement("ours", [mine[layer] for layer in layers], answers["hooks"][-1]["values"]),
            "fit": agreement("fit", answers["fit"][-1]["values"], [mine[layer] for layer in fitted]),
        }
        row.note = f"passes of all steps {answers['ours'][-1]['passes']}, chunks {answers['ours'][-1]['chunks']}"
        rows.append(finished(bench, row, "fits together", **args))
    return rows


def searching_whole(bench: Bench) -> list[Row]:
    """A whole search of thirty places of a capital against fits one by one."""
    steps = {"steps": 4} if bench.quick else {}
    layers = [LAYERS // 6, LAYERS // 2, LAYERS - 1 - LAYERS // 6]  # their mean depth is that of all
    works: dict[str, Any] = {
        "ours": ("ours", "whole search", steps),
        "one by one": ("ours", "search one by one", {**steps, "layers": layers}),
    }
    bench.ask("ours", "search one by one", layers=[LAYERS - 1], steps=1)  # what is read and made once
    answers = {label: [bench.ask(name, what, **args)] for label, (name, what, args) in works.items()}
    row = Row(
        f"alignment search of a capital, last token of 30 blocks, {STEPS} steps of {A_STEP} pairs, one round (one by "
        f"one: `fit` and `evaluate` of {len(layers)} of them, each with its own states)",
        "CPU s a search",
    )
    row.figures = {
        "one by one": answers["one by one"][0]["cpu"] * LAYERS / len(layers),
        "ours": answers["ours"][0]["cpu"],
    }
    row.goals = [faster("one by one", 4)]
    last = answers["ours"][-1]
    best = max(of for of, _ in answers["one by one"][-1]["values"])
    row.note = f"{last['fitted']} of 30 fitted to the end; best on validation pairs {last['best']:.2f}, "
    row.note += f"of the {len(layers)} alone {best:.2f}"
    return [finished(bench, row, "")]


def searching_recall(bench: Bench) -> list[Row]:
    """What swaps nominate against all fits."""
    found = bench.ask("ours", "nominated", **({"steps": 2} if bench.quick else {}))
    recall = Row(
        'places nominated by effect signatures: recall of those within .1 of the best of 18 fits, SmolLM2, "In Spain, '
        'the official language is"',
        "share",
    )
    recall.figures = dict(zip(("country", "attribute", "answer"), found["values"], strict=True))
    recall.note = "nominated: " + ", ".join(f"{name} {of}" for name, of in found["picked"].items())
    print(report.line(asdict(recall)), flush=True)
    return [recall]


def searching_memory(bench: Bench) -> list[Row]:
    """Highest resident set of the same fits above that of the loaded model."""
    found = bench.alone("ours", "fits together", {"pairs": 2}, {"pairs": 32, "memory": 2**28})
    row = Row(
        "peak memory of 30 fits with memory=2**28 (256 MiB), 32 pairs, beside the states of the inputs",
        "MiB above the loaded model",
    )
    row.figures = {"ours": (found["peak"] - found["before"]) / 2**20}
    return [finished(bench, row, "")]


def circuits(bench: Bench) -> list[Row]:
    """Circuits of SmolLM2, 16 pairs of 16 tokens, each run exactly."""
    args = {"pairs": 4 if bench.quick else 16, "repeat": 1 if bench.quick else min(3, bench.repeat)}
    found = bench.ask("ours", "circuits", **args)
    times, whole = found["milliseconds"], found["values"]
    both = "two forward, one backward"
    each = {
        "a circuit of half of the edges": ("half of the edges", "plain", 2.0),
        "ten nested circuits, .1 % to all": ("ten nested", "plain", 15.0),
        "a step of edge masks": ("mask step", both, 2.0),
    }
    rows = []
    for text, (what, beside, factor) in each.items():
        row = Row(f"{text} of {found['edges']:,} edges, {args['pairs']} pairs of 16 tokens", "ms")
        row.figures = {beside: times[beside], "ours": times[what]}
        row.goals = [at_most(beside, factor)]
        rows.append(finished(bench, row, ""))
    half = len(whole) // 2
    rows[0].agreement = {"ours": agreement("ours", whole[:half], whole[half:])}
    return rows


def attribution(bench: Bench) -> list[Row]:
    """Swaps estimated from gradients, against two forward passes and a backward pass; and screening."""
    pairs = 2 if bench.quick else 16
    kinds: dict[str, tuple[dict[str, Any], float | None]] = {
        "AtP, every head": ({"heads": True}, 1.3),
        "AtP, three components token by token": ({}, 1.3),
        "RelP, the same": ({"rule": "relp"}, None),
        "integrated gradients, the same, 5 points": ({"method": "ig"}, None),
    }
    works: dict[str, Any] = {"by hand": ("hooks", "gradients by hand", {"pairs": pairs})}
    works |= {name: ("ours", "swaps by gradient", {"pairs": pairs, **args}) for name, (args, _) in kinds.items()}
    rows = [
        _by_gradient(bench, name, answers, args, factor, name == "AtP, three components token by token")
        for answers in [bench.turns(works)]
        for name, (args, factor) in kinds.items()
    ]
    layers = [LAYERS // 2] if bench.quick else "all"
    both: dict[str, Any] = {
        "full grid": ("ours", "screening", {"layers": layers}),
        "ours": ("ours", "screening", {"layers": layers, "screen": 60}),
    }
    found = bench.turns(both, 1)
    row = Row("the 60 strongest of 30 x 20 x 3 swaps, screened by gradient", "s", goals=[faster("full grid", 8)])
    row.figures = {name: seconds(one) for name, one in found.items()}
    top, screened = (set(found[name][-1]["values"]) for name in ("full grid", "ours"))
    row.note = f"recall of the true top 20: {len(top & screened) / len(top):.2f}; passes {found['ours'][-1]['passes']}"
    return [*rows, finished(bench, row, "screening", layers=layers, screen=60)]


def edges(bench: Bench) -> list[Row]:
    """Edges scored by gradients, against two forward passes and a backward pass; and their memory."""
    pairs = 2 if bench.quick else 16
    kinds: dict[str, tuple[dict[str, Any], float]] = {"EAP": ({}, 1.6), "EAP-IG, 5 points": ({"method": "eap-ig"}, 7)}
    works: dict[str, Any] = {"by hand": ("hooks", "gradients by hand", {"pairs": pairs})}
    works |= {name: ("ours", "edges by gradient", {"pairs": pairs, **args}) for name, (args, _) in kinds.items()}
    answers = bench.turns(works)
    rows = [
        _by_gradient(bench, name, answers, args, factor, name == "EAP", "edges")
        for name, (args, factor) in kinds.items()
    ]
    one = bench.alone("hooks", "gradients by hand", {"pairs": 2}, {"pairs": pairs, "alone": True})
    for name, (args, _) in kinds.items():
        mine = bench.alone("ours", "edges by gradient", {"pairs": 2, **args}, {"pairs": pairs, **args})
        row = Row(
            f"peak memory of {name} of {pairs} pairs; one pass = forward and backward", "MiB above the loaded model"
        )
        row.figures = {n: (a["peak"] - a["before"]) / 2**20 for n, a in (("one pass", one), ("ours", mine))}
        row.goals = [at_most("one pass", 2 if name == "EAP" else 3)]
        rows.append(finished(bench, row, ""))
    return rows


def _by_gradient(
    bench: Bench, name: str, answers: dict[str, Any], args: dict[str, Any], factor: float | None, same: bool,
    what: str = "swaps",
) -> Row:  # fmt: skip
    """Return a row of what is scored by gradients; by hand it is two forward passes and a backward pass."""
    last = answers[name][-1]
    count = f"{last.get('cells') or last['edges']:,} {'cells' if what == 'swaps' else 'edges'}"
    row = Row(f"{name}: {count} of {2 if bench.quick else 16} pairs of 16 tokens", "ms")
    row.figures = {"by hand": 1e3 * seconds(answers["by hand"]), "ours": 1e3 * seconds(answers[name])}
    row.goals = [] if factor is None else [at_most("by hand", factor)]
    if same:
        row.agreement = {"ours": agreement(name, last["values"], answers["by hand"][-1]["values"])}
    row.note = f"passes {last['passes']}"
    return finished(bench, row, f"{what} by gradient", **args)


SECTIONS: dict[str, Callable[[Bench], list[Row]]] = {
    "blocks": blocks,
    "heads": heads,
    "training": training,
    "interchange": interchange,
    "generation": generation,
    "memory": memory,
    "overhead": sections.overhead,
    "pairs": pairs,
    "growth": growth,
    "searching": searching,
    "searching: whole": searching_whole,
    "searching: recall": searching_recall,
    "searching: memory": searching_memory,
    "wide": wide,
    "causal": causal,
    "circuits": circuits,
    "attribution": attribution,
    "edges": edges,
    **studies.sections_of(SMOL),
}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="sections to measure")
    parser.add_argument("--repeat", type=int, default=5, help="rounds that count")
    parser.add_argument("--quick", action="store_true", help="fewer cells, models and rounds; figures are rough")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the results")
    options = parser.parse_args()
    os.environ.update(QUIET)
    from align_transformers.models.embedded import embedded_checkpoint

    work.prepare(str(embedded_checkpoint("smollm2-135m")))
    store = options.out / "results.json"
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
    previous = json.loads((FOLDER / "previous.json").read_text(encoding="utf-8"))
    (options.out / "results.md").write_text(report.page(ordered, previous), encoding="utf-8")
    report.figure(ordered, options.out / "results.png")
    print(f"written: {store}, results.md, results.png")


if __name__ == "__main__":
    main()
