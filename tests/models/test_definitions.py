"""What components mean differs between models; the map says so. Each statement against a plain forward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.models.small import HandModel, shared
from torch import Tensor, nn

from align_transformers import Site
from align_transformers.models import Slot, resolve

IDS = torch.arange(3, 10)[None]


def values(model: nn.Module, *slots: Slot) -> list[Tensor]:
    """Return the first tensors at each slot in one plain pass, as they were when the module was called."""
    seen: list[Any] = [None] * len(slots)
    handles = []
    for number, slot in enumerate(slots):

        def keep(number: int, value: Any) -> None:
            value = value[0] if isinstance(value, tuple) else value
            seen[number] = value.clone()

        if slot.side == "output":
            handles.append(slot.module.register_forward_hook(lambda _m, _a, out, n=number: keep(n, out)))
        else:
            handles.append(
                slot.module.register_forward_pre_hook(
                    lambda _m, args, kwargs, n=number: keep(n, args[0] if args else kwargs["hidden_states"]),
                    with_kwargs=True,
                )
            )
    with torch.no_grad():
        model(IDS)
    for handle in handles:
        handle.remove()
    return seen


def sums(name: str, *parts: str) -> tuple[bool, bool]:
    """Return what the map claims, and whether block_input and the parts make up block_output."""
    model = HandModel().eval() if name == "hand" else shared(name)
    found = resolve(model)
    names = ("block_input", *parts, "block_output")
    *terms, total = values(model, *(found.slot(Site(part, 0)) for part in names))
    return found.stacks[""][0].flags["additive"], torch.allclose(sum(terms), total, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama", "phi3", "mixtral", "deepseek3", "hand"])
def test_one_after_the_other_is_additive(name: str) -> None:
    assert sums(name, "attention_output", "mlp_output") == (True, True)


@pytest.mark.parametrize("name", ["neox", "falcon"])
def test_side_by_side_is_additive(name: str) -> None:
    """Falcon adds in place to what its MLP returned: the map speaks of what was returned."""
    assert sums(name, "attention_output", "mlp_output") == (True, True)


def test_a_module_that_adds_the_residual_is_not_what_the_mlp_adds() -> None:
    assert sums("bloom", "attention_output", "mlp_output") == (True, True)
    assert resolve(shared("bloom")).why("mlp_output", 1).endswith("(past it, more goes through the module around it)")


def test_a_mixer_is_a_part_of_the_sum() -> None:
    assert sums("qwen3next", "mixer_output", "mlp_output") == (True, True)


@pytest.mark.parametrize("name", ["bert", "albert"])
def test_a_norm_after_the_sum_is_not_additive(name: str) -> None:
    found = resolve(shared(name))
    assert found.stacks[""][0].flags["additive"] is False
    if name == "bert":
        assert sums(name, "attention_output", "mlp_output") == (False, False)


def test_norms_of_what_is_added_are_not_additive() -> None:
    assert sums("gemma2", "attention_output", "mlp_output") == (False, False)


def test_residual_multipliers_are_not_additive() -> None:
    assert sums("granite", "attention_output", "mlp_output") == (False, False)


def test_gated_heads() -> None:
    found = resolve(shared("qwen3next"))
    flags = found.stacks[""][1].flags
    assert (flags["z_exact"], flags["z_head_local"]) == (False, True)
    assert "gate or norm" in found.why("attention_value_output", 1)
    assert found.slot(Site("head_output", 1)).via == "head_output"  # the heads before the gate
    assert resolve(shared("llama")).stacks[""][0].flags["z_exact"] is True


@pytest.mark.parametrize("name", ["deepseek2", "deepseek3"])
def test_latent_attention_has_the_part_of_the_key_without_positions(name: str) -> None:
    found = resolve(shared(name))
    flags = found.stacks[""][0].flags
    assert flags["key_part"] == (6, 10)
    assert "query_part" not in flags
    assert found.slot(Site("key_output", 0)).width == 4 * 6
    assert found.slot(Site("key_rotary", 0)).width == 4 * 10
    assert "key_part" not in resolve(shared("llama")).stacks[""][0].flags


def test_experts() -> None:
    flags = [block.flags for block in resolve(shared("deepseek3")).stacks[""]]
    assert [flag["mlp"] for flag in flags] == ["dense", "experts"]
    assert flags[1]["experts"] == "stacked"
    assert "experts" not in flags[0]
