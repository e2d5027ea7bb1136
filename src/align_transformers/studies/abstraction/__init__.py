"""Causal abstraction: which part of a network carries a variable of a causal model, searched for and controlled."""

from .align import align
from .result import AlignmentResult

__all__ = ["AlignmentResult", "align"]
