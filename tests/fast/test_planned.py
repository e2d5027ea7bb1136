"""Random plans, replayed, against full passes under plain hooks; and what a late pass does and leaves."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.fast.families import (
    BEST,
    COMPONENTS,
    FAMILIES,
    LAYERS,
    blocks,
    build,
    interpret,
    prefix,
    prompts,
    read_logits,
    real_columns,
    roll,
    shared,
)
from tests.helpers import hook_counts

from align_transformers import (
    AdditionIntervention,
    CollectIntervention,
    Edit,
    NoiseIntervention,
    Plan,
    Positions,
    Read,
    Run,
    Site,
    VanillaIntervention,
    ZeroIntervention,
    bind,
    execute,
    one_by_one,
)
from align_transformers.fast.budget import TIMES_FOR_ONE
from align_transformers.fast.planner import Decisions, tokens_for
from align_transformers.fast.trial import trials_of
from align_transformers.interventions import FunctionIntervention
from align_transformers.plan import Logits

# The checks of types within plans, drawn below, use `random`; nothing that is drawn depends on it.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
INTERVENTIONS = {
    "swap": VanillaIntervention(),
    "add": AdditionIntervention(),
    "zero": ZeroIntervention(),
    "function": FunctionIntervention(roll),
}
TOLERANCE = 1e-5  # of the largest logit: rows are summed in another order where passes are merged
COLUMNS = 6


def run_plan(model: Any, plan: Plan, inputs: Any, interventions: Any = INTERVENTIONS) -> Any:
    return execute(bind(model, plan, inputs, interventions))


def close(got: torch.Tensor, expected: torch.Tensor, scale: float) -> bool:
    return got.shape == expected.shape and float((got - expected).abs().max()) <= TOLERANCE * scale


# --- random plans -----------------------------------------------------------------------------------------------------


@st.composite
def texts(draw, family: str, seed: int):
    lengths = tuple(draw(st.lists(st.integers(2, COLUMNS), min_size=1, max_size=3)))
    return prompts(family, lengths, draw(st.sampled_from(["left", "right"])), seed, COLUMNS)


def of(run: Run, inputs: dict) -> list[int]:
    """Return the examples of a run."""
    return list(range(len(inputs[run.input]["input_ids"]))) if run.examples is None else list(run.examples)


@st.composite
def edits(draw, family: str, name: str, run: Run, earlier: list[Run], inputs: dict):
    component = draw(st.sampled_from(COMPONENTS[family]))
    site = Site(prefix(family) + component, draw(st.integers(0, LAYERS - 1)))
    examples, heads = of(run, inputs), None
    if draw(st.integers(0, 5)) == 0:
        return Edit(name, site, draw(st.sampled_from(["zero", "function"])))
    count = draw(st.integers(1, 2))
    rows = []
    for example in examples:
        columns = real_columns(inputs[run.input], example)
        rows.append(tuple(draw(st.permutations(columns))[: min(count, 2, len(columns))]))
    if component == "attention_value_output" and draw(st.booleans()):
        heads = tuple((draw(st.integers(0, 3)),) for _ in examples)
    rule = draw(st.sampled_from(list(INTERVENTIONS) if earlier else ["zero", "function"]))
    source = None
    if rule in ("swap", "add"):
        origin = draw(st.sampled_from(earlier))
        there = of(origin, inputs)
        picked = [draw(st.integers(0, len(there) - 1)) for _ in examples]
        read = []
        for copy, at in enumerate(picked):
            columns = st.sampled_from(real_columns(inputs[origin.input], there[at]))
            read.append(tuple(draw(columns) for _ in rows[copy]))
        source = Read(origin.name, site, Positions(tuple(read), heads), tuple(picked))
    return Edit(name, site, rule, Positions(tuple(rows), heads), source=source)


@st.composite
def plans(draw, family: str):
    inputs = {"x": draw(texts(family, 1)), "y": draw(texts(family, 2))}
    runs = [Run("clean x", "x"), Run("clean y", "y")]
    for number in range(draw(st.integers(1, 5))):
        name = draw(st.sampled_from(["x", "x", "y"]))
        batch = len(inputs[name]["input_ids"])
        examples = None
        if draw(st.booleans()):
            examples = tuple(draw(st.lists(st.integers(0, batch - 1), min_size=1, max_size=4)))
        run = Run(f"run {number}", name, (), examples)
        count = draw(st.integers(1, 3))
        made = tuple(draw(edits(family, f"edit {number}.{n}", run, runs, inputs)) for n in range(count))
        runs.append(Run(run.name, name, made, examples))
    wanted = ["clean x", "clean y", *draw(st.sets(st.sampled_from([run.name for run in runs[2:]]), min_size=1))]
    tokens, at = draw(st.sampled_from([None, (5, 1, 60)])), {}
    for name in draw(st.sets(st.sampled_from(["x", "y"]))):
        columns = [real_columns(inputs[name], example) for example in range(len(inputs[name]["input_ids"]))]
        at[name] = tuple(draw(st.sampled_from(real)) for real in columns)
    return Plan(tuple(runs), tuple(wanted), Logits(tokens, tuple(at.items()))), inputs


def check(family: str, plan: Plan, inputs: dict) -> Any:
    model = shared(family)
    with torch.no_grad():
        expected = interpret(family, model, plan, inputs)
        outcome = run_plan(model, plan, inputs)
    assert set(outcome.outputs) == set(plan.outputs)
    for name in plan.outputs:
        run = plan.run(name)
        hand = read_logits(expected[name], inputs[run.input], run, plan.logits)
        assert close(outcome.outputs[name], hand, float(expected[name].abs().max())), (name, outcome.passes)
    needed = [run.name for run in plan.order()]
    assert sorted(name for one in outcome.passes for name in one.runs) == sorted(needed)
    for one in outcome.passes:  # an unedited run of both inputs is there, so every edited one starts late
        assert (one.way == "full") == (one.runs[0].startswith("clean")), one
    for effect in outcome.effects:
        run = next(run for run in plan.runs if effect.name in [edit.name for edit in run.edits])
        rows = next(edit for edit in run.edits if edit.name == effect.name).positions.rows
        count = COLUMNS * len(of(run, inputs)) if rows is None else sum(map(len, rows))
        assert (effect.fired, effect.positions) == (1, count)
    return outcome


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
@settings(max_examples=12, suppress_health_check=list(HealthCheck))
def test_random_plans_give_what_full_passes_give(family, data):
    check(family, *data.draw(plans(family)))


def grid(family: str, inputs: dict, tokens: Any = None, component: str = "block_output") -> Plan:
    """Return a swap at every layer and real position of every example, from another input's run."""
    cells = [(e, p) for e in range(len(inputs["x"]["input_ids"])) for p in real_columns(inputs["x"], e)]
    examples, at = tuple(e for e, _ in cells), Positions(tuple((p,) for _, p in cells))
    runs = [Run("clean x", "x"), Run("clean y", "y")]
    for layer in range(LAYERS):
        site = Site(prefix(family) + component, layer)
        runs.append(
            Run(
                f"run {layer}",
                "x",
                (Edit(f"e{layer}", site, "swap", at, None, Read("clean y", site, at, examples)),),
                examples,
            )
        )
    return Plan(tuple(runs), ("clean x", *(f"run {n}" for n in range(LAYERS))), Logits(tokens))


