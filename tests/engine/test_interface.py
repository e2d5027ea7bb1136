"""What attention gets, computes and gives, against attention written out by hand in this file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import pytest
import torch
import transformers
from tests.helpers import HIDDEN, VOCAB, hook_counts, new_model, padded_tokens, placed, tokens
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.moe import ExpertsInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from align_transformers import (
    AdditionIntervention,
    CollectIntervention,
    IntervenableModel,
    SiteError,
    VanillaIntervention,
    ZeroIntervention,
)

LAYER, HEADS, LENGTH = 1, 4, 6
STAGES = ("query_rotary", "key_rotary", "attention_score", "attention_pattern", "head_output")
FUSED = ("llama", "gpt2", "gemma3")
"""Models that run under sdpa; the others are eager only (a cap on the scores, a sink)."""
ALL = (*FUSED, "gemma2", "gpt_oss")

_COMMON = {
    "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": 40, "num_hidden_layers": 3,
    "num_attention_heads": HEADS, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
    "sliding_window": 3, "layer_types": ["full_attention", "sliding_attention", "full_attention"],
    "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None, "initializer_range": 0.3,
}  # fmt: skip
_MODELS = {
    "gemma2": ("Gemma2", {"query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0}),
    "gemma3": ("Gemma3", {"query_pre_attn_scalar": 8}),
    "gpt_oss": ("GptOss", {"num_local_experts": 4, "num_experts_per_tok": 2}),
}


@lru_cache(maxsize=16)
def model_of(name: str, attention: str) -> PreTrainedModel:
    """Return a random model that all tests share; those named differ in how they attend, not in their weights."""
    if name not in _MODELS:
        model = new_model(name)
    else:
        family, more = _MODELS[name]
        text = "Gemma3Text" if family == "Gemma3" else family
        torch.manual_seed(0)
        config = getattr(transformers, f"{text}Config")(**_COMMON, **more, attn_implementation="eager")
        model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data.normal_(0, 0.3)
    model.set_attn_implementation(attention)
    return model


# --- the oracle: attention by hand, under a name of its own ---------------------------------------------------------

Touch = Callable[[Tensor], Tensor]
_touches: dict[tuple[int, str], Touch] = {}
"""By layer and stage: given a private copy of the tensor `(batch, heads, length, ...)`, returns the new one."""


def by_hand(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor]:
    def at(stage: str, tensor: Tensor) -> Tensor:
        touch = _touches.get((module.layer_idx, stage))
        return tensor if touch is None else touch(tensor.clone())

    query, key = at("query_rotary", query), at("key_rotary", key)
    shared = query.shape[1] // key.shape[1]
    keys, values = (torch.stack([t[:, h // shared] for h in range(query.shape[1])], 1) for t in (key, value))
    scores = torch.einsum("bhqd,bhkd->bhqk", query, keys) * options["scaling"]
    if options.get("softcap"):
        scores = options["softcap"] * torch.tanh(scores / options["softcap"])
    if attention_mask is not None:
        scores = scores + attention_mask
    scores = at("attention_score", scores)
    if options.get("s_aux") is not None:
        sink = options["s_aux"].view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        pattern = torch.cat([scores, sink], -1).softmax(-1)[..., :-1]
    else:
        pattern = scores.softmax(-1)
    pattern = at("attention_pattern", pattern)
    core = at("head_output", torch.einsum("bhqk,bhkd->bhqd", pattern, values))
    return core.transpose(1, 2), pattern


def by_hand_in_one_layer(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """Attend by hand in the layer under test and with the fused kernel elsewhere.

    The kernel gives padded queries other values than eager attention, which a swapped score or pattern may let through.
    """
    if module.layer_idx != LAYER:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    length = query.shape[2]
    seen = torch.ones(1, 1, length, length).tril().bool() if attention_mask is None else attention_mask
    lowest = torch.finfo(query.dtype).min
    return by_hand(module, query, key, value, torch.zeros(seen.shape).masked_fill(~seen, lowest), **options)


for _name, _function, _mask in (("eager", by_hand, eager_mask), ("sdpa", by_hand_in_one_layer, sdpa_mask)):
    AttentionInterface.register(f"by_hand_{_name}", _function)
    AttentionMaskInterface.register(f"by_hand_{_name}", _mask)


@contextmanager
def touching(**stages: Touch) -> Iterator[None]:
    """Let touches act in the layer under test."""
    _touches.update({(LAYER, stage): touch for stage, touch in stages.items()})
    try:
        yield
    finally:
        _touches.clear()


@contextmanager
def attending_by_hand(name: str, way: str, **stages: Touch) -> Iterator[PreTrainedModel]:
    """Lend the model with attention done by hand, with touches at stages of the layer under test."""
    model = model_of(name, way)
    model.set_attn_implementation(f"by_hand_{way}")
    try:
        with touching(**stages):
            yield model
    finally:
        model.set_attn_implementation(way)


def oracle(name: str, way: str, inputs: dict[str, Tensor], **stages: Touch) -> Tensor:
    """Return the logits when attention is done by hand."""
    with attending_by_hand(name, way, **stages) as model, torch.no_grad():
        return model(**inputs, use_cache=False).logits


def seen_by_hand(name: str, way: str, inputs: dict[str, Tensor], stage: str) -> Tensor:
    """Return what stands at a stage, `(batch, heads, length, ...)`."""
    seen: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        seen.append(tensor.clone())
        return tensor

    oracle(name, way, inputs, **{stage: note})
    return seen[0]


# --- helpers ---------------------------------------------------------------------------------------------------------


def padded(seed: int = 0) -> dict[str, Tensor]:
    """Return two prompts; the second is padded on the left by one, the first by nothing."""
    return placed(padded_tokens((LENGTH, LENGTH - 1), "left", seed))


def real(inputs: dict[str, Tensor]) -> Tensor:
    return inputs["attention_mask"].bool()


def face(model: nn.Module, component: str, unit: str, kind: Any, most: int = 8, **more: Any) -> IntervenableModel:
    spec = {"layer": LAYER, "component": component, "unit": unit, "max_number_of_units": most, **more}
    return IntervenableModel({**spec, "intervention_type": kind}, model)


def flat(tensor: Tensor) -> Tensor:
    """Return `(batch, heads, length, size)` as the library shows it: `(batch, length, heads * size)`."""
    return tensor.transpose(1, 2).flatten(2)


def close(got: Tensor, expected: Tensor, inputs: dict[str, Tensor]) -> None:
    """Compare at real tokens: what padding computes is nobody's business (fused and eager masks differ there)."""
    torch.testing.assert_close(got[real(inputs)], expected[real(inputs)], rtol=1e-4, atol=2e-5)


