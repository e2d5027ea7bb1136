"""Circuits: which edges of a model are enough, run exactly."""

from .circuit import Circuit
from .evaluate_circuit import evaluate_circuit

__all__ = ["Circuit", "evaluate_circuit"]
