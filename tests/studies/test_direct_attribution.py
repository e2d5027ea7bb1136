"""Direct logit attribution against hooks and the norms' formulas, written by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.fast.families import blocks, build, shared
from tests.helpers import padded_tokens, tokens
from tests.studies.test_path_patching import model_of
from torch import Tensor

from align_transformers import SiteError, SpecError, direct_logit_attribution
from align_transformers.studies._norms import FrozenNorm

AFTER_HEADS = {"gpt2": "attn.c_proj", "llama": "self_attn.o_proj", "neox": "attention.dense"}


def frozen(family: str, model: Any, stream: Tensor) -> Any:
    """Return the final norm with the scale that it has at the stream, by its formula."""
    if family == "llama":
        norm = model.model.norm
        scale = (stream.pow(2).mean() + norm.variance_epsilon).rsqrt()
        return lambda part: part * scale * norm.weight
    norm = model.transformer.ln_f if family == "gpt2" else model.gpt_neox.final_layer_norm
    scale = (stream.var(unbiased=False) + norm.eps).rsqrt()
    return lambda part: (part - part.mean()) * scale * norm.weight


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
@torch.no_grad()
def test_parts_are_those_of_hooks_and_formulas(family: str) -> None:
    model, inputs = shared(family), tokens(2, 5)
    seen: dict[Any, Tensor] = {}
    hooks = []
    for layer, block in enumerate(blocks(model)):
        places = {"z": block.get_submodule(AFTER_HEADS[family])}

        def keep_input(_m: Any, args: Any, layer: int = layer) -> None:
            seen["z", layer] = args[0][:, -1]

        def keep(_m: Any, _a: Any, out: Any, layer: int = layer) -> None:
            seen["mlp", layer] = out[:, -1]

        def keep_block(_m: Any, args: Any, out: Any, layer: int = layer) -> None:
            seen["in", layer], seen["out"] = args[0][:, -1], (out[0] if isinstance(out, tuple) else out)[:, -1]

        hooks += [places["z"].register_forward_pre_hook(keep_input), block.mlp.register_forward_hook(keep)]
        hooks.append(block.register_forward_hook(keep_block))
    logits = model(**inputs).logits[:, -1]
    for hook in hooks:
        hook.remove()
    table = direct_logit_attribution(model, inputs, answers=[7, 3], against=9)
    assert table.meta["passes"] == {"full": 1} or sum(table.meta["passes"].values()) == 1
    for prompt, answer in enumerate((7, 3)):
        norm = frozen(family, model, seen["out"][prompt])
        weight = model.get_output_embeddings().weight
        row = weight[answer] - weight[9]
        found = {
            (r["component"], r["layer"], r["head"]): r["contribution"] for r in table.rows() if r["prompt"] == prompt
        }
        for layer, block in enumerate(blocks(model)):
            wide = block.get_submodule(AFTER_HEADS[family])
            matrix = wide.weight if family == "gpt2" else wide.weight.T
            width = len(matrix) // 4
            for head in range(4):
                part = (
                    seen["z", layer][prompt, head * width : (head + 1) * width]
                    @ matrix[head * width : (head + 1) * width]
                )
                expected = float(norm(part) @ row)
                assert found["head_contribution", layer, head] == pytest.approx(expected, abs=2e-5)
            assert found["mlp_contribution", layer, None] == pytest.approx(
                float(norm(seen["mlp", layer][prompt]) @ row), abs=2e-5
            )
        assert found["block_input", 0, None] == pytest.approx(float(norm(seen["in", 0][prompt]) @ row), abs=2e-5)
        whole = float(logits[prompt, answer] - logits[prompt, 9])
        assert table.meta["logit"][prompt] == pytest.approx(whole, abs=2e-5)
        assert sum(found.values()) == pytest.approx(whole, abs=5e-5)


@torch.no_grad()
def test_norms_behind_the_parts_and_capped_logits() -> None:
    model, inputs = shared("gemma2"), padded_tokens((5, 3), "left")
    inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    table = direct_logit_attribution(model, inputs, answers=4)
    assert table.meta["capped"]
    assert "head_contribution" not in table.columns["component"]
    cap = model.config.final_logit_softcapping
    logits = model(**inputs).logits[:, -1, 4]
    for prompt in range(2):
        whole = sum(r["contribution"] for r in table.rows() if r["prompt"] == prompt)
        assert cap * float(torch.tanh(torch.tensor(whole) / cap)) == pytest.approx(float(logits[prompt]), abs=5e-5)


def test_heads_sum_to_attention_and_the_default_is_what_the_model_says() -> None:
    model = shared("gpt2")
    by_head = direct_logit_attribution(model, tokens(1, 4))
    by_layer = direct_logit_attribution(model, tokens(1, 4), heads=False)
    for layer in range(3):
        parts = [
            r["contribution"]
            for r in by_head.rows()
            if r["layer"] == layer and r["component"] in ("head_contribution", "attention_bias")
        ]
        (whole,) = (
            r["contribution"]
            for r in by_layer.rows()
            if r["layer"] == layer and r["component"] == "attention_contribution"
        )
        assert len(parts) == 5
        assert sum(parts) == pytest.approx(whole, abs=1e-5)
    assert by_head.meta["answers"] == [str(int(model(**tokens(1, 4)).logits[0, -1].argmax()))]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_half_precision_is_that_of_float32_but_for_rounding(family: str, dtype: torch.dtype) -> None:
    model, inputs = build(family), tokens(1, 5)
    exact = direct_logit_attribution(model, inputs, answers=7)
    rounded = direct_logit_attribution(model.to(dtype), inputs, answers=7)
    for one, other in zip(exact.rows(), rounded.rows(), strict=True):
        assert one["contribution"] == pytest.approx(other["contribution"], abs=200 * torch.finfo(dtype).eps / 8)
    assert not rounded.meta["capped"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["gpt2", "llama", "neox", "gemma2", "mixtral"])
@torch.no_grad()
def test_the_parts_are_the_models_own_logit_but_for_what_is_reported(family: str, dtype: torch.dtype) -> None:
    model, inputs = copy.deepcopy(model_of(family)).to(dtype), tokens(3, 5)
    table = direct_logit_attribution(model, inputs, answers=[7, 3, 9], against=4)
    logits = model(**inputs).logits[:, -1].float()
    if family == "gemma2":
        logits = model.config.final_logit_softcapping * torch.atanh(logits / model.config.final_logit_softcapping)
    for prompt, answer in enumerate((7, 3, 9)):
        parts = [row["contribution"] for row in table.rows() if row["prompt"] == prompt]
        missed = abs(sum(parts) - float(logits[prompt, answer] - logits[prompt, 4]))
        largest = max(1.0, *map(abs, parts))
        if dtype == torch.float32:
            assert table.meta["tolerance"][prompt] == pytest.approx(1e-5 * largest)
        else:  # eps is 1/128
            assert 0.003 * largest < table.meta["tolerance"][prompt] < 0.4 * largest
        assert table.meta["error"][prompt] <= table.meta["tolerance"][prompt]
        if family != "gemma2" or dtype == torch.float32:  # a cap in half precision hides what was in front of it
            assert missed <= table.meta["tolerance"][prompt]


@pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 4e-5), (torch.bfloat16, 0.5)])
def test_what_adds_unseen_to_the_stream_is_told(dtype: torch.dtype, share: float) -> None:
    model, inputs = build("llama").to(dtype), tokens(1, 5)
    table = direct_logit_attribution(model, inputs, answers=7)  # the parts are found
    assert table.meta["error"][0] <= table.meta["tolerance"][0]
    added = model.model.layers[1].register_forward_hook(lambda _m, _a, out: out + share * out.roll(1, -1))
    with pytest.raises(SpecError, match="something else adds"):
        direct_logit_attribution(model, inputs, answers=7)
    added.remove()


def test_a_logit_that_is_no_number_is_no_sum() -> None:
    model = build("llama")
    direct_logit_attribution(model, tokens(1, 4), answers=7)
    broken = model.model.layers[2].register_forward_hook(lambda _m, _a, out: out * float("nan"))
    with pytest.raises(SpecError, match="by nan"):
        direct_logit_attribution(model, tokens(1, 4), answers=7)
    broken.remove()


def test_what_cannot_be_taken_apart_is_refused() -> None:
    with pytest.raises(SiteError, match="along one stream"):
        direct_logit_attribution(shared("t5"), tokens(1, 4))
    with pytest.raises(SpecError, match="2 answers for 1 prompts"):
        direct_logit_attribution(shared("gpt2"), tokens(1, 4), answers=[1, 2])
    with pytest.raises(SiteError):
        direct_logit_attribution(shared("bert"), tokens(1, 4), answers=1)


def test_a_frozen_norm_of_nothing_is_what_it_is_close_to_nothing():
    """Without values heads give zeros, and the norm behind them has a scale all the same: 1 / sqrt(eps)."""
    norm = torch.nn.RMSNorm(8, eps=1e-4)
    before = torch.stack([torch.zeros(8), torch.randn(8)])
    frozen = FrozenNorm(norm, before, norm(before).detach())
    part = torch.randn(2, 8)
    scales = torch.stack([torch.tensor(1e-4).rsqrt(), (before[1].square().mean() + 1e-4).rsqrt()])
    assert torch.allclose(frozen(part), part * scales[:, None], rtol=1e-3)
