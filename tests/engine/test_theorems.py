"""What must hold whatever the numbers are: identities, bit for bit."""

from __future__ import annotations

import pytest
import torch
from tests.helpers import COMPONENTS, FAMILIES, LAYERS, hook_counts, new_model, tiny, tokens

from align_transformers import (
    AdditionIntervention,
    CollectIntervention,
    Edit,
    IntervenableModel,
    Plan,
    Positions,
    Read,
    Run,
    Site,
    SubtractionIntervention,
    VanillaIntervention,
    bind,
    execute,
)


@pytest.fixture(params=FAMILIES)
def model(request):
    return tiny(request.param)


@pytest.mark.parametrize("component", COMPONENTS)
def test_self_swap_is_the_identity(model, component):
    base = tokens(2, 6)
    at = [[1, 4], [5, 0]]
    swap = {"layer": 1, "component": component, "max_number_of_units": 2, "intervention_type": VanillaIntervention}
    face = IntervenableModel(swap, model)
    plain = model(**base).logits
    assert torch.equal(face(base, base, {"sources->base": ([at], [at])})[1].logits, plain)
    assert torch.equal(face(base, base)[1].logits, plain)


def test_an_empty_plan_is_the_plain_model(model):
    base = tokens(2, 6)
    plan = Plan((Run("base", "base"),), outputs=("base",))
    outcome = execute(bind(model, plan, {"base": base}, {}))
    assert torch.equal(outcome.outputs["base"].logits, model(**base).logits)
    assert outcome.effects == ()


def test_a_plan_of_skipped_interventions_is_the_plain_model(model):
    base, source = tokens(2, 6), tokens(2, 6, 1)
    face = IntervenableModel([{"layer": k, "component": "mlp_output"} for k in range(2)], model)
    plain = model(**base).logits
    assert torch.equal(face(base, [None, None])[1].logits, plain)
    assert torch.equal(face(base, source, {"sources->base": ([None, None], [None, None])})[1].logits, plain)


def test_no_units_named_anywhere_is_the_plain_model(model):
    base, source = tokens(2, 6), tokens(2, 6, 1)
    face = IntervenableModel({"layer": 1, "component": "mlp_output"}, model)
    got = face(base, source, {"sources->base": ([[[], []]], [[[], []]])}, return_dict=True)
    assert torch.equal(got.intervened_outputs.logits, model(**base).logits)
    assert (got.effects[0].rows, got.effects[0].positions, got.effects[0].change) == (0, 0, 0.0)


@pytest.mark.parametrize("layer", range(LAYERS))
def test_the_whole_residual_stream_decides_the_output(model, layer):
    base, source = tokens(2, 6), tokens(2, 6, 1)
    face = IntervenableModel({"layer": layer, "component": "block_output"}, model)
    assert torch.equal(face(base, source)[1].logits, model(**source).logits)


def test_the_last_token_of_the_last_block_decides_its_logits(model):
    base, source = tokens(2, 6), tokens(2, 4, 1)
    face = IntervenableModel({"layer": LAYERS - 1, "component": "block_output"}, model)
    _, got = face(base, source, {"sources->base": (-1, -1)})
    torch.testing.assert_close(got.logits[:, -1], model(**source).logits[:, -1])


def test_two_subspaces_compose_to_one_swap(model):
    base, source = tokens(2, 6), tokens(2, 6, 1)
    parts = [[0, 10], [10, 32]]
    one = {
        "layer": 1, "component": "mlp_output", "subspace_partition": parts, "intervention_link_key": 0, "group_key": 0,
    }  # fmt: skip
    at = [[2], [3]]
    both = IntervenableModel([one, one], model)
    _, got = both(base, source, {"sources->base": ([at, at], [at, at])}, subspaces=[[[0], [0]], [[1], [1]]])
    whole = IntervenableModel({"layer": 1, "component": "mlp_output"}, model)
    _, expected = whole(base, source, {"sources->base": ([at], [at])})
    assert torch.equal(got.logits, expected.logits)
    _, partly = whole(base, source, {"sources->base": ([at], [at])}, subspaces=[[list(range(10))] * 2])
    assert not torch.equal(partly.logits, expected.logits)


def test_adding_and_subtracting_the_same_is_the_identity():
    model, base, source = new_model("gpt2", dtype=torch.float64), tokens(2, 6), tokens(2, 6, 1)
    site = {"layer": 1, "component": "mlp_output"}
    face = IntervenableModel(
        [{**site, "intervention_type": AdditionIntervention}, {**site, "intervention_type": SubtractionIntervention}],
        model,
    )
    torch.testing.assert_close(face(base, source)[1].logits, model(**base).logits)


def test_what_was_collected_swapped_in_gives_the_interchange(model):
    base, source, at = tokens(2, 6), tokens(2, 6, 1), [[1, 3], [2, 0]]
    site = {"layer": 1, "component": "block_input", "max_number_of_units": 2}
    look = IntervenableModel({**site, "intervention_type": CollectIntervention}, model)
    value = look(source, None, {"base": [at]}, return_dict=True).collected_activations[0]
    face = IntervenableModel({**site, "intervention_type": VanillaIntervention}, model)
    _, constant = face(base, None, {"base": [at]}, source_representations=value)
    _, interchange = face(base, source, {"sources->base": ([at], [at])})
    assert torch.equal(constant.logits, interchange.logits)


def test_hooks_are_as_before_after_success_and_after_an_exception(model):
    base, source = tokens(2, 6), tokens(2, 6, 1)
    before = hook_counts(model)
    sites = [{"layer": k, "component": c} for k in range(LAYERS) for c in ("mlp_output", "query_output", "block_input")]
    IntervenableModel(sites, model)(base, source)
    assert hook_counts(model) == before

    def broken(base, source):
        raise RuntimeError("by the user")

    face = IntervenableModel([*sites, {"layer": 2, "component": "mlp_output", "intervention": broken}], model)
    with pytest.raises(RuntimeError, match="by the user"):
        face(base, source)
    assert hook_counts(model) == before
    assert torch.equal(model(**base).logits, face.model(**base).logits)


def test_a_bound_plan_can_be_run_again(model):
    base, source, site = tokens(2, 6), tokens(2, 6, 1), Site("mlp_output", 1)
    where = Positions(((1,), (2,)))
    swap = Edit("swap", site, "swap", where, source=Read("s", site, where))
    plan = Plan((Run("b", "b", (swap,)), Run("s", "s")), outputs=("b",))
    bound = bind(model, plan, {"b": base, "s": source}, {"swap": VanillaIntervention()})
    first, second = execute(bound), execute(bound)
    assert torch.equal(first.outputs["b"].logits, second.outputs["b"].logits)
    assert first.effects == second.effects
