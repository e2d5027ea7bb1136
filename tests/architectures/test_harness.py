"""The harness itself: it accepts a true map, written by hand, and finds every mistake planted in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from . import finite_difference
from .tiny import MAPPINGS, TinyModel, entries, tiny_model
from .verify import Failure, Verifier

HEADS, GROUPS, SIZE = 4, 2, 24


@dataclass(frozen=True, eq=False)
class Place:
    """A slot, as far as the harness reads one."""

    module: nn.Module
    path: str
    side: str
    leaf: tuple[Any, ...] | None = None
    heads: Tensor | None = None
    channels: Tensor | None = None
    width: int | None = None
    call: int | None = 0
    also: tuple[Any, ...] = ()
    scale: float = 1.0


@dataclass(frozen=True)
class BlockMap:
    path: str
    slots: Mapping[str, Place]
    flags: Mapping[str, Any]
    call: int = 0
    missing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Map:
    stacks: Mapping[str, tuple[BlockMap, ...]]
    ends: Mapping[str, Place] = field(default_factory=dict)


def heads(count: int) -> Tensor:
    return torch.arange(count * SIZE).view(count, SIZE)


def places(model: nn.Module, block: str) -> dict[str, Place]:
    """Return where the components of a Llama block are."""

    def place(path: str, side: str, leaf: tuple[Any, ...] | None = None, head: Tensor | None = None) -> Place:
        whole = f"{block}.{path}".rstrip(".")
        return Place(model.get_submodule(whole), whole, side, leaf, head)

    return {
        "block_input": place("", "input", (0, 0)),
        "block_output": place("", "output"),
        "attention_input": place("self_attn", "input", (1, "hidden_states")),
        "query_output": place("self_attn.q_proj", "output", None, heads(HEADS)),
        "key_output": place("self_attn.k_proj", "output", None, heads(GROUPS)),
        "value_output": place("self_attn.v_proj", "output", None, heads(GROUPS)),
        "attention_value_output": place("self_attn.o_proj", "input", None, heads(HEADS)),
        "attention_output": place("self_attn.o_proj", "output"),
        "attention_contribution": place("self_attn", "output"),
        "mlp_input": place("mlp", "input"),
        "mlp_activation": place("mlp.down_proj", "input"),
        "mlp_output": place("mlp", "output"),
        "mlp_contribution": place("mlp", "output"),
    }


@pytest.fixture(scope="module")
def llama() -> TinyModel:
    return tiny_model("CAUSAL_LM", "llama")


def failures(tiny: TinyModel, slots: Mapping[str, Place], additive: bool = True) -> list[Failure]:
    block = BlockMap("model.layers.1", slots, {"additive": additive, "signature": "llama"})
    components = Map({"": (block,)})
    found = Verifier(tiny.model, tiny.inputs).check(components)
    return found + finite_difference.check(tiny.model, tiny.inputs, components).failures


def test_a_true_map_passes(llama: TinyModel) -> None:
    assert failures(llama, places(llama.model, "model.layers.1")) == []


Slots = dict[str, Place]


def swapped(one: str, other: str) -> Callable[[Slots], Slots]:
    return lambda slots: {**slots, one: slots[other], other: slots[one]}


def changed(name: str, **fields: Any) -> Callable[[Slots], Slots]:
    return lambda slots: {**slots, name: replace(slots[name], **fields)}


@pytest.mark.parametrize(
    ("plant", "check"),
    [
        (swapped("query_output", "attention_output"), "wiring"),
        (swapped("key_output", "value_output"), "finite difference"),
        (swapped("mlp_input", "attention_input"), "wiring"),
        (swapped("mlp_output", "attention_output"), "wiring"),
        (changed("query_output", heads=heads(HEADS).flip(0)), "finite difference"),
        (changed("query_output", heads=torch.arange(HEADS * SIZE).view(SIZE, HEADS).T), "finite difference"),
        (changed("key_output", heads=heads(HEADS)[:, :12]), "heads"),
        (changed("attention_value_output", heads=heads(GROUPS)), "heads"),
        (changed("value_output", heads=torch.arange(GROUPS * SIZE).view(2 * GROUPS, SIZE // 2)), "finite difference"),
        (changed("mlp_activation", width=7), "place"),
        (changed("mlp_activation", call=1), "place"),
        (changed("attention_input", leaf=(0, 0)), "place"),
        (swapped("mlp_contribution", "attention_contribution"), "wiring"),
        (changed("mlp_contribution", scale=0.5), "added"),
    ],
)
def test_a_planted_mistake_is_found(llama: TinyModel, plant: Callable[[Slots], Slots], check: str) -> None:
    found = failures(llama, plant(places(llama.model, "model.layers.1")))
    assert check in {failure.check for failure in found}


def test_a_forgotten_branch_is_found(llama: TinyModel) -> None:
    slots = places(llama.model, "model.layers.1")
    for name in ("mlp_input", "mlp_activation", "mlp_output", "mlp_contribution", "attention_contribution"):
        del slots[name]
    found = failures(llama, slots, additive=False)
    assert [failure.check for failure in found] == ["complete"]


def test_additivity_is_neither_claimed_nor_hidden(llama: TinyModel) -> None:
    found = failures(llama, places(llama.model, "model.layers.1"), additive=False)
    assert [failure.check for failure in found] == ["additive"]


def test_tiny_models_share_no_size_by_chance(llama: TinyModel) -> None:
    attention, mlp = (llama.model.get_submodule(f"model.layers.0.{name}") for name in ("self_attn", "mlp"))
    widths = {attention.q_proj.out_features, attention.k_proj.out_features, mlp.up_proj.out_features}
    assert len(widths | {attention.q_proj.in_features}) == 4


def test_every_mapping_has_entries() -> None:
    assert all(len(entries(mapping)) > 5 for mapping in MAPPINGS)
