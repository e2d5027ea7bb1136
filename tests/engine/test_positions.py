"""Positions at work: ragged, padded on either side, counted from the end, refused before anything runs."""

from __future__ import annotations

import pytest
import torch
from tests.helpers import FAMILIES, counted, grab, locus, logits_with, padded_tokens, placed, tiny, tokens, writer

from align_transformers import (
    AlignError,
    CollectIntervention,
    Constant,
    Edit,
    IntervenableModel,
    Plan,
    PlanError,
    PositionError,
    Positions,
    Read,
    Run,
    Site,
    SpecError,
    UnknownNameError,
    VanillaIntervention,
    ZeroIntervention,
    bind,
    execute,
)

PLACE = ("mlp_output", 1)


@pytest.fixture(params=FAMILIES)
def model(request):
    return tiny(request.param)


def at(**more):
    return {"layer": 1, "component": "mlp_output", **more}


def test_ragged_positions(model):
    base, source, place = tokens(4, 6), tokens(4, 7, 1), locus(model, *PLACE)
    read, write = [[6, 0, 2], [], [3], [1, 4]], [[1, 5, 0], [], [2], [3, 4]]
    (value,) = grab(model, source, place)
    face = IntervenableModel(at(max_number_of_units=3), model)
    got = face(base, source, {"sources->base": ([read], [write])}, return_dict=True)
    expected = logits_with(model, base, writer(place, write, lambda old, n: value[n, read[n]]))
    assert torch.equal(got.intervened_outputs.logits, expected)
    assert (got.effects[0].rows, got.effects[0].positions) == (3, 6)


def test_ragged_collecting_says_which_are_real(model):
    base, place = tokens(3, 6), locus(model, *PLACE)
    where = [[0, 5, 2], [], [3]]
    (value,) = grab(model, base, place)
    face = IntervenableModel(at(max_number_of_units=3, intervention_type=CollectIntervention), model)
    got = face(base, None, {"base": [where]}, return_dict=True)
    (values,), (mask,) = got.collected_activations, got.collected_masks
    assert mask.tolist() == [[True, True, True], [False] * 3, [True, False, False]]
    assert not values[~mask].any()
    for n, columns in enumerate(where):
        assert torch.equal(values[n, : len(columns)], value[n, columns])


