"""Subspaces: the coordinates that an operation works in."""

from .basis import Basis, Coordinates, uncast
from .concepts import Eraser, Probe, difference_of_means, fit_eraser, inlp, leace, linear_probe, logistic_regression
from .dictionary import Dictionary, Latents
from .direction import Concept, Direction
from .mask import Boundary, Mask, Masked, annealed, boundary_mask, clamp_inward, hard_boundary
from .partition import Choice, Partition, coordinate_mask
from .pca import Components, PrincipalComponents, principal_components
from .rotation import Rotation, orthonormal
from .saelens import read_dictionary, read_saelens
from .subspace import Subspace, describe, restore
from .whole import WHOLE, Whole

__all__ = [
    "WHOLE",
    "Basis",
    "Boundary",
    "Choice",
    "Components",
    "Concept",
    "Coordinates",
    "Dictionary",
    "Direction",
    "Eraser",
    "Latents",
    "Mask",
    "Masked",
    "Partition",
    "PrincipalComponents",
    "Probe",
    "Rotation",
    "Subspace",
    "Whole",
    "annealed",
    "boundary_mask",
    "clamp_inward",
    "coordinate_mask",
    "describe",
    "difference_of_means",
    "fit_eraser",
    "hard_boundary",
    "inlp",
    "leace",
    "linear_probe",
    "logistic_regression",
    "orthonormal",
    "principal_components",
    "read_dictionary",
    "read_saelens",
    "restore",
    "uncast",
]
