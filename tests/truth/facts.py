"""What is known to be true, and must be found."""

from __future__ import annotations

from types import MappingProxyType, ModuleType

from . import (
    addition,
    arithmetic,
    balancing,
    capitals,
    carried,
    circuits,
    directions,
    equality,
    illusions,
    induction,
    interchanges,
    linear,
    modular,
    planted,
    planted_tracing,
    pricing,
    programs,
    rules,
    swaps,
    written,
)

SECTIONS: MappingProxyType[str, ModuleType] = MappingProxyType(
    {module.__name__.rpartition(".")[2]: module for module in (
        swaps, linear, equality, planted, modular, programs, arithmetic, written, planted_tracing, directions,
        induction, capitals, carried, addition, pricing, circuits, interchanges, illusions, balancing, rules,
    )}
)  # fmt: skip
"""Modules with `FACTS`, and some with a `table` of what their numbers are made of; by name."""

IN_TESTS = ("swaps", "linear", "arithmetic", "written", "planted_tracing", "directions", "induction", "balancing")
"""Those that train nothing and take a few seconds."""
