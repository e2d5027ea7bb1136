"""Copies of caches that are handed in, for passes that write into them."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from .._errors import PlanError
from .sequence import CACHES, Inputs


def copied(name: str, cache: Any) -> Any:
    """Return a copy of a cache. Gradients reach what the tensors in it were computed from.

    Args:
        name: of the argument that it was handed in as, for the message.
        cache: any object, with tensors in it.

    Raises:
        PlanError: it cannot be copied.

    >>> import torch
    >>> weight = torch.ones(1, requires_grad=True)
    >>> (kept,) = copied("past_key_values", [2 * weight])
    >>> torch.autograd.grad(kept, weight)
    (tensor([2.]),)
    """
    try:
        with _Clones():
            return deepcopy(cache)
    except Exception as error:  # whatever a class says to being copied
        raise PlanError(
            f"{name} is {type(cache).__name__}, which cannot be copied ({type(error).__name__}: {error}); a pass "
            "writes into the cache that it is handed, so each needs its own"
        ) from error


def own_caches(inputs: Inputs) -> Inputs:
    """Return an input with copies of the caches that were handed in: each pass writes into its own."""
    if isinstance(inputs, Tensor) or all(inputs.get(name) is None for name in CACHES):
        return inputs
    return {name: copied(name, value) if name in CACHES else value for name, value in inputs.items()}


class _Clones(TorchFunctionMode):
    """Copies tensors by `clone()`, also those that were computed, which `deepcopy` refuses; gradients go through."""

    def __torch_function__(
        self, function: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is not Tensor.__deepcopy__:
            return function(*args, **(kwargs or {}))
        tensor, memo = args
        memo[id(tensor)] = new = tensor.clone()
        return new
