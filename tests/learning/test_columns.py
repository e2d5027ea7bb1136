"""Which logits are read: the last real token on either side of the padding, labelled columns, or everything."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.helpers import VOCAB, new_model, padded_tokens, tiny
from tests.learning.tasks import batches, face

from align_transformers import IntervenableModel, SpecError
from align_transformers.interventions import ZeroIntervention
from align_transformers.learning.columns import Readout, columns_of, rows_of
from align_transformers.learning.forward import Reader
from align_transformers.learning.losses import per_example


def reader(model, **options):
    zero = {"layer": 0, "component": "mlp_output", "intervention_type": ZeroIntervention}
    return Reader(IntervenableModel(zero, model), **options)


def by_hand(model, inputs):
    """Return all logits with layer 0's MLP switched off."""
    block = model.transformer.h[0] if hasattr(model, "transformer") else model.model.layers[0]
    handle = block.mlp.register_forward_hook(lambda _m, _i, out: torch.zeros_like(out))
    with torch.no_grad():
        logits = model(**inputs).logits
    handle.remove()
    return logits


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_last_real_token(family, side):
    model, inputs = tiny(family), padded_tokens([3, 6, 4], side)
    places = {"position_ids": (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)}
    full = by_hand(model, inputs | (places if (family, side) == ("gpt2", "left") else {}))
    last = [2, 5, 3] if side == "right" else [5, 5, 5]
    (read,) = reader(model).read({**inputs, "labels": torch.arange(3)}, "last")
    # another number of columns goes through the unembedding, so sums may be taken in another order
    torch.testing.assert_close(read.logits.detach(), full[torch.arange(3), last], rtol=0, atol=1e-5)
    assert (read.labels.tolist(), read.example, read.count) == ([0, 1, 2], None, 3)
    both = reader(model).read({**inputs, "labels": torch.arange(3)}, "last", "all")
    assert torch.equal(both[0].logits, full[torch.arange(3), last])
    assert torch.equal(both[1].logits, full)


def test_labelled_columns():
    model, inputs = tiny("llama"), padded_tokens([3, 6, 4], "right")
    labels = torch.full((3, 6), -100)
    labels[0, 1], labels[1, 2], labels[1, 5], labels[2, 3] = 7, 8, 9, 10
    full = by_hand(model, inputs)
    (read,) = reader(model).read({**inputs, "labels": labels}, "labels")
    assert read.labels.tolist() == [7, 8, 9, 10]
    assert (read.example.tolist(), read.count) == ([0, 1, 1, 2], 3)
    wanted = full[[0, 1, 1, 2], [1, 2, 5, 3]]
    torch.testing.assert_close(read.logits.detach(), wanted, rtol=0, atol=1e-5)
    for wrong in (labels[:, 0], labels[:2], None, torch.full((3, 6), -100)):
        with pytest.raises(SpecError, match="positions='labels'"):
            reader(model).read({**inputs, "labels": wrong}, "labels")


def test_only_the_logits_that_are_read_are_computed():
    model, seen = new_model("llama"), []
    model.lm_head.register_forward_hook(lambda _m, _i, out: seen.append(out.shape[1]))
    data, made = batches((4,))[0], face(model)
    Reader(made).read(data, "last")
    assert min(seen) == 1
    ids = padded_tokens([3, 6, 4], "right")
    seen.clear()
    Reader(made).plain(ids, None, "last")
    assert seen == [3], "columns 2, 3 and 5"


def test_models_that_say_one_thing_an_example():
    logits = torch.randn(3, 5)
    assert rows_of(logits, None, "last") is logits
    with pytest.raises(SpecError, match="no sequence"):
        rows_of(logits, None, "labels")
    assert columns_of("last", torch.zeros(3, 4), None) is None
    assert rows_of(torch.zeros(3, 4, 5), None, "last").shape == (3, 5)


def test_an_example_without_a_token_is_refused():
    inputs = {"input_ids": torch.zeros(2, 3, dtype=torch.long), "attention_mask": torch.tensor([[1, 1, 1], [0, 0, 0]])}
    with pytest.raises(SpecError, match=r"\[1\]"):
        columns_of("last", inputs, None)


def test_rows_of_an_example_are_averaged():
    read = Readout(torch.zeros(4, VOCAB), torch.tensor([1, 2, 3, 5]), torch.tensor([0, 1, 1, 2]), 3)
    found = per_example(lambda _l, labels: labels.float(), read, "x")["x"]
    assert found.values.tolist() == [1.0, 2.5, 5.0]
    assert not found.whole
    one = per_example(lambda _l, _y: {"a": 2, "b": torch.tensor(0.5)}, read, "x")
    assert {name: number.values.tolist() for name, number in one.items()} == {"a": [2.0] * 3, "b": [0.5] * 3}
    assert all(number.whole for number in one.values())
    with pytest.raises(SpecError, match="each of 4 rows"):
        per_example(lambda _l, _y: torch.zeros(3), read, "x")


@pytest.mark.parametrize("given", [torch.tensor([[1], [2]]), torch.tensor([1, 2])])
def test_a_column_of_labels(given):
    (read,) = reader(tiny("llama")).read({"input_ids": torch.ones(2, 3, dtype=torch.long), "labels": given}, "last")
    assert read.labels.tolist() == [1, 2]


@pytest.mark.parametrize("given", [[1, 2], (1, 2), np.array([[1], [2]])])
def test_labels_may_be_numbers_in_a_list_or_an_array(given):
    (read,) = reader(tiny("llama")).read({"input_ids": torch.ones(2, 3, dtype=torch.long), "labels": given}, "last")
    assert read.labels.tolist() == [1, 2]


@pytest.mark.parametrize("given", [[1], torch.tensor(1), torch.tensor([[1], [2], [3]])])
def test_there_is_a_label_for_each_example(given):
    """One label would be stretched to all examples."""
    batch = {"input_ids": torch.ones(2, 3, dtype=torch.long), "labels": given}
    with pytest.raises(SpecError, match="each of the 2 examples"):
        reader(tiny("llama")).read(batch, "last")


def test_labels_of_another_kind_go_to_the_users_own_metric():
    batch = {"input_ids": torch.ones(2, 3, dtype=torch.long), "labels": ["yes", "no"]}
    (read,) = reader(tiny("llama")).read(batch, "last")
    assert read.labels == ["yes", "no"]
