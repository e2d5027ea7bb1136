"""A norm with its scale as it was, and its gradient in closed form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .._errors import SpecError

_LARGE = 1e3
"""So large that what a norm adds to a variance does not count."""
_SMALL = 1e-5
"""So small that it does, and large enough to be told from a bias."""


class NormParts:
    """What a norm is made of, found by what it does to a few vectors, since norms are written in many ways.

    Args:
        module: the norm.
        like: `(prompts, width)` what goes in, some of it.
    """

    def __init__(self, module: nn.Module, like: Tensor) -> None:
        weight = next(iter(module.parameters()), like)
        self.rounding, self.name = rounding(weight.dtype), type(module).__name__
        one, width = like[:1], like.shape[-1]

        def call(value: Tensor) -> Tensor:
            made: Tensor = module.forward(value.to(weight.dtype))  # past all hooks
            return made.float()

        self.bias = (call(one) + call(-one)) / 2
        signs = torch.ones(width, device=like.device)
        signs[1::2] = -1
        signs = signs - (signs.mean() if width % 2 else 0)
        moved = call(signs[None] + 1) - call(signs[None])
        self.centred = bool(moved.abs().max() < (1e-3 + 2 * self.rounding) * (1 + call(one).abs().max()))
        self.weight = (call(_LARGE * signs[None]) - self.bias) / signs * signs.square().mean().sqrt()
        parts = signs * self.weight
        scale = ((call(_SMALL * signs[None]) - self.bias) * parts).sum() / (_SMALL * parts.square().sum())
        eps = scale.square().reciprocal() - _SMALL**2 * signs.square().mean()
        self.still = eps.clamp(min=torch.finfo(torch.float32).tiny).rsqrt()
        """The scale where nothing goes in."""


class FrozenNorm:
    """A norm with its scale as it was: linear.

    Args:
        module: the norm; or what it is made of, if that is known already.
        before: `(prompts, width)` what went in.
        after: `(prompts, width)` what came out.

    Raises:
        SpecError: with a frozen scale it is not linear.
    """

    def __init__(self, module: nn.Module | NormParts, before: Tensor, after: Tensor) -> None:
        parts = module if isinstance(module, NormParts) else NormParts(module, before)
        self.bias, self._weight, self._centred = parts.bias, parts.weight, parts.centred
        self._read = self._centre(before.float())
        ready = self._read * self._weight
        size, scale = (ready * ready).sum(-1, keepdim=True), ((after - self.bias) * ready).sum(-1, keepdim=True)
        self._scale = torch.where(size > 0, scale / size.clamp(min=1e-30), parts.still)
        missed = (ready * self._scale + self.bias - after).abs().max()
        if bool(missed > (1e-3 + 2 * parts.rounding) * (1 + after.abs().max())):
            raise SpecError(f"{parts.name} is not linear where its scale is frozen (off by {float(missed):.2g})")

    def _centre(self, value: Tensor) -> Tensor:
        return value - value.mean(-1, keepdim=True) if self._centred else value

    def _through(self, value: Tensor) -> Tensor:
        return self._centre(value) * self._weight

    def __call__(self, value: Tensor) -> Tensor:
        """Return what the frozen norm makes of a part, without its bias."""
        return self._through(value) * self._scale

    def back(self, rows: Tensor) -> Tensor:
        """Return what a part is multiplied with, so that the sum is that of what the norm makes of it and `rows`."""
        return self._centre(rows * (self._weight * self._scale))

    def gradient(self, rows: Tensor) -> Tensor:
        """Return the gradient at what went in, of gradients `(..., prompts, width)` at what came out.

        With c what went in, centred if the norm does that, and s its scale, (mean c^2 + eps)^-1/2, that is
        h - c (h.c) s^2 / width, h what `back` gives.
        """
        frozen, width = self.back(rows), rows.shape[-1]
        along = (frozen * self._read).sum(-1, keepdim=True) * (self._scale * self._scale / width)
        return frozen.addcmul_(along, self._read, value=-1)


def rounding(dtype: torch.dtype) -> float:
    """Return by what share of themselves the model's numbers are rounded; 0 where that hardly counts, as in float32."""
    return torch.finfo(dtype).eps if dtype in (torch.float16, torch.bfloat16) else 0.0
