"""Generation under edits, against hand-written loops of plain forward passes and plain hooks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from tests.helpers import (
    FAMILIES,
    Locus,
    counted,
    grab,
    hook_counts,
    hooked,
    locus,
    new_model,
    padded_tokens,
    tiny,
    tokens,
)
from torch import Tensor

from align_transformers import (
    AdditionIntervention,
    CollectIntervention,
    IntervenableModel,
    NeverFiredError,
    PlanError,
    PositionError,
    SpecError,
    ZeroIntervention,
)

NEW = 4
SITE = ("block_output", 1)


@dataclass
class Change:
    """An edit of the hand-written loop.

    Args:
        place: where.
        columns: for each example the columns of the prompt; `None`: none of them.
        steps: numbers of generated tokens.
        new: called with the old value `(width,)`, the example and which of its columns it is (0 for generated tokens).
    """

    place: Locus
    columns: list[list[int]] | None
    steps: tuple[int, ...]
    new: Callable[[Tensor, int, int], Tensor]


class Loop:
    """Generates by plain forward passes; rows of an example stand side by side (`repeats` of them)."""

    def __init__(self, model, prompt, *changes, cached=True, repeats=1):
        self.model, self.changes, self.cached, self.repeats = model, changes, cached, repeats
        self.ids = prompt["input_ids"].repeat_interleave(repeats, 0)
        self.mask = prompt["attention_mask"].repeat_interleave(repeats, 0)
        self.prompt, self.start, self.cache = self.ids.shape[1], 0, None
        self.seen: list[Tensor] = []

    def _touch(self, change):
        def touch(tensor):
            tensor, place = tensor.clone(), change.place
            for row in range(tensor.shape[0]):
                example = row // self.repeats
                named = [] if change.columns is None else change.columns[example]
                places = [(column, k) for k, column in enumerate(named)]
                places += [(self.prompt + step, 0) for step in change.steps]
                for column, k in places:
                    local = column - self.start
                    if 0 <= local < tensor.shape[1]:
                        old = tensor[row, local, place.low : place.high].clone()
                        tensor[row, local, place.low : place.high] = change.new(old, example, k)
            return tensor

        return (change.place.module, change.place.side, touch)

    @torch.no_grad()
    def logits(self):
        """Return the logits of the last column, and move on."""
        positions = (self.mask.cumsum(1) - 1).clamp(min=0)
        with hooked(*(self._touch(change) for change in self.changes)):
            out = self.model(
                input_ids=self.ids[:, self.start :],
                attention_mask=self.mask,
                position_ids=positions[:, self.start :],
                past_key_values=self.cache,
                use_cache=self.cached,
            )
        if self.cached:
            self.start, self.cache = self.ids.shape[1], out.past_key_values
        self.seen.append(out.logits[:, -1])
        return self.seen[-1]

    def append(self, chosen, rows=None):
        if rows is not None:
            self.ids, self.mask = self.ids[rows], self.mask[rows]
        self.ids = torch.cat([self.ids, chosen[:, None]], 1)
        self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], 1)

    def greedy(self, count=NEW):
        for _ in range(count):
            self.append(self.logits().argmax(-1))
        return self.ids

    def sample(self, count=NEW):
        for _ in range(count):
            self.append(torch.multinomial(torch.softmax(self.logits(), -1), 1)[:, 0])
        return self.ids

    def beams(self, count=NEW):
        """Beam search without end of text: every hypothesis has the same length."""
        rows, width = self.ids.shape[0], self.repeats
        batch = rows // width
        scores = torch.full((batch, width), -1e9)
        scores[:, 0] = 0
        for _ in range(count):
            step = torch.log_softmax(self.logits(), -1)
            vocab = step.shape[-1]
            total = (scores.view(-1, 1) + step).view(batch, width * vocab)
            scores, best = total.topk(width)
            self.append((best % vocab).flatten(), (best // vocab + width * torch.arange(batch)[:, None]).flatten())
        return self.ids.view(batch, width, -1)[:, 0]


@pytest.fixture(params=FAMILIES)
def model(request):
    return tiny(request.param)


@pytest.fixture(params=["even", "left padded"])
def prompt(request):
    return tokens(2, 5) if request.param == "even" else padded_tokens([5, 3, 4], "left")


def at(component=SITE[0], layer=SITE[1], **more):
    return {"layer": layer, "component": component, **more}


def columns_of(prompt):
    """Return two real columns for each example."""
    length = prompt["input_ids"].shape[1]
    return [[length - 1, length - 3]] * len(prompt["input_ids"])


OPTIONS = {"greedy": {}, "uncached": {"use_cache": False}, "beams": {"num_beams": 3}}


def run_loop(model, prompt, how, *changes):
    """Return the text and, without beams, the logits of every step."""
    if how == "beams":
        return Loop(model, prompt, *changes, cached=False, repeats=3).beams(), None
    loop = Loop(model, prompt, *changes, cached=how == "greedy")
    return loop.greedy(), torch.stack(loop.seen)


def generated(face, *arguments, how="greedy", **more):
    """Return the same from the library."""
    options = {"return_dict_in_generate": True, "output_logits": True, **OPTIONS[how], **more}
    got = face.generate(*arguments, max_new_tokens=NEW, do_sample=False, **options)[1]
    return got.sequences, None if how == "beams" else torch.stack(got.logits)


def check_same(got, expected):
    assert torch.equal(got[0], expected[0])
    if expected[1] is not None:
        torch.testing.assert_close(got[1], expected[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("how", OPTIONS)
def test_the_loops_are_right(model, prompt, how):
    """The oracle without edits is transformers' own generation."""
    expected = model.generate(**prompt, max_new_tokens=NEW, do_sample=False, **OPTIONS[how])
    assert torch.equal(run_loop(model, prompt, how)[0], expected)


