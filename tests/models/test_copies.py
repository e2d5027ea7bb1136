"""Models on the meta device: the map of the same model with weights, and an honest word on how it was found."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.helpers import hook_counts
from tests.models.small import HIDDEN, MAKERS, HandModel, new, shared
from torch import nn

from align_transformers import Site, SiteError, describe
from align_transformers.models import copies, find_slot, resolve

KINDS = ("llama", "gpt2", "bert", "t5", "neox", "mixtral", "mamba", "vit", "albert", "deepseek3", "qwen3next")


def on_meta(name: str) -> Any:
    with torch.device("meta"):
        return MAKERS[name]().eval()


def facts(found: Any) -> Any:
    """Return all that a map says but which objects the modules are."""

    def plain(slot: Any) -> Any:
        heads = None if slot.heads is None else slot.heads.tolist()
        channels = None if slot.channels is None else slot.channels.tolist()
        return (slot.path, slot.side, slot.call, slot.leaf, slot.width, heads, channels, slot.via, slot.n_heads,
                slot.grouping, slot.also, slot.around is None)  # fmt: skip

    blocks = {
        name: [(b.path, {n: plain(s) for n, s in b.slots.items()}, b.how, b.missing, b.flags) for b in stack]
        for name, stack in found.stacks.items()
    }
    return blocks, {name: plain(slot) for name, slot in found.ends.items()}, found.missing


@pytest.mark.parametrize("name", KINDS)
def test_the_map_is_that_of_the_same_model_with_weights(name: str) -> None:
    model, generator = on_meta(name), torch.get_rng_state()
    hooks = hook_counts(model)
    found = resolve(model)
    assert facts(found) == facts(resolve(shared(name)))
    for block in (block for blocks in found.stacks.values() for block in blocks):
        for slot in block.slots.values():
            assert slot.module is model.get_submodule(slot.path)
            assert slot.around in (None, model.get_submodule(block.path))
    assert all(slot.module is model.get_submodule(slot.path) for slot in found.ends.values())
    assert all(parameter.is_meta for parameter in model.parameters())
    assert hook_counts(model) == hooks
    assert torch.equal(torch.get_rng_state(), generator)


def test_it_says_how_it_was_found() -> None:
    model = on_meta("llama")
    found = resolve(model)
    assert found.note == copies.NOTE
    assert found.why("query_output", 0).endswith(f"heads side by side ({copies.NOTE})")
    assert found.why("logits").endswith(f"({copies.NOTE})")
    first, *rest = str(describe(model)).splitlines()
    assert first == f"LlamaForCausalLM  {copies.NOTE}"
    assert rest == str(describe(shared("llama"))).splitlines()[1:]


def test_it_is_looked_at_again_when_the_weights_have_come() -> None:
    model = on_meta("llama")
    first = find_slot(model, Site("mlp_output", 0))
    model.to_empty(device="cpu")
    model.load_state_dict(shared("llama").state_dict())
    model.model.rotary_emb = new("llama").model.rotary_emb
    assert find_slot(model, Site("mlp_output", 0)) is not first
    assert resolve(model).note == ""


def test_a_model_that_no_library_knows() -> None:
    with torch.device("meta"):
        model = HandModel().eval()
    found = resolve(model)
    assert facts(found) == facts(resolve(HandModel().eval()))
    assert found.slot(Site("mlp_output", 1)).module is model.floors[1].thinks[0]


def _refusal(model: nn.Module) -> str:
    with pytest.raises(SiteError, match="its weights are on the meta device, so no forward pass can be watched") as it:
        find_slot(model, Site("mlp_output", 0))
    return str(it.value)


def test_what_cannot_be_copied_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    model = on_meta("llama")
    model.model.layers[0].mlp = nn.Identity()
    assert "its modules are not those that its configuration makes" in _refusal(model)
    with torch.device("meta"):
        hand = HandModel().eval()
        hand.register_buffer("scale", torch.ones(1))
    assert "what its buffers hold is not known (scale)" in _refusal(hand)
    model = on_meta("llama")
    model.config.hidden_act = "no such function"
    assert "no copy with random weights: KeyError" in _refusal(model)
    monkeypatch.setattr(copies, "LIMIT", 2000)
    said = _refusal(on_meta("llama"))
    assert "would take 0.0 GB (limit 0 GB); one with fewer blocks need not be like it" in said
    assert "dotted paths work" in said
    assert find_slot(on_meta("llama"), Site("model.layers[0].mlp.down_proj.output")).width == HIDDEN
