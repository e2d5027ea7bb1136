"""Masks over coordinates: soft while they are learned, hard when they are used."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def boundary_mask(boundary: Float[Tensor, ""], temperature: float, width: int) -> Float[Tensor, " width"]:
    """Return the one-sided boundary mask `sigmoid((boundary * width - i) / temperature)` over coordinates i.

    The published mask has a left factor `sigmoid(i / temperature)`, too, which leaves coordinate 0 half-swapped at
    every temperature; it is left out. As the temperature falls the mask goes to that of `hard_boundary`.

    Args:
        boundary: the share of the coordinates that is kept, 0 to 1.
        temperature: in coordinates: over so many the mask falls.
        width: how many coordinates there are.

    >>> boundary_mask(torch.tensor(0.5), 0.01, 4).tolist()
    [1.0, 1.0, 0.5, 0.0]
    """
    index = torch.arange(width, device=boundary.device, dtype=boundary.dtype)
    return torch.sigmoid((boundary * width - index) / temperature)


def hard_boundary(boundary: Float[Tensor, ""], width: int) -> Bool[Tensor, " width"]:
    """Mark the coordinates that are kept for more than half: those below `boundary * width`.

    >>> hard_boundary(torch.tensor(0.5), 4).tolist()
    [True, True, False, False]
    """
    return torch.arange(width, device=boundary.device) < boundary * width


class _ClampInward(torch.autograd.Function):
    """Clamp; at and past an end only the gradients whose descent leads back inside are kept."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(value)
        ctx.ends = low, high
        return value.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (value,) = ctx.saved_tensors
        low, high = ctx.ends
        outward = ((value <= low) & (gradient > 0)) | ((value >= high) & (gradient < 0))
        return gradient.masked_fill(outward, 0), None, None


def clamp_inward(value: Tensor, low: float, high: float) -> Tensor:
    """Return `value` clamped, with a gradient that can bring a value outside back in.

    The gradient of an ordinary clamp is zero outside: a parameter that one step took there would stay for ever.

    >>> value = torch.tensor(1.5, requires_grad=True)
    >>> clamp_inward(value, 0.0, 1.0).backward()
    >>> value.grad.item()
    1.0
    """
    return _ClampInward.apply(value, low, high)
