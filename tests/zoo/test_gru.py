"""The GRU computes what PyTorch's does, and all its places can be reached."""

from __future__ import annotations

import pytest
import torch
from tests.helpers import hook_counts
from torch import nn

from align_transformers import CollectIntervention, IntervenableModel, SpecError, UnknownNameError
from align_transformers.zoo import (
    GRU_COMPONENTS,
    GRUConfig,
    create_gru,
    create_gru_classifier,
    create_gru_lm,
    gru_path,
)


@pytest.mark.parametrize("bias", [True, False])
def test_it_equals_pytorchs(bias):
    config, tokenizer, model = create_gru(GRUConfig(h_dim=5, n_layer=3, include_bias=bias))
    assert (tokenizer, model.training, config.h_dim) == (None, False, 5)
    theirs = nn.GRU(5, 5, 3, bias=bias, batch_first=True)
    for layer, cell in enumerate(model.cells):
        for name, linear in (("ih", cell.x2h), ("hh", cell.h2h)):
            getattr(theirs, f"weight_{name}_l{layer}").data = linear.weight.data
            if bias:
                getattr(theirs, f"bias_{name}_l{layer}").data = linear.bias.data
    x, h = torch.randn(4, 7, 5), torch.randn(3, 4, 5)
    for start in (None, h):
        output, last = theirs(x, start)
        got = model(x, start)
        torch.testing.assert_close(got.last_hidden_state, output, atol=1e-6, rtol=0)
        torch.testing.assert_close(got.hidden, last, atol=1e-6, rtol=0)


@pytest.mark.parametrize("create", [create_gru, create_gru_classifier, create_gru_lm])
@pytest.mark.parametrize("component", GRU_COMPONENTS)
def test_every_place_can_be_collected(create, component):
    _, _, model = create(GRUConfig(h_dim=4, n_layer=2, vocab_size=9))
    lm = create is create_gru_lm
    base = {"input_ids": torch.randint(9, (2, 3))} if lm else {"inputs_embeds": torch.randn(2, 3, 4)}
    path = gru_path(model, component, 1)
    face = IntervenableModel(
        {"component": path, "unit": "t", "max_number_of_units": 3, "intervention_type": CollectIntervention}, model
    )
    got = face(base, unit_locations={"base": [0, 1, 2]}, return_dict=True).collected_activations[0]
    module, _, side = path.replace("[", ".").replace("]", "").rpartition(".")
    seen = []
    if side == "output":
        handle = model.get_submodule(module).register_forward_hook(lambda _m, _a, out: seen.append(out))
    else:
        handle = model.get_submodule(module).register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    model(**base)
    handle.remove()
    assert torch.equal(got, torch.stack(seen, 1))
    assert got.shape == (2, 3, 12 if component in ("x2h_output", "h2h_output") else 4)
    assert not any(hook_counts(model).values())


def test_labels_give_a_loss():
    _, _, lm = create_gru_lm(GRUConfig(h_dim=4, vocab_size=9))
    ids = torch.randint(9, (2, 3))
    out = lm(ids, labels=ids)
    want = nn.functional.cross_entropy(out.logits[:, :2].reshape(4, 9), ids[:, 1:].reshape(4))
    torch.testing.assert_close(out.loss, want)
    _, _, classifier = create_gru_classifier(GRUConfig(h_dim=4, num_classes=3))
    labels = torch.tensor([2, 0])
    out = classifier(torch.randn(2, 3, 4), labels=labels)
    torch.testing.assert_close(out.loss, nn.functional.cross_entropy(out.logits, labels))
    out.loss.backward()
    assert classifier.gru.cells[0].h2h.weight.grad is not None


def test_wrong_sizes_and_names():
    with pytest.raises(SpecError, match="h_dim is a number from 1; found 0"):
        GRUConfig(h_dim=0)
    with pytest.raises(SpecError, match="pdrop is a probability below 1; found 1"):
        GRUConfig(pdrop=1.5)
    with pytest.raises(UnknownNameError, match="did you mean 'reset_gate_output'"):
        gru_path(create_gru()[2], "reset_gate_outputs")
