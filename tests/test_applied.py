"""Edits that stay while other code calls the model, against plain hooks that stand meanwhile."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tests.helpers import FAMILIES, HIDDEN, hook_counts, hooked, locus, new_model, padded_tokens, tokens, writer
from torch import Tensor, nn

from align_transformers import (
    AdditionIntervention,
    AlignError,
    CollectIntervention,
    IntervenableModel,
    NeverFiredError,
    PlanError,
    PositionError,
    SpecError,
    VanillaIntervention,
    ZeroIntervention,
    grid,
    one_by_one,
)
from align_transformers.planners import DEFAULT

NEW = 5


@pytest.fixture
def model() -> Any:
    return new_model("llama")


@pytest.fixture(params=FAMILIES)
def any_model(request: pytest.FixtureRequest) -> Any:
    return new_model(request.param)


def vector(seed: int = 0) -> Tensor:
    return torch.randn(HIDDEN, generator=torch.Generator().manual_seed(seed))


def adding(model: nn.Module, component: str = "block_output", layer: int = 1, **more: Any) -> IntervenableModel:
    spec = {"layer": layer, "component": component, "intervention_type": AdditionIntervention, **more}
    return IntervenableModel(spec, model)


def function(model: nn.Module, component: str, intervention: Any, layer: int = 1) -> IntervenableModel:
    return IntervenableModel({"layer": layer, "component": component, "intervention": intervention}, model)


@torch.no_grad()
def logits(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    return model(**inputs).logits


def text(model: Any, inputs: dict[str, Tensor], **more: Any) -> Tensor:
    return model.generate(**inputs, max_new_tokens=NEW, do_sample=False, **more)


@contextmanager
def steered(model: Any, columns: list[int] | None, by: Tensor, component: str = "block_output"):
    """Add a vector at some columns of the whole text, `None` for all, of one cached generation or pass at a time."""
    place, begun = locus(model, component, 1), 0

    def touch(tensor: Tensor) -> Tensor:
        nonlocal begun
        tensor, length = tensor.clone(), tensor.shape[1]
        for column in range(begun, begun + length):
            if columns is None or column in columns:
                tensor[:, column - begun] += by
        begun += length
        return tensor

    with hooked((place.module, place.side, touch)):
        yield


def as_new(model: nn.Module) -> None:
    assert not any(name in vars(model) for name in ("forward", "_call_impl", "generate"))
    assert not any(hook_counts(model).values())


def own_loop(model: Any, inputs: dict[str, Tensor], count: int = NEW, cache: Any = None) -> Any:
    """Yield the text so far after every forward pass of a cached loop, greedily."""
    ids, given, mask = inputs["input_ids"], inputs["input_ids"], inputs["attention_mask"]
    for _ in range(count):
        with torch.no_grad():
            out = model(input_ids=given, attention_mask=mask, past_key_values=cache, use_cache=True)
        cache, given = out.past_key_values, out.logits[:, -1:].argmax(-1)
        ids, mask = torch.cat([ids, given], 1), torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        yield ids


# --- forward passes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_passes_of_any_size_are_edited_at_their_own_last_tokens(any_model: Any, side: str) -> None:
    model = any_model
    by, place, batches = (
        vector(),
        locus(model, "mlp_output", 1),
        [padded_tokens(n, side) for n in ([5, 3, 4], [2], [6])],
    )
    expected = []
    for inputs in batches:
        last = [[int(row.nonzero().max())] for row in inputs["attention_mask"]]
        with hooked(writer(place, last, lambda old, _: old + by)):
            expected.append(logits(model, inputs))
    with adding(model, "mlp_output").applied(-1, by) as edits:
        got = [logits(model, inputs) for inputs in batches]
    assert all(map(torch.equal, got, expected))
    (effect,) = edits.effects
    assert (edits.calls, effect.fired, effect.rows, effect.positions) == (3, 3, 5, 5)
    assert effect.change == pytest.approx(float(by.norm()) * 5**0.5, rel=1e-4)
    as_new(model)
    assert torch.equal(logits(model, batches[0]), logits(new_model(model.config.model_type), batches[0]))


def test_locations_written_out_for_each_example_fit_calls_with_that_many(model: Any) -> None:
    by, seen = vector(), []
    model.register_forward_pre_hook(lambda *_: seen.append("pass"))
    with adding(model).applied([[[1], [2]]], by):
        logits(model, tokens(2, 4))
        with pytest.raises(SpecError, match="names 2 examples, but the batch has 3"):
            logits(model, tokens(3, 4))
        with pytest.raises(PositionError):
            logits(model, tokens(2, 2))
    assert seen == ["pass"]


def test_heads_and_gradients(model: Any) -> None:
    inputs, by = tokens(2, 4), vector()[: locus(model, "head_query_output", 1).head_dim].requires_grad_()
    place, size = locus(model, "query_output", 1), len(by)

    def touch(tensor: Tensor) -> Tensor:
        return torch.cat([tensor[..., : 2 * size], tensor[..., 2 * size : 3 * size] + by, tensor[..., 3 * size :]], -1)

    with hooked((place.module, "output", touch)):
        (expected,) = torch.autograd.grad(model(**inputs).logits.square().sum(), by)
    with adding(model, "head_query_output", unit="h").applied(2, by):
        output = model(**inputs).logits
    assert torch.allclose(torch.autograd.grad(output.square().sum(), by)[0], expected, rtol=1e-4)


# --- generation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{}, {"num_beams": 2}, {"use_cache": False}], ids=str)
def test_a_generation_is_edited_from_its_prompt_on(any_model: Any, more: dict[str, Any]) -> None:
    model = any_model
    inputs, by, place = padded_tokens([5, 3], "left"), 3 * vector(2), locus(model, "block_output", 1)
    with hooked((place.module, "output", lambda tensor: tensor + by)):
        expected = text(model, inputs, **more)
    plain = text(model, inputs, **more)
    assert not torch.equal(expected, plain)
    with adding(model).applied(source_representations=by):
        first, second = text(model, inputs, **more), text(model, inputs, **more)
        by_place = model.generate(
            inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=NEW, **more
        )
    assert torch.equal(first, expected)
    assert torch.equal(second, expected)
    assert torch.equal(by_place, expected)
    assert torch.equal(text(model, inputs, **more), plain)
    as_new(model)


def test_places_of_the_prompt_and_numbered_tokens(model: Any) -> None:
    inputs, by = tokens(2, 4), vector()
    for options, columns in [
        ({"unit_locations": -1}, [3]),
        ({"unit_locations": -1, "steps": [1, 3]}, [3, 5, 7]),
        ({"unit_locations": {"base": 1}, "steps": "all"}, [1, 4, 5, 6, 7]),
        ({"intervene_on_prompt": False, "steps": 2}, [6]),
        ({"intervene_on_prompt": False}, [4, 5, 6, 7]),
    ]:
        with steered(model, columns, by):
            expected = text(model, inputs)
        with adding(model).applied(source_representations=by, **options):
            assert torch.equal(text(model, inputs), expected), options


def test_loops_of_ones_own_go_on_with_the_text_of_their_cache(any_model: Any) -> None:
    model = any_model
    by, inputs = vector(), [tokens(2, 4, 1), tokens(1, 5, 2)]
    expected = []
    for one in inputs:
        length = one["input_ids"].shape[1]
        with steered(model, [length - 1, length + 1], by):
            expected.append([*own_loop(model, one)])
    with adding(model).applied(-1, by, steps=1) as edits:
        in_turn = zip(*(own_loop(model, one) for one in inputs), strict=True)
        got = list(zip(*in_turn, strict=True))
    for one, two in zip(got, expected, strict=True):
        assert all(map(torch.equal, one, two))
    assert edits.calls == 2 * NEW


def test_a_cache_that_was_filled_before_stands_before_the_prompt(model: Any) -> None:
    before, after, by = tokens(1, 3, 1), tokens(1, 4, 2), vector()
    whole = {name: torch.cat([before[name], after[name]], 1) for name in before}
    with steered(model, [3 + 2, 3 + 4], by):
        expected = [*own_loop(model, whole)]
    with torch.no_grad():
        cache = model(**before, use_cache=True).past_key_values
    with adding(model).applied(2, by, steps=0):
        got = [*own_loop(model, {**after, "attention_mask": whole["attention_mask"]}, cache=cache)]
    assert torch.equal(got[-1], expected[-1][:, 3:])


def test_caches_are_not_held_on_to(model: Any) -> None:
    with torch.no_grad(), adding(model).applied(source_representations=vector()):
        cache = weakref.ref(model(**tokens(1, 4), use_cache=True).past_key_values)
        gc.collect()
        assert cache() is None


def test_a_cache_goes_on_with_other_rows_where_no_example_is_told_from_others(model: Any) -> None:
    inputs, by = tokens(3, 4), torch.stack([vector(1), vector(2), vector(3)])[:, None]
    for value, fits in [(by[0, 0], True), (by, False)]:
        with torch.no_grad(), adding(model).applied(source_representations=value):
            cache = model(**inputs, use_cache=True).past_key_values
            cache.batch_select_indices(torch.tensor([0, 2]))
            if fits:
                got = model(input_ids=inputs["input_ids"][[0, 2], :1], past_key_values=cache).logits
            else:
                with pytest.raises(PlanError, match="made of 3 examples and is continued with 2"):
                    model(input_ids=inputs["input_ids"][[0, 2], :1], past_key_values=cache)
    whole = torch.cat([inputs["input_ids"], inputs["input_ids"][:, :1]], 1)[[0, 2]]
    with steered(model, None, by[0, 0]):
        assert torch.allclose(got[:, -1], logits(model, {"input_ids": whole})[:, -1], atol=1e-5)


def test_an_emptied_cache_begins_a_new_text() -> None:
    from transformers import StaticCache

    model, inputs, by = new_model("llama"), tokens(1, 4), vector()
    cache = StaticCache(model.config, max_cache_len=16)
    with steered(model, [3], by):
        expected = [*own_loop(model, inputs, 3)]
    with adding(model).applied(-1, by):
        for _ in range(2):
            got = [*own_loop(model, inputs, 3, cache)]
            assert torch.equal(got[-1], expected[-1])
            cache.reset()


# --- several at once --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("component", ["block_output", "block_input", "query_rotary", "attention_pattern"])
def test_contexts_in_one_another_act_in_the_order_in_which_they_were_opened(component: str) -> None:
    model, inputs = new_model("llama"), tokens(2, 4)
    halved, squared = (lambda old: old / 2 + 1), (lambda old: old * old)
    both = {name: function(model, component, what) for name, what in [("halved", halved), ("squared", squared)]}
    for first, second in [("halved", "squared"), ("squared", "halved")]:
        one = {"halved": halved, "squared": squared}
        expected = function(model, component, lambda old, f=one[first], g=one[second]: g(f(old)))(inputs)[1].logits
        with torch.no_grad(), both[first].applied() as outer:
            with both[second].applied() as inner:
                assert torch.allclose(logits(model, inputs), expected, atol=1e-6)
            alone = logits(model, inputs)
        assert torch.allclose(alone, both[first](inputs)[1].logits, atol=1e-6)
        assert (outer.calls, inner.calls) == (2, 1)
    as_new(model)


@pytest.mark.parametrize("planner", [one_by_one, DEFAULT], ids=["one_by_one", "default"])
@pytest.mark.parametrize(
    ("stays", "comes"),
    [
        ("block_output", "block_output"),
        ("block_input", "block_input"),
        ("query_rotary", "query_rotary"),
        ("head_output", "attention_pattern"),
        ("attention_pattern", "query_rotary"),
        ("query_rotary", "attention_pattern"),
    ],
)
def test_runs_of_an_intervenable_model_see_the_edited_model(stays: str, comes: str, planner: Any) -> None:
    model, inputs = new_model("llama"), tokens(2, 4)
    first, second = (lambda old: old / 2 + 0.1), (lambda old: old * old)
    spec = [
        {"layer": 1, "component": stays, "intervention": first},
        {"layer": 1, "component": comes, "intervention": second},
    ]
    expected = IntervenableModel(spec, model, planner=one_by_one)(inputs)[1].logits
    plain = logits(model, inputs)
    with torch.no_grad(), function(model, stays, first).applied():
        original, edited = IntervenableModel(spec[1], model, planner=planner)(inputs, output_original_output=True)
    assert torch.allclose(edited.logits, expected, atol=1e-6)
    assert torch.allclose(original.logits, function(model, stays, first)(inputs)[1].logits, atol=1e-6)
    assert not torch.equal(original.logits, plain)


def test_a_generation_of_an_intervenable_model_sees_the_edited_model(model: Any) -> None:
    inputs, by, more = tokens(2, 4), vector(1), vector(2)
    with steered(model, None, by), steered(model, [4, 5, 6, 7], more, "mlp_output"):
        expected = text(model, inputs)
    with adding(model).applied(source_representations=by):
        face = adding(model, "mlp_output")
        _, got = face.generate(inputs, source_representations=more, max_new_tokens=NEW, do_sample=False)
    assert torch.equal(got, expected)


def test_hidden_states_are_those_of_the_edited_model(any_model: Any) -> None:
    model = any_model
    inputs, by = tokens(1, 4), vector()
    with torch.no_grad(), adding(model).applied(source_representations=by):
        states = model(**inputs, output_hidden_states=True).hidden_states
    plain = model(**inputs, output_hidden_states=True).hidden_states
    assert torch.equal(states[2], plain[2] + by)


def test_an_intervention_that_runs_the_model_sees_it_without_the_edits(model: Any) -> None:
    inputs, inner = tokens(1, 4), []
    plain = logits(model, inputs)

    def zero(old: Tensor) -> Tensor:
        inner.append(logits(model, inputs))
        return old * 0

    with function(model, "mlp_output", zero).applied() as edits:
        logits(model, inputs)
    assert torch.equal(inner[0], plain)
    assert (len(inner), edits.calls) == (1, 1)


# --- other callers ----------------------------------------------------------------------------------------------------


def test_a_thread_is_plain_unless_it_is_taken_along(model: Any) -> None:
    inputs, by, found = tokens(2, 4), vector(), {}

    def run(name: str, generate: Any) -> None:
        found[name] = text_of(generate)

    def text_of(generate: Any) -> Tensor:
        return generate(**inputs, max_new_tokens=NEW, do_sample=False)

    plain = text_of(model.generate)
    with steered(model, None, by):
        expected = text_of(model.generate)
    with adding(model).applied(source_representations=by) as edits:
        jobs = [
            ("plain", model.generate),
            ("one", edits.in_context(model.generate)),
            ("two", edits.in_context(model.generate)),
        ]
        threads = [threading.Thread(target=run, args=job) for job in jobs]
        for thread in threads:
            thread.start()
        here = text_of(model.generate)
        for thread in threads:
            thread.join(60)
        late = edits.in_context(model.generate)
    assert torch.equal(here, expected)
    assert torch.equal(found["one"], expected)
    assert torch.equal(found["two"], expected)
    assert torch.equal(found["plain"], plain)
    assert edits.calls == 3
    with pytest.raises(PlanError, match="no longer applied"):
        late(**inputs)


def test_tasks_that_take_turns_have_edits_of_their_own(model: Any) -> None:
    inputs = tokens(1, 4)

    async def loop(by: Tensor | None) -> Tensor:
        steps = own_loop(model, inputs)
        if by is None:
            return [(step, await asyncio.sleep(0))[0] for step in steps][-1]
        with adding(model).applied(source_representations=by):
            return [(step, await asyncio.sleep(0))[0] for step in steps][-1]

    async def all_of_them() -> list[Tensor]:
        return await asyncio.gather(*map(loop, (vector(1), None, vector(2))))

    expected = []
    for by in (vector(1), torch.zeros(HIDDEN), vector(2)):
        with steered(model, None, by):
            expected.append([*own_loop(model, inputs)][-1])
    assert all(map(torch.equal, asyncio.run(all_of_them()), expected))
    as_new(model)


def test_a_pipeline(model: Any) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, pipeline

    inner = Tokenizer(models.WordLevel({"<pad>": 0} | {f"w{k}": k for k in range(1, 61)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", padding_side="left")
    writes = pipeline("text-generation", model=model, tokenizer=tokenizer, max_new_tokens=NEW, do_sample=False)
    prompts, by = ["w3 w4 w5", "w7 w8"], vector()
    place = locus(model, "block_output", 1)
    with hooked((place.module, "output", lambda tensor: tensor + by)):
        expected = writes(prompts, batch_size=2)
    plain = writes(prompts, batch_size=2)
    with adding(model).applied(source_representations=by):
        assert writes(prompts, batch_size=2) == expected
    assert plain != expected
    assert writes(prompts, batch_size=2) == plain


@pytest.mark.filterwarnings("ignore")
def test_an_evaluation_by_a_trainer(tmp_path: Any) -> None:
    from transformers import Trainer, TrainingArguments

    model, by = new_model("llama"), vector()
    rows = [{"input_ids": ids, "labels": ids} for ids in tokens(3, 5)["input_ids"]]
    options = {"use_cpu": True, "per_device_eval_batch_size": 2, "report_to": [], "disable_tqdm": True}
    trainer = Trainer(model, TrainingArguments(str(tmp_path), **options), eval_dataset=rows)
    place, plain = locus(model, "block_output", 1), trainer.evaluate()["eval_loss"]
    with hooked((place.module, "output", lambda tensor: tensor + by)):
        expected = trainer.evaluate()["eval_loss"]
    with adding(model).applied(source_representations=by) as edits:
        assert trainer.evaluate()["eval_loss"] == expected
    assert (edits.calls, edits.effects[0].rows) == (2, 3)
    assert trainer.evaluate()["eval_loss"] == plain != expected


def test_a_model_that_is_called_by_its_wrapper_without_hooks(model: Any) -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = model

        def forward(self, ids: Tensor) -> Tensor:
            return self.inside.forward(ids).logits  # as adapters do

    inputs, by, place = tokens(2, 4), vector(), locus(model, "block_output", 1)
    with hooked((place.module, "output", lambda tensor: tensor + by)):
        expected = Wrapper()(inputs["input_ids"])
    with adding(model).applied(source_representations=by):
        assert torch.equal(Wrapper()(inputs["input_ids"]), expected)


# --- what is told, and what is refused --------------------------------------------------------------------------------


def test_what_is_collected(model: Any) -> None:
    batches = [tokens(2, 4, 1), tokens(3, 6, 2)]
    spec = {"layer": 1, "component": "block_output", "intervention_type": CollectIntervention}
    with torch.no_grad(), IntervenableModel(spec, model).applied(-1) as edits:
        for inputs in batches:
            model(**inputs)
    states = [model(**inputs, output_hidden_states=True).hidden_states[2][:, -1:] for inputs in batches]
    (seen,), (real,) = edits.collected_activations, edits.collected_masks
    assert all(map(torch.equal, seen, states))
    assert [mask.shape for mask in real] == [(2, 1), (3, 1)]


def test_an_error_passes_through_and_leaves_the_model_as_it_was(model: Any) -> None:
    face, by, inputs = adding(model), vector(), tokens(1, 4)
    with pytest.raises(KeyError, match="mine"), face.applied(source_representations=by):
        raise KeyError("mine")  # though nothing was called
    as_new(model)

    def fails(*_: Any) -> None:
        raise ValueError("in the model")

    with face.applied(source_representations=by) as edits:
        with hooked((model.get_submodule(list(dict(model.named_modules()))[-1]), "output", fails)):
            with pytest.raises(ValueError, match="in the model"):
                model(**inputs)
            with pytest.raises(ValueError, match="in the model"):
                model.generate(**inputs, max_new_tokens=2)
        after = logits(model, inputs)
    with steered(model, None, by):
        assert torch.equal(after, logits(model, inputs))
    assert (edits.calls, edits.effects[0].fired) == (3, 3)
    as_new(model)


def test_edits_that_never_act_are_an_error(model: Any) -> None:
    face, by = adding(model), vector()
    with pytest.raises(NeverFiredError, match="was not called"), face.applied(source_representations=by):
        pass
    with (
        pytest.raises(NeverFiredError, match="layer 1 block_output"),
        face.applied(None, by, intervene_on_prompt=False),
    ):
        logits(model, tokens(1, 4))
    with pytest.raises(NeverFiredError), face.applied(None, by, steps=7, intervene_on_prompt=False):
        text(model, tokens(1, 4))
    as_new(model)


def test_what_cannot_be_applied_is_refused_at_once(model: Any) -> None:
    swap = IntervenableModel({"layer": 1, "component": "mlp_output", "intervention_type": VanillaIntervention}, model)
    with pytest.raises(PlanError, match="calls of the model bring none"):
        swap.applied()
    with pytest.raises(SpecError, match="steps"):
        adding(model).applied(source_representations=vector(), steps="some")
    with pytest.raises(AlignError):
        adding(model).applied(source_representations=[vector(), vector()])
    compiled = IntervenableModel(swap.config, torch.compile(model, backend="eager"))
    with pytest.raises(PlanError, match="is compiled"):
        compiled.applied(source_representations=vector())


def test_a_swap_with_activations_that_were_collected_before(model: Any) -> None:
    swap = IntervenableModel({"layer": 1, "component": "mlp_output", "intervention_type": VanillaIntervention}, model)
    base, source = tokens(2, 4, 1), tokens(2, 4, 2)
    expected = swap(base, source, -1)[1].logits
    spec = {"layer": 1, "component": "mlp_output", "intervention_type": CollectIntervention}
    seen = IntervenableModel(spec, model)(source, unit_locations=-1, return_dict=True).collected_activations[0]
    with swap.applied(-1, seen):
        assert torch.allclose(logits(model, base), expected, atol=1e-6)


def test_what_is_kept_of_the_plain_model_is_not_mixed_with_the_edited_one(model: Any, tmp_path: Any) -> None:
    base, source = tokens(1, 3, 1), tokens(1, 3, 2)
    options = {"answers": (4, 5), "components": ["block_output"]}
    with pytest.raises(SpecError, match="store"), adding(model).applied(source_representations=vector()):
        grid(model, base, source, store=tmp_path / "cells", **options)
    with torch.no_grad(), function(model, "mlp_output", lambda old: old * 0, layer=0).applied():
        table = grid(model, base, source, **options)
    assert set(table.meta["passes"]) == {"full"}


def test_padding_is_tried_on_the_model_without_the_edits() -> None:
    model, inputs, seen = new_model("gpt2"), padded_tokens([5, 3], "left"), []
    model.transformer.h[0].register_forward_hook(lambda *_: seen.append("pass"))
    zero = IntervenableModel({"layer": 1, "component": "mlp_output", "intervention_type": ZeroIntervention}, model)
    steering, warned = adding(model).applied(source_representations=vector()), pytest.warns(UserWarning, match="left")
    with torch.no_grad(), steering as edits, warned:
        zero(inputs)
    assert (seen, edits.calls) == (["pass"], 1)
