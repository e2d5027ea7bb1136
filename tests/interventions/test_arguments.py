"""Constructor arguments and state: what an intervention is, as data. The contract suite has the round trips."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from align_transformers import FunctionIntervention, SpecError, VanillaIntervention
from align_transformers.interventions import (
    BoundlessRotatedSpaceIntervention,
    Intervention,
    LowRankRotatedSpaceIntervention,
    MeanIntervention,
    PCARotatedSpaceIntervention,
)
from align_transformers.subspaces import Partition


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, unique=True), min_size=1))
def test_a_partition_is_written_so_that_it_is_read_back(parts):
    partition = Partition(tuple(map(tuple, parts)))
    assert Partition.of(json.loads(json.dumps(partition.as_lists()))) == partition


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ([[[0, 1], [4, 6]]], ((0, 4, 5),)),
        ([((2, 4), (0, 1)), [0, 2]], ((2, 3, 0), (0, 1))),
    ],
)
def test_a_part_may_be_several_ranges(spec, parts):
    assert tuple(map(tuple, Partition.of(spec).parts)) == parts
    assert Partition.of(Partition.of(spec)) == Partition.of(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ([[[0, 1, 2]]], r"a range of a subspace partition is \[low, high\]; found \[0, 1, 2\]"),
        ([[[2, 1]]], r"subspace range \[2, 1\] is empty"),
        ([[[0, 2], [1, 3]]], "distinct coordinates"),
        ([[[0.5, 2]]], "made of integers; found"),
    ],
)
def test_wrong_ranges(spec, message):
    with pytest.raises(SpecError, match=message):
        Partition.of(spec)


def test_arguments_are_those_of_the_whole_constructor():
    one = LowRankRotatedSpaceIntervention(embed_dim=4, low_rank_dimension=2, subspace_partition=[{1, 0}])
    assert one.arguments() == {
        "embed_dim": 4,
        "low_rank_dimension": 2,
        "subspace_partition": [[0, 2]],
        "keep_last_dim": True,
        "interchange_dim": None,
    }


def test_arguments_say_how_it_is_now():
    one = BoundlessRotatedSpaceIntervention(embed_dim=4, temperature_schedule=(2.0, 1.0))
    one.set_temperature(1.5)
    one.set_interchange_dim(3)
    kept = one.arguments()
    assert (kept["temperature"], kept["temperature_schedule"], kept["interchange_dim"]) == (1.5, (2.0, 1.0), 3)
    assert one.hardened().arguments()["hard"] is True


def test_tensors_are_in_the_state_only():
    one = MeanIntervention(activations=torch.randn(4, 3))
    assert {"activations", "source_representation"}.isdisjoint(one.arguments())
    two = MeanIntervention(**one.arguments())
    two.load_state_dict(one.state_dict())
    assert torch.equal(two(torch.zeros(1, 1, 3)), one(torch.zeros(1, 1, 3)))


def test_state_is_restored_where_there_was_none():
    vector = torch.randn(3)
    one, two = VanillaIntervention(source_representation=vector), VanillaIntervention()
    two.load_state_dict(one.state_dict())
    assert torch.equal(two(torch.zeros(1, 1, 3)), vector.view(1, 1, 3))
    assert two.source_representation.data_ptr() != one.source_representation.data_ptr()
    inside = nn.ModuleDict({"a": VanillaIntervention(), "b": VanillaIntervention()})  # in a larger module, too
    inside.load_state_dict({"b.source_representation": vector})
    assert inside["a"].source_representation is None
    assert torch.equal(inside["b"].source_representation, vector)
    fitted = PCARotatedSpaceIntervention.fit(torch.randn(9, 3), 2)
    empty = PCARotatedSpaceIntervention(**fitted.arguments())
    empty.load_state_dict(fitted.state_dict())
    assert torch.equal(empty.rotation, fitted.rotation)


def test_what_does_not_belong_is_refused_as_ever():
    with pytest.raises(RuntimeError, match="Unexpected key"):
        VanillaIntervention().load_state_dict({"colour": torch.zeros(1)})
    with pytest.raises(RuntimeError, match="Missing key"):
        VanillaIntervention(source_representation=torch.zeros(2)).load_state_dict({})
    with pytest.raises(RuntimeError, match="size mismatch"):
        LowRankRotatedSpaceIntervention(embed_dim=3, low_rank_dimension=1).load_state_dict(
            LowRankRotatedSpaceIntervention(embed_dim=3, low_rank_dimension=2).state_dict()
        )


def test_a_function_is_no_data():
    with pytest.raises(SpecError, match=r"FunctionIntervention holds <function .*which is code and cannot be saved"):
        FunctionIntervention(lambda base: base).arguments()


class Forgetful(Intervention):
    def __init__(self, *, scale: float, **kwargs):
        super().__init__(**kwargs)

    def forward(self, base, source=None, subspaces=None):
        return base


class Odd(Intervention):
    def __init__(self, what, **kwargs):
        super().__init__(**kwargs)
        self.what = what

    def forward(self, base, source=None, subspaces=None):
        return base


class Closed(Intervention):
    def __init__(self, size=2):
        super().__init__(embed_dim=size)
        self.size = size

    def forward(self, base, source=None, subspaces=None):
        return base


def test_a_users_own_that_does_not_keep_its_arguments():
    with pytest.raises(SpecError, match=r"Forgetful does not keep its constructor argument 'scale'.*self.scale ="):
        Forgetful(scale=2.0).arguments()
    with pytest.raises(SpecError, match=r"the arguments of Odd cannot be written down: .*not JSON serializable"):
        Odd(print).arguments()
    assert Odd([1, 2]).arguments()["what"] == [1, 2]
    assert Closed(3).arguments() == {"size": 3}
