"""The friendly face: what it takes, what it gives back, and that one call never changes the next."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from tests.helpers import FAMILIES, grab, locus, logits_with, new_model, tiny, tokens, writer
from torch import nn

import align_transformers as at
from align_transformers import (
    AlignError,
    CollectIntervention,
    IntervenableConfig,
    IntervenableModel,
    IntervenableOutput,
    Intervention,
    PlanError,
    RepresentationConfig,
    SiteError,
    SourcelessIntervention,
    SpecError,
    TrainableIntervention,
    UnknownNameError,
    VanillaIntervention,
    ZeroIntervention,
)


@pytest.fixture(params=FAMILIES)
def model(request):
    return tiny(request.param)


def swapped(model, base, source, read, write):
    """Return the logits with layer 1's MLP output swapped, by hand."""
    place = locus(model, "mlp_output", 1)
    (value,) = grab(model, source, place)
    return logits_with(model, base, writer(place, write, lambda old, n: value[n % len(value), read[n]]))


SPECS = {
    "dict": {"layer": 1, "component": "mlp_output", "intervention_type": VanillaIntervention},
    "list of dicts": [{"layer": 1, "component": "mlp_output"}],
    "representation": RepresentationConfig(1, "mlp_output", "pos", 1),
    "config": IntervenableConfig(representations=[RepresentationConfig(1, "mlp_output")], mode="parallel"),
    "config of one": IntervenableConfig(representations=RepresentationConfig(1, "mlp_output")),
    "config as dict": {"representations": {"layer": 1, "component": "mlp_output"}},
    "instance": {"layer": 1, "component": "mlp_output", "intervention": VanillaIntervention()},
    "function": {"layer": 1, "component": "mlp_output", "intervention": lambda base, source: source},
    "types": IntervenableConfig(
        representations=({"layer": 1, "component": "mlp_output"},), intervention_types=[VanillaIntervention]
    ),
    "long names": IntervenableConfig(
        intervenable_model_type="gpt2",
        intervenable_representations=[
            at.IntervenableRepresentationConfig(intervenable_layer=1, intervenable_representation_type="mlp_output")
        ],
        intervenable_interventions_type=VanillaIntervention,
    ),
}  # fmt: skip


@pytest.mark.parametrize("spec", SPECS)
def test_every_way_to_write_a_configuration(model, spec):
    base, source, where = tokens(2, 5), tokens(2, 5, 1), [[1], [3]]
    _, got = IntervenableModel(SPECS[spec], model=model)(base, [source], {"sources->base": ([where], [where])})
    assert torch.equal(got.logits, swapped(model, base, source, where, where))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_component_by_its_dotted_path(family):
    model, base, source, where = tiny(family), tokens(2, 5), tokens(2, 5, 1), [[1], [3]]
    path = "transformer.h[1].mlp.output" if family == "gpt2" else "model.layers.1.mlp.output"
    _, got = IntervenableModel({"component": path}, model)(base, source, {"sources->base": ([where], [where])})
    assert torch.equal(got.logits, swapped(model, base, source, where, where))


LOCATIONS = {
    "full": ({"sources->base": ([[[2], [2]]], [[[3], [3]]])}, 2, 3),
    "pair of integers": ({"sources->base": (2, 3)}, 2, 3),
    "one integer": ({"sources->base": 3}, 3, 3),
    "negative": ({"sources->base": (-3, -2)}, 2, 3),
    "tensors": ({"sources->base": (torch.tensor([[[2], [2]]]), torch.tensor([[[3], [3]]]))}, 2, 3),
    "arrays": ({"sources->base": (np.array([[[2], [2]]]), np.array([[[3], [3]]]))}, 2, 3),
    "slices": ({"sources->base": (slice(2, 3), slice(-2, -1))}, 2, 3),
    "per example": ({"sources->base": ([[2], [2]], [[3], [3]])}, 2, 3),
    "flat": ({"sources->base": ([2], [3])}, 2, 3),
}


@pytest.mark.parametrize("form", LOCATIONS)
def test_every_short_form_means_its_full_form(model, form):
    locations, read, write = LOCATIONS[form]
    base, source = tokens(2, 5), tokens(2, 5, 1)
    _, got = IntervenableModel({"layer": 1, "component": "mlp_output"}, model)(base, source, locations)
    assert torch.equal(got.logits, swapped(model, base, source, [[read]] * 2, [[write]] * 2))


