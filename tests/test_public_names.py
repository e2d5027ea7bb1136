"""What the package offers. A name that comes or goes is a decision: it is made here, too, and noted in CHANGELOG."""

from __future__ import annotations

import inspect

import pytest

import align_transformers

NAMES = [
    "AdditionIntervention",
    "AlignError",
    "Alignment",
    "ArtifactError",
    "AutoencoderIntervention",
    "Bound",
    "BoundlessRotatedSpaceIntervention",
    "COMPONENTS",
    "CollectIntervention",
    "Collected",
    "Constant",
    "ConstantSourceIntervention",
    "Description",
    "DifferenceOfMeansIntervention",
    "DireftIntervention",
    "Edit",
    "Effect",
    "ErasureIntervention",
    "FitError",
    "Fitted",
    "FunctionIntervention",
    "GRUConfig",
    "Interval",
    "IntervenableConfig",
    "IntervenableGeneration",
    "IntervenableModel",
    "IntervenableOutput",
    "IntervenableRepresentationConfig",
    "Intervention",
    "InterventionError",
    "JumpReLUAutoencoderIntervention",
    "LinearProbeIntervention",
    "Logits",
    "LoreftIntervention",
    "LowRankRotatedSpaceIntervention",
    "MLPConfig",
    "MeanIntervention",
    "Memory",
    "Metric",
    "ModelNotFoundError",
    "NeverFiredError",
    "NoiseIntervention",
    "Outcome",
    "PCARotatedSpaceIntervention",
    "Plan",
    "PlanError",
    "PositionError",
    "Positions",
    "Read",
    "RepresentationConfig",
    "RotatedSpaceIntervention",
    "Run",
    "Scores",
    "Settings",
    "SigmoidMaskIntervention",
    "SigmoidMaskRotatedSpaceIntervention",
    "Site",
    "SiteError",
    "SkipIntervention",
    "SourcelessIntervention",
    "SpecError",
    "StackedLowRankRotatedSpaceIntervention",
    "SubspaceIntervention",
    "SubtractionIntervention",
    "Table",
    "TrainableIntervention",
    "UnknownNameError",
    "VanillaIntervention",
    "ZeroIntervention",
    "activations",
    "bind",
    "bootstrap",
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
    "cross_entropy",
    "describe",
    "evaluate",
    "execute",
    "fit",
    "fit_pca",
    "grid",
    "iia",
    "kl_divergence",
    "kl_to_clean",
    "label_difference",
    "load_model",
    "logit_difference",
    "operations",
    "precompute",
    "probability",
    "progress_bar",
    "rank",
    "resolve",
    "subspaces",
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
    shown = {name for name in dir(align_transformers) if not name.startswith("_")}
    assert shown == set(NAMES)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Intervenable"):
        _ = align_transformers.Intervenable
