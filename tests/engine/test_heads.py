"""Heads: the units `h` and `h.pos`, per example and ragged, with grouped key/value heads."""

from __future__ import annotations

import pytest
import torch
from tests.helpers import FAMILIES, counted, grab, hooked, locus, logits_with, tiny, tokens

from align_transformers import (
    CollectIntervention,
    Edit,
    IntervenableModel,
    Plan,
    PlanError,
    PositionError,
    Positions,
    Read,
    Run,
    Site,
    SiteError,
    VanillaIntervention,
    ZeroIntervention,
    bind,
    execute,
)

HEAD_COMPONENTS = [
    name
    for short in ("attention_value_output", "query_output", "key_output", "value_output")
    for name in (short, "head_" + short)
]


@pytest.fixture(params=FAMILIES)
def model(request):
    return tiny(request.param)


def channels(place, heads):
    """Return the channels of the heads, one after the other, in the module's own numbering."""
    return [place.low + head * place.head_dim + k for head in heads for k in range(place.head_dim)]


def head_writer(place, heads, columns, new):
    """Return a touch that replaces the chosen heads of each example at its columns (`None`: all), in a copy."""

    def touch(tensor):
        tensor = tensor.clone()
        for n in range(tensor.shape[0]):
            at = range(tensor.shape[1]) if columns is None else columns[n]
            for k, column in enumerate(at):
                for h, head in enumerate(heads[n]):
                    cut = slice(place.low + head * place.head_dim, place.low + (head + 1) * place.head_dim)
                    tensor[n, column, cut] = new(tensor[n, column, cut].clone(), n, k, h)
        return tensor

    return (place.module, place.side, touch)


def spec(component, unit, kind, most=2):
    return {"layer": 1, "component": component, "unit": unit, "max_number_of_units": most, "intervention_type": kind}


def value_of(value, place, n, column, head):
    return value[n, column, head * place.head_dim : (head + 1) * place.head_dim]


@pytest.mark.parametrize("component", HEAD_COMPONENTS)
def test_heads_over_the_whole_sequence(model, component):
    base, source, place = tokens(2, 5, 1), tokens(2, 5, 2), locus(model, component, 1)
    read, write = [[1], [0]], [[0], [1]]
    (value,) = grab(model, source, place)
    touch = head_writer(place, write, None, lambda old, n, k, h: value_of(value, place, n, k, read[n][h]))
    _, got = IntervenableModel(spec(component, "h", VanillaIntervention), model)(
        base, source, {"sources->base": ([read], [write])}
    )
    assert torch.equal(got.logits, logits_with(model, base, touch))


@pytest.mark.parametrize("component", HEAD_COMPONENTS)
def test_heads_at_positions(model, component):
    base, source, place = tokens(2, 6, 1), tokens(2, 5, 2), locus(model, component, 1)
    read, write = [[0, 1], [1, 0]], [[1, 0], [1, 0]]
    read_at, write_at = [[0, 4], [3, 1]], [[2, 5], [0, 4]]
    (value,) = grab(model, source, place)
    touch = head_writer(
        place, write, write_at, lambda old, n, k, h: value_of(value, place, n, read_at[n][k], read[n][h])
    )
    _, got = IntervenableModel(spec(component, "h.pos", VanillaIntervention), model)(
        base, source, {"sources->base": ([[read, read_at]], [[write, write_at]])}
    )
    assert torch.equal(got.logits, logits_with(model, base, touch))


@pytest.mark.parametrize("component", HEAD_COMPONENTS)
def test_a_head_write_changes_exactly_its_channels(model, component):
    base, place = tokens(2, 6, 1), locus(model, component, 1)
    heads, columns = [[1], [0]], [[2], [4]]
    seen = {}

    def keep(tensor):
        seen["value"] = tensor.clone()

    with hooked((place.module, place.side, keep)):  # stands behind an output edit, and behind an input edit
        model(**base)
        plain = seen["value"]
    face = IntervenableModel(spec(component, "h.pos", ZeroIntervention), model)
    if place.side == "output":
        with hooked((place.module, place.side, keep)):
            face(base, None, {"base": [[heads, columns]]})
    else:
        whole = _whole_input(face, model, place, base, heads, columns)
        seen["value"] = whole
    changed = (seen["value"] != plain).nonzero().tolist()
    expected = [[n, columns[n][0], c] for n in range(2) for c in channels(place, heads[n])]
    assert changed == sorted(expected)


def _whole_input(face, model, place, base, heads, columns):
    """Return what the module computed from, seen from a wrapper of its forward rather than from a hook."""
    seen, forward = {}, place.module.forward

    def wrapped(x, *args, **kwargs):
        seen["value"] = x.clone()
        return forward(x, *args, **kwargs)

    place.module.forward = wrapped
    try:
        face(base, None, {"base": [[heads, columns]]})
    finally:
        del place.module.forward
    return seen["value"]


