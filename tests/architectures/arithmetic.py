"""The arithmetic of the checks: what one tensor has of another, and the weights behind channels."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def weight_of(module: nn.Module) -> Tensor | None:
    weight = getattr(module, "weight", None)
    known = isinstance(weight, Tensor) and weight.ndim == 2 and next(module.children(), None) is None
    return weight if known and not isinstance(module, nn.Embedding) else None


def is_out_by_in(module: nn.Module) -> bool:
    return not hasattr(module, "nf")  # transformers' Conv1D keeps its weight as (in, out)


def silence(module: Any, side: str, channels: Tensor) -> None:
    """Zero the part of a linear map's weights that reads or writes some channels."""
    weight = module.weight if is_out_by_in(module) else module.weight.T
    if side == "input":
        weight[:, channels] = 0.0
        return
    weight[channels] = 0.0
    if getattr(module, "bias", None) is not None:
        module.bias[channels] = 0.0


def unexplained(before: Tensor, after: Tensor) -> float:
    """Return how much of a tensor is not another one, but for a norm, and a scale and a constant by channel."""
    if before.shape != after.shape:
        return 0.0
    entered, left = (value.reshape(-1, value.shape[-1]).double() for value in (before, after))
    left = left - left.mean(0)
    if left.norm() <= 1e-4 * after.double().norm() or not left.any():
        return 1.0  # all tokens are alike: the residual stream itself was silenced

    def unfit(candidate: Tensor) -> float:
        moved = candidate - candidate.mean(0)
        scale = (moved * left).sum(0) / moved.pow(2).sum(0).clamp(min=1e-12)
        return float((left - scale * moved).norm() / left.norm().clamp(min=1e-12))

    centred = entered - entered.mean(-1, keepdim=True)
    normed = [value / value.pow(2).mean(-1, keepdim=True).sqrt().clamp(min=1e-9) for value in (entered, centred)]
    plain, norm = unfit(entered), min(unfit(value) for value in normed)
    return 0.0 if plain < 2e-3 or norm < 0.06 else min(plain, norm)  # two norms in a row are not quite one


def is_constant(value: Tensor, usual: Tensor) -> bool:
    """Return whether all tokens are alike, compared with how much they differ usually."""
    flat, before = value.reshape(-1, value.shape[-1]), usual.reshape(-1, usual.shape[-1])
    return bool((flat - flat.mean(0)).abs().max() <= 1e-4 * (before - before.mean(0)).abs().max())
