"""The error tree: everything this library raises on purpose stands under one root."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class AlignError(Exception):
    """Root of all errors raised on purpose by align-transformers."""


class SpecError(AlignError, ValueError):
    """A description (configuration, plan, location, subspace) is wrong in itself; no model is needed to see it."""


class UnknownNameError(SpecError):
    """A name stands for nothing; the message lists near misses."""


class SiteError(AlignError, ValueError):
    """A site does not exist in this model, or cannot be addressed the way it was asked for."""


class PositionError(AlignError, ValueError):
    """A position, head or time step does not exist in this input, or lies on padding."""


class PlanError(AlignError, ValueError):
    """Runs, edits and sources do not fit together (a missing source, a cycle, unequal batches)."""


class InterventionError(AlignError, ValueError):
    """An intervention returned something that cannot be written back."""


class NeverFiredError(AlignError, RuntimeError):
    """An edit or a read of the plan was never reached by the forward pass: nothing was changed in silence."""


class ModelNotFoundError(AlignError, LookupError):
    """A model could not be had; the message says what was tried and what to install."""


class ArtifactError(AlignError, ValueError):
    """A saved intervention cannot be written or read: it is missing, damaged, unknown, or made for another model."""


def near_misses(name: object, choices: Iterable[str]) -> str:
    """Return a phrase that names the choices nearest to `name`, or the first twenty of them when none is near.

    >>> near_misses("query", ["mlp_output", "query_output"])
    "did you mean 'query_output'?"
    >>> near_misses("zzz", [])
    'there are none'
    """
    known = sorted(choices)
    close = get_close_matches(str(name), known, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(choice) for choice in close) + "?"
    if not known:
        return "there are none"
    return "known: " + ", ".join(known[:20]) + (f" and {len(known) - 20} more" if len(known) > 20 else "")
