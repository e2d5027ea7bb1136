"""What a model's forward pass can be told by its arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from inspect import Parameter, signature
from typing import Any

from torch import Tensor, nn

from .modules import uncompiled


def without_cache(model: nn.Module, inputs: Mapping[str, Any] | Tensor) -> Mapping[str, Any] | Tensor:
    """Return an input with which a model makes no cache, where it can be told so and the input says nothing of it.

    Args:
        model: told by an argument of its own, or by one that it hands on to the model inside it.
        inputs: its input.
    """
    if isinstance(inputs, Tensor) or "use_cache" in inputs:
        return inputs
    named, open_ended = arguments(model)
    told = "use_cache" in named or (open_ended and hasattr(getattr(model, "config", None), "use_cache"))
    return {**inputs, "use_cache": False} if told else inputs


def forward_parameters(model: nn.Module) -> Mapping[str, Parameter]:
    """Return the parameters of a forward pass; of a wrapper that hands on any others also those of what is inside.

    Args:
        model: the user's, compiled or not. A wrapper, such as PEFT's, has one child.
    """
    model = uncompiled(model)
    own = signature(model.forward).parameters
    inside = list(model.children())
    hands_on = any(one.kind is one.VAR_KEYWORD for one in own.values()) and len(inside) == 1
    return {**forward_parameters(inside[0]), **own} if hands_on else own


def arguments(model: nn.Module) -> tuple[frozenset[str], bool]:
    """Return the names of the arguments of a model's forward pass, and whether it takes any others."""
    return _arguments(type(model).forward)


@lru_cache(maxsize=32)
def _arguments(forward: Callable[..., Any]) -> tuple[frozenset[str], bool]:
    """Return the names of the arguments of a forward pass, and whether it takes any others."""
    parameters = signature(forward).parameters
    return frozenset(parameters), any(p.kind is p.VAR_KEYWORD for p in parameters.values())
