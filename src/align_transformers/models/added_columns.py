"""Columns that a model adds to the tokens of its input: soft prompts, memory, images. Positions count the tokens.

Where the tokens stand among the columns is measured: the first and the last token are exchanged, each in turn, and the
first module that is handed so many columns shows which of them changed.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .._errors import PositionError
from .modules import evaluating
from .quiet import quietly
from .sequence import CACHES, Inputs, token_axis

_measured: WeakKeyDictionary[nn.Module, dict[Any, int | None]] = WeakKeyDictionary()


class _FirstSeen(BaseException):
    """Ends a pass; holds the tensor that was looked for."""


def leading_columns(model: nn.Module, inputs: Inputs, seen: int, stack: str = "") -> int:
    """Return how many columns a model puts before the tokens of an input.

    The first time that a model shows more columns than there are tokens, the input is run three times, not to the end.

    Args:
        model: the user's.
        inputs: of the model.
        seen: columns of the activation in question.
        stack: the stack whose sequence it has, as for `token_axis`.

    Raises:
        PositionError: it is not known which columns the tokens are.

    >>> leading_columns(nn.Linear(2, 3), torch.ones(1, 4, 2), 4)
    0
    """
    tokens = token_axis(inputs, stack)
    if tokens is None or seen <= tokens.shape[1]:
        return 0
    names = () if isinstance(inputs, Tensor) else tuple(sorted(inputs))
    if any(name in CACHES and inputs[name] is not None for name in names):  # type: ignore[index]
        return 0  # columns of the cache, which the caller handed in
    known = _measured.setdefault(model, {})
    key = (seen, int(tokens.shape[1]), stack, names)
    if key not in known:
        known[key] = _measure(model, inputs, tokens, seen)
    found = known[key]
    if found is None:
        raise PositionError(
            f"{type(model).__name__} makes {seen} columns of {tokens.shape[1]} tokens, and which of them these are "
            "is not known: not one behind the other, or not alike in all examples. Positions cannot be named there"
        )
    return found


def _measure(model: nn.Module, inputs: Inputs, tokens: Tensor, seen: int) -> int | None:
    """Return the column of the first token; 0 where the columns are of something else; `None` if it is not known."""
    last = int(tokens.shape[1]) - 1
    columns = []
    plain = _handed(model, inputs, seen)
    for place in (0, last):
        other = tokens.clone()
        other[:, place] += 1 if tokens.is_floating_point() else torch.where(tokens[:, place] > 0, -1, 1)
        there = _handed(model, _exchanged(inputs, tokens, other), seen)
        if plain is None or there is None:
            return None
        columns.append((plain != there).any(-1))
    if not any(bool(changed.any()) for changed in columns):
        return 0
    if any(bool((changed.sum(1) != 1).any()) for changed in columns):
        return None
    first, end = (changed.int().argmax(1) for changed in columns)
    alike = bool((first == first[0]).all()) and bool((end - first == last).all())
    return int(first[0]) if alike else None


def _exchanged(inputs: Inputs, tokens: Tensor, other: Tensor) -> Inputs:
    """Return an input with other tokens."""
    if isinstance(inputs, Tensor):
        return other
    return {name: other if value is tokens else value for name, value in inputs.items()}


def _handed(model: nn.Module, inputs: Inputs, seen: int) -> Tensor | None:
    """Return the first tensor `(rows, seen, width)` that a module is handed in a pass; `None` if there is none."""

    def entering(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor) and value.is_floating_point() and value.ndim == 3 and value.shape[1] == seen:
                raise _FirstSeen(value.clone())

    try:
        with torch.no_grad(), evaluating(model), quietly(entering):
            model(inputs) if isinstance(inputs, Tensor) else model(**inputs)
    except _FirstSeen as found:
        handed: Tensor = found.args[0]
        return handed
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError):
        return None  # the model refuses other tokens there
    return None
