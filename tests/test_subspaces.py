"""Partitions, and the coordinates that are chosen example by example."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.untyped import untyped

from align_transformers import SpecError
from align_transformers.subspaces import Partition, coordinate_mask


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ([[0, 2], [2, 5]], ((0, 1), (2, 3, 4))),
        ([(0, 2), (3, 4)], ((0, 1), (3,))),
        ([[4, 0, 2]], ((4, 0, 2),)),
        ([[3]], ((3,),)),
        ([{4, 0}, frozenset({2, 1})], ((0, 4), (1, 2))),
        ([range(1, 3), range(0, 6, 2)], ((1, 2), (0, 2, 4))),
        ([torch.tensor([4, 0]), np.array([1, 3])], ((4, 0), (1, 3))),
        (torch.tensor([[0, 2], [2, 5]]), ((0, 1), (2, 3, 4))),
        (np.array([[0, 1, 3]]), ((0, 1, 3),)),
        (([0, 2] for _ in range(1)), ((0, 1),)),
    ],
)
def test_the_ways_to_write_a_partition(spec, parts):
    assert tuple(map(tuple, Partition.of(spec).parts)) == parts


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ([], "at least one part"),
        ([[]], r"part 0 of the subspace partition is \[\]"),
        ([[0, 2], [1, 1, 3]], "part 1"),
        ([[-1, 0, 1]], "distinct coordinates from 0"),
        ([[2, 2]], r"subspace range \[2, 2\] is empty"),
        ([[4, 2]], "low < high"),
        ([[0.5, 1.5]], r"made of integers; found \[0.5, 1.5\]"),
        ([3], "made of integers; found 3"),
        (5, "a list with an entry for each part; found 5"),
        ("abc", "a list with an entry for each part"),
    ],
)
def test_refused(spec, message):
    with untyped(), pytest.raises(SpecError, match=message):
        Partition.of(spec)


@given(st.lists(st.sets(st.integers(0, 7), min_size=1), min_size=1, max_size=4), st.data())
def test_the_mask_is_the_union_of_each_examples_own_parts(parts, data):
    chosen = data.draw(st.lists(st.lists(st.integers(0, len(parts) - 1)), min_size=1, max_size=3))
    mask = coordinate_mask(tuple(map(tuple, chosen)), Partition.of(parts), 8)
    wanted = [[any(c in parts[number] for number in numbers) for c in range(8)] for numbers in chosen]
    assert mask.tolist() == wanted


def test_without_a_partition_each_coordinate_is_a_part():
    assert coordinate_mask(((0,), (2, 1)), None, 3).int().tolist() == [[1, 0, 0], [0, 1, 1]]


@pytest.mark.parametrize(
    ("choice", "partition", "message"),
    [
        (((0,), (2,)), Partition.of([[0, 1], [1, 3]]), "subspace 2 of example 1 does not exist: there are 2, from 0"),
        (((-1,),), None, "subspace -1 of example 0"),
        (((3,),), None, "there are 3, from 0"),
        (((0,),), Partition.of([[0, 4]]), "names coordinate 3, but there are only 3"),
    ],
)
def test_choices_outside_are_refused(choice, partition, message):
    with untyped(), pytest.raises(SpecError, match=message):
        coordinate_mask(choice, partition, 3)


def test_a_mask_made_in_inference_mode_serves_autograd_later():
    choice = ((1,), (0, 2), (1,))  # not used elsewhere: masks are cached
    with torch.inference_mode():
        coordinate_mask(choice, None, 3)
    weight = torch.ones(3, 3, requires_grad=True)
    torch.where(coordinate_mask(choice, None, 3), weight, weight * 2).sum().backward()
    assert weight.grad is not None