@pytest.mark.parametrize("component", ["block_output", "attention_value_output"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_grid_is_one_pass_in_the_best_way(family, side, component):
    lengths = (6, 3, 5)
    inputs = {"x": prompts(family, lengths, side, 1), "y": prompts(family, lengths, side, 2)}
    outcome = check(family, grid(family, inputs, component=component), inputs)
    assert [one.way for one in outcome.passes if not one.runs[0].startswith("clean")] == [BEST[family]]
    late = outcome.passes[-1]
    assert set(late.runs) == {f"run {n}" for n in range(LAYERS)}
    if BEST[family] == "packed":
        assert late.why == ""
        assert late.rows * late.columns < LAYERS * sum(6 for e in range(3) for _ in real_columns(inputs["x"], e))


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
@settings(max_examples=6, suppress_health_check=list(HealthCheck))
def test_whole_outputs_of_late_runs_are_bit_for_bit_those_of_full_passes(family, data):
    plan, inputs = data.draw(plans(family))
    inputs = {name: {**value, "use_cache": False} for name, value in inputs.items()}
    plan = Plan(plan.runs, plan.outputs)
    model = shared(family)
    with torch.no_grad():
        expected = interpret(family, model, plan, inputs)
        outcome = run_plan(model, plan, inputs)
    assert {one.way for one in outcome.passes if not one.runs[0].startswith("clean")} <= {"partial"}
    assert any(one.way == "partial" for one in outcome.passes)
    for name in plan.outputs:
        got = outcome.outputs[name].logits
        if plan.run(name).examples is None:
            assert torch.equal(got, expected[name]), (name, outcome.passes)
        else:  # the states below come from a pass of another number of rows
            assert close(got, expected[name], float(expected[name].abs().max()))


# --- gradients --------------------------------------------------------------------------------------------------------


def learned(shift: torch.Tensor) -> FunctionIntervention:
    return FunctionIntervention(lambda base: base * 0.5 + shift)


@pytest.mark.parametrize("logits", [Logits(), Logits((3, 4)), None])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_full_passes(family, logits):
    model = build(family)
    inputs = {"x": prompts(family, (6, 4), "right", 1), "y": prompts(family, (6, 4), "right", 2)}
    if logits is None:
        inputs = {name: {**value, "use_cache": False} for name, value in inputs.items()}
    at = Positions(((2,), (1,)))
    runs = [Run("clean x", "x"), Run("clean y", "y")]
    for layer in (1, 2):
        site = Site(prefix(family) + "block_output", layer)
        swap = Edit(
            f"swap {layer}",
            Site(prefix(family) + "attention_value_output", layer),
            "swap",
            at,
            source=Read("clean y", Site(prefix(family) + "attention_value_output", layer), at),
        )
        runs.append(Run(f"run {layer}", "x", (Edit(f"e{layer}", site, "learned", at), swap)))
    plan = Plan(tuple(runs), ("clean x", "run 1", "run 2"), logits)

    def gradients(late: bool) -> list[torch.Tensor]:
        model.zero_grad()
        shift = torch.full((32,), 0.1, requires_grad=True)
        if late:
            outcome = run_plan(model, plan, inputs, {**INTERVENTIONS, "learned": learned(shift)})
            outputs = [outcome.outputs[n] if logits else outcome.outputs[n].logits for n in ("run 1", "run 2")]
            assert any(one.way == (BEST[family] if logits else "partial") for one in outcome.passes)
        else:
            rule = {"learned": lambda old, source: old * 0.5 + shift}
            found = interpret(family, model, plan, inputs, rule)
            outputs = [
                read_logits(found[n], inputs["x"], plan.run(n), logits) if logits else found[n]
                for n in ("run 1", "run 2")
            ]
        sum(output.tanh().sum() for output in outputs).backward()
        return [shift.grad, *(p.grad for _, p in sorted(model.named_parameters()) if p.grad is not None)]

    fast, slow = gradients(True), gradients(False)
    assert len(fast) == len(slow) > 5
    # Of the whole model: the gradient of a key's bias is zero but for what rounding leaves of the sum that it is.
    scale = max(float(other.abs().max()) for other in slow)
    for one, other in zip(fast, slow, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-5 * max(1.0, scale))


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_gradients_reach_embeddings_that_are_handed_in(family):
    model, found = shared(family), []
    ids = prompts(family, (5, 5), "right", 1)
    at = Positions(((2,), (1,)))
    site = Site("block_output", 1)
    plan = Plan(
        (Run("clean x", "x"), Run("run", "x", (Edit("e", site, "function", at),))), ("clean x", "run"), Logits()
    )
    for late in (True, False):
        embeds = model.get_input_embeddings()(ids["input_ids"]).detach().requires_grad_()
        inputs = {"x": {"inputs_embeds": embeds, "attention_mask": ids["attention_mask"]}}
        if late:
            outcome = run_plan(model, plan, inputs)
            assert outcome.passes[1].way == BEST[family]
            value = outcome.outputs["run"]
        else:
            value = interpret(family, model, plan, inputs)["run"][:, -1]
        found.append(torch.autograd.grad(value.tanh().sum(), embeds)[0])
    assert float(found[0].abs().sum()) > 0
    assert torch.allclose(*found, rtol=1e-3, atol=1e-5 * float(found[1].abs().max()))


# --- how much is done -------------------------------------------------------------------------------------------------


@contextmanager
def watched(model: Any, monkeypatch: pytest.MonkeyPatch):
    """Note every call of a block's forward: (number, rows, columns). No hook: hooks of others stop replay."""
    kind, numbers, calls = type(blocks(model)[0]), {id(b): n for n, b in enumerate(blocks(model))}, []
    original = kind.forward

    def forward(self, hidden_states, *args, **kwargs):
        if id(self) in numbers:
            calls.append((numbers[id(self)], *hidden_states.shape[:2]))
        return original(self, hidden_states, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(kind, "forward", forward)
        yield calls


@pytest.mark.parametrize("family", FAMILIES)
def test_a_grid_computes_no_more_than_it_needs(family, monkeypatch):
    model, length = shared(family), 5
    inputs = {"x": prompts(family, (length,), "right", 1), "y": prompts(family, (length,), "right", 2)}
    plan = grid(family, inputs)
    with torch.no_grad():
        run_plan(model, plan, inputs)  # abilities are measured
        with watched(model, monkeypatch) as calls:
            run_plan(model, plan, inputs)
    full = [n for n, rows, columns in calls if (rows, columns) == (1, length)]
    assert full == [0, 1, 2, 0, 1, 2]  # two clean runs: the one that is read needs its last block, too
    # A swap after block k is felt by blocks k + 1 and later: block n works on the copies of n runs.
    merged = [(n, rows, columns) for n, rows, columns in calls if (rows, columns) != (1, length)]
    if BEST[family] == "packed":  # the last block asks for attention with all places, and goes on with those read
        assert merged.pop() == (2, 2 * length, 1)
    assert [n for n, _, _ in merged] == [1, 2]
    tails = sum(range(1, length + 1)) if BEST[family] == "packed" else length * length
    for number, rows, columns in merged:
        assert columns == length
        assert number * tails <= rows * columns < number * tails + (length if BEST[family] == "packed" else 1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("component", "layer", "last"), [("block_input", 1, 0), ("block_output", 1, 1), ("attention_value_output", 0, 0)]
)
def test_a_source_pass_ends_after_its_last_capture(family, component, layer, last, monkeypatch):
    model = shared(family)
    inputs = {"x": prompts(family, (5,), "right", 1), "y": prompts(family, (5,), "right", 2)}
    at, site = Positions(((2,),)), Site(prefix(family) + component, layer)
    plan = Plan(
        (Run("s", "y"), Run("b", "x", (Edit("e", site, "swap", at, source=Read("s", site, at)),))), ("b",), Logits()
    )
    with torch.no_grad():
        expected = interpret(family, model, plan, inputs)["b"]
        run_plan(model, plan, inputs)  # the model is resolved
        with watched(model, monkeypatch) as calls:
            outcome = run_plan(model, plan, inputs)
    assert [n for n, _, _ in calls] == [*range(last + 1), *range(LAYERS)]
    assert close(outcome.outputs["b"], expected[:, -1], float(expected.abs().max()))


def test_a_source_of_embeddings_calls_no_block(monkeypatch):
    model = shared("gpt2")
    inputs = {"x": prompts("gpt2", (5,), "right", 1), "y": prompts("gpt2", (5,), "right", 2)}
    at, site = Positions(((2,),)), Site("embedding_output")
    plan = Plan((Run("s", "y"), Run("b", "x", (Edit("e", site, "swap", at, source=Read("s", site, at)),))), ("b",))
    with torch.no_grad():
        run_plan(model, plan, inputs)  # the model is resolved
        with watched(model, monkeypatch) as calls:
            run_plan(model, plan, inputs)
    assert [n for n, _, _ in calls] == [*range(LAYERS)]


# --- nothing is left --------------------------------------------------------------------------------------------------


def state_of(model: Any) -> Any:
    own = {name: sorted(vars(module)) for name, module in model.named_modules()}
    flags = {name: module.training for name, module in model.named_modules()}
    needs = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    return hook_counts(model), own, flags, needs, weights, model.config.to_dict()


def assert_same(before: Any, after: Any) -> None:
    assert before[:4] == after[:4]
    assert all(torch.equal(before[4][name], after[4][name]) for name in before[4])
    assert before[5] == after[5]


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_left_in_the_model(family):
    model = build(family)
    own = blocks(model)[1].forward
    blocks(model)[0].forward = blocks(model)[0].forward  # an attribute of the user's, as accelerate makes
    before = state_of(model)
    inputs = {"x": prompts(family, (5, 3), "left", 1), "y": prompts(family, (5, 3), "left", 2)}
    with torch.no_grad():
        outcome = run_plan(model, grid(family, inputs), inputs)
    assert outcome.passes[-1].way == BEST[family]
    assert_same(before, state_of(model))
    assert blocks(model)[1].forward == own


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_left_after_an_exception_within_a_late_pass(family, error):
    model = build(family)
    inputs = {"x": prompts(family, (5, 3), "right", 1), "y": prompts(family, (5, 3), "right", 2)}
    plan, calls = grid(family, inputs, component="attention_value_output"), []
    with torch.no_grad():
        expected = run_plan(model, plan, inputs).outputs
    before = state_of(model)

    def fail(base: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        calls.append(base)
        if len(calls) == 2:
            raise error("in the middle")
        return source

    with torch.no_grad(), pytest.raises(error, match="in the middle"):
        run_plan(model, plan, inputs, {"swap": FunctionIntervention(fail)})
    assert len(calls) == 2
    assert_same(before, state_of(model))
    with torch.no_grad():
        again = run_plan(model, plan, inputs).outputs
    assert all(torch.equal(again[name], expected[name]) for name in expected)


def test_nothing_is_left_after_a_block_fails_in_a_late_pass(monkeypatch):
    model = build("llama")
    inputs = {"x": prompts("llama", (5, 3), "right", 1), "y": prompts("llama", (5, 3), "right", 2)}
    plan = grid("llama", inputs)
    with torch.no_grad():
        run_plan(model, plan, inputs)
    before, kind = state_of(model), type(blocks(model)[0].mlp)
    original, calls = kind.forward, []

    def forward(self, hidden):
        calls.append(hidden.shape)
        if len(calls) == 2 * LAYERS + 2:
            raise ValueError("a weight is broken")
        return original(self, hidden)

    monkeypatch.setattr(kind, "forward", forward)
    with torch.no_grad(), pytest.raises(ValueError, match="broken"):
        run_plan(model, plan, inputs)
    assert_same(before, state_of(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_where_memory_runs_out_passes_are_halved(family, monkeypatch):
    model = build(family)
    inputs = {"x": prompts(family, (5, 3), "right", 1), "y": prompts(family, (5, 3), "right", 2)}
    plan = grid(family, inputs)
    with torch.no_grad():
        expected = run_plan(model, plan, inputs)
    before, refused = state_of(model), []
    kind = type(blocks(model)[-1])
    plain = kind.forward

    def narrow(self, hidden_states, *args, **kwargs):
        if hidden_states.shape[0] > expected.passes[-1].rows // 2 and self is blocks(model)[-1]:
            refused.append(hidden_states.shape[0])
            raise torch.OutOfMemoryError("no room")
        return plain(self, hidden_states, *args, **kwargs)

    monkeypatch.setattr(kind, "forward", narrow)
    with torch.no_grad():
        found = run_plan(model, plan, inputs)
    assert refused
    assert len(found.passes) > len(expected.passes)
    assert_same(before, state_of(model))
    for name, value in expected.outputs.items():
        assert close(found.outputs[name], value, float(value.abs().max()))
    assert [(e.name, e.fired, e.rows, e.positions) for e in found.effects] == [
        (e.name, e.fired, e.rows, e.positions) for e in expected.effects
    ]


def test_a_pass_that_cannot_be_halved_says_that_memory_ran_out(monkeypatch):
    model = build("gpt2")
    inputs = {"x": prompts("gpt2", (5,), "right", 1), "y": prompts("gpt2", (5,), "right", 2)}
    kind, plain = type(blocks(model)[0]), type(blocks(model)[0]).forward

    def narrow(self, hidden_states, *args, **kwargs):
        if hidden_states.shape[1] < 5 and self is blocks(model)[-1]:
            raise torch.OutOfMemoryError("no room")
        return plain(self, hidden_states, *args, **kwargs)

    plan = grid("gpt2", inputs)
    with torch.no_grad():
        run_plan(model, plan, inputs)
    monkeypatch.setattr(kind, "forward", narrow)
    with torch.no_grad(), pytest.raises(torch.OutOfMemoryError, match="no room"):
        run_plan(model, plan, inputs)


# --- plans for which this once was something else ---------------------------------------------------------------------


def both(model: Any, plan: Plan, inputs: Any, most: float | None = None) -> tuple[Any, Any]:
    """Return what comes of a plan in full passes, and planned, with passes of at most so many tokens."""
    bound = bind(model, plan, inputs, {**INTERVENTIONS, "collect": CollectIntervention(), "noise": NoiseIntervention()})
    room = tokens_for if most is None else lambda states: most
    with torch.no_grad():
        return execute(bound, one_by_one), execute(bound, lambda b: Decisions(b, trials_of(model), most=room).steps())


def same(slow: Any, fast: Any) -> bool:
    """Whether two outcomes hold the same logits, and the same was counted."""
    counted = [[(one.name, one.fired, one.rows, one.positions) for one in found.effects] for found in (slow, fast)]
    scale = max(float(value.abs().max()) for value in slow.outputs.values()) if slow.outputs else 0.0
    return counted[0] == counted[1] and all(close(fast.outputs[n], v, scale) for n, v in slow.outputs.items())


@pytest.mark.parametrize(
    "logits", [Logits(answers_of=("y",)), Logits(at=(("y", (1, 2)),)), Logits((3, 4)), Logits(answers_of=("x", "y"))]
)
def test_runs_of_equal_contents_are_one_only_where_the_same_logits_are_read(logits):
    x = prompts("gpt2", (5, 5), "right", 1)
    plan = Plan((Run("x", "x"), Run("y", "y")), ("x", "y"), logits)
    slow, fast = both(shared("gpt2"), plan, {"x": x, "y": {name: value.clone() for name, value in x.items()}})
    assert same(slow, fast)
    assert len(fast.passes) == 2 - (not logits.at and len(logits.answers_of) != 1)


@pytest.mark.parametrize("first", [True, False])
def test_an_edit_of_what_a_block_returns_by_its_path_is_one_of_its_output(first):
    at, site = Positions(((1,), (2,))), Site("block_output", 1)
    by_path = [Edit(name, Site("transformer.h.1.output"), "zero", at) for name in "ab"]
    deeper, here = Edit("c", Site("block_output", 2), "zero", at), Edit("d", site, "noise", at)
    edits = (by_path[1], here) if first else (here, by_path[1])
    plan = Plan((Run("a", "x", (by_path[0], deeper)), Run("b", "x", edits)), ("a", "b"), Logits())
    assert same(*both(shared("gpt2"), plan, {"x": prompts("gpt2", (5, 5), "right", 1)}))


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_what_is_collected_of_a_run_whose_copies_are_divided(family):
    at = Positions(((1,), (2,), (3,), (1,)))
    edits = (Edit("c", Site("block_output", 0), "collect", at), Edit("z", Site("block_output", 1), "zero", at))
    plan = Plan((Run("x", "x"), Run("run", "x", edits, (0, 1, 0, 1))), ("x", "run"), Logits())
    slow, fast = both(shared(family), plan, {"x": prompts(family, (5, 5), "right", 1)}, most=7.0 / TIMES_FOR_ONE)
    assert len(fast.passes) > 2
    assert same(slow, fast)
    assert torch.allclose(fast.collected["c"].values[0], slow.collected["c"].values[0], atol=1e-4)
    assert torch.equal(fast.collected["c"].real[0], slow.collected["c"].real[0])


@pytest.mark.parametrize("path", ["cls.predictions.output", "cls.output", "output"])
def test_logits_are_all_computed_where_a_module_behind_the_unembedding_is_edited_or_read(path):
    at = Positions(((4,), (3,)))
    runs = (
        Run("x", "x"),
        Run("run", "x", (Edit("e", Site(path), "noise", at),)),
        Run("all", "x", (Edit("f", Site(path), "noise"),)),
    )
    plan = Plan(runs, ("x", "run", "all"), Logits(), (Read("x", Site(path), at),))
    slow, fast = both(shared("bert"), plan, {"x": prompts("bert", (5, 5), "right", 1)})
    assert same(slow, fast)
    assert torch.equal(*(found.values[plan.values[0]] for found in (slow, fast)))


def test_an_edit_that_is_not_by_example_is_counted_in_full():
    torch.manual_seed(0)
    sizes = {"num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2, "hidden_size": 16}
    more = {"vocab_size": 61, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4}
    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes, **more)).eval()
    edits = [Edit(name, Site("model.layers.0.mlp.gate.input"), "noise") for name in "ab"]
    later = Edit("c", Site("block_output", 1), "zero", Positions(((3,), (2,))))
    plan = Plan((Run("a", "x", (edits[0],)), Run("b", "x", (edits[1], later))), ("a", "b"), Logits())
    assert same(*both(model, plan, {"x": prompts("llama", (5, 5), "right", 1)}))


def test_runs_that_start_from_one_that_is_edited_further_on_are_not_packed():
    at, later = Positions(((1,), (1,))), Positions(((3,), (4,)))
    runs = (
        Run("a", "x", (Edit("a", Site("block_output", 1), "function", at),)),
        Run("b", "x", (Edit("b", Site("block_output", 0), "zero", later),)),
    )
    inputs = {"x": prompts("gpt2", (5, 5), "right", 1)}
    slow, fast = both(shared("gpt2"), Plan(runs, ("a", "b"), Logits()), inputs)
    assert same(slow, fast)
    assert fast.passes[1].way == "together"
    assert "edited further on" in fast.passes[1].why
    last = replace(runs[0], edits=(Edit("a", Site("block_output", LAYERS - 1), "function", at),))
    slow, fast = both(shared("gpt2"), Plan((last, runs[1]), ("a", "b"), Logits()), inputs)
    assert same(slow, fast)
    assert fast.passes[1].way == "packed"  # nothing attends to what was edited


def test_answers_come_before_what_is_asked_about_them():
    at = Positions(((1,),))
    swap = Edit("a", Site("block_output", 1), "swap", at, source=Read("x", Site("block_output", 1), at))
    zero = Edit("b", Site("block_output", 1), "zero", at)
    inputs = {"x": prompts("gpt2", (4,), "right", 1), "y": prompts("gpt2", (4,), "right", 1)}
    runs = (Run("x", "x"), Run("y", "y"), Run("a", "x", (swap,)), Run("b", "x", (zero,)))
    for outputs in (("y", "a"), ("b", "a"), ("y", "b", "a")):
        assert same(*both(shared("gpt2"), Plan(runs, outputs, Logits(answers_of=("a",))), inputs))


@pytest.mark.parametrize("side", ["input", "output"])
def test_edits_of_a_block_by_both_its_names_are_made_in_their_order(side):
    at = Positions(((1,), (2,)))
    path = Edit("a", Site(f"transformer.h.1.{side}"), "noise", at)
    named = Edit("b", Site(f"block_{side}", 1), "function", at)
    for edits in ((path, named), (named, path)):
        plan = Plan((Run("x", "x"), Run("run", "x", edits)), ("x", "run"), Logits())
        slow, fast = both(shared("gpt2"), plan, {"x": prompts("gpt2", (5, 5), "right", 1)})
        assert same(slow, fast)
        assert fast.passes[1].way == "packed"


def test_a_loss_is_computed_where_all_that_a_model_returns_is_read():
    x = prompts("gpt2", (5, 5), "right", 1)
    read = Read("x", Site("output"))
    plan = Plan((Run("x", "x"), Run("y", "y")), ("x", "y"), Logits(), (read,))
    slow, fast = both(shared("gpt2"), plan, {"x": {**x, "labels": x["input_ids"]}, "y": x})
    assert same(slow, fast)
    assert slow.values[read].shape == fast.values[read].shape == ()


def test_a_run_that_ends_in_the_encoder_is_started_from():
    site, at = Site("encoder.block_input", 2), Positions(((1,),))
    swap = Edit("a", site, "add", at, source=Read("x", site, Positions(((0,),))))
    read = Read("run", site, at)
    plan = Plan((Run("x", "x"), Run("run", "x", (swap,), (0,))), (), Logits(), (read,))
    slow, fast = both(shared("t5"), plan, {"x": prompts("t5", (4,), "right", 1)})
    assert torch.allclose(slow.values[read], fast.values[read], atol=1e-5)
    assert [one.way for one in fast.passes] == ["full", "partial"]


def test_an_edit_of_what_the_encoder_gives_is_made_by_every_run():
    at, site = Positions(((2,), (1,))), Site("encoder.block_output", LAYERS - 1)
    first, same_edit = (Edit(name, site, "noise", at) for name in "ab")
    later = Edit("c", Site("decoder.block_output", 0), "zero", at)
    runs = Run("x", "x"), Run("a", "x", (first,)), Run("b", "x", (same_edit, later))
    inputs = {"x": prompts("t5", (5, 3), "right", 1)}
    assert same(*both(shared("t5"), Plan(runs, ("x", "a", "b"), Logits()), inputs))


def test_an_edit_in_the_encoder_by_its_path_goes_with_no_other_run():
    path = Site("encoder.block.1.layer.1.layer_norm.output")
    runs = (
        Run("x", "x"),
        Run("a", "x", (Edit("a", path, "noise", Positions(((0,), (2,)))),)),
        Run("b", "x", (Edit("b", Site("decoder.block_output", 1), "zero", Positions(((1,),))),), (1,)),
    )
    inputs = {"x": prompts("t5", (5, 3), "right", 1)}
    assert same(*both(shared("t5"), Plan(runs, ("x", "a", "b"), Logits()), inputs))
