"""Interventions: operations on a base activation and a source activation."""

from .autoencoder import AutoencoderIntervention, DictionaryIntervention, JumpReLUAutoencoderIntervention
from .build import build_intervention, needs_width
from .components import PCARotatedSpaceIntervention
from .fitted import (
    DifferenceOfMeansIntervention,
    DirectionIntervention,
    ErasureIntervention,
    LinearProbeIntervention,
)
from .intervention import ConstantSourceIntervention, Intervention, SourcelessIntervention
from .masked import (
    BoundlessRotatedSpaceIntervention,
    MaskedIntervention,
    SigmoidMaskIntervention,
    SigmoidMaskRotatedSpaceIntervention,
)
from .pair import SubspaceIntervention
from .reft import DireftIntervention, LoreftIntervention
from .rotated import (
    LowRankRotatedSpaceIntervention,
    RotatedSpaceIntervention,
    StackedLowRankRotatedSpaceIntervention,
)
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
from .trainable import TrainableIntervention
from .user_function import FunctionIntervention

__all__ = [
    "AdditionIntervention",
    "AutoencoderIntervention",
    "BoundlessRotatedSpaceIntervention",
    "CollectIntervention",
    "ConstantSourceIntervention",
    "DictionaryIntervention",
    "DifferenceOfMeansIntervention",
    "DirectionIntervention",
    "DireftIntervention",
    "ErasureIntervention",
    "FunctionIntervention",
    "Intervention",
    "JumpReLUAutoencoderIntervention",
    "LinearProbeIntervention",
    "LoreftIntervention",
    "LowRankRotatedSpaceIntervention",
    "MaskedIntervention",
    "MeanIntervention",
    "NoiseIntervention",
    "PCARotatedSpaceIntervention",
    "RotatedSpaceIntervention",
    "SigmoidMaskIntervention",
    "SigmoidMaskRotatedSpaceIntervention",
    "SkipIntervention",
    "SourcelessIntervention",
    "StackedLowRankRotatedSpaceIntervention",
    "SubspaceIntervention",
    "SubtractionIntervention",
    "TrainableIntervention",
    "VanillaIntervention",
    "ZeroIntervention",
    "build_intervention",
    "needs_width",
]
