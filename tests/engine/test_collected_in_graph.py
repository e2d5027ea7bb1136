"""What is collected stands in the graph: gradients with respect to it are those of hooks."""

from __future__ import annotations

import pytest
import torch
from tests.helpers import FAMILIES, hooked, locus, new_model, padded_tokens, tokens

from align_transformers import CollectIntervention, IntervenableModel, SubspaceIntervention, VanillaIntervention
from align_transformers.operations import Collect

COMPONENTS = ["block_output", "mlp_activation", "attention_value_output", "value_output", "block_input"]


def by_hand(model, inputs, at, more=()):
    """Return the gradient of a logit with respect to a whole activation, by a hook that hands on a copy of it."""
    kept = []

    def touch(tensor):
        kept.append(tensor.clone())
        return kept[-1]

    with hooked((at.module, at.side, touch), *more):
        logit = model(**inputs).logits[:, -1, 5].sum()
    return torch.autograd.grad(logit, kept[0])[0][..., at.low : at.high]


def collected(model, inputs, component, layer=1, locations=None, **options):
    unit = options.pop("unit", "pos")
    spec = {"layer": layer, "component": component, "unit": unit, "max_number_of_units": 4}
    made = IntervenableModel({**spec, "intervention": CollectIntervention(**options)}, model)
    return made(inputs, unit_locations=locations, return_dict=True)


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_is_that_of_a_hook(family, component, planner):
    model, inputs = new_model(family), tokens(2, 5)
    wanted = by_hand(model, inputs, locus(model, component, 1))
    plain = model(**inputs).logits
    for locations, rows in ((None, slice(None)), ({"base": [[[1, 3], [4]]]}, None)):
        out = collected(model, inputs, component, locations=locations)
        (values,) = out.collected_activations
        (found,) = torch.autograd.grad(out.intervened_outputs.logits[:, -1, 5].sum(), values)
        if rows is None:
            torch.testing.assert_close(found[0], wanted[0, [1, 3]], rtol=0, atol=1e-5)
            torch.testing.assert_close(found[1, 0], wanted[1, 4], rtol=0, atol=1e-5)
        else:
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
        assert torch.equal(out.intervened_outputs.logits, plain), "nothing is touched"


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_prompts_and_heads(side, planner):
    model, inputs = new_model("llama"), padded_tokens([3, 5], side)
    at = locus(model, "attention_value_output", 1)
    wanted = by_hand(model, inputs, at).unflatten(-1, (-1, at.head_dim))
    out = collected(model, inputs, "head_attention_value_output", unit="h", locations={"base": [[[0, 2], [3, 1]]]})
    (values,) = out.collected_activations
    (found,) = torch.autograd.grad(out.intervened_outputs.logits[:, -1, 5].sum(), values)
    found = found.unflatten(-1, (-1, at.head_dim))
    for example, heads in enumerate(([0, 2], [3, 1])):
        torch.testing.assert_close(found[example], wanted[example][:, heads], rtol=0, atol=1e-5)


def test_weights_below_have_the_gradient_that_they_would_have(planner):
    """Also of a loss of the collected values themselves, and where a place is collected twice."""
    model, inputs = new_model("gpt2"), tokens(2, 5)
    weight = model.transformer.h[0].mlp.c_proj.weight
    (plain,) = torch.autograd.grad(model(**inputs).logits[:, -1, 5].sum(), weight)
    for rows in ([[[1, 3], [4, 2]]], [[[3, 3], [4, 2]]]):
        out = collected(model, inputs, "block_output", locations={"base": rows})
        logit = out.intervened_outputs.logits[:, -1, 5].sum()
        (found,) = torch.autograd.grad(logit, weight, retain_graph=True)
        torch.testing.assert_close(found, plain, rtol=0, atol=1e-5)
        (probe,) = torch.autograd.grad(out.collected_activations[0].square().sum(), weight)
        assert probe.abs().max() > 0


def test_what_is_collected_before_and_after_an_edit_of_the_same_place(planner):
    model, base, source = new_model("llama"), tokens(2, 5), tokens(2, 5, seed=1)
    look = {"layer": 1, "component": "block_output", "intervention": CollectIntervention()}
    swap = {"layer": 1, "component": "block_output", "intervention_type": VanillaIntervention}
    made = IntervenableModel([look, swap, {**look, "intervention": CollectIntervention()}], model)
    out = made(base, source, {"sources->base": (3, 3)}, return_dict=True)
    before, after = out.collected_activations
    logit = out.intervened_outputs.logits[:, -1, 5].sum()
    first, second = torch.autograd.grad(logit, [before, after], allow_unused=True)
    assert first is None or not first.any(), "what was there has been replaced"
    at = locus(model, "block_output", 1)
    kept = []
    with torch.no_grad(), hooked((at.module, at.side, lambda x: kept.append(x.clone()))):
        model(**source)

    def put(tensor):
        return torch.cat([tensor[:, :3], kept[0][:, 3:4], tensor[:, 4:]], 1)

    wanted = by_hand_after(model, base, at, put)
    torch.testing.assert_close(second[:, 0], wanted[:, 3], rtol=0, atol=1e-5)


def by_hand_after(model, inputs, at, put):
    kept = []

    def touch(tensor):
        kept.append(put(tensor).detach().requires_grad_())
        return kept[-1]

    with hooked((at.module, at.side, touch)):
        logit = model(**inputs).logits[:, -1, 5].sum()
    return torch.autograd.grad(logit, kept[0])[0]


def test_copies_that_hold_no_graph(planner):
    model, inputs = new_model("llama"), tokens(2, 5)
    out = collected(model, inputs, "block_output", detach=True)
    assert not out.collected_activations[0].requires_grad
    assert out.intervened_outputs.logits.requires_grad
    with torch.no_grad():
        assert not collected(model, inputs, "block_output").collected_activations[0].requires_grad
    assert CollectIntervention(detach=True).arguments()["detach"] is True


def test_units_of_an_example_as_one_vector(planner):
    model, inputs = new_model("llama"), tokens(2, 5)
    wanted = by_hand(model, inputs, locus(model, "block_output", 1))
    out = collected(model, inputs, "block_output", locations={"base": [[[1, 3]] * 2]}, keep_last_dim=False)
    (values,) = out.collected_activations
    (found,) = torch.autograd.grad(out.intervened_outputs.logits[:, -1, 5].sum(), values)
    torch.testing.assert_close(found.view(2, 2, -1), wanted[:, [1, 3]], rtol=0, atol=1e-5)


@pytest.mark.parametrize("detach", [False, True])
def test_the_operation_in_any_subspace(detach):
    pair = SubspaceIntervention(Collect(detach))
    base = torch.ones(1, 2, 3, requires_grad=True)
    assert pair(base).requires_grad is not detach
    again = SubspaceIntervention(**pair.arguments())
    assert again(base).requires_grad is not detach
