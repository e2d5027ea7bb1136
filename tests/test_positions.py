"""Positions: plain integers, example by example."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.untyped import untyped

from align_transformers import Positions, SpecError
from align_transformers.positions import EVERYWHERE, read_steps


def test_everywhere_names_nothing():
    assert Positions() == EVERYWHERE
    assert (EVERYWHERE.rows, EVERYWHERE.heads, EVERYWHERE.steps, EVERYWHERE.widest, EVERYWHERE.batch) == (
        *(None, None, ()),
        *(None, None),
    )


def test_rows_may_differ_in_length_and_be_empty():
    positions = Positions(((4,), (), (2, 3)))
    assert (positions.widest, positions.batch) == (2, 3)
    assert Positions(()).widest == 0
    assert Positions(heads=((1, 2),)).batch == 1


def test_any_nesting_of_integers_becomes_hashable_tuples():
    wanted = Positions(((1, 2), (3,)), ((0,), (1,)), (0, 5))
    with untyped():
        given = Positions([[1, np.int64(2)], [3]], np.array([[0], [1]]), [0, 5])
    assert given == wanted
    assert hash(given) == hash(wanted)
    assert type(given.rows[0][1]) is int
    assert Positions(steps="all").steps == "all"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": ((1, -1),)}, r"rows of Positions count from 0; found \[1, -1\]"),
        ({"heads": ((-2,),)}, "heads of Positions count from 0"),
        ({"steps": (-1,)}, "steps of Positions count from 0"),
        ({"rows": ((1.5,),)}, "rows of Positions are integers"),
        ({"rows": ((True, False),)}, r"rows of Positions are integers; found \(True, False\)"),
        ({"steps": "first"}, "steps of Positions are integers"),
        ({"rows": ((1,),), "heads": ((1,), (2,))}, "positions name 1 examples, but heads 2"),
    ],
)
def test_refused(arguments, message):
    with untyped(), pytest.raises(SpecError, match=message):
        Positions(**arguments)


def test_a_place_may_be_read_twice_but_not_written_twice():
    with pytest.raises(SpecError, match=r"here: example 1 names a position twice: \[4, 2, 4\]"):
        Positions(((1,), (4, 2, 4))).check_distinct("here")
    with pytest.raises(SpecError, match="names a head twice"):
        Positions(heads=((3, 3),)).check_distinct("here")
    Positions(((1, 2), (1, 2)), ((0,), (0,))).check_distinct("here")
    EVERYWHERE.check_distinct("here")


@pytest.mark.parametrize("one", [1, np.int64(1), np.array(1), torch.tensor(1), [1], (1,), np.array([1]), range(1, 2)])
def test_one_step(one):
    assert read_steps(one, "all") == (1,)
    assert type(read_steps(one)[0]) is int


@pytest.mark.parametrize("several", [[0, 2], (0, np.int32(2)), range(0, 3, 2), torch.tensor([0, 2])])
def test_several_steps(several):
    assert read_steps(several) == read_steps(iter(several)) == (0, 2)


def test_no_steps_and_all_steps():
    assert read_steps([], "all") == read_steps(None) == ()
    assert read_steps("all") == read_steps(None, "all") == "all"


@pytest.mark.parametrize("wrong", [True, [0, True], np.array([True]), "al", "", b"al", ["all"], 1.0, [1.5], [[1]]])
def test_what_is_no_step(wrong):
    with pytest.raises(SpecError, match="steps is a number, several numbers, or 'all'; found"):
        read_steps(wrong)


@pytest.mark.parametrize("wrong", [-1, [0, -2], torch.tensor([-1])])
def test_steps_do_not_count_from_the_end(wrong):
    with pytest.raises(SpecError, match="steps count from 0; found"):
        read_steps(wrong)