def test_a_short_form_does_not_change_the_next_call(model):
    """D1: an integer once, then locations of each example."""
    base, source, read, write = tokens(2, 5), tokens(2, 5, 1), [[1], [4]], [[0], [3]]
    face = IntervenableModel({"layer": 1, "component": "mlp_output"}, model)
    full = {"sources->base": ([read], [write])}
    fresh = face(base, source, full)[1].logits
    face(base, source, {"sources->base": 2})
    face(base, source, {"sources->base": (1, 2)})
    assert torch.equal(face(base, source, full)[1].logits, fresh)
    assert torch.equal(fresh, swapped(model, base, source, read, write))


def test_subspaces_of_each_example(model):
    """D2: [[0], [1]] at batch 2 is the first part in the first example and the second in the second."""
    base, source, where = tokens(2, 5), tokens(2, 5, 1), [[1], [3]]
    place = locus(model, "mlp_output", 1)
    (value,) = grab(model, source, place)
    parts = [slice(0, 12), slice(12, 32)]

    def by_hand(old, n):
        old[:, parts[n]] = value[n, where[n], parts[n]]
        return old

    face = IntervenableModel({"layer": 1, "component": "mlp_output", "subspace_partition": [[0, 12], [12, 32]]}, model)
    _, got = face(base, source, {"sources->base": ([where], [where])}, subspaces=[[[0], [1]]])
    assert torch.equal(got.logits, logits_with(model, base, writer(place, where, by_hand)))


def test_subspaces_of_a_collecting_intervention(model):
    base, where = tokens(2, 5), [[1], [3]]
    (value,) = grab(model, base, locus(model, "mlp_output", 1))
    parts = {"subspace_partition": [[0, 16], [16, 32]], "intervention_type": CollectIntervention}
    face = IntervenableModel({"layer": 1, "component": "mlp_output", **parts}, model)
    got = face(base, None, {"base": [where]}, subspaces=[[[0], [1]]], return_dict=True)
    expected = torch.stack([value[0, [1], :16], value[1, [3], 16:]])
    assert torch.equal(got.collected_activations[0], expected)


def test_what_comes_back(model):
    base = tokens(2, 5)
    zero = {"layer": 0, "component": "mlp_output", "intervention_type": ZeroIntervention}
    look = {"layer": 1, "component": "mlp_output", "intervention_type": CollectIntervention}
    face = IntervenableModel([look, zero, look], model)
    with pytest.raises(PlanError, match="layer 1 mlp_output collects, but a pair has only outputs"):
        face(base)
    pair = face(base, return_dict=False)
    assert isinstance(pair, tuple)
    assert (len(pair), pair[0]) == (2, None)
    got = face(base, return_dict=True, output_original_output=True)
    assert isinstance(got, IntervenableOutput)
    assert torch.equal(got.original_outputs.logits, model(**base).logits)
    assert torch.equal(got.intervened_outputs.logits, pair[1].logits)
    assert [tuple(value.shape) for value in got.collected_activations] == [(2, 5, 32)] * 2
    assert [mask.all().item() for mask in got.collected_masks] == [True] * 2
    assert [effect.fired for effect in got.effects] == [1] * 3


def test_labels_and_other_arguments_reach_the_model(model):
    base = tokens(2, 5)
    face = IntervenableModel({"layer": 0, "component": "mlp_output", "intervention": lambda b: b * 1}, model)
    _, got = face(base, labels=base["input_ids"], use_cache=False)
    assert torch.equal(got.loss, model(**base, labels=base["input_ids"]).loss)
    assert got.past_key_values is None


MISSPELT = {
    "unit": ({"layer": 0, "component": "mlp_output", "unit": "poss"}, "pos"),
    "component": ({"layer": 0, "component": "mlp_outptu"}, "mlp_output"),
    "path": ({"component": "transformer.h[0].mlpp.output"}, "mlp"),
    "path without side": ({"component": "transformer.h[0].mlp"}, "output"),
    "keyword": ({"layre": 0, "component": "mlp_output"}, "layer"),
    "mode": ({"representations": {"layer": 0, "component": "mlp_output"}, "mode": "seriel"}, "serial"),
}


