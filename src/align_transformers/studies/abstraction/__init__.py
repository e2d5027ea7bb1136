"""Causal abstraction: which parts of a network do what a causal model says, and how sure that is."""