def ways(names: tuple[str, ...] = ALL) -> list[Any]:
    return [(name, way) for name in names for way in ("sdpa", "eager") if way == "eager" or name in FUSED]


every_way = pytest.mark.parametrize(("name", "way"), ways())
plain_softmax = pytest.mark.parametrize(("name", "way"), ways(FUSED))


# --- looking ---------------------------------------------------------------------------------------------------------


@every_way
@pytest.mark.parametrize("stage", STAGES)
def test_what_is_collected_and_that_looking_changes_nothing(name: str, way: str, stage: str) -> None:
    if stage == "attention_score" and name not in FUSED:
        pytest.skip("scores behind a cap or a sink are refused: test_scores_under_a_cap_or_a_sink_are_refused")
    inputs, model = padded(), model_of(name, way)
    with torch.no_grad():
        plain = model(**inputs).logits
        got = face(model, stage, "pos", CollectIntervention)(inputs, return_dict=True)
    assert torch.equal(got.intervened_outputs.logits, plain)
    expected, seen = flat(seen_by_hand(name, way, inputs, stage)), got.collected_activations[0]
    if stage == "attention_score":
        masked = expected < -1e9
        assert (seen[real(inputs)][masked[real(inputs)]] < -1e14).all()
        expected, seen = expected.masked_fill(masked, 0), seen.masked_fill(masked, 0)
    close(seen, expected, inputs)


@every_way
def test_rows_of_the_pattern(name: str, way: str) -> None:
    inputs, model = padded(), model_of(name, way)
    got = face(model, "attention_pattern", "pos", CollectIntervention)(inputs, return_dict=True)
    pattern = got.collected_activations[0].view(2, LENGTH, HEADS, LENGTH)  # example, query, head, key
    rows = pattern[real(inputs)].sum(-1)
    if name == "gpt_oss":
        assert (rows < 1).all()  # the rest goes to the sink
    else:
        torch.testing.assert_close(rows, torch.ones_like(rows))
    assert not pattern[1, 1:, :, 0].any()  # the padded key
    ahead = torch.ones(LENGTH, LENGTH).triu(1).bool()
    assert not pattern.transpose(1, 2)[0][:, ahead].any()
    if name in _MODELS:  # the layer under test looks back at most 3 tokens
        behind = torch.ones(LENGTH, LENGTH).tril(-3).bool()
        assert not pattern.transpose(1, 2)[0][:, behind].any()


