"""Parallel, serial, grouped, linked, nested, path patching: shapes of one plan, against plain hooks."""

from __future__ import annotations

import pytest
import torch
from tests.helpers import FAMILIES, counted, grab, hooked, locus, logits_with, tiny, tokens, writer

from align_transformers import (
    AdditionIntervention,
    CollectIntervention,
    Constant,
    Edit,
    IntervenableModel,
    Plan,
    Positions,
    Read,
    Run,
    Site,
    VanillaIntervention,
    ZeroIntervention,
    bind,
    execute,
)

AT = [[1], [3]]


@pytest.fixture(params=FAMILIES)
def model(request):
    return tiny(request.param)


def at(component, layer, **more):
    return {"layer": layer, "component": component, **more}


def put(place, value, columns=AT):
    """Return a touch that writes the values of the same columns."""
    return writer(place, columns, lambda old, n: value[n, columns[n]])


def zeroed(place, columns=AT):
    return writer(place, columns, lambda old, n: torch.zeros_like(old))


# --- parallel ---------------------------------------------------------------------------------------------------------


def test_parallel_with_several_sources(model):
    base, first, second = tokens(2, 6), tokens(2, 6, 1), tokens(2, 4, 2)
    low, high = locus(model, "mlp_output", 0), locus(model, "query_output", 2)
    (one,), (two,) = grab(model, first, low), grab(model, second, high)
    face = IntervenableModel([at("mlp_output", 0), at("query_output", 2)], model)
    with counted(model) as calls:
        _, got = face(base, [first, second], {"sources->base": ([AT, AT], [AT, AT])})
    assert len(calls) == 3
    assert torch.equal(got.logits, logits_with(model, base, put(low, one), put(high, two)))


def test_sources_of_different_lengths_and_batches(model):
    """Negative positions count in the source that is read; a source of one example serves all."""
    base, first, second = tokens(2, 6), tokens(1, 3, 1), tokens(2, 7, 2)
    low, high = locus(model, "mlp_output", 0), locus(model, "mlp_output", 2)
    (one,), (two,) = grab(model, first, low), grab(model, second, high)
    face = IntervenableModel([at("mlp_output", 0), at("mlp_output", 2)], model)
    _, got = face(base, [first, second], {"sources->base": ([[[-1]], [[-7], [-6]]], [AT, AT])})
    touches = (
        writer(low, AT, lambda old, n: one[0, [2]]),
        writer(high, AT, lambda old, n: two[n, [n]]),
    )
    assert torch.equal(got.logits, logits_with(model, base, *touches))


def test_one_source_object_runs_once_for_all(model):
    base, source = tokens(2, 6), tokens(2, 6, 1)
    face = IntervenableModel([at("mlp_output", k) for k in range(3)], model)
    with counted(model) as calls:
        face(base, source)
    assert len(calls) == 2


def test_group_key_shares_a_source_run(model):
    base, first, second = tokens(2, 6), tokens(2, 6, 1), tokens(2, 6, 2)
    sites = [("mlp_output", 0), ("attention_output", 1), ("mlp_output", 2)]
    places = [locus(model, *site) for site in sites]
    a, b = grab(model, first, places[0], places[2])
    (c,) = grab(model, second, places[1])
    face = IntervenableModel([at(*site, group_key=key) for site, key in zip(sites, (5, 9, 5), strict=True)], model)
    with counted(model) as calls:
        _, got = face(base, [first, second], {"sources->base": ([AT] * 3, [AT] * 3)})
    assert len(calls) == 3
    touches = put(places[0], a), put(places[1], c), put(places[2], b)
    assert torch.equal(got.logits, logits_with(model, base, *touches))


def test_a_none_source_skips_its_group(model):
    base, source = tokens(2, 6), tokens(2, 6, 1)
    place = locus(model, "mlp_output", 2)
    (value,) = grab(model, source, place)
    face = IntervenableModel([at("mlp_output", 0), at("mlp_output", 2)], model)
    with counted(model) as calls:
        _, got = face(base, [None, source], {"sources->base": ([AT, AT], [AT, AT])})
    assert len(calls) == 2
    assert torch.equal(got.logits, logits_with(model, base, put(place, value)))


