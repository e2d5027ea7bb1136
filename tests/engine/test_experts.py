"""Mixtures of experts: their neurons and their router, against a loop over tokens and experts written out here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import pytest
import torch
import transformers
from tests.helpers import HIDDEN, VOCAB, padded_tokens, tokens
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from align_transformers import (
    AdditionIntervention,
    CollectIntervention,
    IntervenableModel,
    VanillaIntervention,
    ZeroIntervention,
)

LAYER, EXPERTS, CHOSEN, NEURONS, LENGTH = 1, 4, 2, 24, 5
WIDTH = CHOSEN * NEURONS
MODELS = {
    "mixtral": ("Mixtral", {"intermediate_size": NEURONS, "num_local_experts": EXPERTS}),
    "qwen3_moe": ("Qwen3Moe", {"moe_intermediate_size": NEURONS, "num_experts": EXPERTS, "norm_topk_prob": True}),
    "gpt_oss": ("GptOss", {"intermediate_size": NEURONS, "num_local_experts": EXPERTS}),
}

Edit = Callable[[Tensor], Tensor]


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@lru_cache(maxsize=4)
def model_of(name: str) -> PreTrainedModel:
    """Return a random model that all tests share."""
    family, more = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=VOCAB, hidden_size=HIDDEN, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, num_experts_per_tok=CHOSEN, max_position_embeddings=64, initializer_range=0.3, pad_token_id=0,
        bos_token_id=None, eos_token_id=None, attn_implementation="eager", **more,
    )  # fmt: skip
    model: PreTrainedModel = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1 or float(parameter.detach().abs().max()) == 0:
            parameter.data.normal_(0, 0.3)
    return model


def neurons_of(name: str, experts: Any, expert: int, token: Tensor) -> Tensor:
    """Return the neurons of one expert for one token."""
    if name == "gpt_oss":
        both = token @ experts.gate_up_proj[expert] + experts.gate_up_proj_bias[expert]
        gate, up = both[::2].clamp(max=7.0), both[1::2].clamp(-7.0, 7.0)
        return (up + 1) * gate * torch.sigmoid(1.702 * gate)
    gate, up = (experts.gate_up_proj[expert] @ token).chunk(2)
    return F.silu(gate) * up


def down(name: str, experts: Any, expert: int, neurons: Tensor) -> Tensor:
    if name == "gpt_oss":
        return neurons @ experts.down_proj[expert] + experts.down_proj_bias[expert]
    return experts.down_proj[expert] @ neurons


@contextmanager
def experts_by_hand(name: str, edit: Edit | None = None) -> Iterator[list[Tensor]]:
    """Let the experts of the layer under test work by hand, with an edit of `(batch, length, chosen * neurons)`."""
    seen: list[Tensor] = []
    experts = model_of(name).model.layers[LAYER].mlp.experts

    def hook(module: Any, args: tuple[Tensor, Tensor, Tensor], _output: Tensor) -> Tensor:
        hidden, index, weights = args
        rows = [
            torch.cat([neurons_of(name, module, int(e), token) for e in chosen])
            for token, chosen in zip(hidden, index, strict=True)
        ]
        neurons = torch.stack(rows).view(-1, LENGTH, WIDTH)
        seen.append(neurons.clone())
        neurons = (neurons if edit is None else edit(neurons.clone())).view(len(hidden), CHOSEN, NEURONS)
        out = torch.zeros_like(hidden)
        for token in range(len(hidden)):
            for place in range(CHOSEN):
                result = down(name, module, int(index[token, place]), neurons[token, place])
                out[token] += weights[token, place] * result
        return out

    with experts.register_forward_hook(hook), torch.no_grad():
        yield seen


def logits_by_hand(name: str, inputs: dict[str, Tensor], edit: Edit | None = None) -> Tensor:
    with experts_by_hand(name, edit):
        return model_of(name)(**inputs).logits


def face(name: str, component: str, kind: Any) -> IntervenableModel:
    spec = {"layer": LAYER, "component": component, "max_number_of_units": LENGTH, "intervention_type": kind}
    return IntervenableModel(spec, model_of(name))


def close(got: Tensor, expected: Tensor, inputs: dict[str, Tensor]) -> None:
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(got[real], expected[real], rtol=1e-4, atol=2e-5)


def test_neurons_that_are_collected(name: str) -> None:
    inputs = padded_tokens((LENGTH, 3), "left")
    with experts_by_hand(name) as seen:
        by_hand = model_of(name)(**inputs).logits
    with torch.no_grad():
        got = face(name, "expert_activation", CollectIntervention)(inputs, return_dict=True)
        assert torch.equal(got.intervened_outputs.logits, model_of(name)(**inputs).logits)  # looking changes nothing
    close(got.collected_activations[0], seen[0], inputs)
    close(got.intervened_outputs.logits, by_hand, inputs)


def test_an_edit_that_changes_nothing(name: str) -> None:
    """Edited, the experts run in another order of summation: within 1e-5 of the model's own logits."""
    inputs = tokens(2, LENGTH)
    with torch.no_grad():
        got = face(name, "expert_activation", AdditionIntervention)(inputs, None, None, torch.tensor(0.0))[1].logits
        plain = model_of(name)(**inputs).logits
    torch.testing.assert_close(got, plain, rtol=1e-5, atol=1e-5 * float(plain.abs().max()))


