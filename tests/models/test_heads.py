"""Which channels are which head's: layouts written by hand, and grouped heads."""

from __future__ import annotations

import pytest
import torch
from tests.models.small import HandModel, shared
from torch import Tensor

from align_transformers import Site
from align_transformers.models import resolve


def rows(heads: int, stride: int, start: int, size: int) -> Tensor:
    """Return `(heads, size)`: head h has the channels from `start + h * stride` on."""
    return torch.tensor([[start + head * stride + at for at in range(size)] for head in range(heads)])


def side_by_side(query: int, kv: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """One projection for all: the query heads, then the keys', then the values'."""
    return rows(query, size, 0, size), rows(kv, size, query * size, size), rows(kv, size, (query + kv) * size, size)


def separate(query: int, kv: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    return rows(query, size, 0, size), rows(kv, size, 0, size), rows(kv, size, 0, size)


INTERLEAVED = rows(4, 24, 0, 8), rows(4, 24, 8, 8), rows(4, 24, 16, 8)
LATENT = rows(4, 10, 0, 10), rows(4, 11, 0, 6), rows(4, 11, 6, 5)
LAYOUTS: dict[str, tuple[Tensor, Tensor, Tensor]] = {
    "gpt2": side_by_side(4, 4, 8),
    "llama": separate(4, 2, 6),
    "gemma2": separate(4, 2, 6),
    "mixtral": separate(4, 2, 6),
    "neox": INTERLEAVED,  # head by head, and in each: query, key, value
    "bloom": INTERLEAVED,
    "falcon": side_by_side(4, 1, 8),  # one key and one value for all
    "bigcode": side_by_side(4, 1, 8),
    "phi3": side_by_side(4, 2, 8),
    "bert": separate(4, 4, 8),
    "albert": separate(4, 4, 8),
    "vit": separate(4, 4, 8),
    "deepseek2": LATENT,  # the keys' part without positions, and the value, head by head
    "deepseek3": LATENT,
    "qwen3next": (rows(4, 12, 0, 6), *separate(4, 2, 6)[1:]),  # head by head: query, gate
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(name: str) -> None:
    found = resolve(shared(name))
    for role, wanted in zip(("query", "key", "value"), LAYOUTS[name], strict=True):
        slot = found.slot(Site(f"{role}_output", 1))
        assert slot.heads is not None
        assert torch.equal(slot.heads, wanted), role
        assert slot.width == wanted.numel()
        everything = wanted.flatten().tolist() == list(range(slot.module.weight.numel() // 32))
        if name not in ("deepseek2", "deepseek3"):
            assert (slot.channels is None) == everything
        if slot.channels is not None:
            assert torch.equal(slot.channels, wanted.flatten())


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_layouts_of_two_stacks(stack: str) -> None:
    found = resolve(shared("t5"))
    for prefix in ("", "cross_") if stack == "decoder" else ("",):
        for role in ("query", "key", "value"):
            slot = found.slot(Site(f"{stack}.{prefix}{role}_output", 1))
            assert torch.equal(slot.heads, rows(4, 6, 0, 6))


@pytest.mark.parametrize("kind", ["plain", "mixed"])
def test_layout_of_a_hand_written_model(kind: str) -> None:
    found = resolve(HandModel(kind).eval())
    for role in ("query", "key", "value"):
        assert torch.equal(found.slot(Site(f"{role}_output", 1)).heads, rows(4, 6, 0, 6))


@pytest.mark.parametrize(("name", "kv"), [("llama", 2), ("phi3", 2), ("falcon", 1), ("bigcode", 1)])
def test_shared_heads_say_who_shares_them(name: str, kv: int) -> None:
    found = resolve(shared(name))
    said = f"4 query heads share {kv} key/value heads: query head h uses key/value head h // {4 // kv}"
    assert found.slot(Site("key_output", 0)).grouping == said
    assert found.slot(Site("value_output", 0)).grouping == said
    assert found.slot(Site("query_output", 0)).grouping == ""


def test_heads_that_are_not_shared_say_nothing() -> None:
    assert resolve(shared("gpt2")).slot(Site("key_output", 0)).grouping == ""


@pytest.mark.parametrize("name", ["gpt2", "llama", "deepseek3", "qwen3next"])
def test_the_heads_outputs_lie_side_by_side(name: str) -> None:
    found = resolve(shared(name))
    values, raw = found.slot(Site("attention_value_output", 1)), found.slot(Site("head_output", 1))
    assert torch.equal(values.heads, raw.heads)
    assert torch.equal(values.heads.flatten(), torch.arange(values.width))


def test_a_zeroed_head_of_the_map_is_a_head_without_a_voice() -> None:
    """The map against the model itself: with head 2's values at 0, its slice of the output projection's input is 0."""
    model = shared("neox")
    found = resolve(model)
    value, z = found.slot(Site("value_output", 0)), found.slot(Site("attention_value_output", 0))
    seen: list[Tensor] = []

    def silence(_module: object, _args: object, output: Tensor) -> Tensor:
        output = output.clone()
        output[..., value.heads[2]] = 0
        return output

    with (
        torch.no_grad(),
        value.module.register_forward_hook(silence),
        z.module.register_forward_pre_hook(lambda _module, args: seen.append(args[0])),
    ):
        model(torch.arange(3, 10)[None])
    alive = [bool((seen[0][..., z.heads[head]] != 0).all()) for head in range(4)]
    assert alive == [True, True, False, True]
    assert bool((seen[0][..., z.heads[2]] == 0).all())
