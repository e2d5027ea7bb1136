"""Circuits: which edges of a model are enough, run exactly."""
