"""A call like the last one is bound as that was, and only such a call."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from tests.helpers import new_model, padded_tokens, placed, tokens

from align_transformers import AlignError, IntervenableModel, Positions, VanillaIntervention, resolve
from align_transformers import intervenable as face
from align_transformers.locations import Location

PLACES = {"sources->base": ([[[2], [3]]], [[[2], [3]]])}


@pytest.fixture
def swap(monkeypatch):
    """Return an intervenable model, and the list of its bindings."""
    made = IntervenableModel({"layer": 1, "component": "block_output"}, model=new_model("gpt2"))
    bindings = []
    bind = face.engine.bind
    monkeypatch.setattr(face.engine, "bind", lambda *args, **kwargs: (bindings.append(1), bind(*args, **kwargs))[1])
    return made, bindings


def test_other_contents_are_bound_once_and_other_places_anew(swap):
    made, bindings = swap
    first, second = tokens(2, 5), tokens(2, 5, seed=1)
    fresh = IntervenableModel({"layer": 1, "component": "block_output"}, model=made.model)
    for base, source in ((first, second), (second, first)):
        found = made(base, source, PLACES)[1].logits
        count = len(bindings)
        assert torch.equal(found, fresh(base, source, {"sources->base": ([[[2], [3]]], [[[2], [3]]])})[1].logits)
        del bindings[count:]
    assert len(bindings) == 1
    made(first, second, {"sources->base": ([[[2], [4]]], [[[2], [4]]])})
    assert len(bindings) == 2
    made(tokens(2, 6), tokens(2, 6), PLACES)
    assert len(bindings) == 3


def test_locations_that_a_caller_changes_in_place_are_seen(swap):
    made, bindings = swap
    places = [[[2], [3]]]
    base, source = tokens(2, 5), tokens(2, 5, seed=1)
    before = made(base, source, {"sources->base": (places, places)})[1].logits
    places[0][0][0] = 4
    assert not torch.equal(made(base, source, {"sources->base": (places, places)})[1].logits, before)
    assert len(bindings) == 2


def test_padding_elsewhere_is_bound_anew(swap):
    made, bindings = swap
    base, source = placed(padded_tokens([5, 4], "left")), tokens(2, 5, seed=1)
    for padded in (base, placed(padded_tokens([4, 5], "left"))):
        made(padded, source, {"sources->base": (-1, -1)})
    assert len(bindings) == 2


def test_a_constant_that_is_set_between_two_calls_is_used(swap):
    made, _ = swap
    base, source = tokens(2, 5), tokens(2, 5, seed=1)
    made(base, source, PLACES)
    (one,) = made.interventions.values()
    one.set_source_representation(torch.ones(made.model.config.n_embd))
    constant = VanillaIntervention(source_representation=torch.ones(made.model.config.n_embd))
    fresh = IntervenableModel({"layer": 1, "component": "block_output", "intervention": constant}, model=made.model)
    assert torch.equal(made(base, source, PLACES)[1].logits, fresh(base, source, PLACES)[1].logits)


def test_a_module_that_was_exchanged_is_found():
    model = new_model("gpt2")
    made = IntervenableModel({"component": "transformer.h[1].mlp.output"}, model=model)
    base, source = tokens(2, 5), tokens(2, 5, seed=1)
    made(base, source, PLACES)
    model.transformer.h[1].mlp = new_model("gpt2", seed=3).transformer.h[1].mlp
    fresh = IntervenableModel({"component": "transformer.h[1].mlp.output"}, model=model)
    assert torch.equal(made(base, source, PLACES)[1].logits, fresh(base, source, PLACES)[1].logits)


def test_a_model_that_nobody_holds_is_let_go():
    model = new_model("gpt2")
    made = IntervenableModel({"layer": 1, "component": "block_output"}, model=model)
    made(tokens(2, 5), tokens(2, 5), PLACES, output_original_output=True, use_cache=False)
    gone = weakref.ref(model)
    del made, model
    gc.collect()
    assert gone() is None


def test_a_block_that_was_exchanged_elsewhere_is_seen(swap):
    made, bindings = swap
    base, source = {**tokens(2, 5), "use_cache": False}, tokens(2, 5, seed=1)
    made(base, source, PLACES)
    blocks = made.model.transformer.h
    blocks[2] = type(blocks[2])(made.model.config, layer_idx=2).eval()
    found = made(base, source, PLACES)[1].logits
    assert len(bindings) == 2
    fresh = IntervenableModel({"layer": 1, "component": "block_output"}, model=made.model)
    assert torch.equal(found, fresh(base, source, PLACES)[1].logits)


def test_a_model_put_in_its_place_is_seen(swap):
    made, bindings = swap
    base, source = tokens(2, 5), tokens(2, 5, seed=1)
    made(base, source, PLACES)
    made.model = new_model("gpt2", seed=1)
    found = made(base, source, PLACES)[1].logits
    assert len(bindings) == 2
    fresh = IntervenableModel({"layer": 1, "component": "block_output"}, model=made.model)
    assert torch.equal(found, fresh(base, source, PLACES)[1].logits)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (np.array([2, 3]), np.array([[2], [3]])),  # the same bytes: both examples at 2 and 3, or one at each
        (np.array([2, 3]), np.array([2, 0, 3, 0], dtype=np.int32)),
        (torch.tensor([2, 3]), torch.tensor([[2], [3]])),
        (1, True),
    ],
)
def test_arrays_of_another_form_are_other_places(first, second):
    config = {"layer": 1, "component": "block_output", "max_number_of_units": 2}
    model = new_model("gpt2")
    base, source = tokens(2, 5), tokens(2, 5, seed=1)

    def called(made, where):
        try:
            return made(base, source, {"sources->base": (where, where)})[1].logits
        except AlignError as error:
            return str(error)

    made = IntervenableModel(config, model=model)
    called(made, first)
    found, expected = called(made, second), called(IntervenableModel(config, model=model), second)
    assert found == expected if isinstance(expected, str) else torch.equal(found, expected)


def test_overrides_that_are_said_later_are_heeded():
    model = new_model("gpt2")
    made = IntervenableModel({"layer": 1, "component": "mlp_output"}, model=model)
    base, source = tokens(2, 5), tokens(2, 5, seed=1)
    before = made(base, source, {"sources->base": (2, 2)})[1].logits
    resolve(model, overrides={"mlp_output": ("attn", "output")})
    after = made(base, source, {"sources->base": (2, 2)})[1].logits
    fresh = IntervenableModel({"layer": 1, "component": "mlp_output"}, model=model)
    assert torch.equal(after, fresh(base, source, {"sources->base": (2, 2)})[1].logits)
    assert not torch.equal(after, before)


def test_ready_made_locations_are_bound_once(swap):
    made, bindings = swap
    at = Positions(((2,), (3,)))
    for _ in range(2):
        found = made(tokens(2, 5), tokens(2, 5, seed=1), (Location(Positions(((2,), (3,))), at),))[1].logits
    assert len(bindings) == 1
    assert torch.equal(found, made(tokens(2, 5), tokens(2, 5, seed=1), PLACES)[1].logits)


def test_other_groups_that_share_a_source_or_have_none_are_bound_anew():
    model, base = new_model("gpt2"), tokens(2, 5)
    one, other = tokens(2, 5, seed=1), tokens(2, 5, seed=2)
    swaps = [{"layer": layer, "component": "mlp_output"} for layer in range(3)]
    made = IntervenableModel(swaps, model=model)
    calls = ([one, other, one], [one, other, other], [one, one, one], [one, None, one], [one, None, None])
    for sources in calls:
        fresh = IntervenableModel(swaps, model=model)
        found, expected = (each(base, list(sources), {"sources->base": 3})[1].logits for each in (made, fresh))
        assert torch.equal(found, expected)
