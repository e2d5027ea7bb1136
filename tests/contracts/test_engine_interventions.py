"""What every intervention of the library must be in the engine's hands: pure, local, counted, and free of its batch."""

from __future__ import annotations

import pytest
import torch
from tests.helpers import FAMILIES, grab, hook_counts, hooked, locus, tiny, tokens

import align_transformers
from align_transformers import IntervenableModel, Intervention

FREE = [
    cls
    for cls in (getattr(align_transformers, name) for name in align_transformers.__all__)
    if isinstance(cls, type) and issubclass(cls, Intervention) and not cls.__abstractmethods__
]
OPTIONS = {
    "MeanIntervention": lambda: {"source_representation": torch.ones(32)},
    "FunctionIntervention": lambda: {"function": lambda base, source: base - 2 * source},
}
SITE, WRITE, READ = ("mlp_output", 1), [[1, 4], [3, 0]], [[2, 5], [0, 1]]


@pytest.fixture(params=FREE, ids=lambda cls: cls.__name__)
def intervention(request):
    return request.param(**OPTIONS.get(request.param.__name__, dict)())


@pytest.fixture(params=FAMILIES)
def model(request):
    return tiny(request.param)


def call(model, intervention, base, source, read, write):
    face = IntervenableModel(
        {"layer": SITE[1], "component": SITE[0], "max_number_of_units": 2, "intervention": intervention}, model
    )
    with torch.no_grad():
        return face(base, source, {"sources->base": ([read], [write])}, return_dict=True)


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
        alone = call(model, intervention, one, other, [read[n]], [write[n]]).intervened_outputs.logits
        torch.testing.assert_close(together[n], alone[0], rtol=1e-4, atol=1e-4)
