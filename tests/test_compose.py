"""From a configuration and a call to a plan: which runs there are, and what each edit reads and writes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.untyped import untyped

from align_transformers import (
    CollectIntervention,
    Constant,
    FunctionIntervention,
    IntervenableConfig,
    IntervenableModel,
    MeanIntervention,
    PlanError,
    Positions,
    Read,
    Site,
    SkipIntervention,
    SpecError,
    UnknownNameError,
    VanillaIntervention,
    ZeroIntervention,
)
from align_transformers.compose import Call, Representation, Timing, compose
from align_transformers.locations import Addressed


def words(batch=2, length=5):
    return {"input_ids": torch.zeros(batch, length, dtype=torch.long)}


BASE = words()


def composed(interventions, call, *, mode="parallel", keys=None, original=False, unit="pos", limit=2):
    """Compose with one representation at layer n for each intervention n."""
    count = len(interventions)
    specs = [{"layer": n, "group_key": keys and keys[n]} for n in range(count)]
    config = IntervenableConfig(representations=specs, mode=mode)
    representations = [
        Representation(f"r{n}", Site("mlp_output", n), one, Addressed(unit, limit))
        for n, one in enumerate(interventions)
    ]
    return compose(config, representations, call, original=original)


def edits(made, run="base"):
    return {edit.name: edit for edit in made.plan.run(run).edits}


def sources(made):
    """Return for each edit of each run what it reads."""
    return {
        (run.name, edit.name): edit.source.run if isinstance(edit.source, Read) else edit.source
        for run in made.plan.runs
        for edit in run.edits
    }


def swaps(count):
    return [VanillaIntervention() for _ in range(count)]


# --- parallel ------------------------------------------------------------------------------------------------------


def test_one_swap():
    source = words()
    made = composed(swaps(1), Call(BASE, [source], {"sources->base": ([[[4], [3]]], [[[2], [1]]])}))
    assert made.inputs == {"base": BASE, "source_0": source}
    assert made.inputs["source_0"] is source
    assert made.plan.outputs == ("base",)
    (edit,) = made.plan.run("base").edits
    assert edit.positions == Positions(((2,), (1,)))
    assert edit.source == Read("source_0", Site("mlp_output", 0), Positions(((4,), (3,))))
    assert (edit.name, edit.intervention, edit.site) == ("r0", "r0", Site("mlp_output", 0))


@pytest.mark.parametrize("given", ["one dict", "list of one", "the same object for each"])
def test_a_source_given_once_for_several_groups_is_one_run(given):
    source = words()
    sources_ = {"one dict": source, "list of one": [source], "the same object for each": [source, source]}[given]
    made = composed(swaps(2), Call(BASE, sources_, 1))
    assert sources(made) == {("base", "r0"): "source_0", ("base", "r1"): "source_0"}
    assert [run.name for run in made.plan.runs] == ["base", "source_0"]


def test_different_sources_are_different_runs():
    made = composed(swaps(3), Call(BASE, [words(), None, words()], 1))
    assert sources(made) == {("base", "r0"): "source_0", ("base", "r2"): "source_2"}


def test_the_base_may_be_its_own_source():
    made = composed(swaps(1), Call(BASE, BASE, 1))
    assert sources(made) == {("base", "r0"): "source_0"}


def test_groups_share_a_source_and_edits_keep_their_order():
    made = composed(swaps(4), Call(BASE, [words(), words()], 1), keys=["b", "a", "b", "a"])
    read = {("base", f"r{n}"): f"source_{n % 2}" for n in range(4)}
    assert list(sources(made).items()) == list(read.items())


def test_locations_are_by_intervention_whatever_the_groups():
    spec = {"base": [[[0], [0]], None, [[2], [2]]]}
    made = composed([ZeroIntervention() for _ in range(3)], Call(BASE, None, spec), keys=["b", "a", "b"])
    assert {name: edit.positions.rows for name, edit in edits(made).items()} == {"r0": ((0,), (0,)), "r2": ((2,), (2,))}


def test_each_source_counts_from_its_own_end():
    made = composed(swaps(2), Call(BASE, [words(2, 5), words(2, 3)], {"sources->base": (-1, 0)}))
    assert [edit.source.positions.rows for edit in edits(made).values()] == [((4,), (4,)), ((2,), (2,))]


def test_a_source_of_one_example_serves_the_batch():
    made = composed(swaps(1), Call(BASE, words(1, 4), {"sources->base": ([[[1], [3]]], 0)}))
    assert edits(made)["r0"].source.positions.rows == ((1,), (3,))


def test_the_original_runs_only_when_asked_for():
    made = composed(swaps(1), Call(BASE, words(), 1), original=True)
    assert made.plan.outputs == ("original", "base")
    assert made.plan.run("original").edits == ()
    assert made.plan.run("original").input == "base"
    assert "original" not in [run.name for run in composed(swaps(1), Call(BASE, words(), 1)).plan.runs]


def test_a_place_may_be_read_twice_but_written_once():
    made = composed(swaps(1), Call(BASE, words(), {"sources->base": ([[[4, 4]] * 2], [[[2, 3]] * 2])}))
    assert edits(made)["r0"].source.positions.rows == ((4, 4), (4, 4))

    model = torch.nn.Sequential(torch.nn.Linear(3, 4))
    base, source = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    spec = {"component": "0.output", "max_number_of_units": 2}
    _, got = IntervenableModel(spec, model)(base, source, {"sources->base": ([4, 4], [2, 3])})
    wanted = model(base).clone()
    wanted[:, 2] = wanted[:, 3] = model(source)[:, 4]
    assert torch.equal(got, wanted)
    with pytest.raises(SpecError, match=r"0.output: example 0 names a position twice"):
        IntervenableModel(spec, model)(base, source, {"sources->base": ([2, 3], [4, 4])})
    looking = IntervenableModel({**spec, "intervention_type": CollectIntervention}, model)
    seen = looking(base, None, {"base": [4, 4]}, return_dict=True).collected_activations[0]
    assert torch.equal(seen, model(base)[:, [4, 4]])


def test_the_callers_objects_are_left_alone():
    given = [words()]
    locations = {"sources->base": ([[[1], [1]]], [[[1], [1]]])}
    composed(swaps(2), Call(BASE, given, {"sources->base": (1, 1)}))
    composed(swaps(1), Call(BASE, given, locations))
    assert len(given) == 1
    assert locations == {"sources->base": ([[[1], [1]]], [[[1], [1]]])}


# --- what is skipped, and what a source is taken from ----------------------------------------------------------------


def test_without_a_source_what_needs_one_is_left_out_if_the_call_says_so():
    two = FunctionIntervention(lambda base, source: base)
    one = FunctionIntervention(lambda base: base)
    made = composed([VanillaIntervention(), ZeroIntervention(), two, one], Call(BASE, [None]))
    assert list(edits(made)) == ["r1", "r3"]
    with pytest.raises(PlanError, match=r"VanillaIntervention at .* needs a source"):
        composed([VanillaIntervention(), two], Call(BASE))  # the call names no sources
    assert sources(composed([two], Call(BASE))) == {("base", "r0"): None}


def test_a_function_of_the_base_needs_no_run():
    made = composed([FunctionIntervention(lambda base: base)], Call(BASE, words(), 1))
    assert sources(made) == {("base", "r0"): None}


def test_a_skip_reads_the_modules_input():
    made = composed([SkipIntervention()], Call(BASE, words(), 1))
    assert edits(made)["r0"].source.site == Site("mlp_input", 0)


@pytest.mark.parametrize(
    "given",
    [
        torch.ones(3),
        np.ones(3, dtype=np.float32),
        [torch.ones(3), None],
        {0: torch.ones(3)},
        {"r0": torch.ones(3), "r1": None},
    ],
)
def test_constants_of_the_call(given):
    made = composed(swaps(2), Call(BASE, words(), 1, given))
    assert edits(made)["r0"].source == Constant("r0")
    assert torch.equal(made.constants["r0"], torch.ones(3))
    everybody = hasattr(given, "shape")
    assert isinstance(edits(made)["r1"].source, Constant if everybody else Read)


def test_a_constant_that_the_intervention_carries():
    one = VanillaIntervention(source_representation=torch.ones(3))
    made = composed([one, VanillaIntervention()], Call(BASE, words(), 1))
    assert sources(made) == {("base", "r0"): Constant("r0"), ("base", "r1"): "source_0"}
    assert torch.equal(made.constants["r0"], torch.ones(3))
    outranked = composed([one], Call(BASE, None, 1, torch.zeros(3)))
    assert torch.equal(outranked.constants["r0"], torch.zeros(3))


def test_a_mean_is_never_read_from_a_run():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3))
    face = IntervenableModel({"component": "0.output", "intervention_type": MeanIntervention}, model)
    with pytest.raises(PlanError, match=r"MeanIntervention at 0.output needs a source"):
        face(torch.ones(1, 3), torch.ones(1, 3))
    made = composed([MeanIntervention(source_representation=torch.ones(3))], Call(BASE, words(), 1))
    assert sources(made) == {("base", "r0"): Constant("r0")}


def test_subspaces_by_intervention_and_example():
    made = composed(swaps(2), Call(BASE, words(), 1, subspaces=[None, [[0], [1, 2]]]))
    assert [edit.subspace for edit in edits(made).values()] == [None, ((0,), (1, 2))]


# --- serial ----------------------------------------------------------------------------------------------------------

CHAIN = {"source_0->source_1": (1, 2), "source_1->base": (3, 4)}


def test_a_chain():
    made = composed(swaps(2), Call(BASE, [words(), words()], CHAIN), mode="serial")
    assert sources(made) == {("source_1", "r0"): "source_0", ("base", "r1"): "source_1"}
    first, second = edits(made, "source_1")["r0"], edits(made)["r1"]
    assert (first.source.positions.rows[0], first.positions.rows[0]) == ((1,), (2,))
    assert (second.source.positions.rows[0], second.positions.rows[0]) == ((3,), (4,))
    assert [run.name for run in made.plan.order()] == ["source_0", "source_1", "base"]


def test_a_chain_of_equal_inputs_is_still_a_chain():
    made = composed(swaps(2), Call(BASE, words(), CHAIN), mode="serial")
    assert sources(made) == {("source_1", "r0"): "source_0", ("base", "r1"): "source_1"}


def test_a_chain_of_groups():
    made = composed(swaps(3), Call(BASE, [words(), words()], None), mode="serial", keys=["b", "a", "b"])
    assert sources(made) == {("base", "r1"): "source_1", ("source_1", "r0"): "source_0", ("source_1", "r2"): "source_0"}


def test_locations_of_a_link_name_its_own_group_only():
    spec = {"source_0->source_1": ([[[0], [0]], None], [[[1], [1]], None]), "source_1->base": None}
    made = composed(swaps(3), Call(BASE, [words(), words()], spec), mode="serial", keys=["a", "a", "b"])
    assert list(edits(made, "source_1")) == ["r0"]
    assert edits(made)["r2"].positions == Positions()


def test_a_skipped_link_is_bridged():
    made = composed(swaps(2), Call(BASE, [words(), None], CHAIN), mode="serial")
    assert sources(made) == {("base", "r0"): "source_0"}


def test_constants_in_a_chain_are_applied():
    made = composed([ZeroIntervention(), ZeroIntervention()], Call(BASE, None, None), mode="serial")
    assert sources(made) == {("base", "r0"): None, ("base", "r1"): None}
    made = composed([ZeroIntervention(), VanillaIntervention()], Call(BASE, [None, words()]), mode="serial")
    assert sources(made) == {("source_1", "r0"): None, ("base", "r1"): "source_1"}


def test_an_edit_of_a_run_that_nothing_reads_is_refused():
    with pytest.raises(PlanError, match="layer 0 mlp_output of 'source_1' would be edited in vain"):
        composed([VanillaIntervention(), ZeroIntervention()], Call(BASE, [words(), words()]), mode="serial")


def test_a_chain_of_one():
    for spec in ({"source_0->base": (1, 2)}, (1, 2)):
        made = composed(swaps(1), Call(BASE, [words()], spec), mode="serial")
        assert edits(made)["r0"].positions.rows == ((2,), (2,))


# --- generation ------------------------------------------------------------------------------------------------------


def test_generated_tokens():
    during = composed(swaps(1), Call(BASE, words(), (4, 0), timing=Timing(False, "all")))
    assert edits(during)["r0"].positions == Positions(((), ()), None, "all")
    prompt = composed(swaps(1), Call(BASE, words(), (4, 3), timing=Timing(True, (1, 2))))
    assert edits(prompt)["r0"].positions == Positions(((3,), (3,)), None, (1, 2))
    assert edits(prompt)["r0"].source.positions == Positions(((4,), (4,)))
    nowhere = composed([ZeroIntervention()], Call(BASE, timing=Timing(False, (0,))))
    assert edits(nowhere)["r0"].positions == Positions(((), ()), None, (0,))
    with pytest.raises(SpecError, match="pass intervene_on_prompt=True"):
        composed(swaps(1), Call(BASE, words(), (4, 3), timing=Timing(False, "all")))


def test_only_the_last_run_generates():
    timing = Timing(False, "all")
    spec = {"source_0->source_1": (1, 2), "source_1->base": (3, 0)}
    made = composed(swaps(2), Call(BASE, [words(), words()], spec, timing=timing), mode="serial")
    assert edits(made, "source_1")["r0"].positions == Positions(((2,), (2,)))
    assert edits(made)["r1"].positions.steps == "all"


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "mode", "error", "message"),
    [
        (Call(BASE, [words()] * 3), "parallel", PlanError, "2 groups of interventions, but 3 sources"),
        (Call(BASE, []), "parallel", PlanError, "2 groups of interventions, but 0 sources"),
        (Call(BASE, 5), "parallel", SpecError, "sources is a dict, or a list with one for each group; found int"),
        (Call(BASE, [words(), "Italy"]), "parallel", SpecError, "the source 1 is a dict .* found str"),
        (Call([1, 2]), "parallel", SpecError, "the base is a dict of the model's arguments, or one tensor; found list"),
        (Call(BASE, None, None, [torch.ones(3)]), "parallel", SpecError, "1 entries for 2 interventions"),
        (Call(BASE, None, None, {"r9": torch.ones(3)}), "parallel", UnknownNameError, "names 'r9'; did you mean 'r"),
        (Call(BASE, None, None, {-1: torch.ones(3)}), "parallel", UnknownNameError, "source_representations names -1"),
        (Call(BASE, words(), {"source->base": 1}), "parallel", UnknownNameError, "did you mean 'sources->base'"),
        (Call(BASE, words(), {"source_0->base": 1}), "parallel", UnknownNameError, "did you mean 'sources->base'"),
        (Call(BASE, words(), 4), "serial", SpecError, "in serial mode is a dict with the keys"),
        (Call(BASE, words(), {"sources->base": 4}), "serial", UnknownNameError, "no link 'sources->base'; did you"),
        (Call(BASE, words(), {"source_1->base": 4}), "serial", SpecError, r"lacks \['source_0->source_1'\]"),
        (Call(BASE, words(), 1, subspaces=[[0]]), "parallel", SpecError, "subspaces names 1 examples, but the batch h"),
    ],
)  # fmt: skip
def test_refused(call, mode, error, message):
    with untyped(), pytest.raises(error, match=message):
        composed(swaps(2), call, mode=mode)
