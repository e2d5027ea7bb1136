"""`evaluate`: every example counted once, plain, soft and hard, with what the plain model solves."""

from __future__ import annotations

import pytest
import torch
from tests.helpers import new_model, tiny
from tests.learning.tasks import batches, face, joined

from align_transformers import IntervenableModel, SpecError
from align_transformers.interventions import (
    LowRankRotatedSpaceIntervention,
    SigmoidMaskIntervention,
    VanillaIntervention,
    ZeroIntervention,
)
from align_transformers.learning import cross_entropy, evaluate, iia

LAST = {"layer": 2, "component": "block_output", "intervention_type": VanillaIntervention}


def test_a_full_swap_at_the_end_says_what_the_source_says():
    data = batches((3, 1, 5))
    found = evaluate(IntervenableModel(LAST, tiny("llama")), data, metrics={"iia": iia, "loss": cross_entropy})
    logits = tiny("llama")(input_ids=joined(data)["source_input_ids"]).logits[:, -1]
    assert found["iia"] == 1.0
    expected = torch.nn.functional.cross_entropy(logits, joined(data)["labels"]).item()
    assert found["loss"] == pytest.approx(expected, abs=1e-5)
    assert found.interval("iia").n == 9
    assert (found.trivial, found.solved, found.dimensions) == (None, None, {})


def test_what_is_trivial_and_what_is_solved():
    model, data = tiny("llama"), batches((4, 3))
    right = [model(input_ids=one["input_ids"]).logits[:, -1].argmax(-1) for one in data]
    for one, base in zip(data, right, strict=True):
        one["base_labels"] = base.clone()
        one["source_labels"] = one["labels"].clone()
    data[0]["base_labels"][1] += 1  # the model does not solve it
    data[1]["source_labels"][2] += 1
    data[0]["labels"][0] = data[0]["base_labels"][0]  # an inert intervention would be right
    found = evaluate(IntervenableModel(LAST, model), data)
    assert found.solved.tolist() == [True, False, True, True, True, True, False]
    different = torch.cat([one["labels"] != one["base_labels"] for one in data])
    assert found.changed.tolist() == different.tolist()
    assert found.trivial == pytest.approx(1 - different.float().mean().item())
    assert found.interval("iia", subset="solved").n == 5


def test_an_inert_intervention_scores_what_is_trivial():
    model, data = tiny("llama"), batches((6, 6))
    for number, one in enumerate(data):
        one["base_labels"] = model(input_ids=one["input_ids"]).logits[:, -1].argmax(-1)
        one["labels"][:number] = one["base_labels"][:number]
    inert = lambda base: base.clone()  # noqa: E731
    found = evaluate(IntervenableModel({"layer": 0, "component": "mlp_output", "intervention": inert}, model), data)
    assert found["iia"] == found.trivial
    assert found.trivial > 0


def test_soft_and_hard_masks():
    data, made = batches((5, 4)), face(kind=SigmoidMaskIntervention)
    (mask,) = made.interventions.values()
    with torch.no_grad():
        mask.mask.copy_(torch.linspace(-1, 1, 32))
    found = evaluate(made, data, metrics=cross_entropy)
    assert list(found.dimensions.values()) == [16]

    def by_hand(share):
        model, kept = new_model("llama"), []
        block, whole = model.model.layers[1], joined(data)
        handle = block.register_forward_hook(lambda _m, _i, out: kept.append(out))
        model(input_ids=whole["source_input_ids"])
        handle.remove()

        def edit(_m, _i, out):
            new = out.clone()
            new[:, -1] = out[:, -1] + share * (kept[0][:, -1] - out[:, -1])
            return new

        block.register_forward_hook(edit)
        logits = model(input_ids=whole["input_ids"]).logits[:, -1]
        return torch.nn.functional.cross_entropy(logits, whole["labels"]).item()

    soft = torch.sigmoid(torch.linspace(-1, 1, 32) / mask.temperature)
    hard = (torch.linspace(-1, 1, 32) > 0).float()
    assert found["cross_entropy"] == pytest.approx(by_hand(soft), abs=1e-4)
    assert found.interval("cross_entropy", mask="hard").mean == pytest.approx(by_hand(hard), abs=1e-4)
    assert abs(by_hand(soft) - by_hand(hard)) > 0.01, "the test would not tell them apart"
    assert not mask.hard, "the intervention itself stays soft"