def test_padding_of_ragged_positions_is_never_computed_with():
    """An infinite activation at the filler's place must not leak into what is collected."""
    model = torch.nn.Sequential(torch.nn.Identity())
    x = torch.ones(2, 3, 4)
    x[:, 0] = torch.inf
    edit = Edit("look", Site("0.output"), "look", Positions(((1, 2), (1,))))
    outcome = execute(bind(model, Plan((Run("b", "x", (edit,)),), ("b",)), {"x": x}, {"look": CollectIntervention()}))
    assert outcome.collected["look"].values[0].tolist() == [[[1.0] * 4] * 2, [[1.0] * 4, [0.0] * 4]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_negative_positions_count_from_the_last_real_token(model, side):
    lengths, source_lengths = [6, 3, 4], [2, 5, 4]
    base, source = placed(padded_tokens(lengths, side)), placed(padded_tokens(source_lengths, side, 1))
    place = locus(model, *PLACE)
    (value,) = grab(model, source, place)
    shift = [0 if side == "right" else 6 - n for n in lengths]
    source_shift = [0 if side == "right" else 5 - n for n in source_lengths]
    write = [[shift[n] + length - 1, shift[n] + length - 3] for n, length in enumerate(lengths)]
    read = [[source_shift[n] + length - 1, source_shift[n] + length - 2] for n, length in enumerate(source_lengths)]
    face = IntervenableModel(at(max_number_of_units=2), model)
    _, got = face(base, source, {"sources->base": ([-1, -2], [-1, -3])})
    expected = logits_with(model, base, writer(place, write, lambda old, n: value[n, read[n]]))
    assert torch.equal(got.logits, expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_per_example_on_a_padded_batch(model, side):
    base, source, place = placed(padded_tokens([5, 3], side)), tokens(2, 4, 1), locus(model, *PLACE)
    write, read = [[3], [2]], [[1], [3]]
    (value,) = grab(model, source, place)
    _, got = IntervenableModel(at(), model)(base, source, {"sources->base": ([read], [write])})
    expected = logits_with(model, base, writer(place, write, lambda old, n: value[n, read[n]]))
    assert torch.equal(got.logits, expected)


WRONG = {
    "left padding": (PositionError, {"base": [[[0], [0]]]}),
    "past the end": (PositionError, {"base": [[[5], [2]]]}),
    "before the first real token": (PositionError, {"base": [[[-1], [-4]]]}),
    "three examples for two": (SpecError, {"base": [[[2], [2], [2]]]}),
    "one example for two": (SpecError, {"base": [[[2]]]}),
    "two interventions for one": (SpecError, {"base": [[[2], [2]], [[2], [2]]]}),
    "misspelt key": (UnknownNameError, {"bsae": [[[2], [2]]]}),
    "nested too deeply": (SpecError, {"base": [[[[2]], [[2]]]]}),
    "a float": (SpecError, {"base": 1.5}),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_locations_are_refused_before_anything_runs(model, what):
    error, locations = WRONG[what]
    base = padded_tokens([5, 3], "left")
    face = IntervenableModel(at(intervention_type=ZeroIntervention), model)
    with counted(model) as calls, pytest.raises(error):
        face(base, None, locations)
    assert calls == []


def test_padding_of_the_source_is_refused_too(model):
    with counted(model) as calls, pytest.raises(PositionError, match="source"):
        IntervenableModel(at(), model)(
            tokens(2, 5), padded_tokens([5, 3], "right"), {"sources->base": ([[[1], [3]]], [[[1], [3]]])}
        )
    assert calls == []


def test_wrong_calls_are_refused_before_anything_runs(model):
    base, source = tokens(2, 6), tokens(2, 6, 1)
    face = IntervenableModel(at(), model)
    wrong = (
        (base, None, 1),  # a swap without a source
        (base, [source, source], 1),  # two sources for one group
        (base, tokens(3, 6), None),  # three examples for two
        (base, tokens(2, 5), None),  # the whole sequence, of another length
        (base, source, {"base": 1}),  # written, but not read
        (base, None, {"base": [[[1], [2]]]}, torch.ones(31)),  # a constant of another width
        (base, None, {"base": [[[1], [2]]]}, torch.ones(3, 1, 32)),  # a constant for three examples
        (base, source, {"sources->base": ([[[1], [2]]], [[[1], [2]]])}, None, [[[0]]]),  # subspaces of one example
    )
    with counted(model) as calls:
        for arguments in wrong:
            with pytest.raises(AlignError):
                face(*arguments)
    assert calls == []


def bound(model, read, write, base=None, source=None, **more):
    site = Site("mlp_output", 1)
    swap = Edit("swap", site, "swap", write, source=Read("s", site, read))
    plan = Plan((Run("s", "s"), Run("b", "b", (swap,))), ("b",))
    inputs = {"b": tokens(2, 6) if base is None else base, "s": tokens(2, 6, 1) if source is None else source}
    return bind(model, plan, inputs, {"swap": VanillaIntervention(**more)})


@pytest.mark.parametrize(
    ("read", "write"),
    [
        (((5, 3), (2,)), ((1, 2), (3, 4))),  # the short example would be filled up with zeros
        (((5, 3, 1), (2, 1, 0)), ((1, 2), (3, 4))),
        (((5,), ()), ((1,), (3,))),
        (((5,), (1,)), None),
        (None, ((1,), (2,))),
    ],
)
def test_reads_that_cannot_fill_what_is_written_are_refused(model, read, write):
    if write is None:  # one position for the whole sequence is fine; two are not
        bound(model, Positions(read), Positions())
        read = ((5, 4), (1, 0))
    with pytest.raises(PlanError):
        bound(model, Positions(read), Positions(write))


def test_one_position_read_for_many(model):
    place = locus(model, *PLACE)
    base, source = tokens(2, 6), tokens(2, 6, 1)
    (value,) = grab(model, source, place)
    write = ((1, 2), (5,))
    expected = logits_with(model, base, writer(place, write, lambda old, n: value[n, [4 + n]].expand_as(old)))
    got = execute(bound(model, Positions(((4,), (5,))), Positions(write))).outputs["b"].logits
    assert torch.equal(got, expected)
    expected = logits_with(model, base, writer(place, None, lambda old, n: value[n, [4 + n]].expand_as(old)))
    got = execute(bound(model, Positions(((4,), (5,))), Positions())).outputs["b"].logits
    assert torch.equal(got, expected)


def test_one_source_example_serves_the_batch(model):
    base, source, place = tokens(3, 6), tokens(1, 5, 1), locus(model, *PLACE)
    (value,) = grab(model, source, place)
    face = IntervenableModel(at(), model)
    write = [[0], [3], [5]]
    with counted(model) as calls:
        _, got = face(base, source, {"sources->base": ([[[4]]], [write])})
    assert calls == [1, 3]
    assert torch.equal(got.logits, logits_with(model, base, writer(place, write, lambda old, n: value[0, [4]])))


def test_one_source_example_read_at_several_places(model):
    base, source, place = tokens(3, 6), tokens(1, 5, 1), locus(model, *PLACE)
    (value,) = grab(model, source, place)
    read, write = ((4,), (0,), (2,)), ((0,), (3,), (5,))
    expected = logits_with(model, base, writer(place, write, lambda old, n: value[0, read[n]]))
    got = execute(bound(model, Positions(read), Positions(write), base, source)).outputs["b"].logits
    assert torch.equal(got, expected)


def test_a_place_written_twice_is_refused(model):
    with pytest.raises(AlignError, match="twice"):
        bound(model, Positions(((1, 2), (1, 2))), Positions(((3, 3), (3, 4))))


def test_a_place_may_be_read_twice(model):
    place, base, source = locus(model, *PLACE), tokens(2, 6), tokens(2, 6, 1)
    (value,) = grab(model, source, place)
    expected = logits_with(model, base, writer(place, [[3, 4]] * 2, lambda old, n: value[n, [1, 1]]))
    got = execute(bound(model, Positions(((1, 1),) * 2), Positions(((3, 4),) * 2))).outputs["b"].logits
    assert torch.equal(got, expected)


def test_units_as_one_vector(model):
    """With keep_last_dim=False a subspace spans the units of an example laid end to end."""
    place, base, source = locus(model, *PLACE), tokens(2, 6), tokens(2, 6, 1)
    (value,) = grab(model, source, place)
    write, read = [[1, 4], [3, 0]], [[2, 5], [0, 1]]
    swap = VanillaIntervention(keep_last_dim=False, subspace_partition=[[0, 20], [20, 64]])
    _, got = IntervenableModel(at(max_number_of_units=2, intervention=swap), model)(
        base, source, {"sources->base": ([read], [write])}, subspaces=[[[1], [0]]]
    )

    def by_hand(old, n):
        flat, new = old.flatten(), value[n, read[n]].flatten()
        cut = slice(20, 64) if n == 0 else slice(0, 20)
        flat[cut] = new[cut]
        return flat.view_as(old)

    assert torch.equal(got.logits, logits_with(model, base, writer(place, write, by_hand)))


def test_ragged_units_as_one_vector_are_refused(model):
    with pytest.raises(PlanError, match="same number of units"):
        bound(model, Positions(((1, 2), (3,))), Positions(((1, 2), (3,))), keep_last_dim=False)


def test_the_batch_is_that_of_the_tokens(model):
    """`position_ids` of one row serve every example."""
    base = {"position_ids": torch.arange(6)[None], **tokens(2, 6)}
    place = locus(model, *PLACE)
    _, got = IntervenableModel(at(intervention_type=ZeroIntervention), model)(base, None, {"base": [[[1], [4]]]})
    expected = logits_with(model, base, writer(place, [[1], [4]], lambda old, n: torch.zeros_like(old)))
    assert torch.equal(got.logits, expected)


def test_a_constant_that_does_not_fit_names_its_shape(model):
    edit = Edit("e", Site("mlp_output", 1), "swap", Positions(((1, 2), (3, 4))), source=Constant("c"))
    plan = Plan((Run("b", "b", (edit,)),), ("b",))
    for shape in ((31,), (3, 32), (3, 1, 32), (2, 3, 32)):
        with pytest.raises(PlanError, match="has shape"):
            bind(model, plan, {"b": tokens(2, 6)}, {"swap": VanillaIntervention()}, {"c": torch.zeros(shape)})
    for shape in ((), (1,), (32,), (2, 32), (2, 1, 32), (1, 2, 32)):
        bind(model, plan, {"b": tokens(2, 6)}, {"swap": VanillaIntervention()}, {"c": torch.zeros(shape)})
