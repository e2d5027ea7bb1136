"""What a pass keeps for others, and how nested arguments are cut down to some rows."""

from __future__ import annotations

from collections import UserDict, namedtuple
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.fast.families import FAMILIES, blocks, build, prompts, shared
from torch import nn
from transformers import DynamicCache

from align_transformers.engine.hooks import tapped
from align_transformers.fast.depth import blocks_of
from align_transformers.fast.states import Recorder, States, by_batch, is_causal, is_side_channel, not_by_batch
from align_transformers.models import resolve
from align_transformers.models.detours import forwards
from align_transformers.models.scope import scope

Pair = namedtuple("Pair", ["one", "other"])


def keep(model: Any, inputs: dict, places: set, heads: bool) -> States:
    resolve(model)
    states = States(len(inputs["input_ids"]))
    recorder = Recorder(states, blocks_of(model), places, heads=heads)
    with torch.no_grad(), scope(), recorder.around(), tapped([]), recorder.within():
        model(**inputs)
    return states


@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_those_of_plain_hooks(family):
    model, inputs = shared(family), prompts(family, (5, 3), "right", 1)
    first = 3 if family == "t5" else 0  # an encoder's blocks come first
    seen: dict[Any, torch.Tensor] = {}

    def output(number: int) -> Any:
        def hook(_module: Any, _args: Any, result: Any) -> None:
            seen[number, True] = result[0] if isinstance(result, tuple) else result

        return hook

    def given(number: int) -> Any:
        def hook(_module: Any, args: Any, kwargs: Any) -> None:
            seen[number, False] = args[0] if args else kwargs["hidden_states"]

        return hook

    handles = []
    for number, block in enumerate(blocks(model)):
        handles.append(block.register_forward_hook(output(number)))
        handles.append(block.register_forward_pre_hook(given(number), with_kwargs=True))
    with torch.no_grad():
        model(**inputs)
    for handle in handles:
        handle.remove()
    kept = keep(model, inputs, {(first + 1, False), (first + 1, True), (first, True)}, False)
    assert torch.equal(kept.inputs[first + 1], seen[1, False])
    assert torch.equal(kept.outputs[first], seen[0, True])
    assert torch.equal(kept.outputs[first + 1], seen[1, True])
    assert set(kept.inputs) == {first + 1}  # nothing else is held
    assert set(kept.outputs) == {first, first + 1} | ({2} if family == "t5" else set())
    assert kept.attended == {}


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_what_a_token_takes_is_the_same_for_any_number_of_rows(family, rows):
    model, inputs = shared(family), prompts(family, (6,) * rows, "right", 1)
    returned: list[int] = []

    def note(_module: Any, _args: Any, output: Any) -> None:
        tensor = output[0] if isinstance(output, tuple) else output
        returned.append(tensor.numel() * 4)

    handles = [module.register_forward_hook(note) for module in blocks(model)[1].modules()]
    with torch.no_grad():
        model(**inputs)
    for handle in handles:
        handle.remove()
    assert keep(model, inputs, {(1, True)}, True).bytes == sum(returned) / inputs["input_ids"].numel()


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox", "gemma2", "gemma3"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_who_sees_whom_is_told_for_every_block(family, side):
    model, inputs = shared(family), prompts(family, (7, 4), side, 1)
    kept = keep(model, inputs, {(0, True)}, True)
    assert kept.unpackable == ""
    assert set(kept.attended) == {(0, 0), (1, 0), (2, 0)}
    for (number, _), seen in kept.attended.items():
        window = 4 if family.startswith("gemma") and number != 1 else 99
        allowed = seen.allowed if seen.allowed.dtype == torch.bool else seen.allowed == 0
        allowed = allowed.expand(2, -1, -1, -1)
        for example in range(2):
            real = inputs["attention_mask"][example].bool()
            for query in range(7):
                for key in range(7):
                    expected = key <= query and query - key < window and bool(real[key])
                    if real[query]:
                        assert bool(allowed[example, 0, query, key]) == expected
        assert is_causal(seen.allowed)


