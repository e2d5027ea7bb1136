"""Rotations: matrices with orthonormal columns, learned through a free matrix of the same shape."""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .._errors import SpecError


def orthonormal(free: Float[Tensor, "*stack width k"]) -> Float[Tensor, "*stack width k"]:
    """Return the orthonormal columns nearest in order to those of `free`: its QR factor with a positive diagonal of R.

    Column j depends on the columns up to j only, and a matrix with orthonormal columns is returned as it is. The signs
    are fixed: else a column could flip from one step of a fit to the next. Differentiable where `free` has full rank.

    Args:
        free: one matrix, or a stack of them, `k <= width`; half precision is factored in float32.

    >>> orthonormal(torch.tensor([[-3.0], [4.0]])).tolist()
    [[-0.6...], [0.8...]]
    """
    half = free.dtype in (torch.float16, torch.bfloat16)
    q, r = torch.linalg.qr(free.float() if half else free)
    signs = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(q.dtype)
    return q * signs.unsqueeze(-2)


@final
class Rotation(nn.Module):
    """A learned matrix with orthonormal columns, or a stack of them.

    The parameter `free` is any matrix of full rank; `weight` is `orthonormal(free)`. Orthogonality thus holds at
    every step of any optimiser. Without gradients the factor is built once for each value of the parameter.

    Args:
        width: rows: coordinates of the vectors.
        k: columns: dimensions of the subspace.
        stack: how many of them; `None` for a single matrix.

    Raises:
        SpecError: `k` is not between 1 and `width`.

    >>> weight = Rotation(4, 2).weight
    >>> torch.allclose(weight.T @ weight, torch.eye(2), atol=1e-6)
    True
    """

    def __init__(self, width: int, k: int, stack: int | None = None) -> None:
        super().__init__()
        if not 1 <= k <= width:
            raise SpecError(f"a subspace of vectors of {width} coordinates has 1 to {width} dimensions; asked for {k}")
        self.free = nn.Parameter(torch.empty(*(() if stack is None else (stack,)), width, k))
        for matrix in self.free if stack is not None else [self.free]:
            nn.init.orthogonal_(matrix)
        # An alias of the parameter, the version of its values, and their factor. The alias keeps the memory from being
        # used for another tensor, so that equal addresses mean the same values.
        self._built: tuple[Tensor, int, Tensor] | None = None

    @property
    def weight(self) -> Float[Tensor, "*stack width k"]:
        """The orthonormal matrix, differentiable with respect to `free` where gradients are on."""
        return self()

    def forward(self) -> Float[Tensor, "*stack width k"]:
        """Return the orthonormal matrix."""
        free = self.free
        if (torch.is_grad_enabled() and free.requires_grad) or free.is_inference():
            return orthonormal(free)
        built = self._built
        if built is None or built[0].data_ptr() != free.data_ptr() or built[1] != free._version:
            # Built outside inference mode: it may be used under autograd later.
            with torch.inference_mode(False), torch.no_grad():
                built = free.detach(), free._version, orthonormal(free)
            self._built = built
        return built[2]

    @torch.no_grad()
    def set_weight(self, columns: Float[Tensor, "*stack width k"]) -> None:
        """Make the columns of `columns`, orthonormalised in their order, the matrix."""
        self.free.copy_(columns)

    @torch.no_grad()
    def orthonormalise(self) -> None:
        """Put the orthonormal matrix in the place of the free one.

        `weight` stays the same. The free columns grow during a fit, and steps become smaller relative to them; call
        this every hundred steps or so where that matters.
        """
        self.free.copy_(orthonormal(self.free))
