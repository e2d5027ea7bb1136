"""The main job on a real model: Madrid becomes Rome because one activation is swapped."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from tests.helpers import counted, grab, locus, logits_with, writer
from tests.test_snippet import SNIPPETS, check_snippet, run_snippet

from align_transformers import CollectIntervention, IntervenableModel, scan

pytest.importorskip("gguf")
load = pytest.importorskip("align_transformers.models.load")
pytestmark = pytest.mark.slow

SPAIN, ITALY = "The capital of Spain is", "The capital of Italy is"


@cache
def smollm2():
    torch.set_num_threads(2)
    try:
        return load.load_model("smollm2-135m")
    finally:
        torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model():
    return smollm2()[0]


@pytest.fixture(scope="module")
def tokenizer():
    return smollm2()[1]


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def next_word(tokenizer, logits):
    return tokenizer.decode(logits[0, -1].argmax())


def swapped(model, tokenizer, layer, position):
    face = IntervenableModel({"layer": layer, "component": "block_output"}, model)
    base, source = (tokenizer(text, return_tensors="pt") for text in (SPAIN, ITALY))
    return face(base, source, {"sources->base": position})[1].logits


@pytest.mark.parametrize("names", SNIPPETS)
def test_the_snippet(model, tokenizer, names):
    with torch.enable_grad():
        check_snippet(run_snippet(SNIPPETS[names], lambda: (model.config, tokenizer, model)))


def test_the_model_knows_both_capitals(model, tokenizer):
    for text, answer in ((SPAIN, " Madrid"), (ITALY, " Rome")):
        assert next_word(tokenizer, model(**tokenizer(text, return_tensors="pt")).logits) == answer


def test_madrid_becomes_rome_when_the_countrys_early_residual_is_swapped(model, tokenizer):
    country = tokenizer(SPAIN)["input_ids"].index(tokenizer(" Spain", add_special_tokens=False)["input_ids"][0])
    assert country == 3
    for layer in (0, 5):
        assert next_word(tokenizer, swapped(model, tokenizer, layer, country)) == " Rome"
    assert next_word(tokenizer, swapped(model, tokenizer, model.config.num_hidden_layers - 1, country)) == " Madrid"


def test_the_last_token_decides_only_from_some_layer_on(model, tokenizer):
    layers = range(4, model.config.num_hidden_layers, 5)
    rome = [next_word(tokenizer, swapped(model, tokenizer, layer, -1)) == " Rome" for layer in layers]
    first = rome.index(True)
    assert 1 < first < len(rome) - 1
    assert all(rome[first:]), "once the answer has arrived it stays"
    last = swapped(model, tokenizer, layers[-1], -1)[0, -1]
    torch.testing.assert_close(last, model(**tokenizer(ITALY, return_tensors="pt")).logits[0, -1])


def test_grouped_heads_equal_a_hand_written_hook(model, tokenizer):
    base, source = (tokenizer(text, return_tensors="pt") for text in (SPAIN, ITALY))
    for component, heads in (("query_output", [8, 2]), ("value_output", [2, 0]), ("attention_value_output", [4, 7])):
        place = locus(model, component, 12)
        (value,) = grab(model, source, place)

        def by_hand(old, n, place=place, value=value, heads=heads):
            for head in heads:
                cut = slice(head * place.head_dim, (head + 1) * place.head_dim)
                old[:, cut] = value[n, [3], cut]
            return old

        face = IntervenableModel(
            {"layer": 12, "component": component, "unit": "h.pos", "max_number_of_units": 2}, model
        )
        both = [[[heads], [[3]]]]
        _, got = face(base, source, {"sources->base": (both, both)})
        assert torch.equal(got.logits, logits_with(model, base, writer(place, [[3]], by_hand)))


def test_generation_says_rome(model, tokenizer):
    base, source = (tokenizer(text, return_tensors="pt") for text in (SPAIN, ITALY))
    face = IntervenableModel({"layer": 3, "component": "block_output"}, model)
    original, got = face.generate(
        base, source, {"sources->base": 3}, intervene_on_prompt=True, output_original_output=True,
        max_new_tokens=4, do_sample=False, pad_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    assert " Madrid" in tokenizer.decode(original[0])
    assert tokenizer.decode(got[0]).startswith(SPAIN + " Rome")


def test_every_layer_collected_in_one_pass(model, tokenizer):
    base = tokenizer(SPAIN, return_tensors="pt")
    count = model.config.num_hidden_layers
    look = {"component": "block_output", "intervention_type": CollectIntervention}
    face = IntervenableModel([{**look, "layer": layer} for layer in range(count)], model)
    with counted(model) as calls:
        got = face(base, return_dict=True, output_hidden_states=True)
    assert len(calls) == 1
    for layer, value in enumerate(got.collected_activations[:-1]):
        assert torch.equal(value, got.intervened_outputs.hidden_states[layer + 1])


def test_a_first_look(model, tokenizer):
    with torch.enable_grad():  # of the attribution
        found = scan(model, SPAIN, ITALY, tokenizer=tokenizer)
    logits = model(**tokenizer(SPAIN, return_tensors="pt")).logits[0, -1]
    assert found.missing == {}
    [madrid] = tokenizer(" Madrid")["input_ids"]
    first = next(found["says"].rows())
    assert first["top_tokens"][0] == " Madrid"
    assert first["top_probabilities"][0] == pytest.approx(logits.softmax(-1)[madrid].item(), abs=1e-5)
    assert sum(found["parts"].columns["contribution"]) == pytest.approx(logits[madrid].item(), abs=1e-4)
    places = list(found["route"].columns["position"])
    assert places == [3] * 23 + [4] * 7  # the country's token, and from layer 23 on the last one
    moved = max((row for row in found["carriers"].rows() if row["head"] is not None), key=lambda row: row["exact"] or 0)
    assert (moved["layer"], moved["head"]) == (23, 4)  # it carries from there to here what is between 22 and 23
    last = found["attention"].select(where={"layer": 23, "head": 4, "query": 4})
    assert max(last.rows(), key=lambda row: row["attention"])["key"] == 3