@pytest.mark.parametrize("how", OPTIONS)
def test_prompt_positions_swapped_from_a_source(model, prompt, how):
    batch, write = len(prompt["input_ids"]), columns_of(prompt)
    source, read, place = tokens(batch, 6, 9), [[n, 5 - n] for n in range(batch)], locus(model, *SITE)
    (value,) = grab(model, source, place)
    change = Change(place, write, (), lambda old, n, k: value[n, read[n][k]])
    face = IntervenableModel(at(max_number_of_units=2), model)
    locations = {"sources->base": ([read], [write])}
    got = generated(face, prompt, source, locations, how=how, intervene_on_prompt=True)
    check_same(got, run_loop(model, prompt, how, change))
    assert not torch.equal(got[0], run_loop(model, prompt, how)[0])


STEPS = {"all": tuple(range(NEW)), 0: (0,), (1,): (1,), (0, 2): (0, 2)}


@pytest.mark.parametrize("how", OPTIONS)
@pytest.mark.parametrize("steps", STEPS)
def test_a_constant_added_at_generated_tokens(model, prompt, how, steps):
    place = locus(model, *SITE)
    vector = 3 * torch.randn(place.width, generator=torch.Generator().manual_seed(0))
    change = Change(place, None, STEPS[steps], lambda old, n, k: old + vector)
    face = IntervenableModel(at(intervention_type=AdditionIntervention), model)
    got = generated(face, prompt, None, None, vector, how=how, steps=steps)
    check_same(got, run_loop(model, prompt, how, change))
    if how != "beams":  # the best of three may well be the same
        assert not torch.equal(got[0], run_loop(model, prompt, how)[0])


@pytest.mark.parametrize("how", OPTIONS)
def test_generated_tokens_swapped_from_one_source_position(model, prompt, how):
    batch, place = len(prompt["input_ids"]), locus(model, *SITE)
    source, read = tokens(batch, 6, 9), [[n + 1] for n in range(batch)]
    (value,) = grab(model, source, place)
    change = Change(place, None, (1, 2), lambda old, n, k: value[n, read[n][0]])
    got = generated(
        IntervenableModel(at(), model),
        prompt,
        source,
        {"sources->base": ([read], [[[0]] * batch])},
        how=how,
        steps=(1, 2),
    )
    check_same(got, run_loop(model, prompt, how, change))
    assert not torch.equal(got[0], run_loop(model, prompt, how)[0])