@pytest.mark.parametrize("kind", ["swap", "zero", "add"])
def test_edits_of_neurons_at_positions(name: str, kind: str) -> None:
    base, source = padded_tokens((LENGTH, 3), "left", 1), tokens(2, LENGTH, 2)
    with experts_by_hand(name) as seen:
        model_of(name)(**source)
    read, write = [[0, 4], [2, 1]], [[3, 1], [4, 2]]
    vector = torch.linspace(-1, 1, WIDTH)

    def edit(neurons: Tensor) -> Tensor:
        for n in range(2):
            for to, origin in zip(write[n], read[n], strict=True):
                new = {"swap": seen[0][n, origin], "zero": 0 * vector, "add": neurons[n, to] + vector}
                neurons[n, to] = new[kind]
        return neurons

    kinds = {"swap": VanillaIntervention, "zero": ZeroIntervention, "add": AdditionIntervention}
    where: dict[str, Any] = {"sources->base": ([read], [write])} if kind == "swap" else {"base": [write]}
    with torch.no_grad():
        got = face(name, "expert_activation", kinds[kind])(
            base, source if kind == "swap" else None, where, vector if kind == "add" else None, return_dict=True
        )
    expected = logits_by_hand(name, base, edit)
    close(got.intervened_outputs.logits, expected, base)
    assert not torch.allclose(expected, logits_by_hand(name, base), atol=1e-3)
    assert got.effects[0].positions == 4


@contextmanager
def routed_by_hand(name: str, edit: Edit) -> Iterator[list[Tensor]]:
    """Choose experts anew from edited logits `(batch, length, experts)`."""
    layer: Any = model_of(name).model.layers[LAYER].mlp
    router = layer.router if name == "gpt_oss" else layer.gate
    chosen: list[Tensor] = []

    def hook(_module: Any, _args: Any, output: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        logits = edit(output[0].clone().view(-1, LENGTH, EXPERTS)).view(-1, EXPERTS)
        if name == "gpt_oss":
            best, index = logits.topk(CHOSEN)
            weights = best.softmax(-1)
        else:
            best, index = logits.softmax(-1).topk(CHOSEN)
            weights = best / best.sum(-1, keepdim=True)
        chosen.append(index)
        return logits, weights, index

    with router.register_forward_hook(hook), torch.no_grad():
        yield chosen


def test_edits_of_the_router_change_the_routing(name: str) -> None:
    inputs, vector = padded_tokens((LENGTH, 3), "left", 3), torch.tensor([50.0, 0.0, -50.0, 25.0])

    def edit(logits: Tensor) -> Tensor:
        logits[0, 3] += vector
        logits[1, 4] += vector
        return logits

    with routed_by_hand(name, edit) as chosen:
        expected = model_of(name)(**inputs).logits
    assert chosen[0][3].tolist() == [0, 3]
    with torch.no_grad():
        got = face(name, "router_output", AdditionIntervention)(inputs, None, {"base": [[[3], [4]]]}, vector)[1].logits
        plain = model_of(name)(**inputs).logits
    close(got, expected, inputs)
    assert not torch.allclose(expected, plain, atol=1e-2)
    assert "forward" not in vars(model_of(name).model.layers[LAYER].mlp)
    mlp: Any = model_of(name).model.layers[LAYER].mlp
    assert "forward" not in vars(mlp.router if name == "gpt_oss" else mlp.gate)


def test_router_logits_that_are_collected(name: str) -> None:
    inputs, seen = tokens(2, LENGTH), []

    def keep(logits: Tensor) -> Tensor:
        seen.append(logits.clone())
        return logits

    with routed_by_hand(name, keep):
        model_of(name)(**inputs)
    with torch.no_grad():
        got = face(name, "router_output", CollectIntervention)(inputs, return_dict=True)
        assert torch.equal(got.intervened_outputs.logits, model_of(name)(**inputs).logits)
    assert torch.equal(got.collected_activations[0], seen[0])


def test_neurons_in_generation_are_those_of_the_text(name: str) -> None:
    inputs = tokens(2, LENGTH)
    options = {"max_new_tokens": 3, "do_sample": False}
    edit = face(name, "expert_activation", ZeroIntervention)
    texts = [edit.generate(inputs, use_cache=cache, **options)[1] for cache in (True, False)]
    assert torch.equal(texts[0], texts[1])
