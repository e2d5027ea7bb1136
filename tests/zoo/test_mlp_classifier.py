"""The MLP classifier: its forward pass, and what the tutorial on it promises."""

from __future__ import annotations

import pytest
import torch

from align_transformers import IntervenableModel, SpecError, UnknownNameError, VanillaIntervention
from align_transformers.zoo import MLPConfig, create_mlp_classifier, mlp_path


def by_hand(model, x, edits=None):
    """Return the logits; `edits` maps a block's number to a function of its output."""
    for number, block in enumerate(model.h):
        x = torch.nn.functional.gelu(x @ block.ff1.weight.T + block.ff1.bias)
        x = (edits or {}).get(number, lambda y: y)(x)
    return (x @ model.score.weight.T + model.score.bias).squeeze(1)


@pytest.fixture
def model():
    return create_mlp_classifier(MLPConfig(h_dim=32, n_layer=2))[2]


def test_its_forward_pass(model):
    x = torch.randn(5, 1, 32)
    torch.testing.assert_close(model(x).logits, by_hand(model, x))
    labels = torch.tensor([0, 1, 1, 0, 1])
    torch.testing.assert_close(model(x, labels=labels).loss, torch.nn.functional.cross_entropy(model(x).logits, labels))
    whole = create_mlp_classifier(MLPConfig(h_dim=3, squeeze_output=False, include_bias=False))[2]
    assert whole(torch.zeros(5, 1, 3)).logits.shape == (5, 1, 2)


@pytest.mark.parametrize("component", ["block_input", "mlp_activation", "block_output"])
def test_a_full_swap_gives_the_sources_logits(model, component):
    base, source = torch.randn(3, 1, 32), torch.randn(3, 1, 32)
    face = IntervenableModel({"component": mlp_path(component, 0), "intervention_type": VanillaIntervention}, model)
    _, got = face({"inputs_embeds": base}, {"inputs_embeds": source}, {"sources->base": 0})
    assert torch.equal(got.logits, model(source).logits)


def linked(model):
    half = {
        "component": mlp_path("block_output", 0),
        "subspace_partition": [[0, 16], [16, 32]],
        "intervention_link_key": 0,
        "intervention_type": VanillaIntervention,
    }
    return IntervenableModel([half, half], model)


def test_two_linked_halves_of_one_source_are_the_source(model):
    base, source = torch.randn(10, 1, 32), torch.randn(10, 1, 32)
    face = linked(model)
    _, got = face(base, [source, source], {"sources->base": 0}, subspaces=[[[0]] * 10, [[1]] * 10])
    assert torch.equal(got.logits, model(source).logits)


def test_two_linked_halves_of_two_sources_compose(model):
    base, first, second = torch.randn(10, 1, 32), torch.randn(10, 1, 32), torch.randn(10, 1, 32)
    _, got = linked(model)(base, [first, second], {"sources->base": 0}, subspaces=[[[0]] * 10, [[1]] * 10])
    states = [torch.nn.functional.gelu(model.h[0].ff1(x)) for x in (first, second)]
    mixed = torch.cat([states[0][..., :16], states[1][..., 16:]], -1)
    torch.testing.assert_close(got.logits, by_hand(model, base, {0: lambda _: mixed}))


def test_wrong_sizes_and_names():
    with pytest.raises(SpecError, match="n_layer is a number from 1; found 0"):
        MLPConfig(n_layer=0)
    with pytest.raises(SpecError, match="pdrop"):
        MLPConfig(pdrop=-1.0)
    with pytest.raises(UnknownNameError, match="did you mean 'relu'"):
        MLPConfig(activation="rulu")
    with pytest.raises(UnknownNameError, match="did you mean 'mlp_activation'"):
        mlp_path("mlp_activations")
