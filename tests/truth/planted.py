"""A model in which one variable is written along a known random subspace: what is learned must be that subspace.

The stream is `h = U v + noise outside U`, and the classifier reads `U^T h` only, by a map that tells every direction of
the variable. So the swap of U, and no smaller or other one, carries the source's variable into the base.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from align_transformers import IntervenableModel, Intervention
from align_transformers.interventions import (
    BoundlessRotatedSpaceIntervention,
    LowRankRotatedSpaceIntervention,
    RotatedSpaceIntervention,
    SigmoidMaskIntervention,
    SigmoidMaskRotatedSpaceIntervention,
)
from align_transformers.learning import fit, kl_divergence

from .fact import Fact

WIDTH, RANK, CLASSES = 24, 4, 12


class Planted(nn.Module):
    """A stream of `WIDTH` coordinates whose classifier reads `RANK` hidden directions; the stream is the input.

    Args:
        seed: of the directions.
        axes: the directions are coordinates: for masks over neurons.
    """

    def __init__(self, seed: int = 0, axes: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        if axes:
            columns = torch.eye(WIDTH)[:, torch.randperm(WIDTH, generator=generator)[:RANK]]
        else:
            columns = torch.linalg.qr(torch.randn(WIDTH, RANK, generator=generator)).Q
        self.register_buffer("subspace", columns)
        self.register_buffer("reader", torch.randn(RANK, CLASSES, generator=generator))
        self.stream = nn.Identity()

    def forward(self, stream: Tensor) -> Tensor:
        """Return the logits `(batch, classes)` of streams `(batch, width)`."""
        return self.stream(stream) @ self.subspace @ self.reader


def data(model: Planted, count: int = 40, batch: int = 128, seed: int = 1) -> list[dict[str, Any]]:
    """Return batches whose target is what the model says of the base with the variable from the source."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        base, source = (torch.randn(batch, WIDTH, generator=generator) for _ in range(2))
        swapped = base + (source - base) @ model.subspace @ model.subspace.T
        made.append({"base": base, "sources": source, "labels": torch.softmax(model(swapped), -1)})
    return made


def learned(intervention: Intervention, model: Planted, **how: Any) -> Intervention:
    """Fit an intervention at the stream, and return it as it is to be used: masks hard."""
    made = IntervenableModel({"component": "stream.output", "intervention": intervention}, model)
    fit(made, data(model), loss=kl_divergence, metric=kl_divergence, larger_is_better=False, memory=False, **how)
    return made.hardened().representations[0].intervention


def change(intervention: Intervention) -> Tensor:
    """Return the matrix P of `new = base + (source - base) P`, read off the intervention's answers to the axes."""
    with torch.no_grad():
        return intervention(torch.zeros(WIDTH, WIDTH), torch.eye(WIDTH))


def largest_angle(intervention: Intervention, model: Planted) -> float:
    """Return the largest principal angle, in degrees, between what is swapped and the planted subspace."""
    values, vectors = torch.linalg.eigh(change(intervention))
    found = vectors[:, values > 0.5]
    cosines = torch.linalg.svdvals(found.T @ model.subspace)
    return torch.rad2deg(torch.acos(cosines.clamp(max=1.0))).max().item()


def rank(intervention: Intervention) -> int:
    """Return how many dimensions are swapped."""
    return int((torch.linalg.eigvalsh(change(intervention)) > 0.5).sum())


MADE: dict[str, Callable[[], Intervention]] = {
    "low-rank": lambda: LowRankRotatedSpaceIntervention(embed_dim=WIDTH, low_rank_dimension=RANK),
    "full": lambda: RotatedSpaceIntervention(embed_dim=WIDTH, interchange_dim=RANK),
    "boundless": lambda: BoundlessRotatedSpaceIntervention(embed_dim=WIDTH, sparsity=0.2),
    "mask over a rotation": lambda: SigmoidMaskRotatedSpaceIntervention(embed_dim=WIDTH, sparsity=0.003),
    "mask over neurons": lambda: SigmoidMaskIntervention(embed_dim=WIDTH, sparsity=0.003),
}


@cache
def _found(kind: str) -> tuple[Intervention, Planted]:
    torch.manual_seed(0)
    known = Planted(axes=kind == "mask over neurons")
    rate = 0.05 if kind == "mask over neurons" else 0.02
    return learned(MADE[kind](), known, epochs=10 if kind in ("low-rank", "full") else 20, lr=rate), known


def _facts(kind: str) -> list[Fact]:
    angle, dimensions = f"planted, {kind}: largest angle (degrees)", f"planted, {kind}: dimensions (true: {RANK})"
    return [
        Fact(angle, lambda: largest_angle(*_found(kind)), 0.0, 5.0),
        Fact(dimensions, lambda: rank(_found(kind)[0]), RANK - 1, RANK + 1),
    ]


FACTS = [fact for kind in MADE for fact in _facts(kind)]
