"""Coordinates that are a learned function of the vector: representation fine-tuning."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor, nn

from .._checked import checked
from ..subspaces import uncast
from .operation import Operation


@final
class Learned(Operation):
    """The coordinates become `W x + c` of the vector x (LoReFT; Wu et al. 2024, arXiv:2404.03592), or move by it.

    Args:
        layer: `nn.Linear` of the vector's width and the number of coordinates: W and c.
        adds: the base's coordinates are kept, and added to (DiReFT).

    >>> import torch
    >>> Learned(nn.Linear(4, 2)).new(torch.zeros(1, 1, 2), torch.ones(1, 1, 4)).shape
    torch.Size([1, 1, 2])
    """

    reads_vector = True

    @checked
    def __init__(self, layer: nn.Linear, *, adds: bool = False) -> None:
        super().__init__()
        self.layer, self.adds, self.relative, self.size = layer, adds, adds, layer.out_features

    def new(self, base: Tensor, source: Tensor | None) -> Tensor:
        """Return `W x + c`, or `base + W x + c`; `source` is the vector x, and is computed with in its precision."""
        assert source is not None
        weight, bias = self.layer.weight.to(source), self.layer.bias.to(source)
        with uncast(source):
            found = nn.functional.linear(source, weight, bias)
        return base + found if self.adds else found

    def arguments(self) -> dict[str, Any]:
        """Return `width`, `size` and `adds`."""
        return {"width": self.layer.in_features, "size": self.size, "adds": self.adds}

    @classmethod
    def empty(cls, *, width: int, size: int, adds: bool) -> Learned:
        """Return one with random weights."""
        return cls(nn.Linear(width, size), adds=adds)