def test_a_bidirectional_attention_is_not_causal():
    kept = keep(shared("bert"), prompts("bert", (7, 4), "right", 1), {(0, True)}, True)
    assert kept.unpackable or not is_causal(next(iter(kept.attended.values())).allowed)
    assert keep(shared("t5"), prompts("t5", (7, 4), "right", 1), {(4, True)}, True).unpackable


def test_a_mask_that_shows_one_later_place_is_not_causal():
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
    assert is_causal(mask)
    added = torch.zeros(1, 1, 4, 4).masked_fill(~mask, torch.finfo(torch.float32).min)
    assert is_causal(added)
    assert is_causal(torch.zeros(1, 1, 4, 4).masked_fill(~mask, float("-inf")))
    mask[0, 0, 1, 2] = True
    added[0, 0, 1, 2] = -5.0
    assert not is_causal(mask)
    assert not is_causal(added)


def test_caches_are_no_side_channels():
    assert is_side_channel({}) or not is_side_channel({})
    assert is_side_channel(UserDict())
    assert not is_side_channel(DynamicCache())
    assert not is_side_channel(torch.ones(1))


@given(rows=st.integers(2, 5), keep_rows=st.integers(1, 5), fixed=st.booleans())
def test_tensors_by_example_are_cut_wherever_they_are(rows, keep_rows, fixed):
    hidden, bias, cache = torch.randn(rows, 3, 2), torch.randn(rows, 1, 3), DynamicCache()
    vector, other = torch.randn(rows), torch.randn(rows + 1, 2)
    arguments = ((hidden, None), {"pair": Pair(hidden, other), "bias": bias, "cache": cache, "list": [vector, 3]})
    held = {(1, "bias")} if fixed else set()
    (args, kwargs) = by_batch(arguments, rows, lambda tensor: tensor[:keep_rows], held)
    assert torch.equal(args[0], hidden[:keep_rows])
    assert args[1] is None
    assert type(kwargs["pair"]) is Pair
    assert torch.equal(kwargs["pair"].one, hidden[:keep_rows])
    assert kwargs["pair"].other is other
    assert kwargs["cache"] is cache
    assert kwargs["list"][0] is vector
    assert torch.equal(kwargs["bias"], bias if fixed else bias[:keep_rows])
    assert arguments[1]["bias"] is bias  # the container is left alone


def test_what_is_not_by_example_is_told():
    value = ((torch.ones(2, 3),), {"alibi": torch.ones(4, 1, 3), "one": torch.ones(1, 3), "flat": torch.ones(7)})
    assert list(not_by_batch(value, 2)) == [(1, "alibi")]


def test_a_stand_in_is_gone_afterwards_also_where_the_user_had_one():
    module, other = nn.Linear(2, 2), nn.Linear(2, 2)
    own = lambda x: x * 0  # noqa: E731
    other.forward = own
    stand_ins = {module: lambda forward: lambda x: forward(x) + 1, other: lambda forward: lambda x: forward(x) + 2}
    x = torch.ones(1, 2)
    plain = module(x)
    with scope(), forwards(stand_ins):
        assert torch.equal(module(x), plain + 1)
        assert torch.equal(other(x), torch.full((1, 2), 2.0))
    assert "forward" not in vars(module)
    assert other.forward is own


def test_paths_lie_in_one_block_or_have_no_depth():
    model = build("gpt2")
    model.transformer.h[2].mlp.act = model.transformer.h[1].mlp.act
    resolve(model)
    chain = blocks_of(model)
    assert chain.depth_of("transformer.h.1").layer == chain.depth_of("transformer.h.1.mlp.c_fc").layer == 1
    assert chain.depth_of("transformer.h.1.mlp.act") is None
    assert chain.depth_of("transformer.h") is None
    assert chain.depth_of("transformer.ln_f") is None
    assert chain.depth_of("transformer.h.10") is None
