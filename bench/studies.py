"""The sections of the studies: each against the loop that a careful person writes by hand, in the same run.

What takes long is measured on a sample of its cells; that, and of which tokens, stands in the row's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from driver import Bench
from sections import Case, Goal, Row, agreement, at_most, faster, finished, seconds, token_layer

DRAWS, WINDOW, SUBJECT = 10, 10, [1, 2, 3]
COMPONENTS = ["block_output", "mlp_output", "attention_output"]
FREEZES = ("all", "attention", "none")


def chosen(case: Case, quick: bool) -> list[int]:
    """Return the layers of a sample: their mean depth is that of all."""
    layers = case.shape.layers
    if quick or layers < 8:
        return [layers // 2]
    return [layers // 12, layers * 5 // 12, layers - 1 - layers * 5 // 12, layers - 1 - layers // 12]


def compared(
    bench: Bench, case: Case, row: Row, loops: Mapping[str, tuple[str, dict[str, Any], Sequence[Any]]], own: Any
) -> list[float]:
    """Fill in milliseconds a cell, and how the values compare; return ours.

    Args:
        bench: the contestants.
        case: the model.
        row: to be filled in.
        loops: by label a hand-written work, its arguments and its cells; what it does for all of these is counted once.
        own: our work, its arguments, all cells, and where in these those of the loops are.
    """
    what, args, every, where = own
    works: dict[str, Any] = {"ours": ("ours", what, case.args(**args))}
    for label, (loop, more, some) in loops.items():
        works[label] = ("hooks", loop, case.args(cells=some, **more))
        works[f"{label} once"] = ("hooks", loop, case.args(cells=[], **more))
    answers = bench.turns(works, 1 if bench.quick else min(3, bench.repeat))
    row.figures["ours"] = 1e3 * seconds(answers["ours"]) / len(every)
    values: list[float] = answers["ours"][-1]["values"]
    for label, (_, _, some) in loops.items():
        rounds = zip(answers[label][1:], answers[f"{label} once"][1:], strict=True)
        each = median((long["seconds"] - short["seconds"]) / len(some) for long, short in rounds)
        row.figures[label] = 1e3 * (each + seconds(answers[f"{label} once"]) / len(every))
        mine = [values[n] for n in where[: len(some)]]
        row.agreement["ours"] = agreement("ours", mine, answers[label][-1]["values"], case.allowed)
    row.note = f"passes {answers['ours'][-1]['passes']}"
    return values


def tracing(bench: Bench, case: Case, goals: Sequence[Goal] = ()) -> list[Row]:
    """Causal tracing of one prompt: by hand the draws of a cell are rows of one pass, or a pass each."""
    layers, places = chosen(case, bench.quick), list(case.places)
    draws = 3 if bench.quick else DRAWS
    every = [(name, layer, place) for name in COMPONENTS for layer in layers for place in places]
    sample = [cell for cell in every if cell[2] in (places[len(places) // 5], places[-1])]
    args = {"subject": SUBJECT, "draws": draws, "window": WINDOW}
    text = f"{case.label}causal tracing, layers {layers} x {len(places)} tokens x {len(COMPONENTS)} components"
    row = Row(f"{text}, {draws} draws (hooks: {len(sample)} of these cells)", "ms a cell", goals=list(goals))
    loops = {
        "hooks": ("causal_tracing", {**args, "batched": True}, sample),
        "hooks, a pass a draw": ("causal_tracing", {**args, "batched": False}, sample[:2]),
    }
    mine = {**args, "components": COMPONENTS, "layers": layers, "places": places}
    compared(bench, case, row, loops, ("causal_tracing", mine, every, [every.index(cell) for cell in sample]))
    begin = [layer + 1 if name == "block_output" else max(0, layer - WINDOW // 2) for name, layer, _ in every]
    tokens = sum((case.shape.layers - n) * (case.positions - cell[2]) for n, cell in zip(begin, every, strict=True))
    row.limit = 1e3 * token_layer(bench, case.shape, case.positions, **case.args()) * draws * tokens / len(every)
    return [finished(bench, row, "causal_tracing", **case.args(**mine))]


def paths(bench: Bench, case: Case, goals: Sequence[Goal] = ()) -> list[Row]:
    """Path patching of every head to the logits, whatever is frozen."""
    heads = range(case.shape.heads)
    every = [(layer, head) for layer in range(case.shape.layers) for head in heads]
    sample = [(layer, head) for layer in chosen(case, bench.quick) for head in heads]
    rows = []
    for freeze in FREEZES:
        text = f"{case.label}path patching of {len(every)} heads to the logits, freeze={freeze}"
        row = Row(f"{text} (hooks: {len(sample)} heads)", "ms a head", goals=list(goals))
        loops = {"hooks": ("path_patching", {"freeze": freeze}, sample)}
        compared(
            bench, case, row, loops, ("path_patching", {"freeze": freeze}, every, [every.index(c) for c in sample])
        )
        rows.append(finished(bench, row, "path_patching", **case.args(freeze=freeze)))
    return rows


def against_plain(bench: Bench, case: Case, row: Row, what: str, args: dict[str, Any]) -> Row:
    """Fill in milliseconds of a study, of the same by hand, and of one plain forward pass; they take turns."""
    by_hand = {**args, "places": list(case.places) if args.get("places") == "all" else args.get("places")}
    works = {
        "plain": ("hooks", "plain", case.args()),
        "hooks": ("hooks", what, case.args(**{name: by_hand[name] for name in args})),
        "ours": ("ours", what, case.args(**args)),
    }
    answers = bench.turns(works, 3 * bench.repeat)
    row.figures = {name: 1e3 * seconds(one) for name, one in answers.items()}
    row.agreement["ours"] = agreement(
        "ours", answers["ours"][-1]["values"], answers["hooks"][-1]["values"], case.allowed
    )
    row.note = f"passes {answers['ours'][-1]['passes']}"
    return finished(bench, row, what, **case.args(**args))


def lens(bench: Bench, case: Case, goals: Sequence[Goal] = ()) -> list[Row]:
    """The logit lens, with ranks: at the last token of every layer, and at all tokens of every layer."""
    rows = []
    for places, of in (([case.positions - 1], "the last token"), ("all", f"all {len(case.places)} tokens")):
        count = case.shape.layers * (1 if places != "all" else len(case.places))
        row = Row(f"{case.label}logit lens, {of} of every layer: {count} unembeddings", "ms", goals=list(goals))
        rows.append(against_plain(bench, case, row, "logit_lens", {"places": places}))
    return rows


def attribution(bench: Bench, case: Case, goals: Sequence[Goal] = ()) -> list[Row]:
    """Direct attribution of the answer's logit at the last token."""
    row = Row(f"{case.label}direct attribution, last token, every head and MLP", "ms", goals=list(goals))
    return [against_plain(bench, case, row, "attribution", {})]


