"""Attention patterns against what eager attention itself gives back with `output_attentions=True`."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from peft import PrefixTuningConfig, get_peft_model
from tests.fast.families import LAYERS, build, shared
from tests.helpers import padded_tokens, placed, tokens
from torch import Tensor
from transformers import GptOssConfig, GptOssForCausalLM

from align_transformers import PositionError, SiteError, SpecError, Table, attention_patterns

DECODERS = ("gpt2", "llama", "neox", "gemma2", "gemma3")
LENGTHS = (6, 3)


@torch.no_grad()
def eager(model: Any, inputs: Any, name: str = "attentions") -> Sequence[Tensor]:
    """Return of each layer `(prompts, heads, queries, keys)`, of a copy that runs plain attention."""
    plain = copy.deepcopy(model)
    plain.set_attn_implementation("eager")
    return plain(**inputs, output_attentions=True)[name]


def check(table: Table, wanted: Sequence[Tensor], queries: Sequence[range], keys: Sequence[range]) -> None:
    """Compare each row with the pattern at its place; `queries` and `keys` are the columns of the real tokens."""
    heads = wanted[0].shape[1]
    assert len(table) == len(wanted) * heads * sum(len(q) * len(k) for q, k in zip(queries, keys, strict=True))
    sums: dict[tuple[int, ...], float] = {}
    for row in table.rows():
        where = row["layer"], row["head"], row["prompt"], row["query"]
        column = queries[row["prompt"]][row["query"]], keys[row["prompt"]][row["key"]]
        real = wanted[row["layer"]][row["prompt"], row["head"]][column]
        assert row["attention"] == pytest.approx(float(real), abs=1e-5)
        sums[where] = sums.get(where, 0) + row["attention"]
    assert all(abs(total - 1) < 1e-5 for total in sums.values())


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", [*DECODERS, "bert"])
def test_each_head_of_each_layer_is_as_eager_attention_has_it(family: str, side: str) -> None:
    model, inputs = shared(family), placed(padded_tokens(LENGTHS, side, seed=2))
    real = [range(6), range(3, 6) if side == "left" else range(3)]
    table = attention_patterns(model, inputs)
    check(table, eager(model, inputs), real, real)
    assert table.meta["passes"] == {"full": 1}
    assert [len(row) for row in table.meta["tokens"]] == [6, 3]
    assert table.meta["key_tokens"] == table.meta["tokens"]
    if family != "bert":
        later = [row["attention"] for row in table.rows() if row["key"] > row["query"]]
        assert len(later) > 0
        assert set(later) == {0.0}


@pytest.mark.parametrize(
    ("component", "name", "queries", "keys"),
    [
        ("encoder.attention_pattern", "encoder_attentions", (6, 3), (6, 3)),
        ("decoder.attention_pattern", "decoder_attentions", (4, 2), (4, 2)),
        ("decoder.cross_attention_pattern", "cross_attentions", (4, 2), (6, 3)),
    ],
)
def test_of_an_encoder_decoder_the_stack_says_which(component: str, name: str, queries: Any, keys: Any) -> None:
    model, inputs = build("t5").double(), padded_tokens(LENGTHS, "right", seed=2)
    other = padded_tokens((4, 2), "right", seed=5)
    inputs |= {"decoder_input_ids": other["input_ids"], "decoder_attention_mask": other["attention_mask"]}
    table = attention_patterns(model, inputs, component=component)
    check(table, eager(model, inputs, name), [range(n) for n in queries], [range(n) for n in keys])
    assert [len(row) for row in table.meta["tokens"]] == list(queries)
    assert [len(row) for row in table.meta["key_tokens"]] == list(keys)


def test_layers_heads_and_queries_may_be_chosen() -> None:
    model, inputs = shared("llama"), padded_tokens(LENGTHS, "right", seed=2)
    every = {tuple(row.values())[:5]: row["attention"] for row in attention_patterns(model, inputs).rows()}
    some = attention_patterns(model, inputs, layers=[-1], heads=[2, 0], positions=[-1, 1])
    assert {row["layer"] for row in some.rows()} == {LAYERS - 1}
    assert list(dict.fromkeys(some.columns["head"])) == [2, 0]
    assert [row["query"] for row in some.rows() if row["head"] == 2 and row["key"] == 0] == [5, 1, 2, 1]
    for row in some.rows():
        assert row["attention"] == pytest.approx(every[tuple(row.values())[:5]], abs=1e-6)


def test_fused_attention_and_the_models_configuration_stay_as_they_are() -> None:
    model = build("llama")
    model.set_attn_implementation("sdpa")
    model.train()
    attention_patterns(model, tokens(1, 4))
    assert model.config._attn_implementation == "sdpa"
    assert model.training
    assert model(**tokens(1, 4)).attentions is None


def test_what_a_learned_sink_takes_is_in_no_key() -> None:
    torch.manual_seed(0)
    model = GptOssForCausalLM(
        GptOssConfig(
            vocab_size=61, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8, num_local_experts=2, num_experts_per_tok=1, sliding_window=4,
            pad_token_id=0, attn_implementation="eager",
        )
    ).eval()  # fmt: skip
    table = attention_patterns(model, tokens(1, 4))
    wanted = eager(model, tokens(1, 4))
    for row in table.rows():
        real = wanted[row["layer"]][0, row["head"], row["query"], row["key"]]
        assert row["attention"] == pytest.approx(float(real), abs=1e-6)
    assert table.meta["sinks"] == [0, 1]
    assert sum(r["attention"] for r in table.rows() if (r["layer"], r["head"], r["query"]) == (0, 0, 3)) < 0.99


def test_what_makes_no_sense_is_refused() -> None:
    model, inputs = shared("gpt2"), tokens(1, 4)
    with pytest.raises(SpecError, match="no attention pattern"):
        attention_patterns(model, inputs, component="block_output")
    with pytest.raises(PositionError, match="head 4 does not exist"):
        attention_patterns(model, inputs, heads=[4])
    with pytest.raises(PositionError, match="layer 3 does not exist"):
        attention_patterns(model, inputs, layers=[3])
    with pytest.raises(SpecError, match="no layer is chosen"):
        attention_patterns(model, inputs, layers=[])
    with pytest.raises(SiteError, match="encoder"):
        attention_patterns(shared("t5"), inputs)


def test_keys_that_are_no_tokens_of_the_prompt_are_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the library asks transformers by an older name
        model = get_peft_model(build("llama"), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(SpecError, match="6 keys, but the prompts have 4 columns"):
        attention_patterns(model.eval(), tokens(1, 4))
