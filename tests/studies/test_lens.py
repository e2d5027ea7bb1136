"""The logit lens against the model's own norm and unembedding, called by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.fast.families import blocks, shared
from tests.helpers import padded_tokens, tokens

from align_transformers import PositionError, SpecError, logit_lens, one_by_one


def head_by_hand(family: str, model: Any, hidden: torch.Tensor) -> torch.Tensor:
    if family == "gpt2":
        return model.lm_head(model.transformer.ln_f(hidden))
    if family == "neox":
        return model.get_output_embeddings()(model.gpt_neox.final_layer_norm(hidden))
    logits = model.lm_head(model.model.norm(hidden))
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "neox", "gemma2"])
@torch.no_grad()
def test_each_layer_and_token_is_read_by_the_models_own_end(family: str, side: str) -> None:
    model, inputs = shared(family), padded_tokens((5, 3), side, seed=3)
    inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    table = logit_lens(model, inputs, answers=[7, 2], top=2)
    seen: list[torch.Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _m, _a, out: seen.append(out[0] if isinstance(out, tuple) else out))
        for block in blocks(model)
    ]
    model(**inputs)
    for hook in hooks:
        hook.remove()
    assert len(table) == len(seen) * (5 + 3)
    for row in table.rows():
        column = row["position"] + (2 if side == "left" and row["prompt"] == 1 else 0)
        logits = head_by_hand(family, model, seen[row["layer"]][row["prompt"], column])
        answer = (7, 2)[row["prompt"]]
        assert row["logit"] == pytest.approx(float(logits[answer]), abs=2e-5)
        assert row["probability"] == pytest.approx(float(logits.softmax(-1)[answer]), abs=1e-5)
        assert row["rank"] == int((logits > logits[answer]).sum())
        assert row["top_tokens"][0] == str(int(logits.argmax()))
        assert row["top_probabilities"] == pytest.approx(logits.softmax(-1).topk(2).values.tolist(), abs=1e-5)


def test_the_answer_is_what_the_model_says_and_no_block_is_run_again() -> None:
    table = logit_lens(shared("llama"), tokens(2, 4), layers=[-1], positions=[-1])
    assert table.columns["rank"] == (0, 0)
    assert [t[0] for t in table.columns["top_tokens"]] == table.meta["answers"]
    assert table.meta["passes"]["full"] == 1
    plain = logit_lens(shared("llama"), tokens(2, 4), layers=[-1], positions=[-1], planner=one_by_one)
    assert plain.columns["logit"] == pytest.approx(table.columns["logit"], abs=1e-5)


def test_parts_of_a_block_are_read_alike_and_others_are_refused() -> None:
    model = shared("llama")
    first = logit_lens(model, tokens(1, 3), components=["block_input"], layers=[1])
    second = logit_lens(model, tokens(1, 3), layers=[0])
    assert first.columns["logit"] == pytest.approx(second.columns["logit"], abs=1e-6)
    with pytest.raises(SpecError, match="coordinates"):
        logit_lens(model, tokens(1, 3), components=["mlp_activation"])
    with pytest.raises(SpecError, match="components is texts"):
        logit_lens(model, tokens(1, 3), components="block_output")
    with pytest.raises(SpecError, match="2 answers for 1 prompts"):
        logit_lens(model, tokens(1, 3), answers=[1, 2])
    with pytest.raises(PositionError, match="3 tokens"):
        logit_lens(model, tokens(1, 3), positions=[5])
    with pytest.raises(SpecError, match="top=-1"):
        logit_lens(model, tokens(1, 3), top=-1)


def test_the_decoder_of_an_encoder_decoder_is_read() -> None:
    table = logit_lens(shared("t5"), tokens(1, 4), components=["decoder.block_output"], layers=[-1])
    assert table.columns["rank"] == (0,)
    with pytest.raises(SpecError, match="behind no unembedding"):
        logit_lens(shared("t5"), tokens(1, 4), components=["encoder.block_output"], layers=[-1])