def test_ragged_heads(model):
    base, source = tokens(3, 5, 1), tokens(3, 5, 2)
    place = locus(model, "attention_value_output", 1)
    heads = [[3, 0], [2], []]
    (value,) = grab(model, source, place)
    touch = head_writer(place, heads, None, lambda old, n, k, h: value_of(value, place, n, k, heads[n][h]))
    face = IntervenableModel(spec("attention_value_output", "h", VanillaIntervention), model)
    got = face(base, source, {"sources->base": ([heads], [heads])}, return_dict=True)
    assert torch.equal(got.intervened_outputs.logits, logits_with(model, base, touch))
    assert (got.effects[0].rows, got.effects[0].positions) == (2, 10)


def test_ragged_heads_at_ragged_positions(model):
    base, source = tokens(3, 6, 1), tokens(3, 5, 2)
    place = locus(model, "query_output", 1)
    heads, read_at, write_at = [[3, 0], [2], [1]], [[4, 2], [0, 3], [1]], [[5, 1], [2, 0], [3]]
    (value,) = grab(model, source, place)
    touch = head_writer(
        place, heads, write_at, lambda old, n, k, h: value_of(value, place, n, read_at[n][k], heads[n][h])
    )
    face = IntervenableModel(spec("query_output", "h.pos", VanillaIntervention), model)
    got = face(base, source, {"sources->base": ([[heads, read_at]], [[heads, write_at]])}, return_dict=True)
    assert torch.equal(got.intervened_outputs.logits, logits_with(model, base, touch))
    assert (got.effects[0].rows, got.effects[0].positions) == (3, 5)


def test_collected_heads_are_side_by_side_in_their_order(model):
    base, place = tokens(2, 5, 1), locus(model, "attention_value_output", 1)
    (value,) = grab(model, base, place)
    face = IntervenableModel(spec("attention_value_output", "h.pos", CollectIntervention), model)
    got = face(base, None, {"base": [[[[2, 0], [1, 3]], [[4], [1]]]]}, return_dict=True)
    expected = [
        torch.cat([value_of(value, place, n, c, h) for h in hs]) for n, c, hs in ((0, 4, (2, 0)), (1, 1, (1, 3)))
    ]
    assert torch.equal(got.collected_activations[0], torch.stack(expected)[:, None])


def test_heads_of_one_source_example_serve_every_base_example(model):
    """A plan may read different heads for every example of the base from a source of one example."""
    base, source = tokens(3, 5, 1), tokens(1, 5, 2)
    site, place = Site("attention_value_output", 1), locus(model, "attention_value_output", 1)
    read, write = ((3,), (1,), (0,)), ((0,), (0,), (2,))
    (value,) = grab(model, source, place)
    touch = head_writer(place, write, None, lambda old, n, k, h: value_of(value, place, 0, k, read[n][h]))
    swap = Edit("swap", site, "swap", Positions(None, write), source=Read("s", site, Positions(None, read)))
    plan = Plan((Run("s", "s"), Run("b", "b", (swap,))), outputs=("b",))
    outcome = execute(bind(model, plan, {"b": base, "s": source}, {"swap": VanillaIntervention()}))
    assert torch.equal(outcome.outputs["b"].logits, logits_with(model, base, touch))


@pytest.mark.parametrize("component", ["key_output", "head_value_output"])
def test_a_missing_head_is_refused_and_the_grouping_named(component):
    model, base = tiny("llama"), tokens(1, 4)
    face = IntervenableModel(spec(component, "h", ZeroIntervention), model)
    with counted(model) as calls, pytest.raises(PositionError, match="4 query heads share 2 key/value heads"):
        face(base, None, {"base": [[[2]]]})
    assert calls == []


def test_a_missing_head_is_refused(model):
    face = IntervenableModel(spec("query_output", "h", ZeroIntervention), model)
    with pytest.raises(PositionError, match=r"head 4 does not exist.* has 4, from 0"):
        face(tokens(1, 4), None, {"base": [[[4]]]})


def test_heads_where_there_are_none_are_refused(model):
    zero = Edit("zero", Site("mlp_output", 1), "zero", Positions(None, ((0,),)))
    with pytest.raises(SiteError, match="not a row of heads"):
        bind(model, Plan((Run("b", "b", (zero,)),), ("b",)), {"b": tokens(1, 4)}, {"zero": ZeroIntervention()})


def test_another_number_of_heads_read_than_written_is_refused(model):
    site = Site("query_output", 0)
    swap = Edit(
        "swap", site, "swap", Positions(None, ((0, 1),)), source=Read("s", site, Positions(None, ((0,),)))
    )  # fmt: skip
    plan = Plan((Run("s", "s"), Run("b", "b", (swap,))), outputs=("b",))
    with pytest.raises(PlanError, match="writes 2 heads but reads 1"):
        bind(model, plan, {"b": tokens(1, 4), "s": tokens(1, 4)}, {"swap": VanillaIntervention()})
