"""What kind of module one is, by what it does to a few numbers: a norm, or an activation function."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def is_plain(module: nn.Module) -> bool:
    """Whether a module has no parts and no matrices: a norm, an activation function, a dropout."""
    return not any(True for _ in module.children()) and all(p.ndim < 2 for p in module.parameters())


def is_norm(module: nn.Module, width: int) -> bool:
    """Whether a module is a norm of vectors of a width, by what it does to some.

    Args:
        module: any.
        width: of what it reads; its own weights have that size.
    """
    own = [parameter for parameter in module.parameters() if parameter.ndim == 1]
    if not width or not is_plain(module) or not own or own[0].numel() != width:
        return False
    return kind_of(module, own[0].detach()) == "norm"


@torch.no_grad()
def kind_of(module: nn.Module, x: Tensor) -> str:
    """Return `norm`, `activation`, or nothing: what a module does to a few numbers tells.

    A norm makes the same of a vector and of three times that vector. An activation function makes of some numbers what
    it makes of them among others.
    """
    width = x.shape[-1]
    probe = 1.5 * torch.sin(torch.arange(1, width + 1, device=x.device) * 1.7).to(x.dtype)
    made = _call(module, probe)
    if made is None or made.shape != probe.shape or same_numbers(made, probe):
        return ""
    larger, nothing = _call(module, 3 * probe), _call(module, torch.zeros_like(probe))
    if larger is None or nothing is None:
        return ""
    if same_numbers(larger, made) and not same_numbers(nothing, made):
        return "norm"
    alone = _call(module, probe[: width // 2]) if all(p.numel() == 1 for p in module.parameters()) else None
    return "activation" if alone is not None and same_numbers(alone, made[: width // 2]) else ""


@torch.no_grad()
def matrix_of(module: nn.Module) -> Tensor | None:
    """Return the matrix `(outputs, inputs)` of a linear layer, a view; `None` where it does not tell all."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or not weight.is_floating_point():
        return None
    for matrix in (weight.detach(), weight.detach().T):
        probe = torch.sin(torch.arange(1, matrix.shape[1] + 1, device=weight.device) * 1.7).to(weight.dtype)
        made, nothing = _call(module, probe), _call(module, torch.zeros_like(probe))
        fits = made is not None and nothing is not None and len(made) == len(matrix)
        if fits and same_numbers(made - nothing, matrix @ probe):  # type: ignore[operator]
            return matrix
    return None


def same_numbers(one: Tensor, other: Tensor) -> bool:
    """Whether two vectors are the same but for rounding, at the size of the second."""
    near = 2e-2 if one.dtype in (torch.float16, torch.bfloat16) else 1e-3
    return bool((one - other).abs().max() <= near * other.abs().max())


def _call(module: nn.Module, probe: Tensor) -> Tensor | None:
    """Return what a module makes of a vector, past all hooks; `None` if it takes none."""
    try:
        made = module.forward(probe[None, None])
    except (RuntimeError, TypeError, ValueError, IndexError):
        return None
    return made[0, 0] if isinstance(made, Tensor) and made.shape[:2] == (1, 1) else None