@plain_softmax
def test_one_head_at_one_position_is_collected(name: str, way: str) -> None:
    inputs, model = padded(), model_of(name, way)
    where = {"base": [[[[2], [0]], [[3], [5]]]]}
    got = face(model, "attention_pattern", "h.pos", CollectIntervention)(inputs, None, where, return_dict=True)
    pattern = seen_by_hand(name, way, inputs, "attention_pattern")
    expected = torch.stack([pattern[0, 2, 3], pattern[1, 0, 5]])[:, None]
    torch.testing.assert_close(got.collected_activations[0], expected, rtol=1e-4, atol=1e-5)


# --- writing ---------------------------------------------------------------------------------------------------------


def written(stage: str, kind: str, source: Tensor, unit: str) -> tuple[Touch, dict[str, Any]]:
    """Return the touch by hand, and the locations, of one edit: different heads and positions for every example."""
    heads = 2 if stage == "key_rotary" and source.shape[1] == 2 else source.shape[1]
    chosen = [(example, head % heads, query) for example, head, query in ((0, 2, 3), (1, 0, 5))]
    size = source.shape[-1]

    def touch(tensor: Tensor) -> Tensor:
        for example, head, query in chosen:
            at: tuple[Any, ...] = {
                "pos": (example, slice(None), query),
                "h": (example, head, slice(None)),
                "h.pos": (example, head, query),
            }[unit]
            tensor[at] = {"swap": source[at], "zero": torch.zeros(size), "add": tensor[at] + 0.5}[kind]
        return tensor

    by_heads, by_positions = [[head] for _, head, _ in chosen], [[query] for _, _, query in chosen]
    where = {"pos": [by_positions], "h": [by_heads], "h.pos": [[by_heads, by_positions]]}[unit]
    return touch, {"sources->base": (where, where)} if kind == "swap" else {"base": where}


KINDS = {"swap": VanillaIntervention, "zero": ZeroIntervention, "add": AdditionIntervention}


@every_way
@pytest.mark.parametrize("stage", STAGES)
def test_edits(name: str, way: str, stage: str) -> None:
    if stage == "attention_score" and name not in FUSED:
        pytest.skip("scores behind a cap or a sink are refused: test_scores_under_a_cap_or_a_sink_are_refused")
    base, source, model = padded(1), tokens(2, LENGTH, 2), model_of(name, way)
    value, plain = seen_by_hand(name, way, source, stage), oracle(name, way, base)
    for unit in ("pos", "h", "h.pos"):
        for kind, intervention in KINDS.items():
            touch, where = written(stage, kind, value, unit)
            edit = face(model, stage, unit, intervention)
            with torch.no_grad():
                constant = torch.tensor(0.5) if kind == "add" else None
                got = edit(base, source if kind == "swap" else None, where, constant, return_dict=True)
            expected = oracle(name, way, base, **{stage: touch})
            close(got.intervened_outputs.logits, expected, base)
            unseen = kind == "add" and stage in ("attention_score", "key_rotary")  # the same sum for every key
            assert unseen or not torch.allclose(expected[real(base)], plain[real(base)], atol=1e-3)
            assert got.effects[0].fired == 1
            assert got.effects[0].change < float("inf")


@every_way
def test_a_zeroed_row_of_the_pattern_zeroes_the_heads_output_there(name: str, way: str) -> None:
    inputs, model = padded(), model_of(name, way)
    both = IntervenableModel(
        [
            {"layer": LAYER, "component": "attention_pattern", "unit": "h.pos", "intervention_type": ZeroIntervention},
            {"layer": LAYER, "component": "head_output", "unit": "pos", "intervention_type": CollectIntervention,
             "max_number_of_units": LENGTH},
        ],
        model,
    )  # fmt: skip
    heads = [[[[2], [0]], [[3], [5]]], None]
    where = [heads[0], [list(range(LENGTH)), list(range(1, LENGTH))]]
    alone = face(model, "head_output", "pos", CollectIntervention)(inputs, return_dict=True).collected_activations[0]
    got = both(inputs, None, {"base": where}, return_dict=True)
    seen, mask = got.collected_activations[0], got.collected_masks[0]
    expected = alone.clone().view(2, LENGTH, HEADS, -1)
    expected[0, 3, 2] = expected[1, 5, 0] = 0
    expected = expected.flatten(2)
    assert torch.equal(seen[0], expected[0])  # the rows that nobody touched: bit for bit
    assert torch.equal(seen[1][mask[1]], expected[1, 1:])


