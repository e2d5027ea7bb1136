"""What a table was made with: the model, its identity, and the versions of the libraries."""

from __future__ import annotations

from typing import Any

from torch import nn

from .._version import installed_version, library_version
from ..storage.identity import identify_model

_TOLD = ("class", "name", "revision", "config_hash", "shapes_hash", "dtypes")


def made_with(model: nn.Module) -> dict[str, Any]:
    """Return the facts under `model` (its name), `identity`, `version` and `versions` of a table's `meta`.

    The identity is that of an artifact, without the weights' hash, which a store has.

    Args:
        model: the user's.

    >>> found = made_with(nn.Linear(2, 3))
    >>> found["model"], found["identity"]["class"], sorted(found["versions"])
    ('Linear', 'Linear', ['numpy', 'torch', 'transformers'])
    """
    identity = identify_model(model)
    return {
        "model": str(getattr(model, "name_or_path", "") or type(model).__name__),
        "identity": {name: identity[name] for name in _TOLD},
        "version": library_version(),
        "versions": {name: installed_version(name) for name in ("numpy", "torch", "transformers")},
    }
