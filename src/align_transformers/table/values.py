"""What a table holds: values of plain kinds, and how they are stored."""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .._errors import SpecError
from ..sites import COMPONENTS, HEAD_PREFIX

TYPES: dict[str, type] = {
    "component": str, "layer": int, "head": int, "neuron": int, "position": int, "source_position": int, "token": str,
    "source_token": str, "pair": int, "direction": str, "metric": float, "effect": float, "recovered": float,
    "change": float, "fired": int, "place": str, "offset": int,
}  # fmt: skip
"""Columns of known types."""
TAKEN = frozenset((*TYPES, "top_tokens", "top_probabilities", "count", "low", "high"))
"""Columns that have a meaning already, so that no metric is called so."""


def mean_of(
    values: list[float], level: float, draws: int, seed: int
) -> tuple[float | None, float | None, float | None]:
    """Return the mean and its bootstrap interval; `None` where there are too few numbers."""
    if not values:
        return None, None, None
    middle = float(np.mean(values))
    if len(values) == 1:
        return middle, None, None
    drawn = np.random.default_rng(seed).integers(len(values), size=(draws, len(values)))
    low, high = np.quantile(np.asarray(values)[drawn].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return middle, float(low), float(high)


def plain_column(name: str, values: Sequence[Any]) -> tuple[Any, ...]:
    """Return the values of a column, each as `plain_value` has it; where all are of one kind, no one is looked at."""
    kinds, wanted = set(map(type, values)) - {type(None)}, TYPES.get(name)
    alike = len(kinds) == 1 and kinds <= {str, int, bool, float} and wanted in (None, *kinds)
    if alike and (kinds != {float} or not (None in values or any(map(math.isnan, values)))):
        return tuple(values)
    return tuple(plain_value(name, value) for value in values)


def plain_value(name: str, value: Any) -> Any:
    """Return `value` as text, bool, int, float, None or a tuple of these; known columns have their own type."""
    if isinstance(value, (list, tuple)):
        return tuple(plain_value("", item) for item in value)
    if value is None or isinstance(value, (str, bool)):
        plain: Any = value
    elif isinstance(value, numbers.Integral):
        plain = int(value)
    elif isinstance(value, numbers.Real):
        plain = None if math.isnan(value) else float(value)
    else:
        raise SpecError(f"column {name!r} holds {type(value).__name__}; a table holds text, numbers and lists of them")
    wanted = TYPES.get(name)
    if wanted is float and isinstance(plain, int) and not isinstance(plain, bool):
        return float(plain)
    if wanted is not None and plain is not None and type(plain) is not wanted:
        raise SpecError(f"column {name!r} holds {wanted.__name__} values, got {value!r}")
    return plain


def plain_meta(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return a deep copy of `meta` as JSON gives it back."""
    try:
        copied = json.loads(json.dumps(dict(meta)))
    except (TypeError, ValueError) as error:
        raise SpecError(f"a table's meta must be JSON-able: {error}") from error
    return dict(copied)


def arrow_type(name: str, arrow: Any) -> Any:
    """Return the stored type of a known column, None (arrow infers it) for another."""
    kinds = {str: arrow.string(), int: arrow.int64(), float: arrow.float64()}
    lists = {"top_tokens": arrow.list_(arrow.string()), "top_probabilities": arrow.list_(arrow.float64())}
    return lists.get(name) or kinds.get(TYPES.get(name, object))


def in_encoder(component: Any) -> bool:
    """Whether the positions of a component count in the sequence of an encoder.

    >>> in_encoder("encoder.mlp_output"), in_encoder("decoder.cross_key_output"), in_encoder("mlp_output")
    (True, True, False)
    """
    stack, _, name = str(component).rpartition(".")
    known = COMPONENTS.get(name) or COMPONENTS.get(name.removeprefix(HEAD_PREFIX))
    return stack == "encoder" or (known is not None and known.other_sequence)
