"""The GRU computes what PyTorch's does, and all its places can be reached."""

from __future__ import annotations

import pytest
import torch
from tests.helpers import hook_counts
from torch import nn

from align_transformers import (
    CollectIntervention,
    IntervenableModel,
    RotatedSpaceIntervention,
    Site,
    SpecError,
    UnknownNameError,
    resolve,
)
from align_transformers.models import find_slot
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


@pytest.mark.parametrize("create", [create_gru, create_gru_classifier, create_gru_lm])
def test_every_place_is_a_component(create):
    _, _, model = create(GRUConfig(h_dim=4, n_layer=2, vocab_size=9))
    found = resolve(model)
    assert len(found.stacks[""]) == 2
    for layer in (0, 1):
        for component in GRU_COMPONENTS:
            named, by_path = (
                found.slot(Site(component, layer)),
                find_slot(model, Site(gru_path(model, component, layer))),
            )
            assert (named.module, named.side) == (by_path.module, by_path.side)
            wide = component in ("x2h_output", "h2h_output")
            assert named.width == (12 if wide else 4)
    ends = {"embedding_output", "logits"} if create is create_gru_lm else {"logits"}
    assert set(found.ends) == (set() if create is create_gru else ends)


def test_an_edit_by_name_at_one_step_equals_a_loop_by_hand():
    _, _, model = create_gru_classifier(GRUConfig(h_dim=4))
    base, source = torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    face = IntervenableModel(
        {"layer": 0, "component": "cell_output", "unit": "t", "intervention_type": RotatedSpaceIntervention}, model
    )
    got = face({"inputs_embeds": base}, {"inputs_embeds": source}, {"sources->base": 2})[1]
    h = model.gru(source[:, :3]).last_hidden_state[:, -1]  # all of it is exchanged, in whatever basis
    for x in base[:, 3:].unbind(1):
        h = model.gru.cells[0](x, h)
    torch.testing.assert_close(got.logits, model.score(h), atol=1e-6, rtol=1e-5)


def test_outputs_by_number_are_those_by_name():
    _, _, lm = create_gru_lm(GRUConfig(h_dim=4, vocab_size=9))
    ids = torch.randint(9, (2, 3))
    out = lm(ids, labels=ids)
    assert out[0] is out.loss is out["loss"]
    assert out[1] is out.logits
    assert lm(ids)[0].shape == (2, 3, 9)
    _, _, alone = create_gru(GRUConfig(h_dim=4))
    out = alone(torch.randn(2, 3, 4))
    assert out[0] is out.last_hidden_state
    assert len(out.to_tuple()) == 2


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
