"""Every component, every static operation, both families: bit-equal to a hand-written hook."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.helpers import COMPONENTS, FAMILIES, grab, locus, logits_with, tiny, tokens, writer
from torch import Tensor

from align_transformers import (
    AdditionIntervention,
    CollectIntervention,
    IntervenableModel,
    MeanIntervention,
    NoiseIntervention,
    SubtractionIntervention,
    VanillaIntervention,
    ZeroIntervention,
)

LAYER = 1
READ, WRITE = [[0, 3], [4, 2]], [[1, 4], [2, 0]]

Rule = Callable[[Tensor, Tensor], Tensor]
BY_SOURCE: dict[str, tuple[type, Rule]] = {
    "swap": (VanillaIntervention, lambda old, source: source),
    "add": (AdditionIntervention, lambda old, source: old + source),
    "subtract": (SubtractionIntervention, lambda old, source: old - source),
}


@pytest.fixture(params=FAMILIES)
def model(request):
    return tiny(request.param)


@pytest.fixture(params=COMPONENTS)
def component(request):
    return request.param


def spec(component: str, intervention) -> dict:
    kind = "intervention_type" if isinstance(intervention, type) else "intervention"
    return {"layer": LAYER, "component": component, "max_number_of_units": 2, kind: intervention}


@pytest.mark.parametrize("operation", BY_SOURCE)
def test_operations_with_a_source(model, component, operation):
    kind, rule = BY_SOURCE[operation]
    base, source = tokens(2, 6, 1), tokens(2, 5, 2)
    place = locus(model, component, LAYER)
    (value,) = grab(model, source, place)
    expected = logits_with(model, base, writer(place, WRITE, lambda old, n: rule(old, value[n, READ[n]])))

    _, got = IntervenableModel(spec(component, kind), model)(base, [source], {"sources->base": ([READ], [WRITE])})

    assert torch.equal(got.logits, expected)
    assert not torch.equal(got.logits, model(**base).logits)


def test_zero(model, component):
    base, place = tokens(2, 6, 1), locus(model, component, LAYER)
    expected = logits_with(model, base, writer(place, WRITE, lambda old, n: torch.zeros_like(old)))
    _, got = IntervenableModel(spec(component, ZeroIntervention), model)(base, None, {"base": [WRITE]})
    assert torch.equal(got.logits, expected)


def test_mean(model, component):
    base, place = tokens(2, 6, 1), locus(model, component, LAYER)
    seen = torch.randn(7, place.width)
    expected = logits_with(model, base, writer(place, WRITE, lambda old, n: seen.mean(0).expand_as(old)))
    edit = spec(component, MeanIntervention(activations=seen))
    _, got = IntervenableModel(edit, model)(base, None, {"base": [WRITE]})
    assert torch.equal(got.logits, expected)


def test_noise(model, component):
    base, place = tokens(2, 6, 1), locus(model, component, LAYER)
    generator = torch.Generator().manual_seed(5)  # the k-th unit of every example gets the k-th draw
    noise = torch.stack([torch.randn(place.width, generator=generator) for _ in range(2)]) * (2.0 * 0.25)
    expected = logits_with(model, base, writer(place, WRITE, lambda old, n: old + noise))
    edit = spec(component, NoiseIntervention(noise_level=2.0, std=0.25, seed=5))
    _, got = IntervenableModel(edit, model)(base, None, {"base": [WRITE]})
    assert torch.equal(got.logits, expected)


def test_function_of_base_and_source(model, component):
    base, source = tokens(2, 6, 1), tokens(2, 5, 2)
    place = locus(model, component, LAYER)
    (value,) = grab(model, source, place)
    expected = logits_with(model, base, writer(place, WRITE, lambda old, n: 2 * old - value[n, READ[n]]))
    edit = spec(component, lambda b, s: 2 * b - s)
    _, got = IntervenableModel(edit, model)(base, [source], {"sources->base": ([READ], [WRITE])})
    assert torch.equal(got.logits, expected)


def test_function_of_base(model, component):
    base, place = tokens(2, 6, 1), locus(model, component, LAYER)
    expected = logits_with(model, base, writer(place, WRITE, lambda old, n: old * 3))
    _, got = IntervenableModel(spec(component, lambda b: b * 3), model)(base, None, {"base": [WRITE]})
    assert torch.equal(got.logits, expected)


def test_collect(model, component):
    base, place = tokens(2, 6, 1), locus(model, component, LAYER)
    (value,) = grab(model, base, place)
    got = IntervenableModel(spec(component, CollectIntervention), model)(
        base, None, {"base": [WRITE]}, return_dict=True
    )
    (collected,) = got.collected_activations
    assert torch.equal(collected, torch.stack([value[n, WRITE[n]] for n in range(2)]))
    assert torch.equal(got.intervened_outputs.logits, model(**base).logits)


def test_whole_tensor(model, component):
    base, source = tokens(2, 6, 1), tokens(2, 6, 2)
    place = locus(model, component, LAYER)
    (value,) = grab(model, source, place)
    expected = logits_with(model, base, writer(place, None, lambda old, n: value[n]))
    _, got = IntervenableModel(spec(component, VanillaIntervention), model)(base, source)
    assert torch.equal(got.logits, expected)
