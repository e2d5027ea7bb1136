"""A linear basis: the coordinates of a vector in it, and what a change of coordinates changes in the vector."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

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


@dataclass(frozen=True, eq=False)
class Basis:
    """The coordinates `x @ into`; moving these by `change` moves `x` by `change @ back`.

    What the coordinates do not describe is thereby kept exactly, however few they are.

    Args:
        width: of the vectors.
        into: `(width, k)`; `None` for the vector's own coordinates, the neurons.
        back: `(k, width)`; for an orthonormal basis the transpose of `into`; `None` for the neurons.

    >>> axis = Basis.orthonormal(torch.eye(2)[:, :1])
    >>> axis.moved(torch.zeros(1, 2), axis.read(torch.ones(1, 2))).tolist()
    [[1.0, 0.0]]
    """

    width: int
    into: Float[Tensor, "width k"] | None = None
    back: Float[Tensor, "k width"] | None = None

    @classmethod
    def orthonormal(cls, columns: Float[Tensor, "width k"]) -> Basis:
        """Return the basis of some orthonormal columns."""
        return cls(len(columns), columns, columns.T)

    def lift(self, x: Tensor) -> Tensor:
        """Return `x` in the precision in which this basis computes: its own, or that of `x` if it is higher.

        Raises:
            SpecError: `x` has another width than the basis.
        """
        if x.shape[-1] != self.width:
            raise SpecError(
                f"this works on vectors of {self.width} coordinates (embed_dim), but these have {x.shape[-1]}: with "
                "several units, embed_dim is the width of one of them with keep_last_dim=True, and of all of them side "
                "by side with keep_last_dim=False"
            )
        return x.to(torch.promote_types(x.dtype, torch.float32 if self.into is None else self.into.dtype))

    def read(self, x: Float[Tensor, "... width"]) -> Float[Tensor, "... k"]:
        """Return the coordinates of `x`, or of a difference of two vectors their differences."""
        x = self.lift(x)
        with uncast(x):
            return x if self.into is None else x @ self.into.to(x)

    def moved(self, x: Float[Tensor, "... width"], change: Float[Tensor, "... k"]) -> Float[Tensor, "... width"]:
        """Return `x` with its coordinates changed by `change`, in the dtype of `x`; zeros leave it as it is."""
        with uncast(x):
            step = change if self.back is None else change @ self.back.to(change)
        return (self.lift(x) + step).to(x.dtype)
