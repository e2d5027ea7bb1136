"""The sections of the benchmark, for any model: what the contestants do, what it costs, what it cannot avoid.

A section asks a `Bench` (processes) or what looks like one (`gpu.py`), and gives rows. Goals are the caller's.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import work
from driver import Bench
from work import POSITIONS, SMOLLM2, Shape

import report

TOLERANCE = 1e-3  # of a logit difference in float32; contestants that differ by more do not do the same work
Goal = dict[str, Any]


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
        note: what else is to be said.
    """

    work: str
    unit: str
    figures: dict[str, float] = field(default_factory=dict)
    limit: float | None = None
    goals: list[Goal] = field(default_factory=list)
    agreement: dict[str, str] = field(default_factory=dict)
    pending: str = ""
    profile: str = ""
    note: str = ""


@dataclass(frozen=True)
class Case:
    """A model with its prompts, and how much of it is measured.

    Args:
        label: begins the name of each row; empty for SmolLM2-135M.
        shape: of the model.
        positions: tokens of a prompt.
        batch: examples of the single interchange and of a training step.
        rank: of the low-rank rotation.
        task: of the requests (see `work.random_task`); `None`: the contestants' own.
        places: positions of the grids.
        sample: layers in which the others are measured.
        sample_places: at which positions; all of `places` by default.
        whole: compare the values of all cells, not of the sample only.
        pairs: prompts of the section of pairs.
        pair_places: positions of the grid there.
        tokens: that are generated.
        allowed: how far values may be from the hand-written ones.
        peers: contestants beside `hooks` that can take the model.
    """

    label: str
    shape: Shape
    positions: int
    batch: int = 16
    rank: int = 16
    task: Mapping[str, Any] | None = None
    places: Sequence[int] = ()
    sample: Sequence[int] = ()
    sample_places: Sequence[int] = ()
    whole: bool = False
    pairs: int = 32
    pair_places: Sequence[int] = ()
    tokens: int = work.NEW_TOKENS
    allowed: float = TOLERANCE
    peers: Sequence[str] = ()

    @property
    def middle(self) -> int:
        """The block of the single interchange and of the generation."""
        return self.shape.layers // 2

    def args(self, **args: Any) -> dict[str, Any]:
        """Return the arguments of a request."""
        return args | ({} if self.task is None else {"task": self.task})

    @property
    def sampled(self) -> list[tuple[int, int]]:
        """The cells of the block grid on which the others are measured."""
        return cells(self.sample, self.sample_places or self.places)


def seconds(answers: Sequence[Mapping[str, Any]], skip: int = 1) -> float:
    """Return the median time; the first round is not counted."""
    return median(answer["seconds"] for answer in answers[skip:])


def cells(layers: Iterable[int], places: Iterable[int]) -> list[tuple[int, int]]:
    """Return all cells of some layers and places, layer by layer."""
    places = list(places)
    return [(layer, place) for layer in layers for place in places]


def agreement(name: str, values: Any, truth: Any, allowed: float = TOLERANCE) -> str:
    """Return the largest difference from the hand-written values.

    Raises:
        SystemExit: the contestant does other work than the others.
    """
    values, truth = (v if isinstance(v, list) else [v] for v in (values, truth))
    if len(values) != len(truth):
        sys.exit(f"bench: {name} gave {len(values)} values, the hand-written loop {len(truth)}")
    apart = [abs(a - b) for a, b in zip(values, truth, strict=True)]
    wrong = [one for one in apart if not one <= allowed]  # what is not a number is not equal either
    if wrong:
        sys.exit(f"bench: the values of {name} differ from the hand-written ones by {wrong[0]:.2g}")
    return f"{max(apart):.1e}" + ("" if allowed == TOLERANCE else f" ({allowed:.1e} allowed)")


