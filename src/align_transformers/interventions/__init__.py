"""Interventions: operations on a base activation and a source activation."""

from .base import ConstantSourceIntervention, Intervention, SourcelessIntervention, TrainableIntervention
from .build import build_intervention
from .function import FunctionIntervention
from .static import (
    AdditionIntervention,
    CollectIntervention,
    MeanIntervention,
    NoiseIntervention,
    SkipIntervention,
    SubtractionIntervention,
    VanillaIntervention,
    ZeroIntervention,
)

__all__ = [
    "AdditionIntervention",
    "CollectIntervention",
    "ConstantSourceIntervention",
    "FunctionIntervention",
    "Intervention",
    "MeanIntervention",
    "NoiseIntervention",
    "SkipIntervention",
    "SourcelessIntervention",
    "SubtractionIntervention",
    "TrainableIntervention",
    "VanillaIntervention",
    "ZeroIntervention",
    "build_intervention",
]
