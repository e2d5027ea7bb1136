"""Padding on the left: the one place where positions are derived from an attention mask.

A model with learned positions takes the column of a token for its place in the text, unless `position_ids` say
otherwise; others look at the mask or at the tokens themselves, or do not care. So it is measured, once for each model:
some tokens of an example are run alone, behind padding, and behind padding with `position_ids`. What is right as it is
is left as it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from .._errors import SpecError
from ..positions import Span
from .arguments import arguments
from .modules import evaluating, uncompiled
from .quiet import quietly
from .sequence import CACHES, Inputs, token_axis
from .slot import find_leaf

_ENOUGH = 8
"""Tokens, and columns of padding, that are run to see what a model makes of padding."""
_LEFT_OUT = ("labels", *CACHES)


@dataclass(frozen=True)
class LeftPadding:
    """What padding on the left does to the tokens behind it.

    Args:
        harmless: with nothing said they are as they are alone.
        placed: with `position_ids` from the first real token on they are.
    """

    harmless: bool
    placed: bool


_measured: WeakKeyDictionary[nn.Module, LeftPadding] = WeakKeyDictionary()


def left_padding(model: nn.Module, inputs: Inputs) -> LeftPadding | None:
    """Return what the padding of an input does to its tokens; `None` where none is on the left, or positions are said.

    The first time, a few of the input's tokens are run three times.

    Args:
        model: the user's; it is left as it is.
        inputs: of the model.
    """
    mask = None if isinstance(inputs, Tensor) else inputs.get("attention_mask")
    tokens = token_axis(inputs, "encoder")
    if isinstance(inputs, Tensor) or not isinstance(mask, Tensor) or tokens is None or mask.shape != tokens.shape[:2]:
        return None
    if inputs.get("position_ids") is not None or bool(mask[:, :1].all()):
        return None
    model, real = uncompiled(model), mask != 0
    padded = (~real[:, 0] & real.any(1)).nonzero()
    if model not in _measured and len(padded):
        _measured[model] = _measure(model, inputs, real, int(padded[0]))
    return _measured.get(model)


def with_positions(model: nn.Module, inputs: Inputs) -> Inputs:
    """Return an input with which every example is as it is alone: with `position_ids` where padding is on the left.

    Positions that are there already are kept.

    Args:
        model: the user's.
        inputs: of the model; its `attention_mask` says where padding is.

    Warns:
        UserWarning: padding on the left shifts the tokens, and `position_ids` do not help.

    >>> with_positions(nn.Linear(2, 3), torch.ones(1, 2))
    tensor([[1., 1.]])
    """
    found = left_padding(model, inputs)
    if found is None or isinstance(inputs, Tensor):
        return inputs
    if found.harmless:
        return inputs
    if found.placed:
        return {**inputs, "position_ids": _positions(inputs["attention_mask"])}
    warnings.warn(
        f"padding on the left changes what {type(model).__name__} makes of the tokens behind it, whatever position_ids "
        "it gets: pad on the right, or run examples of one length together",
        stacklevel=3,
    )
    return inputs


def check_counted(spans: Iterable[Span], numbers: Iterable[int]) -> None:
    """Refuse numbers from 0 of tokens that the caller padded on the left: they may be meant as columns, too.

    In `unit_locations` a number is a column of the batch; where prompts are counted it is that of a real token.

    Args:
        spans: of the real tokens of each example.
        numbers: of tokens; negative ones count from the end, in a batch and in a prompt.

    Raises:
        SpecError: there is padding on the left, and a number from 0.

    >>> check_counted([(0, 5), (0, 3)], [2]), check_counted([(2, 5)], [-1])
    (None, None)
    """
    if any(start for start, _ in spans):
        for number in numbers:
            if number >= 0:
                raise SpecError(
                    f"the tokens are padded on the left, so {number} may be column {number} of the batch or the real "
                    f"token {number} of each example: count from the end (-1 is the last token), or pad on the right, "
                    "where both are the same"
                )


def as_alone(model: nn.Module, sources: Any) -> Any:
    """Return one input or several, each as `with_positions` returns it; what is no input as it is."""
    if isinstance(sources, Tensor | Mapping):
        return with_positions(model, sources)
    return [as_alone(model, one) for one in sources] if isinstance(sources, list | tuple) else sources


def warn_of_shift(model: nn.Module, inputs: Any) -> None:
    """Say so where a model that is called as it is takes padding on the left for tokens.

    Args:
        model: the user's.
        inputs: of the model; what is no input is looked over.

    Warns:
        UserWarning: with `position_ids` the examples would be as they are alone; without, they are not.
    """
    found = left_padding(model, inputs) if isinstance(inputs, Tensor | Mapping) else None
    if found is not None and found.placed and not found.harmless:
        warnings.warn(
            f"the batch is padded on the left and has no position_ids, so {type(model).__name__} counts padding as "
            "places of the text: it gets what you gave, and no example is as it would be alone. Add position_ids, "
            "(attention_mask.cumsum(-1) - 1).clamp(min=0), as grid, activations, fit and generation do",
            stacklevel=3,
        )


def _positions(mask: Tensor) -> Int64[Tensor, "batch tokens"]:
    """Return the place of every column, counted from the first real token of its example."""
    starts = (mask != 0).int().argmax(1, keepdim=True)
    return (torch.arange(mask.shape[1], device=mask.device) - starts).clamp(min=0)


def _measure(model: nn.Module, inputs: Mapping[str, Any], real: Tensor, row: int) -> LeftPadding:
    """Run some tokens of an example alone, behind padding, and behind padding with positions.

    Args:
        model: the user's.
        inputs: of the model.
        real: which of its columns are not padding.
        row: an example that is padded on the left.
    """
    start = int(real[row].int().argmax())
    end = min(start + _ENOUGH, real.shape[1])
    padded = _cut(inputs, real.shape, row, slice(max(start - _ENOUGH, 0), end))
    placed = {**padded, "position_ids": _positions(padded["attention_mask"])}
    named, open_ended = arguments(model)
    with torch.no_grad(), evaluating(model), quietly(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a model says of position_ids that it does not use
        alone = _seen(model, _cut(inputs, real.shape, row, slice(start, end)), end - start)
        plain = _seen(model, padded, end - start)
        there = _seen(model, placed, end - start) if open_ended or "position_ids" in named else None
    if alone is None or plain is None:
        return LeftPadding(harmless=True, placed=False)  # it cannot be run on part of an input: nothing is known
    allowed = (1e-4 if alone.dtype in (torch.float32, torch.float64) else 3e-2) * float(alone.abs().max())
    shift = float((plain - alone).abs().max())
    left = float("inf") if there is None else float((there - alone).abs().max())
    return LeftPadding(shift <= allowed, left <= max(allowed, shift / 10))


def _cut(inputs: Mapping[str, Any], shape: tuple[int, ...], row: int, columns: slice) -> dict[str, Any]:
    """Return some columns of one example of an input with tokens of that shape."""

    def part(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.ndim == 0 or value.shape[0] != shape[0]:
            return value
        return value[row : row + 1, columns] if value.shape[:2] == shape else value[row : row + 1]

    return {name: part(value) for name, value in inputs.items() if name not in _LEFT_OUT}


def _seen(model: nn.Module, inputs: Mapping[str, Any], last: int) -> Tensor | None:
    """Return what a model gives for the last columns of an input; `None` if it refuses the input."""
    try:
        output = find_leaf(model(**inputs), None, "the output")[1]
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError):
        return None
    return output[:, -last:] if output.ndim == 3 else output
