"""What the package offers. A name that comes or goes is a decision: it is made here, too, and noted in CHANGELOG."""

from __future__ import annotations

import inspect

import pytest

import align_transformers

NAMES = [
    "AdditionIntervention",
    "AlignError",
    "Bound",
    "COMPONENTS",
    "CollectIntervention",
    "Collected",
    "Constant",
    "ConstantSourceIntervention",
    "Description",
    "Edit",
    "Effect",
    "FunctionIntervention",
    "GRUConfig",
    "IntervenableConfig",
    "IntervenableGeneration",
    "IntervenableModel",
    "IntervenableOutput",
    "IntervenableRepresentationConfig",
    "Intervention",
    "InterventionError",
    "MLPConfig",
    "MeanIntervention",
    "Metric",
    "ModelNotFoundError",
    "NeverFiredError",
    "NoiseIntervention",
    "Outcome",
    "Plan",
    "PlanError",
    "PositionError",
    "Positions",
    "Read",
    "RepresentationConfig",
    "Run",
    "Site",
    "SiteError",
    "SkipIntervention",
    "SourcelessIntervention",
    "SpecError",
    "SubtractionIntervention",
    "Table",
    "TrainableIntervention",
    "UnknownNameError",
    "VanillaIntervention",
    "ZeroIntervention",
    "bind",
    "create_blip",
    "create_blip_itm",
    "create_gpt2",
    "create_gpt2_lm",
    "create_gpt_neo",
    "create_gpt_neox",
    "create_gru",
    "create_gru_classifier",
    "create_gru_lm",
    "create_llama",
    "create_mlp_classifier",
    "create_smollm2",
    "describe",
    "execute",
    "grid",
    "load_model",
    "logit_difference",
    "probability",
    "resolve",
]


def test_the_names_are_these():
    assert sorted(align_transformers.__all__) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_can_be_had_and_is_explained(name):
    value = getattr(align_transformers, name)
    if inspect.isclass(value) or inspect.isroutine(value):
        assert inspect.getdoc(value)
        assert "Config(" not in (value.__doc__ or "").split("\n")[0]  # what dataclass writes when nobody does


def test_nothing_else_is_offered_by_accident():
    public = {
        name
        for name, value in vars(align_transformers).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert public - {"annotations"} == set(NAMES)
