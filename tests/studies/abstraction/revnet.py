"""A reversible network as a feature map: with it any algorithm aligns with any network (arXiv:2507.08802).

It is here to be caught by the controls, and no part of the library.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from align_transformers import SpecError, TrainableIntervention


class RevNetIntervention(TrainableIntervention):
    """Swap the first features of an invertible, non-linear map: `decode([encode(s)[:k], encode(b)[k:]])`.

    Each coupling turns the vector by a fixed random rotation, halves it, and adds to each half a function of the other:
    a + f(b), b + g(a + f(b)). So it is undone exactly, whatever f and g are. What rounding loses on the way there and
    back is put back: a source equal to the base changes nothing, bit for bit.

    Args:
        embed_dim: width of the vectors, even.
        low_rank_dimension: how many features are swapped.
        couplings: how many there are.
        hidden: width of the two-layer functions.
        seed: of all that is drawn.
        **kwargs: as for `Intervention`; a partition is one of the swapped features.

    Raises:
        SpecError: the width is odd, or there are not so many features.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        low_rank_dimension: int,
        couplings: int = 4,
        hidden: int = 64,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(embed_dim=embed_dim, low_rank_dimension=low_rank_dimension, **kwargs)
        if embed_dim % 2 or not 0 < low_rank_dimension <= embed_dim:
            raise SpecError(f"features are some of an even number; found {low_rank_dimension} of {embed_dim}")
        self.couplings, self.hidden, self.seed = couplings, hidden, seed
        self.features, half = low_rank_dimension, embed_dim // 2
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            turns = torch.stack([torch.linalg.qr(torch.randn(embed_dim, embed_dim))[0] for _ in range(couplings)])
            layers = [
                nn.Sequential(nn.Linear(half, hidden), nn.ReLU(), nn.Linear(hidden, half)) for _ in range(2 * couplings)
            ]
        self.register_buffer("turns", turns)
        self.first, self.second = nn.ModuleList(layers[::2]), nn.ModuleList(layers[1::2])

    def encode(self, vectors: Tensor) -> Tensor:
        """Return the features of vectors, `(..., width)`."""
        for turn, f, g in zip(self.turns, self.first, self.second, strict=True):
            a, b = (vectors @ turn).chunk(2, -1)
            a = a + f(b)
            vectors = torch.cat([a, b + g(a)], -1)
        return vectors

    def decode(self, features: Tensor) -> Tensor:
        """Return the vectors that have these features."""
        steps = list(zip(self.turns, self.first, self.second, strict=True))
        for turn, f, g in reversed(steps):
            a, b = features.chunk(2, -1)
            b = b - g(a)
            features = torch.cat([a - f(b), b], -1) @ turn.T
        return features

    def forward(self, base: Tensor, source: Tensor | None = None, subspaces: Any = None) -> Tensor:
        """Return the base with its chosen features from the source."""
        own, other = self.encode(torch.stack([base, self.given(base, source)]))
        new, kept = other[..., : self.features], own[..., : self.features]
        chosen = self.chosen(kept, subspaces)
        mixed = torch.cat([new if chosen is None else torch.where(chosen, new, kept), own[..., self.features :]], -1)
        with torch.no_grad():
            there_and_back = self.decode(own)  # the base, but for rounding; so all of the gradient is that of `mixed`
        return base.detach() + (self.decode(mixed) - there_and_back)
