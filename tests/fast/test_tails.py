"""Layouts against brute-force loops: where each token lies, who sees whom, where copies end."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.helpers import tiny, tokens

from align_transformers import (
    Edit,
    FunctionIntervention,
    Plan,
    Positions,
    Run,
    Site,
    bind,
    execute,
    one_by_one,
)
from align_transformers.engine.places import Places
from align_transformers.fast import planned
from align_transformers.fast.tails import Copies, lay_out
from align_transformers.plan import Logits

BATCH = 3


@st.composite
def layouts(draw):
    """Return for each run the examples and the starts of its copies; the number of columns; whether it is packed."""
    length, packed = draw(st.integers(1, 6)), draw(st.booleans())
    runs = []
    for _ in range(draw(st.integers(1, 3))):
        examples = tuple(draw(st.lists(st.integers(0, BATCH - 1), min_size=1, max_size=4)))
        runs.append((examples, tuple(draw(st.integers(0, length - 1)) for _ in examples)))
    return runs, length, packed


def laid_out(drawn):
    """Return the copies of each run, the number of columns, and the layout."""
    runs, length, packed = drawn  # made out here: the checks of types within use `random`
    runs = [Copies(*run) for run in runs]
    return runs, length, lay_out(runs, length, packed=packed)


def flat(runs):
    """Return (run, example, start) of every copy."""
    return [(n, e, s) for n, run in enumerate(runs) for e, s in zip(run.examples, run.starts, strict=True)]


@given(drawn=layouts())
def test_every_needed_token_lies_in_one_place_and_nothing_else_does(drawn):
    runs, length, layout = laid_out(drawn)
    found = {}
    for row in range(layout.example.shape[0]):
        for column in range(layout.example.shape[1]):
            copy = int(layout.copy[row, column])
            if copy >= 0:
                key = copy, int(layout.position[row, column])
                assert key not in found
                found[key] = (row, column, int(layout.example[row, column]))
    expected = {}
    for copy, (_, example, start) in enumerate(flat(runs)):
        for position in range(start if layout.packed else 0, length):
            expected[copy, position] = example
    assert {key: value[2] for key, value in found.items()} == expected
    for (copy, position), (row, column, _) in found.items():
        assert (row, column) == (int(layout.row[copy]), int(layout.offset[copy]) + position)
    rows = [set(layout.row[copies.start : copies.stop].tolist()) for copies in layout.copies]
    for n, run_rows in enumerate(rows):  # each run has rows of its own, in the order of the runs
        assert run_rows <= set(layout.rows[n])
        assert not layout.packed or run_rows == set(layout.rows[n])
    assert [r for rows in layout.rows for r in rows] == list(range(layout.example.shape[0]))
    for row in range(layout.example.shape[0]):
        assert len(set(layout.example[row].tolist())) == 1
    longest = max(length - (start if layout.packed else 0) for _, _, start in flat(runs))
    width = layout.example.shape[1]
    assert width == longest if not layout.packed else longest <= width <= longest * 1.25


@given(drawn=layouts(), data=st.data())
def test_states_are_laid_where_their_tokens_are(drawn, data):
    _, length, layout = laid_out(drawn)
    states = torch.randn(BATCH, length, 2)
    first = data.draw(st.integers(0, layout.example.shape[0] - 1))
    rows = range(first, data.draw(st.integers(first + 1, layout.example.shape[0])))
    laid = layout.lay(states, rows)
    assert laid.shape == (len(rows), layout.example.shape[1], 2)
    for row in rows:
        for column in range(layout.example.shape[1]):
            expected = states[layout.example[row, column], layout.position[row, column]]
            assert torch.equal(laid[row - first, column], expected)


def make_mask(length, batch, heads, window, kind, seed):
    """Return a mask as attention gets it; causal, with a window and padding, by head, booleans or numbers to add."""
    torch.manual_seed(seed)
    holes = torch.rand(batch, 1, 1, length) > 0.3
    seen = torch.ones(length, length, dtype=torch.bool).tril() & ~torch.ones(length, length).tril(-window).bool()
    seen = (seen & holes).expand(batch, heads, length, length).clone()
    if kind == "booleans":
        return seen
    bias = torch.randn(batch, heads, length, length) if kind == "alibi" else torch.zeros(batch, heads, length, length)
    return bias.masked_fill(~seen, torch.finfo(torch.float32).min)


@given(
    drawn=layouts(),
    batch=st.sampled_from([1, BATCH]),
    heads=st.sampled_from([1, 2]),
    window=st.integers(1, 6),
    kind=st.sampled_from(["booleans", "added", "alibi"]),
    seed=st.integers(0, 99),
)
def test_masks_show_each_place_what_it_saw_in_the_input(drawn, batch, heads, window, kind, seed):
    runs, length, layout = laid_out(drawn)
    if not layout.packed:
        layout = lay_out(runs, length, packed=True)
    allowed = make_mask(length, batch, heads, window, kind, seed)
    begins = layout.begins
    prefix = int(begins.max())
    mask = layout.mask(allowed, prefix)
    rows, columns = layout.example.shape
    assert mask.shape == (rows, allowed.shape[1], columns, prefix + columns)
    assert mask.dtype == allowed.dtype
    never = False if allowed.dtype == torch.bool else -torch.inf  # lower than what hides padding
    copies = flat(runs)
    for row in range(rows):
        own = allowed[layout.example[row, 0] if allowed.shape[0] > 1 else 0]
        for query in range(columns):
            copy = int(layout.copy[row, query])
            if copy < 0:
                continue
            start, at = copies[copy][2], int(layout.position[row, query])
            assert int(begins[row, query]) == start
            for key in range(prefix):
                expected = own[:, at, key] if key < start else torch.full_like(own[:, 0, 0], never)
                assert torch.equal(mask[row, :, query, key], expected)
            for key in range(columns):
                same = int(layout.copy[row, key]) == copy
                expected = own[:, at, layout.position[row, key]] if same else torch.full_like(own[:, 0, 0], never)
                assert torch.equal(mask[row, :, query, prefix + key], expected)


@given(drawn=layouts(), data=st.data())
def test_places_and_ends_are_the_same_tokens_in_another_layout(drawn, data):
    runs, length, layout = laid_out(drawn)
    states = torch.randn(BATCH, length, 2)
    number = data.draw(st.integers(0, len(runs) - 1))
    run = runs[number]
    whole = data.draw(st.booleans()) and (not layout.packed or not any(run.starts))
    index = None
    if not whole:
        picks = [[data.draw(st.integers(s if layout.packed else 0, length - 1)) for _ in range(2)] for s in run.starts]
        index = torch.tensor(picks)
    copies = torch.arange(len(run.examples)).unsqueeze(1)
    places = Places(rows=copies, index=index, batch=len(run.examples), reach=length)
    first = data.draw(st.sampled_from([0, layout.rows[number].start]))
    rows = range(first, layout.rows[number].stop)
    moved = layout.places(places, number, first)
    assert moved.batch == moved.reach == 0  # no longer those of the run's own batch
    own = states[list(run.examples)]
    assert torch.equal(moved.gather(layout.lay(states, rows)), places.gather(own))
    last = torch.tensor([data.draw(st.integers(max(run.starts), length - 1)) for _ in range(BATCH)])
    if all(start <= int(last[e]) for _, e, start in flat(runs)):
        row, column = layout.ends(last[[e for _, e, _ in flat(runs)]])
        laid = layout.lay(states, range(layout.example.shape[0]))
        expected = torch.stack([states[e, last[e]] for _, e, _ in flat(runs)])
        assert torch.equal(laid[row, column], expected)


def test_tails_fill_rows_without_room_where_they_can():
    # The tails of a prompt of 20 tokens, one a position: 210 tokens, in 10 rows of 21 instead of 20 of 20.
    layout = lay_out([Copies((0,) * 20, tuple(range(20)))], 20, packed=True)
    assert tuple(layout.example.shape) == (10, 21)
    assert int((layout.copy >= 0).sum()) == 210
    equal = lay_out([Copies((0,) * 3, (2, 2, 2))], 6, packed=True)  # where a longer row holds no more, none is made
    assert tuple(equal.example.shape) == (3, 4)


def test_tails_of_different_examples_or_runs_share_no_row():
    layout = lay_out([Copies((0, 1), (2, 2)), Copies((0,), (2,))], 4, packed=True)
    assert layout.example.tolist() == [[0, 0], [1, 1], [0, 0]]
    assert layout.rows == (range(2), range(2, 3))


@pytest.mark.parametrize("packed", [True, False])
def test_gradients_go_back_to_the_states(packed):
    states = torch.randn(2, 3, 4, requires_grad=True)
    layout = lay_out([Copies((1, 1), (0, 1))], 3, packed=packed)
    layout.lay(states, range(layout.example.shape[0])).sum().backward()
    assert float(states.grad[0].abs().sum()) == 0
    assert float(states.grad[1].abs().sum()) > 0


@pytest.mark.parametrize("runs", [1, 2])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_a_number_in_one_copy_leaves_the_others_as_they_are(bad, runs):
    """Of five copies one is spoilt. In a packed row it spoils others, so the copies are run again, each in its own."""
    model, inputs, calls = tiny("gpt2"), {"x": tokens(1, 6)}, []
    spoilt = 2 if runs == 1 else 0

    def edit(number, columns):
        name = "spoil" if number == 0 else "double"
        return Edit(f"edit {number}", Site("block_output", 0), name, Positions(tuple((c,) for c in columns)))

    columns = [(1, 2, 3, 4, 5)] if runs == 1 else [(3,), (1, 2, 4, 5)]
    edited = [Run(f"run {n}", "x", (edit(n, at),), (0,) * len(at)) for n, at in enumerate(columns)]
    plan = Plan((Run("base", "x"), *edited), ("base", *(run.name for run in edited)), Logits())

    def spoil(base):
        calls.append(base)
        new = base * 1.5
        new[spoilt] = bad
        return new

    def outcome(planner):
        functions = {"spoil": FunctionIntervention(spoil), "double": FunctionIntervention(lambda base: base * 2)}
        with torch.no_grad():
            return execute(bind(model, plan, inputs, functions), planner)

    alone = outcome(one_by_one)
    calls.clear()
    fast = outcome(planned)
    assert [one.way for one in fast.passes] == ["full", "together"]
    assert len(calls) == 2  # packed first
    assert "spread" in fast.passes[-1].refused["packed"]
    for run in edited:
        assert torch.allclose(fast.outputs[run.name], alone.outputs[run.name], rtol=0, atol=1e-5, equal_nan=True)
    assert [one.isnan().any().item() for one in fast.outputs["run 0"]].count(True) == 1
    assert [(e.site, e.fired, e.rows, e.positions) for e in fast.effects] == [
        (e.site, e.fired, e.rows, e.positions) for e in alone.effects
    ]
