"""What one call of a model is given, and what it gives back, whoever makes it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .sequence import CACHES, Inputs

TOKENS = ("decoder_input_ids", "input_ids", "inputs_embeds")
"""Arguments that have the tokens which a forward pass is about."""


def arguments_given(method: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by name, those that are `None` left out.

    Args:
        method: that is called.
        args: its arguments by place.
        kwargs: and by name.

    >>> arguments_given(lambda x, *more, y=1, **rest: None, (5, 6), {"y": None, "z": 7})
    {'x': 5, 'more[0]': 6, 'z': 7}
    """
    signature = inspect.signature(method)
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    known = {name for name, one in signature.parameters.items() if one.kind not in variadic}
    given: dict[str, Any] = {}
    bound = signature.bind_partial(*args, **{name: value for name, value in kwargs.items() if name in known})
    for name, value in bound.arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            given |= {f"{name}[{number}]": one for number, one in enumerate(value)}
        else:
            given[name] = value
    # A keyword that the signature lacks may be one that a decorator renames, as transformers' old names are.
    given |= {name: value for name, value in kwargs.items() if name not in known}
    return {name: value for name, value in given.items() if value is not None}


def inputs_given(given: Mapping[str, Any]) -> Inputs:
    """Return the arguments of a forward pass as inputs; the only tensor alone, where its name says nothing.

    Args:
        given: by name.
    """
    tensors = [(name, value) for name, value in given.items() if isinstance(value, Tensor)]
    return tensors[0][1] if len(tensors) == 1 and tensors[0][0] not in TOKENS else given


def prompt_given(model: nn.Module, given: Mapping[str, Any]) -> Inputs:
    """Return the tensors of a generation's prompt by name; one token of one example where it is given none.

    Args:
        model: that generates.
        given: the arguments of `generate` by name.
    """
    main = getattr(model, "main_input_name", "input_ids")
    prompt = {main if name == "inputs" else name: value for name, value in given.items() if isinstance(value, Tensor)}
    return prompt or {"input_ids": torch.zeros(1, 1, dtype=torch.long)}


def tokens_given(given: Mapping[str, Any]) -> Tensor | None:
    """Return the tokens that a forward pass is about, `(rows, columns, ...)`; `None` if it is given none."""
    found = [given[name] for name in TOKENS if isinstance(given.get(name), Tensor)]
    return found[0] if found and found[0].ndim > 1 else None


def cache_given(given: Mapping[str, Any]) -> Any:
    """Return the cache that a forward pass is handed; `None` if it is none."""
    return next((given[name] for name in CACHES if given.get(name) is not None), None)


def caches_returned(output: Any) -> list[Any]:
    """Return the caches that a forward pass gives back."""
    if isinstance(output, Mapping):
        return [output[name] for name in CACHES if output.get(name) is not None]
    return [one for one in output if hasattr(one, "get_seq_length")] if isinstance(output, tuple) else []


def cache_length(cache: Any, unknown: int | None = 0) -> Any:
    """Return how many columns a cache holds.

    Args:
        cache: any, or `None`.
        unknown: what is returned where it does not tell, as one of a model without attention does not.
    """
    counted = getattr(cache, "get_seq_length", None)
    if not callable(counted):
        return unknown
    try:
        return int(counted())
    except ValueError:  # transformers': none of its layers counts
        return unknown
