"""Caches that are handed in: a decoding loop of one's own, with gradients, against the plain model's with hooks."""

from __future__ import annotations

import pytest
import torch
from tests.helpers import FAMILIES, hooked, locus, new_model, tokens
from transformers import DynamicCache

from align_transformers import AdditionIntervention, IntervenableModel, PlanError

VECTOR = 2 * torch.randn(32, generator=torch.Generator().manual_seed(3))


def steered(model):
    one = {"layer": 1, "component": "block_output", "intervention_type": AdditionIntervention}
    return IntervenableModel(one, model)


def added(tensor):
    return tensor + VECTOR


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("gradients", [True, False])
def test_a_loop_of_ones_own(family, gradients):
    model, ids = new_model(family), tokens(2, 5)["input_ids"]
    place, face = locus(model, "block_output", 1), steered(model)
    with torch.set_grad_enabled(gradients):
        expected = model(input_ids=ids, use_cache=True)
        got = model(input_ids=ids, use_cache=True)
        for _ in range(3):
            step = expected.logits[:, -1:].argmax(-1)
            with hooked((place.module, "output", added)):
                expected = model(input_ids=step, past_key_values=expected.past_key_values, use_cache=True)
            base = {"input_ids": step, "past_key_values": got.past_key_values, "use_cache": True}
            handed, length = got.past_key_values, got.past_key_values.get_seq_length()
            got = face(base, None, {"base": 0}, VECTOR)[1]
            assert handed.get_seq_length() == length, "the caller's cache is as it was"
            torch.testing.assert_close(got.logits, expected.logits)
    if gradients:
        weight = model.get_input_embeddings().weight
        mine, hers = (torch.autograd.grad(out.logits[:, -1, 7].sum(), weight)[0] for out in (got, expected))
        torch.testing.assert_close(mine, hers)
        assert mine[ids[0, 0]].abs().max() > 0, "through the caches, to the first token"


def test_gradients_of_a_cache_that_is_learned():
    model, ids = new_model("llama"), tokens(2, 3)["input_ids"]
    generator = torch.Generator().manual_seed(0)
    learned = [torch.randn(2, 2, 2, 6, generator=generator).requires_grad_() for _ in range(6)]

    def cache():
        made = DynamicCache()
        for layer in range(3):
            made.update(learned[2 * layer], learned[2 * layer + 1], layer)
        return made

    place = locus(model, "block_output", 1)
    with hooked((place.module, "output", added)):
        expected = model(input_ids=ids, past_key_values=cache())
    hers = torch.autograd.grad(expected.logits[:, -1, 7].sum(), learned)
    got = steered(model)({"input_ids": ids, "past_key_values": cache()}, None, None, VECTOR)[1]
    mine = torch.autograd.grad(got.logits[:, -1, 7].sum(), learned)
    torch.testing.assert_close(mine, hers)
    assert all(one.abs().max() > 0 for one in mine)


def test_a_cache_that_cannot_be_copied_is_refused():
    class Held(DynamicCache):
        def __deepcopy__(self, memo):
            raise TypeError("it holds a lock")

    model = new_model("llama")
    with pytest.raises(PlanError, match=r"past_key_values is Held, which cannot be copied.*a lock"):
        steered(model)({"input_ids": tokens(1, 2)["input_ids"], "past_key_values": Held()}, None, {"base": 0}, VECTOR)
