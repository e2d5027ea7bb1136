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
from .plan import Constant, Edit, Plan, Read, Run
from .positions import Positions
from .sites import COMPONENTS, Site

__all__ = [
    "AdditionIntervention",
    "AlignError",
    "Bound",
    "COMPONENTS",
    "CollectIntervention",
    "Collected",
    "Constant",
    "ConstantSourceIntervention",
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
    "TrainableIntervention",
    "UnknownNameError",
    "VanillaIntervention",
    "ZeroIntervention",
    "bind",
    "execute",
]
