"""What is kept from batch to batch: by contents, and in files of its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.helpers import new_model, tokens

from align_transformers import ActivationCache, Edit, Logits, Plan, Positions, Run, Site
from align_transformers.fast.cache import remembered, row_keys


def test_two_caches_may_share_a_folder(tmp_path):
    first, second = ActivationCache(budget=0, folder=tmp_path), ActivationCache(budget=0, folder=tmp_path)
    first.keep(b"one", {"value": torch.zeros(2)})
    second.keep(b"two", {"value": torch.ones(2)})
    assert torch.equal(first.recall(b"one")["value"], torch.zeros(2))
    assert torch.equal(second.recall(b"two")["value"], torch.ones(2))
    assert first.recall(b"two") is None
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (torch.arange(2000)[None].clone(), (0, 1000)),  # one for all examples: more than is shown when it is printed
        (torch.zeros(1, 1, 60, 60), (0, 0, 30, 30)),
        (torch.zeros(3, 7, dtype=torch.bfloat16), (1, 3)),
    ],
)
def test_every_number_of_an_input_is_in_its_keys(value, place):
    ids = torch.arange(6).view(3, 2)
    other = value.clone()
    other[place] = 7
    before, after = (row_keys({"input_ids": ids, "more": one}, "") for one in (value, other))
    assert row_keys({"input_ids": ids.clone(), "more": value.clone()}, "") == before
    differ = [one != two for one, two in zip(before, after, strict=True)]
    assert differ == ([False, True, False] if len(value) == 3 else [True] * 3)


def test_the_same_numbers_of_another_kind_are_others():
    ids = torch.zeros(2, 3, dtype=torch.long)
    assert set(row_keys({"input_ids": ids}, "")).isdisjoint(row_keys({"input_ids": ids.int()}, ""))
    assert set(row_keys({"input_ids": ids}, "a")).isdisjoint(row_keys({"input_ids": ids}, "b"))


def test_what_stands_inside_of_containers_and_arrays_counts_whole():
    ids, long = torch.zeros(2, 3, dtype=torch.long), np.arange(2000)
    other = long.copy()
    other[1000] = 7
    for first, second in ((long, other), ([torch.tensor(long)], [torch.tensor(other)]), ({"a": long}, {"a": other})):
        keys = [row_keys({"input_ids": ids, "more": one}, "") for one in (first, second, first)]
        assert keys[0] == keys[2]
        assert set(keys[0]).isdisjoint(keys[1])


def test_what_is_remembered_says_how_large_a_pass_may_be():
    """A planner divides passes by the bytes of a token; of states from a memory it has to know them, too."""
    model, ids = new_model("gpt2"), tokens(2, 5)
    site, at = Site("block_output", 1), Positions(((1,), (2,)))
    plan = Plan((Run("base", "x", (Edit("zero", site, "zero", at),)),), ("base",), Logits())
    with torch.no_grad():
        found = remembered(model, plan, {"x": ids}, {}, ActivationCache())
    assert found.known["x"].bytes > 4 * 32  # more than what a block itself returns for a token