@pytest.mark.parametrize("what", MISSPELT)
def test_misspelt_names_are_refused_with_near_misses(what):
    spec, hint = MISSPELT[what]
    with pytest.raises((UnknownNameError, SiteError), match=hint):
        IntervenableModel(spec, tiny("gpt2"))


def test_a_misspelt_keyword_of_a_call_is_refused(model):
    """Transformers' models swallow keyword arguments that they do not know."""
    face = IntervenableModel({"layer": 0, "component": "mlp_output"}, model)
    for wrong in ("unit_location", "output_orignal_output", "subspace", "source_representation"):
        with pytest.raises(AlignError, match=wrong):
            face(tokens(1, 4), tokens(1, 4), **{wrong: True})


def test_a_missing_layer_is_refused(model):
    with pytest.raises(SiteError, match="3 blocks, from 0"):
        IntervenableModel({"layer": 3, "component": "mlp_output"}, model)


def test_functions_that_write_or_return_nothing(model):
    base = tokens(2, 5)
    face = IntervenableModel({"layer": 0, "component": "mlp_output", "intervention": lambda b: None}, model)
    assert torch.equal(face(base)[1].logits, model(**base).logits)


def test_a_function_of_two_arguments_is_skipped_with_its_source(model):
    base, source, where = tokens(2, 5), tokens(2, 5, 1), [[1], [3]]
    site = {"component": "mlp_output"}
    face = IntervenableModel([{**site, "layer": 0, "intervention": lambda b, s: b + s}, {**site, "layer": 1}], model)
    _, got = face(base, [None, source], {"sources->base": ([where] * 2, [where] * 2)})
    assert torch.equal(got.logits, swapped(model, base, source, where, where))


class Scaled(TrainableIntervention, SourcelessIntervention):
    def __init__(self, embed_dim=None):
        super().__init__(embed_dim=embed_dim)
        self.scale = nn.Parameter(torch.ones(embed_dim))

    def forward(self, base, source=None, subspaces=None):
        return base * self.scale


class Mixed(Intervention):
    """A user's own, without the third argument."""

    def forward(self, base, source):
        return (base + source) / 2


def test_a_users_subclass_just_works(model):
    base, source, place = tokens(2, 5), tokens(2, 5, 1), locus(model, "mlp_output", 1)
    (value,) = grab(model, source, place)
    face = IntervenableModel({"layer": 1, "component": "mlp_output", "intervention_type": Mixed}, model)
    _, got = face(base, source)
    expected = logits_with(model, base, writer(place, None, lambda old, n: (old + value[n]) / 2))
    assert torch.equal(got.logits, expected)


def test_linked_parameters_are_listed_once(model):
    """D16: an optimizer warns of duplicates."""
    site = {"component": "mlp_output", "intervention_type": Scaled, "intervention_link_key": "a"}
    face = IntervenableModel([{**site, "layer": 0}, {**site, "layer": 2}], model)
    parameters = face.get_trainable_parameters()
    assert [tuple(p.shape) for p in parameters] == [(32,)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = torch.optim.SGD(parameters, lr=0.1)
    base = tokens(2, 5)
    before = model.get_input_embeddings().weight.clone()
    face(base)[1].logits.pow(2).mean().backward()
    optimizer.step()
    assert not torch.equal(parameters[0], torch.ones(32))
    assert torch.equal(model.get_input_embeddings().weight, before)
    model.zero_grad()


def test_train_and_eval_reach_the_interventions_and_come_back():
    model = new_model("gpt2")
    face = IntervenableModel({"layer": 0, "component": "mlp_output", "intervention_type": Scaled}, model)
    assert not model.training, "wrapping changes nothing"
    assert face.eval() is face
    (one,) = face.interventions.values()
    assert not one.training
    assert face.train() is face
    assert one.training


def test_plain_modules_with_a_tensor_as_input():
    model = nn.GRU(3, 4, batch_first=True)
    base, source = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    face = IntervenableModel({"component": "input", "unit": "t", "max_number_of_units": 2}, model)
    _, (got, _) = face(base, source, {"sources->base": ([0, 2], [1, 4])})
    changed = base.clone()
    changed[:, [1, 4]] = source[:, [0, 2]]
    assert torch.equal(got, model(changed)[0])


def test_an_empty_configuration_is_refused():
    with pytest.raises(SpecError):
        IntervenableModel([], tiny("gpt2"))
