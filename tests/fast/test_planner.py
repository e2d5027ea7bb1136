"""What a planner decides, seen step by step: its replies are made up, and no forward pass is run."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from tests.fast.families import shared
from tests.helpers import HIDDEN, LAYERS, VOCAB

from align_transformers import Edit, NoiseIntervention, Plan, Positions, Read, Run, Site, VanillaIntervention, bind
from align_transformers.engine.step import NotANumber, OutOfMemory, Step
from align_transformers.fast import schedule as schedules
from align_transformers.fast.budget import TIMES_FOR_ONE
from align_transformers.fast.depth import blocks_of, depth_of
from align_transformers.fast.planner import Decisions
from align_transformers.fast.schedule import Facts, schedule
from align_transformers.fast.states import Attended, States
from align_transformers.fast.ways import Trials
from align_transformers.models import resolve
from align_transformers.plan import Logits

LENGTH = 5
INTERVENTIONS = {"noise": NoiseIntervention(), "swap": VanillaIntervention()}


class Said(Trials):
    """Trials of which is said what came of them."""

    def __init__(self, **reasons: str) -> None:
        self.reasons = reasons
        self.asked: Counter[str] = Counter()

    def why_not(self, way: str) -> str:
        self.asked[way] += 1
        return self.reasons.get(way, "")

    def tokens(self) -> bool:
        return True


def states(batch: int = 1) -> States:
    """Return what a full pass of the GPT-2 would leave, as far as a planner looks at it."""
    allowed = torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool).tril()
    heads = torch.zeros(batch, 4, LENGTH, HIDDEN // 4)
    attended = {(layer, 0): Attended(heads, heads, allowed) for layer in range(LAYERS)}
    return States(batch, attended=attended, samples={1: torch.zeros(batch, LENGTH, HIDDEN)}, bytes=1.0)


def text(batch: int = 1, seed: int = 0) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(1, VOCAB, (batch, LENGTH), generator=torch.Generator().manual_seed(seed))}


def edit(name: str, layer: int, position: int = 1, copies: int = 1, component: str = "block_output") -> Edit:
    return Edit(name, Site(component, layer), "noise", Positions(((position,),) * copies))


def decisions(plan: Plan, trials: Trials | None = None, most: float = 1e9, **inputs: Any) -> Any:
    model = shared("gpt2")
    resolve(model)
    bound = bind(model, plan, inputs or {"x": text()}, INTERVENTIONS)
    return Decisions(bound, trials or Said(), most=lambda states: most)


def driven(planner: Any, reply: Any = None) -> list[Step]:
    """Return the steps that a planner yields where passes that leave something leave it."""
    steps, found = planner.steps(), []
    step = next(steps, None)
    while step is not None:
        found.append(step)
        said = reply(step) if reply is not None else None
        if said is None and getattr(step.way, "leaving", None) is not None:
            said = states()
        try:
            step = steps.send(said)
        except StopIteration:
            break
    return found


def names(steps: list[Step]) -> list[tuple[str, ...]]:
    return [tuple(run.name for run in step.runs) for step in steps]


CLEAN = Run("clean", "x")
ROWS = [Run(f"run {layer}", "x", (edit(f"e{layer}", layer),)) for layer in range(LAYERS)]
GRID = Plan((CLEAN, *ROWS), ("clean", *(run.name for run in ROWS)), Logits())


def test_edited_runs_are_one_step_from_the_states_of_the_clean_one():
    first, second = driven(decisions(GRID))
    assert names([first, second]) == [("clean",), ("run 0", "run 1", "run 2")]
    assert (first.way.name, second.way.name) == ("full", "packed")
    assert first.way.leaving.places == {(0, True), (1, True), (2, True)}
    assert first.way.leaving.heads
    assert second.refused == first.refused == {}
    assert second.way.origin.starts == tuple(depth_of(Site("block_output", layer)) for layer in range(LAYERS))


@pytest.mark.parametrize(
    ("refused", "way"),
    [
        ({"packed": "no"}, "together"),
        ({"together": "no"}, "partial"),
        ({"partial": "no"}, "full"),
        ({"shortened": "no"}, "packed"),
    ],
)
def test_the_best_way_that_is_not_refused_is_taken_and_the_reasons_are_told(refused, way):
    steps = driven(decisions(GRID, Said(**refused)))
    assert {step.way.name for step in steps[1:]} == {way}
    better = {"together": ["packed"], "partial": ["packed", "together"], "full": ["packed", "together", "partial"]}
    assert [*steps[1].refused] == better.get(way, [])
    assert set(steps[1].refused.values()) <= {"no"}
    assert steps[0].refused == {}


def test_a_way_is_not_asked_about_where_a_worse_one_is_refused():
    trials = Said(partial="no")
    driven(decisions(GRID, trials))
    assert set(trials.asked) == {"partial"}


def test_nothing_is_left_where_nobody_could_start_from_it():
    steps = driven(decisions(GRID, Said(partial="no")))
    assert all(step.way.leaving is None for step in steps)
    assert len(steps) == 4


@pytest.mark.parametrize("left", [None, "unpackable"])
def test_what_a_pass_leaves_decides_about_the_next(left):
    kept = States(1, samples={1: torch.zeros(1, LENGTH, HIDDEN)}, unpackable="its keys are odd") if left else None

    def reply(step: Step) -> Any:
        return kept if step.runs[0].name == "clean" else None

    planner = decisions(GRID).steps()
    next(planner)
    step = planner.send(kept)
    if kept is None:
        assert (step.way.name, step.refused["partial"]) == ("full", "the run it could start from left no states")
    else:
        assert (step.way.name, step.refused["packed"]) == ("together", "its keys are odd")


# --- memory -----------------------------------------------------------------------------------------------------------


def full_memory(largest: int) -> Any:
    """Return a reply: no memory for more copies than these."""

    def reply(step: Step) -> Any:
        copies = sum(1 if part.examples is None else len(part.examples) for part in step.parts)
        return OutOfMemory(RuntimeError("no memory")) if copies > largest else None

    return reply


def test_a_step_is_halved_by_runs_and_then_by_copies():
    many = Run("run 0", "x", (edit("e0", 0, copies=4),), (0, 0, 0, 0))
    plan = Plan((CLEAN, many, *ROWS[1:]), ("clean", "run 0", "run 1", "run 2"), Logits())
    steps = driven(decisions(plan), full_memory(2))
    parts = [[(part.run.name, part.lines) for part in step.parts] for step in steps]
    assert parts == [
        [("clean", None)],
        [("run 0", None), ("run 1", None), ("run 2", None)],
        [("run 0", None)],
        [("run 0", range(2))],
        [("run 0", range(2, 4))],
        [("run 1", None), ("run 2", None)],
    ]
    assert [len(step.way.origin.starts) for step in steps[1:]] == [3, 1, 1, 1, 2]


def test_copies_of_a_row_that_gave_nan_are_run_again_apart():
    def reply(step: Step) -> Any:
        return NotANumber() if step.way.mixes else None

    wide, kept = {"x": text(3)}, states(3)
    runs = [Run(f"run {n}", "x", (edit(f"e{n}", n),), (n,)) for n in range(3)]
    runs += [Run("run 3", "x", (edit("e3", 2, copies=2),), (0, 1))]
    for several in (runs, runs[:3]):
        plan = Plan((CLEAN, *several), ("clean", *(run.name for run in several)), Logits())
        planner = decisions(plan, **wide)
        steps = driven(planner, lambda step: kept if step.way.name == "full" else reply(step))
        packed, *apart = steps[1:]
        assert (packed.way.name, *{step.way.name for step in apart}) == ("packed", "together")
        assert sum(names(apart), ()) == names([packed])[0]
        assert [start for step in apart for start in step.way.origin.starts] == [*packed.way.origin.starts]
        assert apart[0].refused == {"packed": "what is not a number would spread"}
        assert len(apart) == (1 if len(several) == 4 else 2)  # three rows would be as many as there are examples

    copies, most = 60, 10.0
    run = Run("run", "x", (edit("e", 0, LENGTH - 1, copies),), (0,) * copies)
    steps = driven(decisions(Plan((CLEAN, run), ("clean", "run"), Logits()), most=most), reply)[1:]
    apart = [part.lines for step in steps if step.way.name == "together" for part in step.parts]
    assert [line for one in apart for line in one] == list(range(copies))
    assert max(map(len, apart)) * LENGTH <= most * TIMES_FOR_ONE < len(steps[0].parts[0].lines) * LENGTH


def test_where_a_step_cannot_be_halved_the_error_is_raised():
    with pytest.raises(RuntimeError, match="no memory"):
        driven(decisions(GRID), full_memory(0))


def test_a_run_of_3000_copies_is_not_one_pass():
    copies, most = 3000, 1000.0
    largest = most * TIMES_FOR_ONE  # of one run, which gains nothing by being small
    run = Run("run", "x", (edit("e", 0, 2, copies),), (0,) * copies)
    steps = driven(decisions(Plan((CLEAN, run), ("clean", "run"), Logits()), most=most))[1:]
    lines = [part.lines for step in steps for part in step.parts]
    assert [line for one in lines for line in one] == list(range(copies))
    tail = LENGTH - 2  # of every copy, from its edit on
    assert max(map(len, lines)) == largest // tail
    assert len(steps) == -(-copies // (largest // tail))
    together = driven(decisions(Plan((CLEAN, run), ("clean", "run"), Logits()), Said(packed="no"), most=most))[1:]
    assert max(len(step.parts[0].lines) for step in together) == largest // LENGTH


# --- donors -----------------------------------------------------------------------------------------------------------


def corrupted(name: str, *more: Edit) -> Run:
    return Run(name, "x", (edit(f"{name} noise", 0), *more))


def test_runs_start_from_one_that_has_made_their_first_edits():
    plan = Plan(
        (CLEAN, corrupted("bad"), corrupted("a", edit("restore", 2)), Run("b", "x", (edit("other", 1),))),
        ("clean", "bad", "a", "b"),
        Logits(),
    )
    steps = driven(decisions(plan))
    found = {run.name: step for step in steps for run in step.runs}
    assert found["a"].way.origin.inherited == ((("a noise", "bad noise"),),)
    assert found["a"].way.origin.starts == (depth_of(Site("block_output", 2)),)
    assert found["bad"].way.name == "partial"
    assert found["bad"].way.leaving.places == {(2, True)}
    assert found["b"].way.origin.inherited == ((),)
    assert found["a"].way.name == "packed"  # nobody has edited further on what it starts from


def test_runs_of_equal_contents_are_twins():
    plan = Plan((CLEAN, Run("again", "y"), Run("other", "z")), ("clean", "again", "other"), Logits())
    steps = driven(decisions(plan, x=text(), y=text(), z=text(seed=1)))
    assert [(step.runs[0].name, [run.name for run in step.twins]) for step in steps] == [
        ("clean", ["again"]),
        ("other", []),
    ]


def test_states_are_let_go_of_after_their_last_user():
    runs = (CLEAN, Run("clean y", "y"), ROWS[1], Run("run y", "y", (edit("ey", 1),)))
    planner = decisions(Plan(runs, tuple(run.name for run in runs), Logits()), x=text(), y=text(seed=1))
    held = []

    def reply(step: Step) -> None:
        held.append((step.runs[0].name, set(planner._states)))

    driven(planner, reply)
    assert dict(held) == {
        "clean": set(),
        "clean y": {"clean"},
        "run 1": {"clean", "clean y"},
        "run y": {"clean y"},
    }
    assert planner._states == {}


# --- where passes end -------------------------------------------------------------------------------------------------


def test_a_source_ends_after_what_is_read_of_it():
    site = Site("mlp_output", 1)
    swap = Edit("swap", site, "swap", Positions(((1,),)), source=Read("source", site, Positions(((2,),))))
    source, base = driven(
        decisions(Plan((Run("source", "y"), Run("base", "x", (swap,))), ("base",), Logits()), x=text(), y=text(seed=1))
    )
    blocks = blocks_of(shared("gpt2"))
    assert (source.way.stop.module, source.way.stop.before) == (blocks.calls[1].module, False)
    assert (source.reads, source.wanted) == ((swap.source,), False)
    assert (base.way.stop, base.reads, base.wanted) == (None, (), True)


def test_whole_outputs_are_of_runs_by_themselves():
    x = {**text(), "use_cache": False}
    steps = driven(decisions(Plan(GRID.runs, GRID.outputs), x=x))
    assert [step.way.name for step in steps] == ["full"] + ["partial"] * 3
    assert "whole outputs are wanted" in steps[1].refused["together"]
    cached = driven(decisions(Plan(GRID.runs, GRID.outputs)))
    assert {step.way.name for step in cached} == {"full"}
    assert "cache of all blocks" in cached[1].refused["partial"]


# --- how much is worked out -------------------------------------------------------------------------------------------


def test_a_schedule_takes_work_in_proportion_to_the_runs(monkeypatch):
    def work(count: int) -> Counter[str]:
        done: Counter[str] = Counter()
        equal = schedules._equal
        monkeypatch.setattr(schedules, "_equal", lambda *runs: (done.update(["equal"]), equal(*runs))[1])
        runs = [CLEAN, corrupted("bad")]
        runs += [corrupted(f"run {n}", edit(f"e {n}", 1 + n % 2, n % LENGTH)) for n in range(count)]
        plan = Plan(tuple(runs), tuple(run.name for run in runs), Logits())
        stages = schedule(plan, plan.order(), Facts(lambda site: (done.update(["depth"]), depth_of(site))[1]))
        monkeypatch.undo()
        assert len(stages) == 3
        return done

    small, large = work(500), work(1000)
    assert all(large[name] <= 2.05 * small[name] for name in small)
