"""Positions: plain integers, example by example."""

from __future__ import annotations

import numpy as np
import pytest
from tests.untyped import untyped

from align_transformers import Positions, SpecError
from align_transformers.positions import EVERYWHERE


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