@pytest.mark.parametrize("how", OPTIONS)
def test_prompt_and_generated_tokens_zeroed(model, prompt, how):
    place, write = locus(model, "mlp_output", 1), columns_of(prompt)
    change = Change(place, write, tuple(range(NEW)), lambda old, n, k: torch.zeros_like(old))
    face = IntervenableModel(at("mlp_output", 1, intervention_type=ZeroIntervention, max_number_of_units=2), model)
    got = generated(face, prompt, None, {"base": [write]}, how=how, intervene_on_prompt=True, steps="all")
    check_same(got, run_loop(model, prompt, how, change))


@pytest.mark.parametrize("how", OPTIONS)
def test_a_numbered_call_is_counted_anew_in_every_pass(model, how):
    prompt, place = tokens(2, 5), locus(model, *SITE)
    change = Change(place, None, tuple(range(NEW)), lambda old, n, k: -old)
    face = IntervenableModel(at(intervention=lambda b: -b, call=0), model)
    check_same(generated(face, prompt, how=how), run_loop(model, prompt, how, change))


@pytest.mark.parametrize("how", OPTIONS)
def test_the_whole_prompt(model, how):
    prompt, place = tokens(2, 5), locus(model, "mlp_output", 1)
    change = Change(place, [list(range(5))] * 2, (), lambda old, n, k: old * -1)
    face = IntervenableModel(at("mlp_output", 1, intervention=lambda b: -b), model)
    got = generated(face, prompt, how=how, intervene_on_prompt=True)
    check_same(got, run_loop(model, prompt, how, change))
    source = tokens(2, 5, 9)
    (value,) = grab(model, source, place)
    change = Change(place, [list(range(5))] * 2, (), lambda old, n, k: value[n, k])
    got = generated(IntervenableModel(at("mlp_output", 1), model), prompt, source, how=how, intervene_on_prompt=True)
    check_same(got, run_loop(model, prompt, how, change))


@pytest.mark.parametrize("how", OPTIONS)
@pytest.mark.parametrize("heads", [[[1], [1]], [[3], [0]]])
def test_heads_at_generated_tokens(model, how, heads):
    prompt, place = tokens(2, 5), locus(model, "attention_value_output", 1)

    def without(old, n, k):
        old.view(place.heads, -1)[heads[n]] = 0
        return old

    change = Change(place, None, tuple(range(NEW)), without)
    face = IntervenableModel(at("attention_value_output", 1, unit="h", intervention_type=ZeroIntervention), model)
    got = generated(face, prompt, None, {"base": [heads]}, how=how)
    check_same(got, run_loop(model, prompt, how, change))


def test_subspaces_follow_their_rows(model):
    prompt, place = tokens(2, 5), locus(model, *SITE)
    change = Change(place, None, (0, 1, 2), lambda old, n, k: torch.cat([old[:8] * (n == 1), old[8:] * (n == 0)]))
    zero = at(intervention_type=ZeroIntervention, subspace_partition=[[0, 8], [8, 32]])
    got = generated(IntervenableModel(zero, model), prompt, None, None, None, [[[0], [1]]], how="beams")
    check_same(got, run_loop(model, prompt, "beams", change))


@pytest.mark.parametrize("options", [{"num_return_sequences": 3}, {"num_return_sequences": 3, "use_cache": False}, {}])
def test_sampling(model, prompt, options):
    place, write = locus(model, *SITE), columns_of(prompt)
    repeats = options.get("num_return_sequences", 1)
    batch = len(prompt["input_ids"])
    vectors = torch.randn(batch, 1, place.width)
    change = Change(place, write, (0, 2), lambda old, n, k: old + vectors[n, 0])
    face = IntervenableModel(at(intervention_type=AdditionIntervention, max_number_of_units=2), model)
    torch.manual_seed(3)
    loop = Loop(model, prompt, change, repeats=repeats, cached=options.get("use_cache", True))
    expected = loop.sample()
    torch.manual_seed(3)
    _, got = face.generate(
        prompt, None, {"base": [write]}, vectors, intervene_on_prompt=True, steps=(0, 2),
        max_new_tokens=NEW, do_sample=True, top_k=0, **options,
    )  # fmt: skip
    assert got.shape[0] == batch * repeats
    assert torch.equal(got, expected)