def test_the_base_runs_unedited_only_when_asked(model):
    base, source = tokens(2, 6), tokens(2, 6, 1)
    face = IntervenableModel(at("mlp_output", 1), model)
    with counted(model) as calls:
        original, _ = face(base, source)
    assert original is None
    assert len(calls) == 2
    with counted(model) as calls:
        original, edited = face(base, source, output_original_output=True)
    assert len(calls) == 3
    assert torch.equal(original.logits, model(**base).logits)
    assert not torch.equal(original.logits, edited.logits)


def test_a_constant_needs_no_source_run(model):
    base, vector = tokens(2, 6), torch.randn(32)
    place = locus(model, "mlp_output", 1)
    face = IntervenableModel(at("mlp_output", 1, intervention_type=AdditionIntervention), model)
    with counted(model) as calls:
        _, got = face(base, None, {"base": [AT]}, source_representations=vector)
    assert len(calls) == 1
    assert torch.equal(got.logits, logits_with(model, base, writer(place, AT, lambda old, n: old + vector)))


# --- serial -----------------------------------------------------------------------------------------------------------


def serial(*sites, **more):
    return {"representations": list(sites), "mode": "serial", **more}


def test_serial_feeds_each_source_into_the_next(model):
    base, first, second = tokens(2, 6), tokens(2, 6, 1), tokens(2, 5, 2)
    low, high = locus(model, "block_output", 0), locus(model, "mlp_output", 2)
    (one,) = grab(model, first, low)
    with hooked(put(low, one)):
        (two,) = grab(model, second, high)
    face = IntervenableModel(serial(at("block_output", 0), at("mlp_output", 2)), model)
    locations = {"source_0->source_1": ([AT], [AT]), "source_1->base": ([AT], [AT])}
    with counted(model) as calls:
        _, got = face(base, [first, second], locations)
    assert len(calls) == 3
    assert torch.equal(got.logits, logits_with(model, base, put(high, two)))


def test_serial_with_a_constant_source(model):
    base, first, second = tokens(2, 6), tokens(2, 6, 1), tokens(2, 6, 2)
    low, high = locus(model, "block_output", 0), locus(model, "mlp_output", 2)
    with hooked(zeroed(low)):
        (two,) = grab(model, second, high)
    face = IntervenableModel(
        serial(at("block_output", 0, intervention_type=ZeroIntervention), at("mlp_output", 2)), model
    )
    locations = {"source_0->source_1": ([AT], [AT]), "source_1->base": ([AT], [AT])}
    for sources in ([None, second], [first, second]):
        with counted(model) as calls:
            _, got = face(base, sources, locations)
        assert len(calls) == 2
        assert torch.equal(got.logits, logits_with(model, base, put(high, two)))


def test_serial_with_a_none_source_skips_it(model):
    base, source = tokens(2, 6), tokens(2, 6, 1)
    place = locus(model, "mlp_output", 2)
    (value,) = grab(model, source, place)
    face = IntervenableModel(serial(at("block_output", 0), at("mlp_output", 2)), model)
    locations = {"source_0->source_1": ([AT], [AT]), "source_1->base": ([AT], [AT])}
    _, got = face(base, [None, source], locations)
    assert torch.equal(got.logits, logits_with(model, base, put(place, value)))


def test_serial_groups_with_several_sites(model):
    base, first, second = tokens(2, 6), tokens(2, 6, 1), tokens(2, 6, 2)
    a, b = locus(model, "mlp_output", 0), locus(model, "attention_output", 0)
    c, d = locus(model, "query_output", 2), locus(model, "mlp_activation", 2)
    one, two = grab(model, first, a, b)
    with hooked(put(a, one), put(b, two)):
        three, four = grab(model, second, c, d)
    sites = (("mlp_output", 0, 0), ("attention_output", 0, 0), ("query_output", 2, 1), ("mlp_activation", 2, 1))
    face = IntervenableModel(serial(*(at(name, layer, group_key=key) for name, layer, key in sites)), model)
    both = ([AT, AT], [AT, AT])
    _, got = face(base, [first, second], {"source_0->source_1": both, "source_1->base": both})
    assert torch.equal(got.logits, logits_with(model, base, put(c, three), put(d, four)))


# --- links, order, collecting -----------------------------------------------------------------------------------------


