"""Whose forward `generate` runs, and what it runs beside the text it generates. The oracles are loops with hooks."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.helpers import Locus, grab, hook_counts, hooked, locus, new_model, tokens
from tests.test_generate import NEW, SITE, Change, Loop, at, check_same, generated, run_loop
from torch import nn
from transformers import DynamicCache

from align_transformers import (
    AdditionIntervention,
    CollectIntervention,
    IntervenableModel,
    PlanError,
    PositionError,
)

GREEDY = {"max_new_tokens": NEW, "do_sample": False}
VECTOR = 3 * torch.randn(32, generator=torch.Generator().manual_seed(5))


# --- whose forward it is ----------------------------------------------------------------------------------------------


class Delegating(nn.Module):
    """A user's wrapper: `generate` is that of the model inside, and its own forward is not run meanwhile."""

    def __init__(self, inside):
        super().__init__()
        self.inside = inside

    def forward(self, **inputs):
        return self.inside(**inputs)

    def generate(self, **options):
        return self.inside.generate(**options)


class Embedding(Delegating):
    """One that embeds the tokens itself, as models with images in front of a language model do."""

    def generate(self, input_ids, attention_mask, **options):
        embedded = self.inside.get_input_embeddings()(input_ids)
        new = self.inside.generate(inputs_embeds=embedded, attention_mask=attention_mask, **options)
        return torch.cat([input_ids, new], 1)


class Stepping(Delegating):
    """One with a loop of its own, in which it runs its own forward, with the tokens by place."""

    def forward(self, ids):
        return self.inside(input_ids=ids)

    def generate(self, input_ids, attention_mask, max_new_tokens, do_sample):
        for _ in range(max_new_tokens):
            input_ids = torch.cat([input_ids, self(input_ids).logits[:, -1:].argmax(-1)], 1)
        return input_ids


def lora(model):
    wrapped = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]))
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.3)
    return wrapped.eval()