def test_hardened_models_share_linked_masks_and_leave_others_alone():
    spec = {"component": "block_output", "intervention_type": SigmoidMaskIntervention, "intervention_link_key": 0}
    zero = {"layer": 2, "component": "mlp_output", "intervention_type": ZeroIntervention}
    rank = {"layer": 2, "component": "block_output", "intervention_type": LowRankRotatedSpaceIntervention,
            "low_rank_dimension": 2, "subspace_partition": [[0, 1], [1, 2]]}  # fmt: skip
    made = IntervenableModel([{"layer": 0, **spec}, {"layer": 1, **spec}, zero, rank], tiny("llama"))
    hard = made.hardened()
    assert list(hard.interventions) == list(made.interventions)
    one, other, third, fourth = hard.interventions.values()
    assert one is other
    assert one.hard
    assert third is list(made.interventions.values())[2]
    assert fourth is not list(made.interventions.values())[3]
    assert hard.get_trainable_parameters() == []
    assert len(made.get_trainable_parameters()) == 2


def test_metrics_of_a_whole_batch_are_weighted():
    def compute_metrics(predictions, labels):
        (logits,), (wanted,) = predictions, labels
        return {"accuracy": (logits[:, -1].argmax(-1) == wanted).float().mean().item(), "n": len(wanted)}

    data, made = batches((3, 1, 5)), face()
    exact = evaluate(made, data)["iia"]
    found = made.evaluate(eval_dataloader=data, compute_metrics=compute_metrics)
    assert found["accuracy"] == pytest.approx(exact, abs=1e-6)
    assert found["n"] == pytest.approx((9 + 1 + 25) / 9)


def test_the_model_is_as_it_was_and_nothing_learns():
    model = new_model("gpt2").train()
    made = face(model)
    evaluate(made, batches((3,), model=new_model("gpt2")))
    assert all(module.training for module in model.modules())
    assert all(p.grad is None and p.requires_grad for p in [*model.parameters(), *made.get_trainable_parameters()])


def test_mistakes_are_told():
    with pytest.raises(SpecError, match="empty"):
        evaluate(face(), [])
    with pytest.raises(SpecError, match="'labels'"):
        evaluate(face(), [{k: v for k, v in batches((2,))[0].items() if k != "labels"}])
    data = batches((2,))[0]
    with pytest.raises(SpecError, match="source_labels"):
        evaluate(face(), [{**data, "base_labels": data["labels"], "source_labels": [data["labels"]] * 2}])
    with pytest.raises(SpecError, match="eval_dataloader"):
        face().evaluate()


def test_a_classifier_of_vectors_needs_no_positions():
    from align_transformers.zoo import MLPConfig, create_mlp_classifier

    _, _, model = create_mlp_classifier(MLPConfig(h_dim=4, n_layer=2))
    base, source = torch.randn(6, 1, 4), torch.randn(6, 1, 4)
    labels = model(source).logits.argmax(-1)
    made = IntervenableModel({"component": "h[1].output", "intervention_type": VanillaIntervention}, model)
    batch = {"inputs_embeds": base, "source_inputs_embeds": source, "labels": labels}
    assert evaluate(made, [batch])["iia"] == 1.0


def labelled(sizes):
    """Return batches with every label column, one label an example; some counterfactual labels are the base's."""
    model, data = tiny("llama"), batches(sizes)
    for one in data:
        one["base_labels"] = model(input_ids=one["input_ids"]).logits[:, -1].argmax(-1)
        one["source_labels"] = one["labels"].clone()
        one["labels"][::2] = one["base_labels"][::2]
        one["base_labels"][0] += 1  # the model does not solve it
    return data


