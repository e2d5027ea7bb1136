"""Operations with numbers that are known beforehand: zero, a value, a step, a factor, a mean."""

from __future__ import annotations

from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from .._checked import checked
from ..subspaces import Subspace, Whole
from .operation import Operation


@final
class Zero(Operation):
    """Zero ablation: every coordinate becomes 0.

    >>> Zero().new(torch.ones(2), None).tolist()
    [0.0, 0.0]
    """

    def new(self, base: Tensor, source: Tensor | None) -> Tensor:
        """Return zeros."""
        return torch.zeros_like(base)


@final
class Clamp(Operation):
    """Every coordinate becomes a value.

    Args:
        value: in units of the coordinates.

    >>> Clamp(3.0).new(torch.ones(2), None).tolist()
    [3.0, 3.0]
    """

    @checked
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def new(self, base: Tensor, source: Tensor | None) -> Tensor:
        """Return `value` everywhere."""
        return torch.full_like(base, self.value)

    def arguments(self) -> dict[str, Any]:
        """Return `value`."""
        return {"value": self.value}


@final
class Shift(Operation):
    """A value is added to every coordinate: steering.

    Args:
        value: in units of the coordinates; a number, to be saved with it.

    >>> Shift(3.0).new(torch.ones(2), None).tolist()
    [4.0, 4.0]
    """

    relative = True

    @checked
    def __init__(self, value: float | Float[Tensor, ""]) -> None:
        super().__init__()
        self.value = value

    def new(self, base: Tensor, source: Tensor | None) -> Tensor:
        """Return `base + value`."""
        return base + self.value

    def arguments(self) -> dict[str, Any]:
        """Return `value`."""
        return {"value": self.value}


@final
class Scale(Operation):
    """Every coordinate is multiplied by a factor.

    Args:
        factor: 0 ablates, -1 reflects.

    >>> Scale(-2.0).new(torch.ones(2), None).tolist()
    [-2.0, -2.0]
    """

    @checked
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def new(self, base: Tensor, source: Tensor | None) -> Tensor:
        """Return `factor * base`."""
        return base * self.factor

    def arguments(self) -> dict[str, Any]:
        """Return `factor`."""
        return {"factor": self.factor}


@final
class Mean(Operation):
    """Mean ablation: every coordinate becomes its mean over some activations.

    Args:
        values: a value for each coordinate.

    >>> Mean.of(torch.tensor([[0.0, 2.0], [2.0, 4.0]])).new(torch.zeros(1, 1, 2), None).tolist()
    [[[1.0, 3.0]]]
    """

    values: Tensor

    @checked
    def __init__(self, values: Float[Tensor, " size"]) -> None:
        super().__init__()
        self.register_buffer("values", values.detach().clone())
        self.size = len(values)

    @classmethod
    @checked
    def of(cls, activations: Float[Tensor, "... width"], subspace: Subspace | None = None) -> Mean:
        """Take the mean coordinates of activations.

        Args:
            activations: the mean is over all axes but the last.
            subspace: in whose coordinates; those of the vector without one. The mean of latents is not the latents of
                the mean.
        """
        with torch.no_grad():
            coordinates = (subspace or Whole()).read(activations.reshape(1, -1, activations.shape[-1]))
        return cls(coordinates.reshape(-1, coordinates.shape[-1]).mean(0))

    def new(self, base: Tensor, source: Tensor | None) -> Tensor:
        """Return the means."""
        return self.values.to(base).expand_as(base)

    def arguments(self) -> dict[str, Any]:
        """Return `size`: how many values there are."""
        return {"size": self.size}

    @classmethod
    def empty(cls, *, size: int) -> Mean:
        """Return one into which a state dict can be loaded."""
        return cls(torch.zeros(size))