def distances(values: Sequence[float], width: int) -> list[list[float]]:
    """Return for each layer how far each place's value is from the layer's median."""
    rows = [values[n : n + width] for n in range(0, len(values), width)]
    return [[abs(value - median(row)) for value in row] for row in rows]


def grid_agreement(values: dict[str, list[float]], width: int, allowed: float = TOLERANCE) -> dict[str, str]:
    """Return for each contestant the largest difference, and in how many layers the strongest cell is the same.

    Raises:
        SystemExit: in some layer the strongest cell is another, and not because two are equally strong.
    """
    truth, same = distances(values["hooks"], width), {}
    for name, own in values.items():
        if name != "hooks":
            worst = agreement(name, own, values["hooks"], allowed)
            equal = 0
            for mine, hand in zip(distances(own, width), truth, strict=True):
                found = mine.index(max(mine))
                equal += found == hand.index(max(hand))
                if max(hand) - hand[found] > (allowed if allowed == TOLERANCE else 4 * allowed):
                    sys.exit(f"bench: {name} finds another strongest cell than the hand-written loop in some layer")
            count, spread = len(own), max(values["hooks"]) - min(values["hooks"])
            same[name] = f"{worst} over {count} cells that span {spread:.2g}"
            same[name] += f"; strongest cell equal in {equal} of {len(truth)} layers"
    return same