@pytest.mark.parametrize("positions", ["last", "all"])
@pytest.mark.parametrize("columns", [["labels"], ["base_labels"], ["source_labels"],
                                     ["labels", "base_labels", "source_labels"]])  # fmt: skip
def test_a_label_column_of_one_axis_more_says_the_same(columns, positions):
    """`(batch, 1)` against `(batch,)` must not become `(batch, batch)`: what is changed and solved, by hand."""
    made, data = IntervenableModel(LAST, tiny("llama")), labelled((4, 3))
    changed = torch.cat([one["labels"] != one["base_labels"] for one in data])
    solved = [False, True, True, True, False, True, True]
    for one in data:
        for name in columns:
            one[name] = one[name][:, None]
    found = evaluate(made, data, positions=positions, metrics=lambda _logits, labels: torch.zeros(len(labels)))
    assert found.changed.tolist() == changed.tolist()
    assert found.trivial == pytest.approx(1 - changed.double().mean().item())
    assert found.solved.tolist() == solved


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("labels", torch.zeros(2, 2, dtype=torch.long)),  # as many labels as examples: it would broadcast
        ("base_labels", torch.zeros(2, 2, dtype=torch.long)),
        ("base_labels", torch.zeros(1, dtype=torch.long)),
        ("source_labels", torch.zeros(1, dtype=torch.long)),
        ("source_labels", torch.zeros(2, 2, 2, dtype=torch.long)),
    ],
)
def test_label_columns_that_cannot_be_compared_are_refused(column, value):
    (one,) = labelled((2,))
    with pytest.raises(SpecError, match=column):
        evaluate(face(), [{**one, column: value}], metrics=lambda _logits, labels: torch.zeros(len(labels)))


@pytest.mark.parametrize("column", ["base_labels", "source_labels"])
@pytest.mark.parametrize("lacking", [0, 1])
@pytest.mark.parametrize("how", ["missing", "None"])
def test_label_columns_are_in_every_batch_or_in_none(column, lacking, how):
    data = labelled((3, 3))
    if how == "None":
        data[lacking][column] = None
    else:
        del data[lacking][column]
    with pytest.raises(SpecError, match=rf"'{column}'.*some batches"):
        evaluate(face(), data)


def test_a_metric_is_of_every_batch():
    with pytest.raises(SpecError, match=r"'odd'.*some batches"):
        evaluate(face(), batches((3, 2)), metrics=lambda _l, y: {"even": 1.0, **({"odd": 1.0} if len(y) == 3 else {})})


def test_what_is_changed_and_solved_where_labels_are_of_single_columns():
    model, (one,) = tiny("llama"), batches((2,))
    said = model(input_ids=one["input_ids"]).logits.argmax(-1)
    base_labels = said.clone()
    base_labels[:, :3] = -100
    labels = base_labels.clone()
    labels[0, 4] += 1
    base_labels[1, 3] += 1
    labels[1, 3] += 1  # the same as the base's, which the model does not say
    inert = {"layer": 0, "component": "mlp_output", "intervention": lambda base: base.clone()}
    batch = {"input_ids": one["input_ids"], "labels": labels, "base_labels": base_labels}
    found = evaluate(IntervenableModel(inert, model), [batch], positions="labels")
    assert (found.changed.tolist(), found.solved.tolist()) == ([True, False], [True, False])
    assert found["iia"] == 0.5
    with pytest.raises(SpecError, match="'base_labels'"):
        evaluate(IntervenableModel(inert, model), [{**batch, "base_labels": base_labels[:, 0]}], positions="labels")


@pytest.mark.parametrize("tokens", [1, 4])
def test_labelled_columns_that_are_compared_have_one_shape(tokens):
    model, (one,) = tiny("llama"), batches((2,))
    labels = model(input_ids=one["input_ids"]).logits.argmax(-1)
    batch = {**one, "labels": labels, "base_labels": labels[:, :tokens]}
    with pytest.raises(SpecError, match=r"'base_labels'.*one shape"):
        evaluate(IntervenableModel(LAST, model), [batch], positions="labels")