@pytest.mark.parametrize("use_cache", [True, False])
def test_collecting_comes_back_step_by_step(model, prompt, use_cache):
    place, write, seen = locus(model, *SITE), columns_of(prompt), []
    loop = Loop(model, prompt)
    with hooked((place.module, place.side, lambda t: seen.append(t.clone()))):
        expected = loop.greedy()
    face = IntervenableModel(at(intervention_type=CollectIntervention, max_number_of_units=2), model)
    got = face.generate(
        prompt, None, {"base": [write]}, intervene_on_prompt=True, steps="all", return_dict=True,
        max_new_tokens=NEW, do_sample=False, use_cache=use_cache,
    )  # fmt: skip
    assert torch.equal(got.intervened_outputs, expected)
    (values,) = got.collected_activations
    assert len(values) == NEW, "the prompt, and every generated token but the last, which is never processed"
    at_prompt = torch.stack([seen[0][n, columns] for n, columns in enumerate(write)])
    # The loop has a cache: a pass over one column sums in another order than one over all, in proportion to the values.
    close = {"rtol": 0, "atol": 1e-5 * max(1.0, *(float(whole.abs().max()) for whole in seen))}
    torch.testing.assert_close(values[0], at_prompt, **close)
    for value, whole in zip(values[1:], seen[1:], strict=True):
        torch.testing.assert_close(value, whole, **close)
    assert (got.effects[0].fired, got.effects[0].change) == (NEW, 0.0)


def test_collecting_with_beams_has_a_row_for_each_beam(model):
    prompt, place = tokens(2, 5), locus(model, *SITE)
    face = IntervenableModel(at(intervention_type=CollectIntervention), model)
    got = face.generate(
        prompt, return_dict=True, intervene_on_prompt=True, max_new_tokens=2, num_beams=3, do_sample=False
    )
    ((value,),) = got.collected_activations
    assert torch.allclose(value, grab(model, prompt, place)[0].repeat_interleave(3, 0), atol=1e-5)


def test_the_pair(model):
    prompt = tokens(2, 5)
    face = IntervenableModel(at(intervention=lambda b: -b), model)
    options = {"max_new_tokens": NEW, "do_sample": False}
    assert face.generate(prompt, **options)[0] is None
    original, edited = face.generate(prompt, output_original_output=True, **options)
    assert torch.equal(original, model.generate(**prompt, **options))
    assert not torch.equal(original, edited)