def token_layer(bench: Bench, shape: Shape = SMOLLM2, positions: int = POSITIONS, **request: Any) -> float:
    """Return what one token costs in one block at full batch, in seconds: the cheapest of three sizes of batch."""
    sizes = [max(1, tokens // positions) for tokens in (400, 1200, 4000)]
    args = {"positions": positions, **request}
    works = {str(rows): ("hooks", "token_layers", {"rows": rows, **args}) for rows in sizes}
    answers = bench.turns(works, 1 if bench.quick else 3)
    return min(seconds(answers[str(rows)]) / (rows * positions * shape.layers) for rows in sizes)


def unavoidable(layers: int, positions: int, grid: Iterable[tuple[int, int]] | None = None) -> int:
    """Return the token-layers of a block grid: the blocks above each edit, the positions from it on, two captures."""
    grid = cells(range(layers), range(positions)) if grid is None else grid
    above = sum((layers - 1 - layer) * (positions - place) for layer, place in grid)
    return above + 2 * layers * positions


def sampled(
    bench: Bench,
    case: Case,
    contestants: Mapping[str, tuple[str, str]],
    grid: tuple[list[Any], list[Any]],
    own: tuple[str, dict[str, Any]],
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Measure a grid: ours whole, the others on a sample of its cells, with what they do once a grid counted once.

    Args:
        bench: the contestants.
        case: the model.
        contestants: by label a contestant and its work.
        grid: all cells, and the sample.
        own: our work and its arguments.

    Returns:
        Seconds a cell by contestant; by contestant the values of the whole grid (or only of the sample).
    """
    every, sample = grid
    compared = every if case.whole and not bench.quick else sample
    works = {label: (name, what, case.args(cells=sample)) for label, (name, what) in contestants.items()}
    works |= {f"{label} once": (name, what, case.args(cells=[])) for label, (name, what) in contestants.items()}
    answers = bench.turns({**works, "ours": ("ours", own[0], case.args(**own[1]))})
    costs, values = {}, {}
    for label, (name, what) in contestants.items():
        once = seconds(answers[f"{label} once"])
        costs[label] = once / len(every) + (seconds(answers[label]) - once) / len(sample)
        again = compared is not sample
        values[label] = (bench.ask(name, what, **case.args(cells=compared)) if again else answers[label][-1])["values"]
    if "ours" in answers:
        costs["ours"] = seconds(answers["ours"]) / len(every)
        mine = dict(zip(map(tuple, every), answers["ours"][-1]["values"], strict=True))
        values["ours"] = [mine[tuple(cell)] for cell in compared]
    return {label: 1e3 * cost for label, cost in costs.items()}, values


def faster(against: str, factor: float) -> Goal:
    """Return the goal of being `factor` times faster than another contestant."""
    return {"kind": "faster", "against": against, "factor": factor}


def at_most(against: str, factor: float) -> Goal:
    """Return the goal of costing at most `factor` times what another does."""
    return {"kind": "at most", "against": against, "factor": factor}


def blocks(bench: Bench, case: Case, contestants: Mapping[str, tuple[str, str]], goals: Sequence[Goal] = ()) -> Row:
    """The block grid."""
    layers, places = case.shape.layers, list(case.places)
    every = cells(range(layers), places)
    own = ("block_grid", {} if len(places) == case.positions else {"places": places})
    row = Row(f"{case.label}block_output grid, {layers} x {len(places)}", "ms a cell", goals=list(goals))
    row.figures, values = sampled(bench, case, contestants, (every, case.sampled), own)
    row.limit = 1e3 * _token_layer(bench, case) * unavoidable(layers, case.positions, every) / len(every)
    whole = case.whole and not bench.quick
    row.agreement = grid_agreement(values, len(places if whole else case.sample_places or places), case.allowed)
    return finished(bench, row, own[0], **case.args(**own[1]))


def heads(bench: Bench, case: Case, contestants: Mapping[str, tuple[str, str]], goals: Sequence[Goal] = ()) -> Row:
    """The head grid at the last token."""
    layers, count = case.shape.layers, case.shape.heads
    every, sample = cells(range(layers), range(count)), cells(case.sample, range(count))
    row = Row(f"{case.label}head grid, {layers} x {count}, last token", "ms a cell", goals=list(goals))
    row.figures, values = sampled(bench, case, contestants, (every, sample), ("head_grid", {}))
    needed = layers * (layers - 1) // 2 * count + 2 * layers * case.positions
    row.limit = 1e3 * _token_layer(bench, case) * needed / len(every)
    row.agreement = grid_agreement(values, count, case.allowed)
    return finished(bench, row, "head_grid", **case.args())


def _token_layer(bench: Bench, case: Case) -> float:
    """Return the cost of a token-layer: of SmolLM2 measured for each section, of other models once."""
    if case.label in bench.costs:
        return bench.costs[case.label]
    cost = token_layer(bench, case.shape, case.positions, **case.args())
    if case.label:
        bench.costs[case.label] = cost
    return cost


def pairs(bench: Bench, case: Case, goals: Sequence[Goal] = ()) -> Row:
    """The block grid over many prompt pairs in one call, against one pair; two of them are compared."""
    layers, places, many = case.shape.layers, list(case.pair_places), case.pairs
    args = {} if len(places) == case.positions else {"places": places}
    row = Row(f"{case.label}block_output grid over {many} prompt pairs", "s a pair", goals=list(goals))
    if args:
        row.work += f", {layers} x {len(places)}"
    works = {str(n): ("ours", "block_grid", case.args(pairs=n, **args)) for n in (1, many)}
    answers = bench.turns(works, 1)
    if str(many) in answers:
        row.figures = {"one pair": seconds(answers["1"]), "ours": seconds(answers[str(many)]) / many}
        sample = cells(case.sample, places[:: -(-len(places) // 20)])
        index = {cell: n for n, cell in enumerate(cells(range(layers), places))}
        truth, mine = [], []
        for pair in (0, many - 1):
            truth += bench.ask("hooks", "block_grid", **case.args(cells=sample, pair=pair))["values"]
            values = answers[str(many)][-1]["values"]  # layer by layer, pair by pair
            mine += [values[(layer * many + pair) * len(places) + index[0, place]] for layer, place in sample]
        row.agreement = {"ours": agreement("ours", mine, truth, case.allowed)}
    row.limit = _token_layer(bench, case) * unavoidable(layers, case.positions, cells(range(layers), places))
    return finished(bench, row, "block_grid", **case.args(pairs=2, **args))


def training(bench: Bench, case: Case, what: str, layer: int, goals: Sequence[Goal] = ()) -> Row:
    """A training step: source pass, edited pass, backwards, Adam."""
    names = {"das": f"DAS step, rank {case.rank}", "rotation": f"full rotation step, d={case.shape.width}"}
    names["boundless"] = "Boundless DAS step"
    args = case.args(layer=layer)
    works = {name: (name, what, args) for name in ("hooks", *case.peers, "ours")}
    works["floor"] = ("hooks", "training_floor", args)
    answers = bench.turns(works)
    row = Row(f"{case.label}{names[what]}, block {layer}", "ms a step", goals=list(goals))
    row.limit = 1e3 * seconds(answers.pop("floor"))
    row.figures = {name: 1e3 * seconds(one) for name, one in answers.items()}
    truth = answers["hooks"][0]["values"]
    same = {"ours"} if what == "boundless" else set(answers) - {"hooks"}  # peers have other masks and penalties
    row.agreement = {
        name: agreement(name, one[0]["values"], truth, case.allowed) for name, one in answers.items() if name in same
    }
    return finished(bench, row, what, **args)


def interchange(bench: Bench, case: Case, goals: Sequence[Goal] = ()) -> Row:
    """One interchange of a batch."""
    works = {name: (name, "interchange", case.args(batch=case.batch)) for name in ("hooks", "ours")}
    answers = bench.turns(works, 3 * bench.repeat)
    row = Row(f"{case.label}one interchange, batch {case.batch}, block {case.middle}", "ms", goals=list(goals))
    row.figures = {name: 1e3 * seconds(one) for name, one in answers.items()}
    row.agreement = {
        "ours": agreement("ours", answers["ours"][0]["values"], answers["hooks"][0]["values"], case.allowed)
    }
    return finished(bench, row, "interchange", **case.args(batch=case.batch))


def generation(bench: Bench, case: Case, goals: Sequence[Goal] = ()) -> Row:
    """Generation with an addition at every step; the tokens must be the same ones."""
    args = case.args(tokens=case.tokens)
    works = {"plain": ("hooks", "generate_plain", args), "hooks": ("hooks", "generate", args)}
    answers = bench.turns({**works, "ours": ("ours", "generate", args)})
    row = Row(f"{case.label}{case.tokens} tokens with an addition at every step", "s", goals=list(goals))
    row.figures = {name: seconds(one) for name, one in answers.items()}
    row.agreement = {"ours": agreement("ours", answers["ours"][0]["values"], answers["hooks"][0]["values"])}
    return finished(bench, row, "generate", **args)


def overhead(bench: Bench, label: str = "", repeat: int = 30) -> list[Row]:
    """Time of the framework in one interchange call on a tiny model, and of calls with many edits against hooks."""
    rows = []
    for edits, one_site in ((1, False), (12, False), (100, False), (100, True)):
        args = {"edits": edits, "one_site": one_site, "repeat": repeat}
        rounds = [bench.ask("ours", "overhead", **args)["microseconds"] for _ in range(bench.repeat)]
        figures = {name: median(one[name] for one in rounds) for name in rounds[0]}
        call, name = (
            figures.pop("ours"),
            f"{label}framework time of a call with {edits} edit{'s' * (edits > 1)}, tiny model",
        )
        if not one_site:
            row = Row(
                name, "us", {**figures, "call": call, "ours": call - figures["hooks"], "allowed": 60 + 4.0 * edits}
            )
            row.goals = [at_most("allowed", 1.0)]
            rows.append(finished(bench, row, "overhead", **args))
        if edits == 100:
            where = "at one site" if one_site else "over 100 sites"
            row = Row(f"{label}a call with {edits} edits {where}, tiny model", "us", {**figures, "ours": call})
            row.goals = [at_most("hooks", 1.05)]
            rows.append(finished(bench, row, "overhead" if one_site else "", **args))
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
