"""Which model and which tokenizer an artifact was made with, as plain data that can be compared and shown."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import PureWindowsPath
from typing import Any

from torch import nn

from ..models import uncompiled
from ..models.fingerprint import weights_digest

Identity = dict[str, Any]
"""Facts by name: strings, lists of strings, dicts of strings, or `None`."""

_RUNTIME = {"dtype", "torch_dtype", "transformers_version", "use_cache", "return_dict", "pad_token_id", "architectures"}
"""Entries of a configuration that may change while the network stays the same; so do those that begin with `_`."""


def identify_model(model: nn.Module, *, weights: bool = False) -> Identity:
    """Return what tells one model from another: class, name, revision, configuration, shapes, dtypes and weights.

    Of a folder's path only the last part is kept: the rest tells about the machine and not about the model.

    Args:
        model: any.
        weights: look at the values of all parameters, too; they are not known (`None`) where they are not at hand.

    >>> identity = identify_model(nn.Sequential(nn.Linear(2, 3), nn.Linear(2, 3)))
    >>> identity["class"], identity["dtypes"], identity["shapes"]
    ('Sequential', ['float32'], {'*.weight': '2 x (3, 2)', '*.bias': '2 x (3,)'})
    """
    inner = uncompiled(model)
    config = getattr(inner, "config", None)
    parameters = dict(inner.named_parameters())
    return {
        "class": type(inner).__name__,
        "name": _name(getattr(inner, "name_or_path", None) or getattr(config, "_name_or_path", None)),
        "revision": getattr(config, "_commit_hash", None),
        "config_hash": _hash(_plain_config(config)),
        "dtypes": sorted({str(parameter.dtype).removeprefix("torch.") for parameter in parameters.values()}),
        "shapes_hash": _hash(sorted((name, list(parameter.shape)) for name, parameter in parameters.items())),
        "shapes": _shapes({name: tuple(parameter.shape) for name, parameter in parameters.items()}),
        "weights_hash": weights_digest(inner) if weights else None,
    }


def identify_tokenizer(tokenizer: Any) -> Identity:
    """Return what tells one tokenizer from another: class, name, and vocabulary.

    Args:
        tokenizer: of transformers, or anything with `get_vocab()`.
    """
    vocabulary = tokenizer.get_vocab()
    return {
        "class": type(tokenizer).__name__,
        "name": _name(getattr(tokenizer, "name_or_path", None)),
        "vocabulary_size": str(len(vocabulary)),
        "vocabulary_hash": _hash(vocabulary),
    }


def _name(name: Any) -> str | None:
    """Return a model's name; of a path its last part."""
    if not name:
        return None
    path = PureWindowsPath(str(name))  # which knows both kinds of separators
    return path.name if path.is_absolute() or path.root or str(name).startswith((".", "~")) else str(name)


def _plain_config(config: Any) -> Any:
    """Return a configuration without what depends on the machine, the run, or the version of transformers."""
    if config is None:
        return None
    if is_dataclass(config) and not isinstance(config, type):
        entries: Any = _fields(config)
    else:
        # Only what differs from the class's defaults: a new version that adds an entry makes no new model.
        to_dict = getattr(config, "to_diff_dict", None) or getattr(config, "to_dict", None)
        entries = to_dict() if to_dict is not None else config if isinstance(config, Mapping) else str(type(config))
    return _without_runtime(entries)


def _fields(value: Any) -> Any:
    """Return dataclasses as dicts, as `asdict` does; of configurations, too, that refuse to be asked for a field."""
    if is_dataclass(value) and not isinstance(value, type):
        held = vars(value)
        return {one.name: _fields(held.get(one.name, getattr(type(value), one.name, None))) for one in fields(value)}
    if isinstance(value, Mapping):
        return {name: _fields(entry) for name, entry in value.items()}
    return [_fields(entry) for entry in value] if isinstance(value, list | tuple) else value


def _without_runtime(value: Any) -> Any:
    if isinstance(value, Mapping):
        kept = {str(name): entry for name, entry in value.items()}
        kept = {name: entry for name, entry in kept.items() if name not in _RUNTIME and not name.startswith("_")}
        return {name: _without_runtime(entry) for name, entry in kept.items() if not name.startswith("output_")}
    return [_without_runtime(entry) for entry in value] if isinstance(value, list | tuple) else value


def _hash(value: Any) -> str | None:
    """Return the first 16 digits of the SHA-256 of a plain value; `None` for `None`."""
    if value is None:
        return None
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Return the shapes, the layers' numbers left out, with how often each occurs."""
    patterns: dict[str, Counter[tuple[int, ...]]] = defaultdict(Counter)
    for name, shape in shapes.items():
        patterns[re.sub(r"(?<![^.])\d+(?![^.])", "*", name)][shape] += 1
    return {
        pattern: " and ".join(f"{count} x {shape}" for shape, count in sorted(counts.items()))
        for pattern, counts in patterns.items()
    }
