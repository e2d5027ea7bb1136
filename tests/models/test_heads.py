"""Which channels are which head's: layouts written by hand, and grouped heads."""

from __future__ import annotations

import pytest
import torch
from tests.models.small import HIDDEN, VOCAB, HandModel, shared
from torch import Tensor, nn

from align_transformers import Site, SiteError
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


@pytest.mark.parametrize("component", ["key_output", "value_output"])
def test_which_query_head_uses_which_key_head_is_seen(component: str) -> None:
    tiled = resolve(HandModel("tiled").eval()).slot(Site(component, 1))
    assert tiled.grouping == "4 query heads share 2 key/value heads: query heads 0 to 3 use key/value heads 0, 1, 0, 1"
    neighbours = resolve(shared("llama")).slot(Site(component, 1))
    assert neighbours.grouping.endswith("query head h uses key/value head h // 2")


class _Loud(nn.Module):
    """Softmax attention by hand whose scores are a sum of two products, the second with positions that are handed in.

    With `heads` equal to the number of positions nothing tells the two axes apart.
    """

    def __init__(self, heads: int, both: bool) -> None:
        super().__init__()
        self.heads, self.both = heads, both
        self.ask, self.look, self.give, self.merge = (nn.Linear(HIDDEN, HIDDEN) for _ in range(4))

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        def split(y: Tensor) -> Tensor:
            return y.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        query, key = split(self.ask(x)), split(self.look(x))
        scores = query @ key.transpose(2, 3)
        if self.both:
            by_place = key @ split(places).transpose(2, 3)
            scores = scores + by_place[..., : x.shape[1]]
        return self.merge((scores.softmax(-1) @ split(self.give(x))).transpose(1, 2).flatten(2))


class _LoudModel(nn.Module):
    def __init__(self, heads: int, both: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCAB, HIDDEN)
        self.places = nn.Parameter(torch.randn(1, 14, HIDDEN))
        self.floors = nn.ModuleList(_LoudBlock(heads, both) for _ in range(2))

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.words(input_ids)
        for floor in self.floors:
            x = floor(x, self.places)
        return x


class _LoudBlock(nn.Module):
    def __init__(self, heads: int, both: bool) -> None:
        super().__init__()
        self.mix = _Loud(heads, both)

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        return x + self.mix(x, places)


@pytest.mark.parametrize("both", [False, True])
def test_the_scores_may_be_a_sum_of_products(both: bool) -> None:
    found = resolve(_LoudModel(4, both).eval())
    for component, path in (("query_output", "ask"), ("key_output", "look"), ("value_output", "give")):
        slot = found.slot(Site(component, 1))
        assert slot.path == f"floors.1.mix.{path}"
        assert slot.heads is not None
        assert len(slot.heads) == 4
    assert "cross_attention_output" not in found.stacks[""][1].slots


def test_as_many_heads_as_positions_are_refused() -> None:
    model = _LoudModel(4, both=False).eval()
    ids = torch.arange(3, 11).view(2, 4)
    found = resolve(model, example_inputs={"input_ids": ids})
    for component in ("query_output", "attention_value_output"):
        with pytest.raises(SiteError, match=r"no linear layer leads directly|unknown layout"):
            found.slot(Site(component, 1))
    assert len(resolve(model, example_inputs={"input_ids": ids[:, :3]}).slot(Site("query_output", 1)).heads) == 4