def scrubbing(bench: Bench, case: Case, goals: Sequence[Goal] = ()) -> list[Row]:
    """Causal scrubbing of a tree of two claims: three passes a line by hand."""
    count = min(case.pairs, 2 if bench.quick else 8)
    draws = 1 if bench.quick else 4
    args = {"layers": [case.shape.layers // 4, case.shape.layers // 2], "count": count}
    first = bench.ask("ours", "scrubbing", **case.args(**args, draws=draws))
    drawn = {name: first[name] for name in ("drawn", "unclaimed")}
    works = {
        "hooks": ("hooks", "scrubbing", case.args(**args, **drawn)),
        "ours": ("ours", "scrubbing", case.args(**args, draws=draws)),
    }
    answers = bench.turns(works, bench.repeat)
    lines = count * draws
    row = Row(f"{case.label}causal scrubbing, {count} prompts x {draws} draws, two claims", "ms a line")
    row.goals = list(goals)
    row.figures = {name: 1e3 * seconds(one) / lines for name, one in answers.items()}
    row.agreement["ours"] = agreement(
        "ours", answers["ours"][-1]["values"], answers["hooks"][-1]["values"], case.allowed
    )
    row.note = f"passes {answers['ours'][-1]['passes']}"
    return [finished(bench, row, "scrubbing", **case.args(**args, draws=draws))]


def memory(bench: Bench, case: Case, goals: Sequence[Goal] = ()) -> list[Row]:
    """Highest resident set above that of the loaded model, each in a process of its own."""
    one = bench.alone("hooks", "one_pass", {"layer": 15, "positions": 2}, {"layer": 15})
    trace = {"components": COMPONENTS, "subject": SUBJECT, "draws": DRAWS, "window": WINDOW, "places": "all"}
    layers = chosen(case, bench.quick)
    last = case.shape.layers - 1
    frozen = FREEZES[: 1 if bench.quick else 2]
    works: dict[str, Any] = {
        f"path patching, freeze={freeze}": ("path_patching", {"freeze": freeze, "layers": [last]}, {"freeze": freeze})
        for freeze in frozen
    }
    works["logit lens, all tokens"] = ("logit_lens", {"places": [-1]}, {"places": "all"})
    works["causal tracing"] = (
        "causal_tracing",
        {**trace, "draws": 2, "layers": [last], "places": [-1]},
        {**trace, "layers": layers},
    )
    rows = []
    for name, (what, warm, args) in works.items():
        found = bench.alone("ours", what, warm, args)
        text = f"peak memory of {name}; one full-batch pass = 20 rows x 20 tokens, all logits"
        row = Row(text, "MiB above the loaded model", goals=list(goals))
        row.figures = {n: (a["peak"] - a["before"]) / 2**20 for n, a in (("one pass", one), ("ours", found))}
        rows.append(finished(bench, row, ""))
    return rows


_GOALS: dict[Callable[..., list[Row]], list[Goal]] = {
    tracing: [faster("hooks", 15)],
    paths: [faster("hooks", 10)],
    lens: [at_most("plain", 1.15)],
    attribution: [at_most("plain", 1.15)],
    scrubbing: [],
    memory: [at_most("one pass", 1.5)],
}


def sections_of(case: Case) -> dict[str, Callable[[Bench], list[Row]]]:
    """Return the sections of a model, with their goals."""
    return {
        f"studies: {section.__name__}": lambda bench, section=section, goals=goals: section(bench, case, goals)
        for section, goals in _GOALS.items()
    }


def without_goals(bench: Bench, case: Case) -> list[Row]:
    """Return the rows of all sections but that of memory."""
    return [row for section in _GOALS if section is not memory for row in section(bench, case)]
