"""The calls as users know them: train, train_alignment, evaluate, evaluate_alignment, eval_alignment."""

from __future__ import annotations

import pytest
import torch
from tests.helpers import new_model
from tests.learning.tasks import batches, by_hand, examples, face, free_matrix
from torch import nn
from torch.utils.data import DataLoader

from align_transformers import SpecError, UnknownNameError
from align_transformers.interventions import LowRankRotatedSpaceIntervention
from align_transformers.learning import Fitted, Scores

PLAIN = {"schedule": "constant", "warmup": 0, "lr": 0.01, "epochs": 2}


def compute_loss(logits, labels):
    return nn.functional.cross_entropy(logits[:, -1, :], labels)


def compute_metrics(eval_preds, eval_labels):
    total = correct = 0
    for prediction, label in zip(eval_preds, eval_labels, strict=True):
        correct += (prediction[:, -1].argmax(-1) == label).sum().item()
        total += len(label)
    return {"accuracy": round(correct / total, 2)}


def inputs_collator(inputs):
    return {name: torch.as_tensor(value) for name, value in inputs.items()}


def test_train_and_evaluate_as_printed():
    made, data = face(), batches()
    expected = by_hand(free_matrix(made), data * 2)
    listed = [{name: column.tolist() for name, column in batch.items()} for batch in data]
    fitted = made.train(
        train_dataloader=listed, compute_loss=compute_loss, compute_metrics=compute_metrics,
        inputs_collator=inputs_collator, **PLAIN,
    )  # fmt: skip
    assert isinstance(fitted, Fitted)
    how = {"compute_metrics": compute_metrics, "inputs_collator": inputs_collator}
    torch.testing.assert_close(free_matrix(made), expected, rtol=0, atol=1e-5)
    scores = [
        made.evaluate_alignment(train_dataloader=listed, **how),
        made.evaluate(eval_dataloader=listed, **how),
        made.eval_alignment(listed, compute_metrics, inputs_collator),
    ]
    assert all(isinstance(one, Scores) for one in scores)
    assert dict(scores[0]) == dict(scores[1]) == dict(scores[2])
    assert list(scores[0]) == ["accuracy"]


def test_positional_and_older_names():
    data, learned = batches((4, 4, 4, 4)), []
    for call in (
        lambda made: made.train(data, compute_loss, compute_metrics, None, gradient_accumulation_steps=2, **PLAIN),
        lambda made: made.train_alignment(data, compute_loss, compute_metrics, None, accumulate=2, **PLAIN),
        lambda made: made.train(train_dataloader=data, accumulate=2, **PLAIN),
    ):
        made = face()
        assert call(made).steps == 4
        learned.append(free_matrix(made))
    assert torch.equal(learned[0], learned[1])
    torch.testing.assert_close(learned[0], learned[2], rtol=0, atol=1e-5)


def test_metrics_without_a_loss_and_a_loss_without_metrics():
    data = batches()
    one = face().train(train_dataloader=data, compute_metrics=compute_metrics, eval_dataloader=data, **PLAIN)
    other = face().train(train_dataloader=data, compute_loss=compute_loss, validation=data, **PLAIN)
    assert one.validation == pytest.approx(other.validation, abs=0.01)
    for first, second in zip(one.history, other.history, strict=True):
        assert first["loss"] == pytest.approx(second["loss"], abs=1e-4)
        assert first["metric"] == pytest.approx(second["metric"], abs=0.01)


def test_modes_are_what_they_are_in_every_module():
    made = face(new_model("llama"))
    for mode in (True, False):
        assert made.train(mode) is made
        assert all(module.training is mode for module in made.modules())
    assert made.train() is made
    assert all(module.training for module in made.modules())
    assert made.eval() is made
    assert not any(module.training for module in made.modules())
    assert made.train(mode=True) is made
    assert nn.Sequential(made).eval()[0] is made


def test_a_data_loader_of_examples():
    made = face()
    fitted = made.train(train_dataloader=DataLoader(examples(batches()), batch_size=5, shuffle=True), **PLAIN)
    assert fitted.steps == 6
    assert [row["examples"] for row in fitted.history] == [5, 5, 2] * 2


def test_several_sources_parts_and_places():
    """Two linked variables at one place, each with a source of its own, and per-example parts."""
    from align_transformers import IntervenableModel

    spec = {"layer": 1, "component": "block_output", "intervention_type": LowRankRotatedSpaceIntervention,
            "low_rank_dimension": 4, "subspace_partition": [[0, 2], [2, 4]]}  # fmt: skip
    made, data = IntervenableModel(spec, new_model("llama")), batches()
    for batch in data:
        batch["subspaces"] = torch.tensor([0, 1, 1, 0])
    before = free_matrix(made)
    made.train(train_dataloader=data, **PLAIN)
    assert not torch.equal(free_matrix(made), before)


def test_one_part_for_all_examples():
    """A number stands for all, as in a call: as if it were said of each."""
    from align_transformers import IntervenableModel

    spec = {"layer": 1, "component": "block_output", "intervention_type": LowRankRotatedSpaceIntervention,
            "low_rank_dimension": 4, "subspace_partition": [[0, 2], [2, 4]]}  # fmt: skip
    found = []
    for part in (1, torch.tensor([1, 1, 1, 1])):
        torch.manual_seed(0)
        made, data = IntervenableModel(spec, new_model("llama")), batches()
        for batch in data:
            batch["subspaces"] = part
        made.train(train_dataloader=data, **PLAIN)
        found.append(free_matrix(made))
    assert torch.equal(*found)


def test_mistakes_are_told():
    made = face()
    with pytest.raises(SpecError, match="train_dataloader"):
        made.train(compute_loss=compute_loss)
    with pytest.raises(SpecError, match="train_dataloader"):
        made.train(epochs=3)
    with pytest.raises(UnknownNameError, match="epochs"):
        made.train(train_dataloader=batches(), epoch=3)