@plain_softmax
@pytest.mark.parametrize("amount", [-1e9, -float("inf"), torch.finfo(torch.float32).min])
def test_attention_knockout(name: str, way: str, amount: float) -> None:
    """Geva et al. 2023: a head no longer sees one key. By hand: its row of the softmax without that key."""
    inputs, model = padded(), model_of(name, way)
    vector = torch.zeros(LENGTH)
    vector[4] = amount
    got = face(model, "attention_score", "h.pos", AdditionIntervention)(
        inputs, None, {"base": [[[[2], [0]], [[4], [5]]]]}, vector
    )[1].logits

    def without_key(pattern: Tensor) -> Tensor:
        for example, head, query in ((0, 2, 4), (1, 0, 5)):
            row = pattern[example, head, query]
            row[4] = 0
            pattern[example, head, query] = row / row.sum()
        return pattern

    close(got, oracle(name, way, inputs, attention_pattern=without_key), inputs)


@plain_softmax
def test_scores_swapped_across_different_masks(name: str, way: str) -> None:
    """A source without padding gives the padded key a score: the ledger stays finite, the softmax is that of hand."""
    base, source, model = padded(1), tokens(2, LENGTH, 2), model_of(name, way)
    value = seen_by_hand(name, way, source, "attention_score")
    got = face(model, "attention_score", "pos", VanillaIntervention)(base, source, {"sources->base": 3},
                                                                     return_dict=True)  # fmt: skip

    def swap(scores: Tensor) -> Tensor:
        scores[:, :, 3] = value[:, :, 3]
        return scores

    close(got.intervened_outputs.logits, oracle(name, way, base, attention_score=swap), base)
    assert 0 < got.effects[0].change < float("inf")


@pytest.mark.parametrize("name", ["gemma2", "gpt_oss"])
@pytest.mark.parametrize("kind", [CollectIntervention, ZeroIntervention])
def test_scores_under_a_cap_or_a_sink_are_refused(name: str, kind: Any) -> None:
    model = model_of(name, "eager")
    with pytest.raises(SiteError, match=r"more than a softmax \(a cap or a sink\): edit attention_pattern"):
        face(model, "attention_score", "pos", kind)(padded(), return_dict=True)


# --- gradients -------------------------------------------------------------------------------------------------------


@plain_softmax
def test_a_vector_that_changes_nothing_yet_has_a_gradient(name: str, way: str) -> None:
    inputs, model = padded(), model_of(name, way)
    vector = torch.zeros(LENGTH, requires_grad=True)
    edit = face(model, "attention_pattern", "h.pos", AdditionIntervention)
    logits = edit(inputs, None, {"base": [[[[2], [0]], [[3], [5]]]]}, vector)[1].logits
    assert torch.equal(logits, model(**inputs).logits)
    (got,) = torch.autograd.grad(logits[real(inputs)].square().sum(), vector)

    by_hand_vector = torch.zeros(LENGTH, requires_grad=True)

    def add(pattern: Tensor) -> Tensor:
        pattern[0, 2, 3] = pattern[0, 2, 3] + by_hand_vector
        pattern[1, 0, 5] = pattern[1, 0, 5] + by_hand_vector
        return pattern

    with attending_by_hand(name, way, attention_pattern=add) as model:
        expected = torch.autograd.grad(model(**inputs).logits[real(inputs)].square().sum(), by_hand_vector)[0]
    assert got.abs().max() > 0
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


# --- what is left alone ----------------------------------------------------------------------------------------------


