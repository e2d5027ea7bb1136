"""Widths that no module says are seen in a dry run; and models that say themselves where their components are."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from tests.helpers import tiny
from torch import nn

from align_transformers import (
    IntervenableModel,
    LowRankRotatedSpaceIntervention,
    RotatedSpaceIntervention,
    SiteError,
    SpecError,
    VanillaIntervention,
    resolve,
)


def config(path, kind=RotatedSpaceIntervention, **more):
    return {"component": path, "intervention_type": kind, **more}


class Twice(nn.Module):
    """No layer at a path says how wide it is, and no input has a known name."""

    def __init__(self):
        super().__init__()
        self.body, self.calls = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.LayerNorm(5)), 0

    def forward(self, features, scale=1.0):
        self.calls += 1
        return self.body(features) * scale


@pytest.mark.parametrize("path", ["body[1].output", "body[2].input", "body.output", "output"])
def test_a_class_that_needs_its_width_gets_it_at_a_path(path):
    face = IntervenableModel(config(path, LowRankRotatedSpaceIntervention, low_rank_dimension=2), Twice())
    assert next(iter(face.interventions.values())).embed_dim == 5


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_blocks_of_transformers_by_path(family):
    model = tiny(family)
    block = next(path for path, module in model.named_modules() if path.endswith(".1") and "." in path)
    face = IntervenableModel(config(f"{block}.output"), model)
    assert next(iter(face.interventions.values())).embed_dim == model.config.hidden_size


def test_no_pass_is_run_for_a_class_that_can_do_without():
    model = Twice()
    IntervenableModel(config("body[1].output", VanillaIntervention), model)
    IntervenableModel(config("body[0].output"), model)  # a linear layer says it
    assert model.calls == 0


class Attend(nn.Module):
    """The width of `scores` is the length of the sequence."""

    def __init__(self):
        super().__init__()
        self.inner, self.scores = nn.Linear(4, 4), nn.Identity()

    def forward(self, x):
        return self.scores(torch.softmax(self.inner(x) @ x.transpose(-1, -2), -1)) @ x


def test_a_width_that_is_the_length_is_no_width():
    with pytest.raises(SpecError, match="needs embed_dim"):
        IntervenableModel(config("scores.output"), Attend())


def test_inputs_of_the_callers_tell_where_no_dummy_does():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, left, right):
            return self.act(left @ right)

    model = Odd()
    with pytest.raises(SpecError, match="needs embed_dim"):
        IntervenableModel(config("act.output"), model)
    resolve(model, example_inputs={"left": torch.randn(2, 3, 5), "right": torch.randn(2, 5, 6)})
    assert next(iter(IntervenableModel(config("act.output"), model).interventions.values())).embed_dim == 6


class Said(nn.Module):
    component_paths: ClassVar = {"block_output": "layers[{layer}].output", "logits": "head.output"}

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(3, 3), nn.Tanh()) for _ in range(2))
        self.head = nn.Linear(3, 4)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def test_a_class_may_say_where_its_components_are():
    model, base, source = Said(), torch.randn(2, 3), torch.randn(2, 3)
    face = IntervenableModel({"layer": 0, "component": "block_output", "intervention_type": VanillaIntervention}, model)
    assert torch.equal(face(base, source)[1], model(source))
    with pytest.raises(SiteError, match="block_input is not to be had in Said"):
        IntervenableModel({"layer": 0, "component": "block_input", "intervention_type": VanillaIntervention}, model)


def test_what_a_class_says_is_looked_at():
    class Misspelt(Said):
        component_paths: ClassVar = {"block_outputs": "layers[{layer}].output"}

    class Gone(Said):
        component_paths: ClassVar = {"logits": "heads.output"}

    with pytest.raises(SpecError, match="did you mean 'block_output'"):
        resolve(Misspelt())
    with pytest.raises(SiteError, match=r"Gone has no module 'heads\.output'"):
        resolve(Gone())
    with pytest.raises(SpecError, match="overrides"):
        resolve(Said(), overrides={"mlp_input": ("0", "input")})
