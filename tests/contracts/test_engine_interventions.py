"""What every intervention of the library must be in the engine's hands: pure, local, counted, and free of its batch."""

from __future__ import annotations

import pytest
import torch
from tests.contracts.cases import CASES
from tests.helpers import FAMILIES, grab, hook_counts, hooked, locus, tiny, tokens

from align_transformers import IntervenableModel

SITE, WRITE, READ = ("mlp_output", 1), [[1, 4], [3, 0]], [[2, 5], [0, 1]]


MUST_CHOOSE = {case.kind: case.must_choose for case in CASES.values()}


@pytest.fixture(params=CASES.values(), ids=CASES)
def intervention(request):
    one = request.param.make(32)
    if one.source_kind == "constant":
        one.set_source_representation(torch.ones(32))
    return one


@pytest.fixture(params=FAMILIES)
def model(request):
    return tiny(request.param)


def call(model, intervention, base, source, read, write, examples=slice(None)):
    face = IntervenableModel(
        {"layer": SITE[1], "component": SITE[0], "max_number_of_units": 2, "intervention": intervention}, model
    )
    choice = MUST_CHOOSE[type(intervention)]
    subspaces = None if choice is None else [[list(parts) for parts in choice[examples]]]
    with torch.no_grad():
        return face(base, source, {"sources->base": ([read], [write])}, subspaces=subspaces, return_dict=True)


def test_it_touches_its_places_only(model, intervention):
    base, source, place = tokens(2, 6), tokens(2, 6, 1), locus(model, *SITE)
    (plain,) = grab(model, base, place)
    seen = []
    with hooked((place.module, place.side, lambda t: seen.append(t.clone()))):
        call(model, intervention, base, source, READ, WRITE)
    changed = (seen[-1] != plain).any(-1)
    for n, columns in enumerate(WRITE):
        assert all(changed[n, column] == intervention.writes for column in columns)
        assert int(changed[n].sum()) == (len(columns) if intervention.writes else 0)


def test_it_leaves_the_model_and_the_inputs_alone(model, intervention):
    base, source = tokens(2, 6), tokens(2, 6, 1)
    hooks, plain = hook_counts(model), model(**base).logits
    first = call(model, intervention, base, source, READ, WRITE)
    again = call(model, intervention, base, source, READ, WRITE)
    assert torch.equal(first.intervened_outputs.logits, again.intervened_outputs.logits)
    assert hook_counts(model) == hooks
    assert torch.equal(model(**base).logits, plain)


def test_the_ledger_counts_it(model, intervention):
    (effect,) = call(model, intervention, tokens(2, 6), tokens(2, 6, 1), READ, WRITE).effects
    assert (effect.fired, effect.rows, effect.positions) == (1, 2, 4)
    assert (effect.change > 0) == intervention.writes


def test_an_example_does_not_depend_on_its_batch(model, intervention):
    base, source = tokens(2, 6), tokens(2, 6, 1)
    read, write = [[2, 5], [1]], [[1, 4], [3]]
    together = call(model, intervention, base, source, read, write).intervened_outputs.logits
    for n in range(2):
        one, other = ({name: value[n : n + 1] for name, value in given.items()} for given in (base, source))
        alone = call(model, intervention, one, other, [read[n]], [write[n]], slice(n, n + 1))
        alone = alone.intervened_outputs.logits
        torch.testing.assert_close(together[n], alone[0], rtol=1e-4, atol=1e-4)
