"""Every way to write unit locations and subspaces, and the one canonical value that it stands for."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from align_transformers import PositionError, Positions, SpecError, UnknownNameError
from align_transformers.locations import Addressed, Axis, Location, choose_subspaces, locate
from align_transformers.positions import EVERYWHERE

LINK = "sources->base"
BASE = Axis(2, [(0, 6), (0, 4)])  # right-padded to 6
SOURCE = Axis(2, [(0, 5), (2, 5)])  # left-padded to 5


def read(spec, *units, limit=4, link=LINK, source=SOURCE, base=BASE):
    """Locate with one intervention for each of `units`; `pos` if none is given."""
    addressed = [Addressed(unit, limit) for unit in units or ("pos",)]
    return locate(spec, link, addressed, [source] * len(addressed), [base] * len(addressed))


def at(rows, heads=None):
    return Positions(None if rows is None else tuple(map(tuple, rows)), heads and tuple(map(tuple, heads)))


def both(source, base):
    return [Location(at(source), at(base))]


SAME = both([[2], [2]], [[3], [3]])


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ({LINK: ([[[2], [2]]], [[[3], [3]]])}, SAME),
        ({LINK: (2, 3)}, SAME),
        ({LINK: [2, 3]}, SAME),
        ((2, 3), SAME),
        ({LINK: ([2], [3])}, SAME),
        ({LINK: ([[2], [2]], [[3], [3]])}, SAME),
        ({LINK: torch.tensor([2, 3])}, SAME),
        ({LINK: np.array([[[[2], [2]]], [[[3], [3]]]])}, SAME),
        ({LINK: (torch.tensor([[2], [2]]), np.array([3]))}, SAME),
        ({LINK: (torch.tensor(2), np.int64(3))}, SAME),
        ({LINK: (slice(2, 3), slice(3, 4))}, SAME),
        ({LINK: (range(2, 3), [3])}, SAME),
        ({LINK: 3}, both([[3], [3]], [[3], [3]])),
        (3, both([[3], [3]], [[3], [3]])),
        ({LINK: slice(2, 4)}, both([[2, 3], [2, 3]], [[2, 3], [2, 3]])),
        ({LINK: (None, 3)}, both(None, [[3], [3]])),
        ({LINK: (2, None)}, both([[2], [2]], None)),
        ({LINK: None}, both(None, None)),
        (None, both(None, None)),
        ({"base": None}, both(None, None)),
        ({"base": 3}, both(None, [[3], [3]])),
        ({"base": []}, both(None, [[], []])),
        ({"base": [1]}, both(None, [[1], [1]])),
        ({"base": [1, 3]}, both(None, [[1, 3], [1, 3]])),
        ({"base": [1, 2, 3]}, both(None, [[1, 2, 3], [1, 2, 3]])),
        ({"base": [[1, 2], [3]]}, both(None, [[1, 2], [3]])),
        ({"base": [[[1, 2], []]]}, both(None, [[1, 2], []])),
        ({"base": [[5], slice(1, 3)]}, both(None, [[5], [1, 2]])),
        ({"base": -1}, both(None, [[5], [3]])),
        ({LINK: (-1, [-2, 0])}, both([[4], [4]], [[4, 0], [2, 0]])),
        ({LINK: (-3, -4)}, both([[2], [2]], [[2], [0]])),
        ({LINK: (slice(None), slice(-2, None))}, "too many"),
        ({"base": slice(0, 4, 2)}, both(None, [[0, 2], [0, 2]])),
        ({"base": slice(3, 99)}, both(None, [[3, 4, 5], [3]])),
        ({LINK: (slice(1, 4), 0)}, both([[1, 2, 3], [2, 3]], [[0], [0]])),
        ({LINK: (slice(None, -1), 0)}, both([[0, 1, 2, 3], [2, 3]], [[0], [0]])),
        ({LINK: ([4, 4], [2, 3])}, both([[4, 4], [4, 4]], [[2, 3], [2, 3]])),
        ({"base": [None]}, [None]),
        ({LINK: ([None], [None])}, [None]),
        ({LINK: ([None], [[[1], [2]]])}, both(None, [[1], [2]])),
    ],
)
def test_forms_of_one_intervention(spec, found):
    if found == "too many":
        with pytest.raises(SpecError, match="example 0: 5 units, but max_number_of_units is 4"):
            read(spec)
    else:
        assert read(spec) == found


def test_several_interventions():
    full = {"base": [[[0], [1]], None, [[2], [3]]]}
    assert read(full, "pos", "t", "pos") == [*both(None, [[0], [1]]), None, *both(None, [[2], [3]])]
    assert read({"base": [[0], [1]]}, "pos", "pos") == both(None, [[0], [1]]) * 2
    assert read({"base": [None, None]}, "pos", "pos") == [None, None]


def test_heads():
    assert read({"base": [1, 3]}, "h") == [Location(EVERYWHERE, at(None, [[1, 3], [1, 3]]))]
    assert read({"base": [[[1], [3, 0]]]}, "h") == [Location(EVERYWHERE, at(None, [[1], [3, 0]]))]
    assert read({"base": slice(1, 3)}, "h")[0].base.heads == ((1, 2), (1, 2))
    mixed = read({"base": 2}, "pos", "h")
    assert [found.base for found in mixed] == [at([[2], [2]]), at(None, [[2], [2]])]


@pytest.mark.parametrize(
    "spec",
    [
        [[[[3, 1], [3, 1]], [[0], [0]]]],
        [[[3, 1], [3, 1]], [[0], [0]]],
        [[3, 1], [0]],
        [[3, 1], 0],
        ((3, 1), slice(0, 1)),
        [[3, 1], [[0], [0]]],
        torch.tensor([[[[3, 1], [3, 1]], [[0, 0], [0, 0]]]])[:, :, :, :2],
    ],
)
def test_heads_at_positions_name_heads_first(spec):
    if isinstance(spec, torch.Tensor):
        assert read({"base": spec}, "h.pos")[0].base == at([[0, 0], [0, 0]], [[3, 1], [3, 1]])
    else:
        assert read({"base": spec}, "h.pos")[0].base == at([[0], [0]], [[3, 1], [3, 1]])


def test_heads_at_positions_of_several_interventions():
    one, two = [[[0], [1]], [[2], [3]]], [[[3], [2]], [[1], [0]]]
    wanted = [at([[2], [3]], [[0], [1]]), at([[1], [0]], [[3], [2]])]
    assert [found.base for found in read({"base": [one, two]}, "h.pos", "h.pos")] == wanted
    assert [found.base for found in read({"base": one}, "h.pos", "h.pos")] == wanted[:1] * 2
    assert read({"base": (3, -1)}, "h.pos")[0].base == at([[5], [3]], [[3], [3]])
    mixed = read({"base": [[[4], [3]], one, None]}, "pos", "h.pos", "pos")
    assert [found and found.base for found in mixed] == [at([[4], [3]]), wanted[0], None]


def test_one_source_example_serves_the_whole_batch():
    one = Axis(1, [(1, 5)])
    per_example = read({LINK: ([[[1], [4]]], [[[0], [1]]])}, source=one)
    assert per_example == both([[1], [4]], [[0], [1]])
    assert read({LINK: ([[[4]]], [[[0], [1]]])}, source=one) == both([[4], [4]], [[0], [1]])
    assert read({LINK: (-4, 0)}, source=one) == both([[1], [1]], [[0], [0]])
    found = locate((0, 0), LINK, [Addressed("pos", 1)] * 2, [SOURCE, one], [Axis(2, BASE.spans)] * 2)
    assert [len(location.source.rows) for location in found] == [2, 2]


def test_sources_have_their_own_axes():
    found = locate((-1, -1), LINK, [Addressed("pos", 1)] * 2, [SOURCE, BASE], [BASE, BASE])
    assert [location.source.rows for location in found] == [((4,), (4,)), ((5,), (3,))]


@pytest.mark.parametrize(
    ("spec", "units", "error", "message"),
    [
        ({"source->base": 1}, ["pos"], UnknownNameError, "no key 'source->base' here; did you mean 'sources->base'"),
        ({"bse": 1}, ["pos"], UnknownNameError, "did you mean 'base'"),
        ({}, ["pos"], SpecError, "takes one key, 'sources->base' or 'base'; found"),
        ({LINK: 1, "base": 1}, ["pos"], SpecError, "takes one key"),
        ({LINK: [1, 2, 3]}, ["pos"], SpecError, r"is a pair \(source, base\).*\(\[2, 3, 4\], \[2, 3, 4\]\)"),
        ({LINK: [[[1]]]}, ["pos"], SpecError, "is a pair"),
        ({"base": 1.5}, ["pos"], SpecError, "locations are made of integers.*found 1.5"),
        ({"base": "1"}, ["pos"], SpecError, "found '1'"),
        ({"base": True}, ["pos"], SpecError, "found True"),
        ({"base": torch.ones(2, 1)}, ["pos"], SpecError, "found 1.0"),
        ({"base": [[[[1]]]]}, ["pos"], SpecError, r"nested wrongly.*full form is \[n_interventions\]\[batch\]\[n_"),
        ({"base": [[[1], [1]], [[1], [1]]]}, ["pos"], SpecError, "names 2 interventions, but there are 1"),
        ({"base": [None, None]}, ["pos"], SpecError, "names 2 interventions, but there are 1"),
        ({"base": [[1], [2], [3]]}, ["pos"], SpecError, "the base side of 'sources->base' names 3 examples, but the b"),
        ({"base": [[1]]}, ["pos"], SpecError, "names 1 examples, but the batch has 2"),
        ({LINK: ([[[1]]], [[[1], [1]]])}, ["pos"], SpecError, "the source side of .* names 1 examples"),
        ({"base": [[1], 2]}, ["pos"], SpecError, "some examples have a list of units and some have not"),
        ({"base": [slice(0, 2), 3]}, ["pos"], SpecError, "some examples have a list"),
        ({"base": [[[1], [1]], [1]]}, ["pos", "pos"], SpecError, "nested wrongly"),
        ({"base": [None, 1]}, ["pos", "pos"], SpecError, "expected integers; found None"),
        ({"base": [[1, None], [1]]}, ["pos"], SpecError, "example 0: expected integers; found None"),
        ({"base": [0, 1, 2, 3, 3]}, ["pos"], SpecError, "example 0: 5 units, but max_number_of_units is 4"),
        ({LINK: (None, None), "x": 1}, ["pos"], UnknownNameError, "no key 'x'"),
        ({LINK: ([[[1], [1]]], [None])}, ["pos"], SpecError, "has source locations but None for the base"),
        ({"base": 1}, ["h.pos"], SpecError, r"the unit h.pos takes a pair \(heads, positions\); found 1"),
        ({"base": [1, 2, 3]}, ["h.pos"], SpecError, "takes a pair"),
        ({"base": [[[1], [1], [1]], [[2], [2]]]}, ["h.pos"], SpecError, r"\(heads\) names 3 examples"),
        ({"base": [[0, 1, 2, 3, 0], 2]}, ["h.pos"], SpecError, r"\(heads\), example 0: 5 units"),
        ({"base": 2}, ["pos", "h.pos"], SpecError, "interventions with the unit h.pos among others need it"),
        ({"base": [[2], [2]]}, ["pos", "h.pos"], SpecError, "nested wrongly"),
        ({"base": -1}, ["h"], SpecError, "-1 counts from the end, which is not known here"),
        ({"base": slice(1, None)}, ["h"], SpecError, "give start and stop from 0"),
        ({"base": slice(-2, 3)}, ["h"], SpecError, "give start and stop from 0"),
        ({"base": -5}, ["pos"], PositionError, "example 1: -5 does not exist; there are 4 real tokens"),
        ({LINK: (slice(0, 2), 0)}, ["pos"], PositionError, "example 1: slice.* selects nothing; the real tokens"),
        ({"base": slice(3, 1)}, ["pos"], PositionError, "selects nothing"),
        ({"base": slice(None, None, -1)}, ["pos"], SpecError, "a step of -1; it must be 1 or more"),
    ],
)  # fmt: skip
def test_refused(spec, units, error, message):
    with pytest.raises(error, match=message):
        read(spec, *units)


def test_counting_from_the_end_needs_a_length():
    blind = Axis(2)
    assert read({"base": slice(1, 3)}, base=blind) == both(None, [[1, 2], [1, 2]])
    with pytest.raises(SpecError, match="-1 counts from the end, which is not known here"):
        read({"base": -1}, base=blind)


def test_serial_links_have_their_own_keys():
    link = "source_0->source_1"
    for spec in ({link: (2, 3)}, {"source_1": 3}, (2, 3)):
        assert read(spec, link=link)[0].base.rows == ((3,), (3,))
    with pytest.raises(UnknownNameError, match="did you mean 'source_0->source_1'"):
        read({"source_0->source1": 3}, link=link)


# --- every short form is its long form, and nothing remembers a call ------------------------------------------------

UNIT = st.integers(-4, 3)  # exists in every example of BASE


@st.composite
def short_and_long(draw):
    """Draw a short form, and the full form that it stands for, of a base side."""
    count, lists = draw(st.integers(1, 3)), st.lists(UNIT, max_size=4)
    kind = draw(st.sampled_from(["int", "flat", "per example", "slice"]))
    if kind == "int":
        short = draw(UNIT)
        rows = [[short]] * 2
    elif kind == "flat":
        short = draw(lists)
        rows = [short] * 2
    elif kind == "per example":
        short = rows = [draw(lists), draw(lists)]
    else:
        start = draw(st.integers(0, 2))
        short, rows = slice(start, start + 2), [[start, start + 1]] * 2
    if kind != "slice" and (kind != "per example" or len(rows[0]) == len(rows[1])) and draw(st.booleans()):
        short = np.array(short, dtype=int) if draw(st.booleans()) else torch.tensor(short, dtype=torch.long)
    return count, short, [rows] * count


@given(short_and_long(), short_and_long())
def test_short_forms_are_their_long_forms_whatever_was_called_before(one, other):
    count, short, long = one
    units = ["pos"] * count
    wanted = [Positions(tuple(tuple(_column(unit, e) for unit in row) for e, row in enumerate(long[0])))] * count
    kept = copy.deepcopy(long)
    assert [found.base for found in read({"base": long}, *units)] == wanted
    read({"base": other[1]}, *["pos"] * other[0])
    assert [found.base for found in read({"base": short}, *units)] == wanted
    assert [found.source for found in read({LINK: (long, short)}, *units, source=BASE)] == wanted
    assert long == kept


def _column(unit, example):
    return unit if unit >= 0 else BASE.spans[example][1] + unit


@given(st.integers(0, 4), st.integers(1, 5), st.integers(-6, 6) | st.none(), st.integers(-6, 6) | st.none())
def test_a_slice_selects_among_the_real_tokens(start, length, first, stop):
    columns = list(range(start, start + length))
    wanted = [
        column
        for column in columns
        if (first is None or column >= (first if first >= 0 else start + length + first))
        and (stop is None or column < (stop if stop >= 0 else start + length + stop))
    ]
    axis = Axis(1, [(start, start + length)])
    if wanted:
        assert read({"base": slice(first, stop)}, limit=9, base=axis)[0].base.rows == (tuple(wanted),)
    else:
        with pytest.raises(PositionError, match="selects nothing"):
            read({"base": slice(first, stop)}, limit=9, base=axis)


# --- subspaces -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        (None, [None, None]),
        (1, [((1,), (1,))] * 2),
        ([0, 2], [((0, 2), (0, 2))] * 2),
        ([[0], [1]], [((0,), (1,))] * 2),
        ([[0, 1], []], [((0, 1), ())] * 2),
        ([[[0], [1]], [[2], [3]]], [((0,), (1,)), ((2,), (3,))]),
        ([None, [[0], [1]]], [None, ((0,), (1,))]),
        (torch.tensor([[[0], [1]], [[2], [3]]]), [((0,), (1,)), ((2,), (3,))]),
        (slice(0, 2), [((0, 1), (0, 1))] * 2),
    ],
)
def test_subspaces(spec, found):
    assert choose_subspaces(spec, count=2, batch=2) == found


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ([[0]], "subspaces names 1 examples, but the batch has 2"),
        ([[[0], [1]]], "subspaces names 1 interventions, but there are 2"),
        ([[[[0]]], [[0]]], "subspaces is nested wrongly"),
        (-1, "-1 counts from the end"),
    ],
)
def test_subspaces_refused(spec, message):
    with pytest.raises(SpecError, match=message):
        choose_subspaces(spec, count=2, batch=2)
