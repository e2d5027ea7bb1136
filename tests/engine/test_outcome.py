"""What comes of a plan besides outputs: values, answers, the change of each example; and what is let go of."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from tests.helpers import hooked, new_model, padded_tokens, tokens

from align_transformers import (
    AdditionIntervention,
    Edit,
    Logits,
    Plan,
    PlanError,
    Positions,
    Read,
    Run,
    Site,
    UnknownNameError,
    VanillaIntervention,
    ZeroIntervention,
    bind,
    execute,
)
from align_transformers.engine import ledger

PARTS = {"swap": VanillaIntervention(), "add": AdditionIntervention(), "zero": ZeroIntervention()}
BLOCK = Site("block_output", 1)


def run_plan(model, plan, inputs, constants=None):
    with torch.no_grad():
        return execute(bind(model, plan, inputs, PARTS, constants))


def test_values_that_are_wanted_are_those_of_a_plain_hook():
    model, inputs, seen = new_model("gpt2"), tokens(2, 5), []
    with hooked((model.transformer.h[1], "output", lambda t: seen.append(t.clone()))), torch.no_grad():
        model(**inputs)
    some, all_ = Read("run", BLOCK, Positions(((1, 2), (4,)))), Read("run", BLOCK)
    plan = Plan((Run("run", "x"),), (), None, (some, all_))
    assert Plan.from_dict(plan.to_dict()) == plan
    values = run_plan(model, plan, {"x": inputs}).values
    assert torch.equal(values[all_], seen[0])
    expected = torch.stack([seen[0][0, [1, 2]], torch.stack([seen[0][1, 4], torch.zeros(32)])])
    assert torch.equal(values[some], expected)


def test_values_of_an_edited_run_are_read_behind_its_edits():
    model, inputs = new_model("gpt2"), tokens(2, 5)
    run = Run("run", "x", (Edit("zero", BLOCK, "zero", Positions(((2,), (3,)))),))
    here, above = Read("run", BLOCK), Read("run", Site("block_input", 2))
    values = run_plan(model, Plan((run,), (), None, (here, above)), {"x": inputs}).values
    assert not values[here][0, 2].any()
    assert not values[here][1, 3].any()
    assert values[here][0, 3].any()
    assert torch.equal(values[here], values[above])


def test_a_plan_wants_something():
    with pytest.raises(PlanError, match="at least one output"):
        Plan((Run("run", "x"),), ())
    with pytest.raises(UnknownNameError, match="'rnu'"):
        Plan((Run("run", "x"),), (), None, (Read("rnu", BLOCK),))


@pytest.mark.parametrize("examples", [None, (1, 0, 1)])
def test_the_ledger_tells_the_change_of_each_example(examples):
    model, base, source = new_model("gpt2"), padded_tokens([5, 3], "left"), tokens(2, 5, seed=1)
    states = {}
    for name, inputs in (("x", base), ("y", source)):
        seen = []
        with hooked((model.transformer.h[1], "output", lambda t, seen=seen: seen.append(t.clone()))), torch.no_grad():
            model(**inputs)
        states[name] = seen[0]
    picked = list(examples or (0, 1))
    rows = tuple((4, 3) if example == 0 else (2,) for example in picked)
    at = Positions(rows)
    edit = Edit("swap", BLOCK, "swap", at, source=Read("y", BLOCK, at, tuple(picked)))
    plan = Plan((Run("clean", "x"), Run("y", "y"), Run("run", "x", (edit,), examples)), ("clean", "run"), Logits())
    (effect,) = run_plan(model, plan, {"x": base, "y": source}).effects
    expected = [
        float((states["y"][e, list(row)] - states["x"][e, list(row)]).norm())
        for e, row in zip(picked, rows, strict=True)
    ]
    assert effect.changes == pytest.approx(expected, rel=1e-5)
    assert effect.change == pytest.approx(sum(value**2 for value in expected) ** 0.5, rel=1e-5)
    assert (effect.fired, effect.rows, effect.positions) == (1, len(picked), sum(map(len, rows)))


def test_answers_are_the_tokens_that_clean_runs_find_most_probable():
    model, base, source = new_model("gpt2"), tokens(2, 5), tokens(2, 5, seed=1)
    at = Positions(((2,), (2,)))
    edit = Edit("swap", BLOCK, "swap", at, source=Read("y", BLOCK, at))
    runs = (Run("x", "x"), Run("y", "y"), Run("run", "x", (edit,)))
    wanted = ("run", "x", "y")
    plan = Plan(runs, wanted, Logits(answers_of=("x", "y")))
    assert Plan.from_dict(plan.to_dict()) == plan
    inputs = {"x": base, "y": source}
    found, full = (run_plan(model, one, inputs).outputs for one in (plan, Plan(runs, wanted, Logits())))
    said = list(dict.fromkeys([*full["x"].argmax(-1).tolist(), *full["y"].argmax(-1).tolist()]))
    assert torch.equal(found["x"], full["x"])
    assert torch.allclose(found["run"], full["run"][:, said], atol=1e-5)


def test_answers_are_of_wanted_runs_and_exclude_tokens():
    with pytest.raises(PlanError, match="not both"):
        Logits((1, 2), answers_of=("x",))
    with pytest.raises(PlanError, match="'x'"):
        Plan((Run("x", "x"), Run("y", "y")), ("y",), Logits(answers_of=("x",)))


def test_what_was_read_is_let_go_of_after_its_last_reader(monkeypatch):
    monkeypatch.setattr(ledger, "_HELD", 0)  # small values wait until somebody asks for the ledger
    model = new_model("gpt2")
    alive, seen = [], []
    at = Positions(((2,), (2,)))
    read = Read("s", BLOCK, at)
    runs = [Run("s", "y")]
    for number in range(3):
        runs.append(Run(f"run {number}", "x", (Edit(f"e{number}", BLOCK, "swap", at, source=read),)))
    bound = bind(
        model,
        Plan(tuple(runs), tuple(run.name for run in runs[1:])),
        {"x": tokens(2, 5), "y": tokens(2, 5, seed=1)},
        PARTS,
    )
    plain = type(bound.reads[read].places).gather

    def gather(self, activation):
        value = plain(self, activation)
        if self is bound.reads[read].places:
            seen.append(weakref.ref(value))
        return value

    monkeypatch.setattr(type(bound.reads[read].places), "gather", gather)

    def ready(_outputs):
        gc.collect()
        alive.append(seen[0]() is not None)

    with torch.no_grad():
        execute(bound, ready=ready)
    assert alive == [True, True, False]
