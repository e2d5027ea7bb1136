"""`resolve(model, overrides=...)`: the caller's word is taken if its shape is right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.models.small import LAYERS, HandModel, new
from tests.untyped import untyped

from align_transformers import IntervenableModel, Site, SiteError, SpecError, ZeroIntervention
from align_transformers.models import resolve


def test_a_refused_component_can_be_named() -> None:
    model = HandModel(mlps=2).eval()
    with pytest.raises(SiteError, match="several MLP branches"):
        resolve(model).slot(Site("mlp_output", 0))
    found = resolve(model, overrides={"mlp_output": ("thinks.1", "output")})
    for layer in range(LAYERS):
        assert found.slot(Site("mlp_output", layer)).module is model.floors[layer].thinks[1]
    assert found.why("mlp_output", 1) == "floors.1.thinks.1.output: the caller's word"
    assert resolve(model) is found  # from now on
    ids = torch.arange(3, 10)[None]
    with torch.no_grad():
        swap = IntervenableModel(
            {"layer": 1, "component": "mlp_output", "intervention_type": ZeroIntervention}, model=model
        )
        got = swap({"input_ids": ids}, return_dict=True).intervened_outputs
        with model.floors[1].thinks[1].register_forward_hook(lambda _m, _a, output: torch.zeros_like(output)):
            assert torch.equal(got, model(ids))


def test_heads_can_be_given() -> None:
    model = HandModel("shared").eval()
    found = resolve(model, overrides={"key_output": ("mixes.0.look", "output", 4)})
    assert torch.equal(found.slot(Site("key_output", 1)).heads, torch.arange(24).view(4, 6))


def test_a_stack_can_be_given() -> None:
    found = resolve(new("t5"), overrides={"encoder.mlp_input": ("layer.1.layer_norm", "output")})
    assert found.slot(Site("encoder.mlp_input", 1)).path == "encoder.block.1.layer.1.layer_norm"
    assert found.slot(Site("decoder.mlp_input", 1)).path == "decoder.block.1.layer.2.DenseReluDense"


def test_the_block_itself_is_the_empty_path() -> None:
    found = resolve(new("llama"), overrides={"mlp_output": ("", "output")})
    assert found.slot(Site("mlp_output", 0)).path == "model.layers.0"


@pytest.mark.parametrize(
    ("overrides", "error", "said"),
    [
        ({"mlp_outptu": ("mlp", "output")}, SpecError, "did you mean 'mlp_output'"),
        ({"encoder.mlp_output": ("mlp", "output")}, SpecError, "no stack 'encoder'"),
        ({"logits": ("mlp", "output")}, SpecError, "an end of the model"),
        ({"mlp_output": ("mlp", "outptu")}, SpecError, "'input' or 'output'; found 'outptu'"),
        (
            {"mlp_output": ("mpl", "output")},
            SiteError,
            "block model.layers.0 calls no module 'mpl'.*model.layers.0.mlp",
        ),
        ({"mlp_output": ("mlp", "output", 5)}, SiteError, "width 32 does not divide into 5 heads"),
        ({"mlp_output": ("mlp", "output", 0)}, SpecError, "number of heads"),
        ({"mlp_output": ("mlp",)}, SpecError, "path from the block"),
        ({"mlp_output": "mlp.output"}, SpecError, "path from the block"),
        ({"router_output": ("self_attn.q_proj", "output")}, None, ""),
    ],
)
def test_what_is_wrong_with_a_word(overrides: Any, error: Any, said: str) -> None:
    model = new("llama")
    if error is None:
        assert resolve(model, overrides=overrides).slot(Site("router_output", 0)).width == 24
        return
    with untyped(), pytest.raises(error, match=said):
        resolve(model, overrides=overrides)
    assert resolve(model).slot(Site("mlp_output", 0)).path == "model.layers.0.mlp"  # a wrong word leaves no trace


def test_a_place_with_other_rows_is_refused() -> None:
    with pytest.raises(
        SiteError, match=r"EncDecAttention.k.output has shape \(2, 11, 24\), but the block works on 2 x 7 vectors"
    ):
        resolve(
            new("t5"),
            overrides={"decoder.key_output": ("layer.1.EncDecAttention.k", "output")},
        )
