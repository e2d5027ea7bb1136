"""Coordinates as they are in one call: those of a linear basis, and what they have in common with all others."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from .._errors import SpecError


def uncast(x: Tensor) -> AbstractContextManager[None]:
    """Return a context in which matrix products keep their precision, whatever autocast is on.

    >>> with torch.autocast("cpu"), uncast(torch.ones(1)):
    ...     (torch.ones(1, 1) @ torch.ones(1, 1)).dtype
    torch.float32
    """
    kind = x.device.type
    on = kind != "meta" and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if on else nullcontext()


class Coordinates(ABC):
    """The coordinates of a vector, and the vector with its coordinates changed. What they do not describe is kept."""

    @abstractmethod
    def read(self, x: Float[Tensor, " ..."]) -> Float[Tensor, " ..."]:
        """Return the coordinates of `x`, in the precision in which they are computed: at least that of `x`."""

    @abstractmethod
    def moved(self, x: Float[Tensor, " ..."], change: Tensor, at: Tensor | None = None) -> Float[Tensor, " ..."]:
        """Return `x` with its coordinates changed by `change`, in the dtype of `x`; zeros leave it as it is.

        Args:
            x: `(..., width)`.
            change: `(..., size)`.
            at: the coordinates of `x`, if they are known.
        """


def _product(x: Tensor, matrix: Tensor) -> Tensor:
    """Return `x @ matrix`, where every example may have a matrix of its own."""
    if matrix.ndim == 2:
        return x @ matrix
    return (x.reshape(len(x), -1, x.shape[-1]) @ matrix).view(*x.shape[:-1], matrix.shape[-1])


@final
@dataclass(frozen=True, eq=False)
class Basis(Coordinates):
    """The coordinates `(x - origin) @ into`; moving these by `change` moves `x` by `change @ back`.

    Args:
        width: of the vectors; `None` for any.
        into: `(width, k)`, or `(batch, width, k)`: one for each example; `None` for the vector's own coordinates.
        back: `(k, width)`, likewise; for an orthonormal basis the transpose of `into`.
        origin: where all coordinates are 0; `None` for the zero vector.

    >>> axis = Basis.orthonormal(torch.eye(2)[:, :1])
    >>> axis.moved(torch.zeros(1, 2), axis.read(torch.ones(1, 2))).tolist()
    [[1.0, 0.0]]
    """

    width: int | None
    into: Float[Tensor, "*batch width k"] | None = None
    back: Float[Tensor, "*batch k width"] | None = None
    origin: Float[Tensor, " width"] | None = None

    @classmethod
    def orthonormal(cls, columns: Float[Tensor, "*batch width k"]) -> Basis:
        """Return the basis of some orthonormal columns."""
        return cls(columns.shape[-2], columns, columns.mT)

    def promoted(self, x: Tensor) -> Tensor:
        """Return `x` in the precision in which this basis computes: its own, or that of `x` if it is higher.

        Raises:
            SpecError: `x` has another width than the basis.
        """
        if self.width is not None and x.shape[-1] != self.width:
            raise SpecError(
                f"this works on vectors of {self.width} coordinates (embed_dim), but these have {x.shape[-1]}: with "
                "several units, embed_dim is the width of one of them with keep_last_dim=True, and of all of them side "
                "by side with keep_last_dim=False"
            )
        return x.to(torch.promote_types(x.dtype, torch.float32 if self.into is None else self.into.dtype))

    def read(self, x: Float[Tensor, " ..."]) -> Float[Tensor, " ..."]:
        """Return the coordinates of `x`."""
        x = self.promoted(x)
        return self._along(x if self.origin is None else x - self.origin.to(x.device))

    def difference(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the coordinates of `y` less those of `x`; read at once, equal vectors differ by 0 to the bit."""
        return self._along(self.promoted(y) - self.promoted(x))

    def zeros(self, x: Float[Tensor, "... width"]) -> Float[Tensor, "... k"]:
        """Return coordinates of 0 for each vector of `x`."""
        x = self.promoted(x)
        return x.new_zeros(*x.shape[:-1], x.shape[-1] if self.into is None else self.into.shape[-1])

    def lift(self, change: Tensor) -> Tensor:
        """Return what a change of the coordinates changes in the vector."""
        with uncast(change):
            return change if self.back is None else _product(change, self.back.to(change))

    def moved(self, x: Float[Tensor, " ..."], change: Tensor, at: Tensor | None = None) -> Float[Tensor, " ..."]:
        """Return `x + lift(change)`, in the dtype of `x`."""
        return (self.promoted(x) + self.lift(change)).to(x.dtype)

    def _along(self, x: Tensor) -> Tensor:
        """Return the coordinates of promoted vectors, from the zero vector."""
        with uncast(x):
            return x if self.into is None else _product(x, self.into.to(x))