def test_only_the_asked_layer_goes_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fused kernel still runs in every layer; eager attention, which shows patterns, in one."""
    from transformers.models.llama import modeling_llama

    model, inputs = model_of("llama", "sdpa"), padded()
    calls: dict[str, list[int]] = {"sdpa": [], "eager": []}

    def counting(which: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(module: Any, *args: Any, **kwargs: Any) -> Any:
            calls[which].append(module.layer_idx)
            return function(module, *args, **kwargs)

        return call

    monkeypatch.setattr(modeling_llama, "eager_attention_forward",
                        counting("eager", modeling_llama.eager_attention_forward))  # fmt: skip
    table = AttentionInterface._global_mapping
    monkeypatch.setitem(table, "sdpa", counting("sdpa", table["sdpa"]))
    asked = face(model, "attention_pattern", "pos", CollectIntervention)
    calls["sdpa"].clear()
    calls["eager"].clear()
    asked(inputs, return_dict=True)
    assert calls == {"sdpa": [0, 1, 2], "eager": [LAYER]}


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_put_back(fails: bool) -> None:
    model, inputs = model_of("llama", "sdpa"), padded()
    lookups = AttentionInterface.get_interface, ExpertsInterface.get_interface
    config, hooks, attributes = model.config.to_dict(), hook_counts(model), set(vars(model.model.layers[LAYER]))

    def edit(base: Tensor, _source: Tensor | None) -> Tensor:
        if fails:
            raise ArithmeticError("on purpose")
        return base * 0

    asked = IntervenableModel({"layer": LAYER, "component": "attention_pattern", "intervention": edit}, model)
    if fails:
        with pytest.raises(ArithmeticError, match="on purpose"):
            asked(inputs, return_dict=True)
    else:
        asked(inputs, return_dict=True)
    assert (AttentionInterface.get_interface, ExpertsInterface.get_interface) == lookups
    assert (model.config.to_dict(), hook_counts(model)) == (config, hooks)
    assert set(vars(model.model.layers[LAYER])) == attributes
    assert model.config._attn_implementation == "sdpa"


def test_the_attentions_that_the_model_returns_are_the_edited_ones() -> None:
    model, inputs = model_of("llama", "eager"), padded()
    edit = face(model, "attention_pattern", "h.pos", ZeroIntervention)
    weights = edit(inputs, None, {"base": [[[[2], [0]], [[3], [5]]]]}, output_attentions=True)[1].attentions
    expected = [w.clone() for w in model(**inputs, output_attentions=True).attentions]
    expected[LAYER][0, 2, 3] = expected[LAYER][1, 0, 5] = 0
    assert torch.equal(weights[0], expected[0])
    assert torch.equal(weights[LAYER], expected[LAYER])


# --- generation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["sdpa", "eager"])
def test_patterns_and_queries_in_generation(way: str) -> None:
    """One new row of the pattern at each step, over all columns so far."""
    model, inputs = model_of("llama", way), padded()
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    got = face(model, "attention_pattern", "pos", CollectIntervention).generate(inputs, return_dict=True, **options)
    text = model.generate(**inputs, **options)
    assert torch.equal(got.intervened_outputs, text)
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, 3, dtype=torch.long)], 1)
    whole = seen_by_hand("llama", way, {"input_ids": text[:, :-1], "attention_mask": mask}, "attention_pattern")
    assert len(got.collected_activations[0]) == 3  # the last token is never processed
    for step, row in enumerate(got.collected_activations[0]):
        columns = LENGTH + step + 1
        expected = whole[:, :, columns - 1, :columns].flatten(1)[:, None]
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("component", ["query_rotary", "key_rotary", "attention_pattern", "head_output"])
@pytest.mark.parametrize("on_prompt", [True, False])
def test_with_and_without_a_cache_the_text_is_the_same(component: str, on_prompt: bool) -> None:
    model, inputs = model_of("llama", "sdpa"), padded(5)
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "intervene_on_prompt": on_prompt}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    edit = face(model, component, "h.pos" if on_prompt else "h", ZeroIntervention)
    where = {"base": [[[[1], [0]], [[3], [5]]]]} if on_prompt else {"base": [[[1], [0]]]}
    texts = [edit.generate(inputs, None, where, use_cache=cache, **options)[1] for cache in (True, False)]
    torch.testing.assert_close(torch.stack(texts[0].logits), torch.stack(texts[1].logits), rtol=1e-4, atol=2e-5)
    plain = model.generate(**inputs, max_new_tokens=5, do_sample=False, pad_token_id=0, output_logits=True,
                           return_dict_in_generate=True)  # fmt: skip
    assert not torch.allclose(torch.stack(plain.logits)[-1], torch.stack(texts[0].logits)[-1], atol=1e-3)