def test_linked_interventions_at_two_layers_are_two_sites(model):
    base, source = tokens(2, 6), tokens(2, 6, 1)
    sites = [("mlp_output", 0), ("mlp_output", 2)]
    places = [locus(model, *site) for site in sites]
    values = grab(model, source, *places)
    linked = IntervenableModel([at(*site, intervention_link_key=0, group_key=0) for site in sites], model)
    unlinked = IntervenableModel([at(*site, group_key=0) for site in sites], model)
    locations = {"sources->base": ([AT, AT], [AT, AT])}
    _, got = linked(base, source, locations)
    assert torch.equal(got.logits, unlinked(base, source, locations)[1].logits)
    expected = logits_with(model, base, *(put(p, v) for p, v in zip(places, values, strict=True)))
    assert torch.equal(got.logits, expected)
    assert len({id(module) for module in linked.interventions.values()}) == 1
    assert len({id(module) for module in unlinked.interventions.values()}) == 2


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_one_site_edited_twice_in_the_stated_order(model, order):
    base, source = tokens(2, 6), tokens(2, 6, 1)
    place = locus(model, "mlp_output", 1)
    (value,) = grab(model, source, place)
    edits = [lambda b: b * 2, lambda b, s: b + s]
    touches = [writer(place, AT, lambda old, n: old * 2), writer(place, AT, lambda old, n: old + value[n, AT[n]])]
    face = IntervenableModel([at("mlp_output", 1, intervention=edits[k], group_key=0) for k in order], model)
    _, got = face(base, source, {"sources->base": ([AT, AT], [AT, AT])})
    assert torch.equal(got.logits, logits_with(model, base, *(touches[k] for k in order)))
    assert not torch.equal(got.logits, logits_with(model, base, *(touches[k] for k in reversed(order))))


def test_collecting_before_and_after_a_write_sees_the_old_and_the_new_value(model):
    base, source = tokens(2, 6), tokens(2, 6, 1)
    place = locus(model, "mlp_output", 1)
    (old,), (new,) = grab(model, base, place), grab(model, source, place)
    kinds = [CollectIntervention, VanillaIntervention, CollectIntervention]
    face = IntervenableModel([at("mlp_output", 1, intervention_type=k, group_key=0) for k in kinds], model)
    got = face(base, source, {"sources->base": ([AT] * 3, [AT] * 3)}, return_dict=True)
    before, after = got.collected_activations
    assert torch.equal(before, torch.stack([old[n, AT[n]] for n in range(2)]))
    assert torch.equal(after, torch.stack([new[n, AT[n]] for n in range(2)]))
    assert torch.equal(got.intervened_outputs.logits, logits_with(model, base, put(place, new)))


def test_collecting_above_a_write_sees_its_effect(model):
    base, source = tokens(2, 6), tokens(2, 6, 1)
    low, high = locus(model, "block_output", 0), locus(model, "mlp_activation", 2)
    (value,) = grab(model, source, low)
    with hooked(put(low, value)):
        (expected,) = grab(model, base, high)
    face = IntervenableModel(
        [at("block_output", 0), at("mlp_activation", 2, intervention_type=CollectIntervention)], model
    )
    got = face(base, [source, None], {"sources->base": ([AT, AT], [AT, AT])}, return_dict=True)
    assert torch.equal(got.collected_activations[0], torch.stack([expected[n, AT[n]] for n in range(2)]))


# --- plans that no configuration names --------------------------------------------------------------------------------

WHERE = Positions(((1,), (3,)))


def read(run, component, layer, where=WHERE):
    return Read(run, Site(component, layer), where)


def swap(name, component, layer, run, where=WHERE):
    return Edit(name, Site(component, layer), "swap", where, source=read(run, component, layer, where))


def carry_out(model, plan, **inputs):
    return execute(bind(model, plan, inputs, {"swap": VanillaIntervention()}))


def test_nested_three_deep(model):
    a, b, c, d = (tokens(2, 6, seed) for seed in range(4))
    places = [locus(model, "mlp_output", k) for k in range(3)]
    (one,) = grab(model, a, places[0])
    with hooked(put(places[0], one)):
        (two,) = grab(model, b, places[1])
    with hooked(put(places[1], two)):
        (three,) = grab(model, c, places[2])
    runs = [Run("a", "a")]
    for number, (before, name) in enumerate(zip("abc", "bcd", strict=True)):
        runs.append(Run(name, name, (swap(f"into_{name}", "mlp_output", number, before),)))
    outcome = carry_out(model, Plan(tuple(reversed(runs)), ("d",)), a=a, b=b, c=c, d=d)
    assert torch.equal(outcome.outputs["d"].logits, logits_with(model, d, put(places[2], three)))
    assert [effect.name for effect in outcome.effects] == ["into_b", "into_c", "into_d"]


