"""Interventions on the internals of neural networks."""

from ._errors import (
    AlignError,
    InterventionError,
    ModelNotFoundError,
    NeverFiredError,
    PlanError,
    PositionError,
    SiteError,
    SpecError,
    UnknownNameError,
)
from .config import IntervenableConfig, RepresentationConfig
from .config import RepresentationConfig as IntervenableRepresentationConfig
from .engine import Bound, Collected, Effect, Outcome, bind, execute
from .intervenable import IntervenableGeneration, IntervenableModel, IntervenableOutput
from .interventions import (
    AdditionIntervention,
    CollectIntervention,
    ConstantSourceIntervention,
    FunctionIntervention,
    Intervention,
    MeanIntervention,
    NoiseIntervention,
    SkipIntervention,
    SourcelessIntervention,
    SubtractionIntervention,
    TrainableIntervention,
    VanillaIntervention,
    ZeroIntervention,
)
from .metrics import Metric, logit_difference, probability
from .models import Description, describe, load_model, resolve
from .plan import Constant, Edit, Plan, Read, Run
from .positions import Positions
from .sites import COMPONENTS, Site
from .studies import grid
from .table import Table
from .zoo import create_gpt2, create_llama, create_smollm2

__all__ = [
    "COMPONENTS",
    "AdditionIntervention",
    "AlignError",
    "Bound",
    "CollectIntervention",
    "Collected",
    "Constant",
    "ConstantSourceIntervention",
    "Description",
    "Edit",
    "Effect",
    "FunctionIntervention",
    "IntervenableConfig",
    "IntervenableGeneration",
    "IntervenableModel",
    "IntervenableOutput",
    "IntervenableRepresentationConfig",
    "Intervention",
    "InterventionError",
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
    "create_gpt2",
    "create_llama",
    "create_smollm2",
    "describe",
    "execute",
    "grid",
    "load_model",
    "logit_difference",
    "probability",
    "resolve",
]
