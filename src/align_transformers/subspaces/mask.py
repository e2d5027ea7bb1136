"""Masks over the coordinates of any subspace: soft while they are learned, hard when they are used."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .._checked import checked
from .._errors import SpecError
from .basis import Coordinates
from .partition import Choice
from .subspace import Schedule, Subspace


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


def annealed(schedule: Sequence[float], temperature: float | None) -> tuple[Schedule, float]:
    """Return a schedule and the temperature to begin with.

    Raises:
        SpecError: there are not two temperatures above 0.

    >>> annealed((1.0, 0.1), None)
    ((1.0, 0.1), 1.0)
    """
    if len(schedule) != 2 or not all(value > 0 for value in (*schedule, temperature or schedule[0])):
        raise SpecError(f"temperature_schedule is (start, end), both above 0; found {tuple(schedule)}, {temperature}")
    start, end = (float(value) for value in schedule)
    return (start, end), start if temperature is None else float(temperature)


class Masked(Subspace):
    """Base class of the coordinates of another subspace under a mask that is soft while it is learned.

    Args:
        over: whose coordinates they are.
        schedule: the temperature from start to end of a fit.
        temperature: the present one; by default that of the start.
        sparsity: weight of the penalty.
        hard: use the hard mask.

    Raises:
        SpecError: `over` has a mask already, or does not say how many coordinates it has; a temperature is not above 0.
    """

    size: int

    @checked
    def __init__(
        self, over: Subspace, schedule: Sequence[float], temperature: float | None, sparsity: float, hard: bool
    ) -> None:
        if isinstance(over, Masked):
            raise SpecError(f"{type(over).__name__} is a mask already: a subspace has one")
        if over.size is None:
            raise SpecError(f"a mask needs to know how many coordinates there are: give {type(over).__name__} a width")
        super().__init__(over.width, over.size)
        self.over, self.sparsity, self.hard = over, sparsity, hard
        self.takes_choice, self.inputs = over.takes_choice, over.inputs
        self.temperature_schedule, self.temperature = annealed(schedule, temperature)

    @abstractmethod
    def soft_mask(self) -> Float[Tensor, " size"]:
        """Return how much of each coordinate's change is made at the present temperature."""

    @abstractmethod
    def hard_mask(self) -> Bool[Tensor, " size"]:
        """Mark the coordinates that are changed for more than half: what the soft mask goes to as it cools."""

    def basis(self, base: Tensor | None = None, choice: Choice | None = None) -> Coordinates:
        """Return the coordinates of `over`."""
        return self.over.basis(base, choice)

    def gate(self) -> Float[Tensor, " size"]:
        """Return the mask, hard or soft."""
        return self.hard_mask().float() if self.hard else self.soft_mask()

    @property
    def dimensions(self) -> int:
        """How many coordinates the hard mask keeps."""
        return int(self.hard_mask().sum())

    def arguments(self) -> dict[str, Any]:
        """Return all arguments, with the temperature as it is now."""
        names = ("over", "temperature_schedule", "temperature", "sparsity", "hard")
        return {name: getattr(self, name) for name in names}


@final
class Mask(Masked):
    """A mask of its own for every coordinate: `sigmoid(mask / temperature)`; hard: `mask > 0` (arXiv:2307.03637).

    Args:
        over: whose coordinates they are: `Whole(width)`, a rotation, latents, ...
        temperature_schedule: from start to end of a fit.
        temperature: the present one; by default that of the start.
        sparsity: the penalty is `sparsity` times the sum of the soft mask.
        hard: use the hard mask.

    Raises:
        SpecError: as for `Masked`.

    >>> from align_transformers.subspaces import Rotation
    >>> Mask(Rotation(4, 2)).gate().tolist()
    [0.5, 0.5]
    """

    @checked
    def __init__(
        self,
        over: Subspace,
        *,
        temperature_schedule: Sequence[float] = (1.0, 0.01),
        temperature: float | None = None,
        sparsity: float = 1e-4,
        hard: bool = False,
    ) -> None:
        super().__init__(over, temperature_schedule, temperature, sparsity, hard)
        self.mask = nn.Parameter(torch.zeros(self.size))

    def soft_mask(self) -> Float[Tensor, " size"]:
        """Return `sigmoid(mask / temperature)`."""
        return torch.sigmoid(self.mask / self.temperature)

    def hard_mask(self) -> Bool[Tensor, " size"]:
        """Mark the coordinates whose mask is above 0."""
        return self.mask.detach() > 0

    def penalty(self) -> Float[Tensor, ""]:
        """Return `sparsity * soft_mask().sum()`."""
        return self.sparsity * self.soft_mask().sum()


@final
class Boundary(Masked):
    """The first coordinates; how many is learned: `boundary_mask` of the boundary B (Boundless DAS; arXiv:2305.08809).

    Args:
        over: whose coordinates they are: a rotation, principal components, ...
        temperature_schedule: in coordinates; by default from a sixteenth of them to 0.1, or to that if it is less.
        temperature: the present one; by default that of the start.
        sparsity: the penalty is `sparsity * B`.
        boundary_rate: the boundary's learning rate, in learning rates of the rest.
        hard: use the hard mask: the coordinates below `B * size`.

    Raises:
        SpecError: as for `Masked`.

    >>> from align_transformers.subspaces import Rotation
    >>> Boundary(Rotation(8, 8)).dimensions
    4
    """

    @checked
    def __init__(
        self,
        over: Subspace,
        *,
        temperature_schedule: Sequence[float] | None = None,
        temperature: float | None = None,
        sparsity: float = 1.0,
        boundary_rate: float = 1.0,
        hard: bool = False,
    ) -> None:
        start = (over.size or 1) / 16
        super().__init__(over, temperature_schedule or (start, min(0.1, start)), temperature, sparsity, hard)
        self.boundary_rate = boundary_rate
        self.boundary = nn.Parameter(torch.tensor(0.5))

    def share(self) -> Float[Tensor, ""]:
        """Return B: the share of the coordinates below the boundary."""
        return clamp_inward(self.boundary, 1e-3, 1.0)

    def soft_mask(self) -> Float[Tensor, " size"]:
        """Return the mask at the present temperature."""
        return boundary_mask(self.share(), self.temperature, self.size)

    def hard_mask(self) -> Bool[Tensor, " size"]:
        """Mark the coordinates below the boundary."""
        return hard_boundary(self.share().detach(), self.size)

    def penalty(self) -> Float[Tensor, ""]:
        """Return `sparsity * B`."""
        return self.sparsity * self.share()

    def rates(self) -> dict[str, float]:
        """Return that of the boundary."""
        return {"boundary": self.boundary_rate}

    def arguments(self) -> dict[str, Any]:
        """Return all arguments, with the temperature as it is now."""
        return {**super().arguments(), "boundary_rate": self.boundary_rate}