def test_path_patching(model):
    """The sender's change reaches the receiver by the direct path only: the attention in between is frozen."""
    base, source = tokens(2, 6), tokens(2, 6, 1)
    sender, receiver = locus(model, "attention_output", 0), locus(model, "query_output", 2)
    between = [locus(model, name, 1) for name in ("attention_output", "mlp_output")] + [locus(model, "mlp_output", 0)]
    (sent,) = grab(model, source, sender)
    frozen = grab(model, base, *between)
    everywhere = [list(range(6))] * 2
    with hooked(put(sender, sent), *(put(p, v, everywhere) for p, v in zip(between, frozen, strict=True))):
        (received,) = grab(model, base, receiver)
    expected = logits_with(model, base, put(receiver, received, everywhere))

    whole = Positions()
    freeze = [
        swap(f"freeze {name} {layer}", name, layer, "clean", whole)
        for name, layer in (("attention_output", 1), ("mlp_output", 1), ("mlp_output", 0))
    ]
    sending = swap("send", "attention_output", 0, "source")
    receiving = swap("receive", "query_output", 2, "mixed", whole)
    plan = Plan(
        (
            Run("final", "base", (receiving,)),
            Run("mixed", "base", (*freeze, sending)),
            Run("source", "source"),
            Run("clean", "base"),
            Run("idle", "source", (swap("never", "mlp_output", 0, "clean"),)),
        ),
        ("final",),
    )
    carry_out(model, plan, base=base, source=source)  # finds out, with passes of its own, whether runs may start late
    with counted(model) as calls:
        outcome = carry_out(model, plan, base=base, source=source)
    assert torch.equal(outcome.outputs["final"].logits, expected)
    assert len(calls) == 4, "the idle run is not needed"
    assert "never" not in [effect.name for effect in outcome.effects]


def test_a_read_sees_its_own_runs_edits_at_the_same_site(model):
    a, b = tokens(2, 6), tokens(2, 6, 1)
    place = locus(model, "mlp_output", 1)
    double = Edit("double", Site("mlp_output", 1), "double", WHERE)
    plan = Plan((Run("a", "a", (double,)), Run("b", "b", (swap("s", "mlp_output", 1, "a"),))), ("b",))
    double_it = IntervenableModel(at("mlp_output", 1, intervention=lambda x: x * 2), model)
    (module,) = double_it.interventions.values()
    outcome = execute(bind(model, plan, {"a": a, "b": b}, {"swap": VanillaIntervention(), "double": module}))
    (value,) = grab(model, a, place)
    assert torch.equal(outcome.outputs["b"].logits, logits_with(model, b, put(place, value * 2)))


def test_several_outputs(model):
    a, b = tokens(2, 6), tokens(2, 6, 1)
    plan = Plan((Run("a", "a"), Run("b", "b", (swap("s", "mlp_output", 1, "a"),))), ("a", "b"))
    with counted(model) as calls:
        outcome = carry_out(model, plan, a=a, b=b)
    assert len(calls) == 2
    assert torch.equal(outcome.outputs["a"].logits, model(**a).logits)


def test_a_value_may_come_from_another_site(model):
    a, b = tokens(2, 6), tokens(2, 6, 1)
    low, high = locus(model, "block_output", 0), locus(model, "mlp_output", 2)
    (value,) = grab(model, a, low)
    edit = Edit("s", Site("mlp_output", 2), "swap", WHERE, source=read("a", "block_output", 0))
    outcome = carry_out(model, Plan((Run("a", "a"), Run("b", "b", (edit,))), ("b",)), a=a, b=b)
    assert torch.equal(outcome.outputs["b"].logits, logits_with(model, b, put(high, value)))


def test_a_constant_of_a_plan(model):
    b, value = tokens(2, 6), torch.randn(2, 1, 32)
    place = locus(model, "mlp_output", 1)
    edit = Edit("s", Site("mlp_output", 1), "swap", WHERE, source=Constant("saved"))
    bound = bind(
        model, Plan((Run("b", "b", (edit,)),), ("b",)), {"b": b}, {"swap": VanillaIntervention()}, {"saved": value}
    )
    expected = logits_with(model, b, writer(place, AT, lambda old, n: value[n]))
    assert torch.equal(execute(bound).outputs["b"].logits, expected)