WRAPPERS = {
    "lora": lora,
    "user's": Delegating,
    "user's around a compiled one": lambda model: Delegating(torch.compile(model)),
    "compiled": lambda model: torch.compile(Delegating(model)),
    "embedding": Embedding,
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of torch.compile, and of peft
@pytest.mark.parametrize("name", WRAPPERS)
def test_generate_of_a_wrapper(name):
    model, prompt = new_model("llama"), tokens(2, 5)
    wrapped = WRAPPERS[name](model)
    change = Change(locus(model, *SITE), [[1]] * 2, (0, 2), lambda old, n, k: old + VECTOR)
    expected = Loop(model, prompt, change).greedy()
    before = hook_counts(model)
    face = IntervenableModel(at(intervention_type=AdditionIntervention), wrapped)
    got = face.generate(
        prompt, None, {"base": 1}, VECTOR, intervene_on_prompt=True, steps=(0, 2), return_dict=True, **GREEDY
    )
    assert torch.equal(got.intervened_outputs, expected)
    assert not torch.equal(expected, Loop(model, prompt).greedy())
    assert (got.effects[0].fired, got.effects[0].positions) == (3, 6), "the prompt, and two tokens, of two examples"
    assert hook_counts(model) == before


def test_tokens_that_a_model_is_handed_by_place_under_a_name_of_its_own_are_not_known():
    wrapped = Stepping(new_model("llama"))
    face = IntervenableModel({"component": "inside.model.layers.1.output", "intervention": lambda b: -b}, wrapped)
    with pytest.raises(PlanError, match="has no tokens"):
        face.generate(tokens(2, 5), **GREEDY)


def test_steps_that_nobody_can_see_are_refused():
    """A loop over a module that has no `generate`: no forward is known to be a step."""

    class Looping(Delegating):
        def generate(self, input_ids, attention_mask):
            return [self.inside(input_ids=input_ids) for _ in range(3)]

    face = IntervenableModel(
        {"component": "inside.layers.1.output", "intervention": lambda b: -b}, Looping(new_model("llama").model)
    )
    with pytest.raises(PlanError, match="its steps are not known"):
        face.generate(tokens(2, 5))


# --- calls that are no steps ------------------------------------------------------------------------------------------


def log_probabilities(model, ids, start):
    """Return those of the next token, with the vector added from a column on."""
    place = locus(model, *SITE)

    def add(tensor):
        return torch.cat([tensor[:, :start], tensor[:, start:] + VECTOR], 1)

    with torch.no_grad(), hooked((place.module, "output", add)):
        return model(input_ids=ids).logits[:, -1].log_softmax(-1)


@pytest.mark.parametrize(
    ("use_cache", "negative", "everywhere"),
    [
        (True, None, False),
        (False, None, True),
        (False, [7, 8, 9], False),
        (True, [3, 4, 5, 6, 7], True),
        (False, [3, 4, 5, 6, 7], False),
    ],
)
def test_guidance_is_a_text_of_its_own(use_cache, negative, everywhere):
    model, prompt = new_model("llama"), tokens(2, 5)
    ids = prompt["input_ids"]
    other = ids[:, -1:] if negative is None else torch.tensor([negative] * 2)
    options = {} if negative is None else {"negative_prompt_ids": other}
    mine, against = (0, 0) if everywhere else (5, other.shape[1])
    for _ in range(NEW):
        plus, minus = log_probabilities(model, ids, mine), log_probabilities(model, other, against)
        new = (2 * (plus - minus) + minus).argmax(-1, keepdim=True)
        ids, other = torch.cat([ids, new], 1), torch.cat([other, new], 1)
    face = IntervenableModel(at(intervention_type=AdditionIntervention), model)
    more = {"intervene_on_prompt": True, "steps": "all"} if everywhere else {}
    _, got = face.generate(
        prompt, None, None, VECTOR, guidance_scale=2.0, use_cache=use_cache, **more, **options, **GREEDY
    )
    assert torch.equal(got, ids)


def test_positions_and_sources_are_of_the_prompt_and_not_of_another_text():
    model, prompt = new_model("llama"), tokens(2, 5)
    other, source, place = torch.tensor([[7, 8, 9]] * 2), tokens(2, 5, 3), locus(model, *SITE)
    (value,) = grab(model, source, place)
    for whole in (True, False):
        ids, against = prompt["input_ids"], other
        write = [list(range(5))] * 2 if whole else [[1]] * 2
        change = Change(place, write, (), lambda old, n, k: value[n, k if whole else 1])  # noqa: B023
        loop = Loop(model, prompt, change, cached=False)
        for _ in range(NEW):
            plus = loop.logits().log_softmax(-1)
            with torch.no_grad():
                minus = model(input_ids=against).logits[:, -1].log_softmax(-1)
            new = (2 * (plus - minus) + minus).argmax(-1)
            loop.append(new)
            against = torch.cat([against, new[:, None]], 1)
        ids = loop.ids
        locations = None if whole else {"sources->base": (1, 1)}
        _, got = IntervenableModel(at(), model).generate(
            prompt, source, locations, intervene_on_prompt=True, guidance_scale=2.0, negative_prompt_ids=other, **GREEDY
        )
        assert torch.equal(got, ids)


@pytest.mark.parametrize(("cached", "use_cache"), [("anew", True), ("kept", True), ("kept", False), ("none", False)])
def test_a_processor_that_runs_the_model_over_the_same_text(cached, use_cache):
    """Its calls see the same edits at the same tokens; what is collected is of the generated text, once."""
    model, prompt = new_model("llama"), tokens(2, 5)
    kept = DynamicCache()

    def process(ids, scores):
        if cached == "kept":
            logits = model(ids[:, kept.get_seq_length() :], past_key_values=kept).logits
        else:
            logits = model(ids, past_key_values=DynamicCache() if cached == "anew" else None).logits
        return scores + logits[:, -1].softmax(-1).flip(-1) * 9

    change = Change(locus(model, *SITE), None, (0, 1), lambda old, n, k: old + VECTOR)
    loop = Loop(model, prompt, change, cached=False)
    for _ in range(NEW):
        logits = loop.logits()
        loop.append((logits + logits.softmax(-1).flip(-1) * 9).argmax(-1))
    add, look = at(intervention_type=AdditionIntervention), at(layer=0, intervention_type=CollectIntervention)
    face = IntervenableModel([add, look], model)
    got = face.generate(
        prompt, None, None, [VECTOR, None], steps=(0, 1), return_dict=True, logits_processor=[process],
        use_cache=use_cache, **GREEDY,
    )  # fmt: skip
    assert torch.equal(got.intervened_outputs, loop.ids)
    assert [value.shape[1] for value in got.collected_activations[0]] == [1, 1]


def test_a_call_over_other_rows_is_refused_where_it_comes_to_an_edit():
    model, prompt = new_model("llama"), tokens(2, 5)

    def process(ids, scores):
        model(input_ids=ids[:1])
        return scores

    face = IntervenableModel(at(intervention_type=AdditionIntervention), model)
    with pytest.raises(PlanError, match="which rows"):
        face.generate(prompt, None, None, VECTOR, logits_processor=[process], **GREEDY)


# --- the logits of the first token ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "how", "chunk", "named"),
    [
        ("gpt2", "greedy", None, True),
        ("llama", "uncached", None, True),
        ("gpt2", "uncached", None, False),
        ("llama", "beams", None, True),
        ("gpt2", "greedy", 2, True),
        ("llama", "greedy", 2, False),
    ],
)
def test_the_logits_of_the_first_generated_token_are_at_the_last_of_the_prompt(family, how, chunk, named):
    model, prompt = new_model(family), tokens(2, 5)
    place = Locus(model.lm_head, "output", 0, 61, 61)
    change = Change(place, [[4]] * 2, tuple(range(NEW)), lambda old, n, k: old.flip(-1))
    face = IntervenableModel({"component": "logits", "intervention": lambda b: b.flip(-1)}, model)
    more = {} if chunk is None else {"prefill_chunk_size": chunk}
    locations = {"base": -1} if named else None
    got = generated(face, prompt, None, locations, how=how, intervene_on_prompt=True, steps="all", **more)
    check_same(got, run_loop(model, prompt, how, change))
    only = generated(face, prompt, None, locations, how=how, intervene_on_prompt=True, **more)
    change.steps = ()
    check_same(only, run_loop(model, prompt, how, change))


def test_logits_that_are_not_computed_are_refused():
    face = IntervenableModel(
        {"component": "logits", "intervention": lambda b: b * 0, "max_number_of_units": 2}, new_model("gpt2")
    )
    with pytest.raises(PositionError, match="last logits only"):
        face.generate(tokens(2, 5), None, {"base": [[[0, 4], [1, 4]]]}, intervene_on_prompt=True, **GREEDY)