def test_transformers_own_output_object_comes_through(model):
    prompt, place = tokens(2, 5), locus(model, *SITE)
    change = Change(place, None, tuple(range(NEW)), lambda old, n, k: -old)
    _, got = IntervenableModel(at(intervention=lambda b: -b), model).generate(
        prompt, max_new_tokens=NEW, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    loop = Loop(model, prompt, change)
    for step in got.logits:
        logits = loop.logits()
        torch.testing.assert_close(step, logits)
        loop.append(logits.argmax(-1))
    assert torch.equal(got.sequences, loop.ids)


def test_a_source_runs_once_before_the_generation(model):
    face = IntervenableModel(at(), model)
    with counted(model) as calls:
        face.generate(tokens(2, 5), tokens(1, 6, 9), {"sources->base": (3, 0)}, max_new_tokens=NEW, do_sample=False)
    assert calls == [1] + [2] * NEW


def test_no_generated_token_is_processed_when_only_one_is_asked_for(model):
    before = hook_counts(model)
    face = IntervenableModel(at(intervention_type=ZeroIntervention), model)
    with pytest.raises(NeverFiredError, match="generated token"):
        face.generate(tokens(2, 5), steps="all", max_new_tokens=1, do_sample=False)
    with pytest.raises(NeverFiredError):
        face.generate(tokens(2, 5), steps=NEW - 1, max_new_tokens=NEW, do_sample=False)
    assert hook_counts(model) == before


def test_wrong_calls_are_refused_before_anything_runs(model):
    face, prompt = IntervenableModel(at(intervention_type=ZeroIntervention), model), tokens(2, 5)
    with counted(model) as calls:
        with pytest.raises(SpecError, match="intervene_on_prompt"):
            face.generate(prompt, None, {"base": 3}, max_new_tokens=2)
        with pytest.raises(SpecError):
            face.generate(prompt, steps="al", max_new_tokens=2)
        with pytest.raises(SpecError):
            face.generate(prompt, steps=-1, max_new_tokens=2)
        with pytest.raises(PositionError):
            face.generate(prompt, None, {"base": 5}, intervene_on_prompt=True, max_new_tokens=2)
        swap = IntervenableModel(at(), model)
        with pytest.raises(PlanError, match="one source position"):
            swap.generate(prompt, tokens(2, 5, 1), max_new_tokens=2)
    assert calls == []


def test_a_model_without_generate_is_refused():
    face = IntervenableModel(
        {"component": "0.output", "intervention_type": ZeroIntervention}, torch.nn.Sequential(torch.nn.ReLU())
    )
    with pytest.raises(PlanError, match="no generate"):
        face.generate({"x": torch.zeros(1, 2)})


def test_a_site_that_sees_other_columns_than_the_pass_is_refused(model):
    """While generating, the head computes the prompt's last logits only: column 0 there is not the prompt's first."""
    edit = {"component": "lm_head.output", "intervention": lambda b: b * 0}
    with pytest.raises(PositionError, match="forward pass over 5 tokens"):
        IntervenableModel(edit, model).generate(
            tokens(2, 5), None, {"base": 0}, intervene_on_prompt=True, max_new_tokens=2
        )


def test_the_logits_of_generated_tokens_can_be_edited(model):
    prompt, place = tokens(2, 5), Locus(model.lm_head, "output", 0, 61, 61)
    change = Change(place, None, (0, 1, 2), lambda old, n, k: -old)
    got = generated(IntervenableModel({"component": "lm_head.output", "intervention": lambda b: -b}, model), prompt)
    check_same(got, run_loop(model, prompt, "greedy", change))


def test_in_chunks(model):
    """A prompt that is processed in chunks is edited, and seen, where it was asked for."""
    prompt, place, chunks = tokens(2, 6), locus(model, *SITE), {"prefill_chunk_size": 3, "intervene_on_prompt": True}
    write = [[3, 1], [0, 5]]  # the first column of a chunk, and the last
    factors = torch.tensor([-2.0, 3.0]).view(1, 2, 1)
    change = Change(place, write, (1,), lambda old, n, k: old * factors[0, k])
    scale = at(intervention=lambda b: b * factors[:, : b.shape[1]], max_number_of_units=2)
    got = generated(IntervenableModel(scale, model), prompt, None, {"base": [write]}, steps=1, **chunks)
    check_same(got, run_loop(model, prompt, "greedy", change))
    source = tokens(2, 6, 9)
    (value,) = grab(model, source, place)
    change = Change(place, [list(range(6))] * 2, (), lambda old, n, k: value[n, k])
    check_same(
        generated(IntervenableModel(at(), model), prompt, source, **chunks), run_loop(model, prompt, "greedy", change)
    )
    look = IntervenableModel(at(intervention_type=CollectIntervention), model)
    seen = look.generate(prompt, return_dict=True, max_new_tokens=2, do_sample=False, **chunks).collected_activations[0]
    torch.testing.assert_close(torch.cat(seen, 1), grab(model, prompt, place)[0].detach())


def test_the_model_is_as_it_was():
    model = new_model("llama")
    before = model.generation_config.to_dict()
    face = IntervenableModel(at(intervention=lambda b: -b), model)
    face.generate(tokens(2, 5), max_new_tokens=2, do_sample=False, use_cache=False)
    assert model.generation_config.to_dict() == before
    assert not model.training
