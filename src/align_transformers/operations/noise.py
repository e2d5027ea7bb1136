"""Gaussian noise, the same at every call."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from .._checked import checked
from .operation import Operation


@final
class Noise(Operation):
    """Gaussian noise is added, the same at every call (Meng et al. 2022, arXiv:2202.05262).

    The k-th unit gets the same noise in every example, however many examples and units there are.

    Args:
        noise_level: how many standard deviations.
        std: the standard deviation that `noise_level` counts in, in units of the coordinates.
        seed: of the noise.

    >>> noise = Noise(std=0.1, seed=1)
    >>> torch.equal(noise.new(torch.zeros(1, 2, 4), None), noise.new(torch.zeros(1, 5, 4), None)[:, :2])
    True
    """

    relative = True

    @checked
    def __init__(self, noise_level: float = 3.0, std: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        self.noise_level, self.std, self.seed = noise_level, std, seed

    def new(self, base: Tensor, source: Tensor | None) -> Tensor:
        """Return `base + noise_level * std * noise`."""
        generator = torch.Generator().manual_seed(self.seed)
        units = base[0].numel() // max(base.shape[-1], 1) if len(base) else 0
        drawn = [torch.randn(base.shape[-1], generator=generator) for _ in range(units)]
        noise = torch.stack(drawn).view(base.shape[1:]) if drawn else torch.zeros(base.shape[1:])
        return base + (noise * (self.noise_level * self.std)).to(base)

    def arguments(self) -> dict[str, Any]:
        """Return all arguments."""
        return {"noise_level": self.noise_level, "std": self.std, "seed": self.seed}
