"""The MLP classifier: its forward pass, and what the tutorial on it promises."""

from __future__ import annotations

import pytest
import torch
import transformers

from align_transformers import (
    IntervenableModel,
    SiteError,
    SpecError,
    UnknownNameError,
    VanillaIntervention,
    bind,
    execute,
    resolve,
)
from align_transformers.plan import Logits, Plan, Run
from align_transformers.zoo import GRUConfig, MLPConfig, create_gru_classifier, create_mlp_classifier, mlp_path


def by_hand(model, x, edits=None):
    """Return the logits; `edits` maps a block's number to a function of its output."""
    for number, block in enumerate(model.h):
        x = torch.nn.functional.gelu(x @ block.ff1.weight.T + block.ff1.bias)
        x = (edits or {}).get(number, lambda y: y)(x)
    return (x @ model.score.weight.T + model.score.bias).squeeze(1)


@pytest.fixture
def model():
    return create_mlp_classifier(MLPConfig(h_dim=32, n_layer=2))[2]


@pytest.mark.parametrize("squeeze", [True, False])
def test_a_plan_gets_the_logits_of_all_classes_also_where_the_length_is_squeezed_away(squeeze, planner):
    torch.manual_seed(0)
    model = create_mlp_classifier(MLPConfig(h_dim=8, n_layer=2, num_classes=3, squeeze_output=squeeze))[2]
    resolve(model)  # else it is not known where the logits come from
    x = torch.randn(5, 1, 8)
    bound = bind(model, Plan((Run("clean", "x"),), ("clean",), Logits()), {"x": x}, {})
    torch.testing.assert_close(execute(bound).outputs["clean"], by_hand(model, x))


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


@pytest.mark.parametrize("component", ["block_input", "mlp_activation", "block_output"])
@pytest.mark.parametrize("layers", [1, 3])
def test_an_edit_by_name_is_the_edit_by_path(component, layers):
    model = create_mlp_classifier(MLPConfig(h_dim=6, n_layer=layers))[2]
    base, source = {"inputs_embeds": torch.randn(3, 1, 6)}, {"inputs_embeds": torch.randn(3, 1, 6)}
    part = {"subspace_partition": [[0, 2], [2, 6]], "intervention_type": VanillaIntervention}
    outs = [
        IntervenableModel({**place, **part}, model)(base, source, {"sources->base": 0}, subspaces=0)[1].logits
        for place in (
            {"layer": layers - 1, "component": component},
            {"component": mlp_path(component, layers - 1)},
        )
    ]
    assert torch.equal(*outs)
    assert not torch.equal(outs[0], model(**base).logits)
    with pytest.raises(SiteError, match=f"layer {layers} does not exist"):
        IntervenableModel({"layer": layers, "component": component, **part}, model)


def test_outputs_by_number_are_those_by_name(model):
    out = model(torch.randn(3, 1, 32))
    assert out[0] is out.logits
    assert out[1] is out.last_hidden_state
    assert "loss" not in out
    out = model(torch.randn(3, 1, 32), labels=torch.tensor([0, 1, 1]))
    assert out[0] is out.loss
    assert out["logits"] is out.logits


def test_pyvenes_names(model):
    config = MLPConfig(h_dim=4, activation_function="tanh", n_labels=5)
    assert (config.activation, config.num_classes) == ("tanh", 5)
    with pytest.raises(SpecError, match="num_classes=3 came with n_labels=5"):
        MLPConfig(num_classes=3, n_labels=5)
    with pytest.raises(UnknownNameError, match="did you mean 'relu'"):
        MLPConfig(activation_function="rulu")
    assert model.mlp.h[0].ff1 is model.h[0].ff1
    assert all(name.startswith(("h.", "score.")) for name in model.state_dict())


@pytest.mark.parametrize("kind", ["mlp", "gru"])
def test_a_trainer_trains_and_measures_it(kind, tmp_path):
    create = {"mlp": lambda: create_mlp_classifier(MLPConfig(4)), "gru": lambda: create_gru_classifier(GRUConfig(4))}
    model = create[kind]()[2]
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    data = [{"inputs_embeds": torch.randn(1, 4), "labels": n % 2} for n in range(4)]
    args = transformers.TrainingArguments(
        output_dir=str(tmp_path), report_to=[], use_cpu=True, max_steps=1, save_strategy="no", disable_tqdm=True
    )
    trainer = transformers.Trainer(model=model, args=args, train_dataset=data, eval_dataset=data)
    trainer.train()
    assert any(not torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    found = trainer.evaluate()["eval_loss"]
    x, labels = torch.stack([row["inputs_embeds"] for row in data]), torch.tensor([row["labels"] for row in data])
    with torch.no_grad():
        assert found == pytest.approx(float(model.eval()(x, labels=labels).loss), abs=1e-5)


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
