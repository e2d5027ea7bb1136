"""Plans: names, circles, order, and the round through JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align_transformers import Constant, Edit, Plan, PlanError, Positions, Read, Run, Site, SpecError, UnknownNameError

SITE = Site("mlp_output", 0)


def reading(*names: str) -> tuple[Edit, ...]:
    """Return edits that read those runs; a name is used once in a plan."""
    reading.count += 1
    return tuple(Edit(f"{name} for {reading.count}", SITE, "swap", source=Read(name, SITE)) for name in names)


reading.count = 0


@pytest.mark.parametrize(
    ("runs", "outputs", "error", "message"),
    [
        ((Run("a", "x"), Run("a", "y")), ("a",), PlanError, "run names must differ; found 'a' more than once"),
        ((Run("a", "x", (Edit("e", SITE, "i"),) * 2),), ("a",), PlanError, "edit names must differ; found 'e'"),
        ((Run("a", "x", (Edit("e", SITE, "i"),)), Run("b", "x", (Edit("e", SITE, "i"),))), ("a",), PlanError, "'e'"),
        ((Run("base", "x"),), (), PlanError, "at least one output"),
        ((), ("base",), UnknownNameError, "no run 'base'; there are none"),
        ((Run("base", "x"),), ("bass",), UnknownNameError, "no run 'bass'; did you mean 'base'"),
        ((Run("base", "x", reading("sourse")), Run("source", "y")), ("base",), UnknownNameError, "mean 'source'"),
        ((Run("a", "x", reading("a")),), ("a",), PlanError, "run 'a' reads its own layer 0 mlp_output"),
        ((Run("a", "x", reading("b")), Run("b", "x", reading("a"))), ("a",), PlanError, "circle"),
        (  # a circle in runs that no output needs is one all the same
            (Run("base", "x"), Run("a", "x", reading("b")), Run("b", "x", reading("a"))),
            ("base",),
            PlanError,
            "read each other in a circle",
        ),
    ],
)
def test_refused(runs, outputs, error, message):
    with pytest.raises(error, match=message):
        Plan(runs, outputs)


@given(st.data())
def test_the_order_has_what_is_needed_and_each_run_after_those_it_reads(data):
    count = data.draw(st.integers(1, 7))
    names = [f"run{number}" for number in range(count)]
    reads = {
        name: data.draw(st.sets(st.sampled_from(names[:number]))) if number else set()
        for number, name in enumerate(names)
    }
    runs = data.draw(st.permutations([Run(name, "x", reading(*sorted(reads[name]))) for name in names]))
    outputs = tuple(data.draw(st.sets(st.sampled_from(names), min_size=1)))
    order = [run.name for run in Plan(tuple(runs), outputs).order()]
    needed = set(outputs)
    for name in reversed(names):
        needed |= reads[name] if name in needed else set()
    assert set(order) == needed
    assert len(order) == len(needed)
    assert all(order.index(read) < order.index(name) for name in order for read in reads[name])


def test_a_long_chain_is_no_recursion():
    runs = [Run("r0", "x"), *(Run(f"r{n}", "x", reading(f"r{n - 1}")) for n in range(1, 2000))]
    assert [run.name for run in Plan(tuple(runs), ("r1999",)).order()] == [run.name for run in runs]


ROWS = st.none() | st.lists(st.lists(st.integers(0, 9), max_size=3), min_size=2, max_size=2)
SITES = st.fixed_dictionaries(
    {"component": st.sampled_from(["mlp_output", "head_query_output"]), "layer": st.integers(0, 3), "call": st.none()}
) | st.fixed_dictionaries(
    {"component": st.sampled_from(["h[0].output", "input"]), "layer": st.none(), "call": st.none() | st.integers(0, 3)}
)
POSITIONS = st.fixed_dictionaries(
    {"rows": ROWS, "heads": ROWS, "steps": st.just("all") | st.lists(st.integers(0, 4), max_size=2)}
)
EXAMPLES = st.none() | st.lists(st.integers(0, 3), max_size=3)
READS = st.fixed_dictionaries({"run": st.just("source"), "site": SITES, "positions": POSITIONS, "examples": EXAMPLES})
EDITS = st.fixed_dictionaries(
    {
        "name": st.text(),
        "site": SITES,
        "intervention": st.text(),
        "positions": POSITIONS,
        "subspace": st.none() | st.lists(st.lists(st.integers(0, 3)), max_size=2),
        "source": st.none() | READS | st.fixed_dictionaries({"name": st.text()}),
    }
)


AT = st.lists(st.tuples(st.text(), st.lists(st.integers(0, 9), max_size=3)).map(list), max_size=2)
TOKENS = st.lists(st.integers(0, 9), max_size=3)
LOGITS = (
    st.none()
    | st.fixed_dictionaries({"tokens": st.none() | TOKENS, "at": AT, "answers_of": st.just([])})
    | st.fixed_dictionaries({"tokens": st.none(), "at": AT, "answers_of": st.just(["base"])})
)
VALUES = st.lists(READS, max_size=2)


@given(st.lists(EDITS, max_size=4, unique_by=lambda edit: edit["name"]), st.booleans(), EXAMPLES, LOGITS, VALUES)
def test_a_plan_survives_json(edits, wants_source, examples, logits, values):
    source = {"name": "source", "input": "s", "edits": [], "examples": None}
    runs = [source, {"name": "base", "input": "b", "edits": edits, "examples": examples}]
    if logits is not None and logits["answers_of"] and wants_source:
        logits = {**logits, "answers_of": ["source"]}  # of the base, which reads it, they would be a circle
    data = {"runs": runs, "outputs": ["base", "source"][: 1 + wants_source], "logits": logits, "values": values}
    plan = Plan.from_dict(data)
    written = json.dumps(plan.to_dict())
    assert json.loads(written) == data
    again = Plan.from_dict(json.loads(written))
    assert (again, hash(again)) == (plan, hash(plan))


def test_every_field_comes_back():
    places = Positions(((1, 2), (3,)), ((0,), (1, 2)), (0, 4))
    read = Edit("a", SITE, "swap", places, ((0,), (1, 2)), Read("source", Site("h[0].output", call=1), places))
    constant = Edit("b", Site("head_query_output", 2), "add", Positions(steps="all"), None, Constant("mean"))
    plan = Plan((Run("source", "s"), Run("base", "b", (read, constant))), ("base",))
    assert Plan.from_dict(plan.to_dict()) == plan
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


@pytest.mark.parametrize("data", [{}, {"runs": [{}], "outputs": []}, {"runs": 5, "outputs": []}])
def test_what_is_no_plan_is_refused(data):
    with pytest.raises(SpecError, match="this is not a plan"):
        Plan.from_dict(data)


def test_unknown_fields_are_refused():
    data = Plan((Run("base", "b", (Edit("e", SITE, "i"),)),), ("base",)).to_dict()
    data["runs"][0]["edits"][0]["site"]["colour"] = "red"
    with pytest.raises(SpecError, match="colour"):
        Plan.from_dict(data)


def test_runs_edits_and_reads_are_found():
    edits = reading("source")
    plan = Plan((Run("source", "s"), Run("base", "b", edits)), ("base",))
    assert plan.run("base").edits == edits
    assert list(plan.edits()) == list(edits)
    assert list(plan.reads()) == [Read("source", SITE)]
