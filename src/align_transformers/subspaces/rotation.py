"""Rotations: matrices with orthonormal columns, learned through a free matrix of the same shape."""

from __future__ import annotations

from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .._checked import checked
from .._errors import SpecError
from .basis import Basis
from .partition import Choice
from .subspace import Subspace


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


def _checksum(free: Tensor) -> Tensor:
    """Return the sum of the bits of every column, as integers: new values have other sums, unless rows are exchanged.

    A copy to compare with would be read, too, and drive the factor out of the processor's cache.
    """
    size = free.element_size()
    kind = torch.int64 if free.shape[-1] * size % 8 == 0 else {2: torch.int16, 4: torch.int32}[size]
    return free.detach().contiguous().view(kind).sum(-2)


@final
class Rotation(Subspace):
    """A learned matrix with orthonormal columns (DAS; Geiger et al. 2023, arXiv:2303.02536), or a stack of them.

    The parameter `free` is any matrix of full rank; `weight` is `orthonormal(free)`. Orthogonality thus holds at
    every step of any optimiser. Without gradients the factor is built once for each value of the parameter. Of a stack
    each example says by its subspaces which member is meant.

    Args:
        width: rows: coordinates of the vectors.
        k: columns: dimensions of the subspace.
        stack: how many of them; `None` for a single matrix.

    Raises:
        SpecError: `k` is not between 1 and `width`; a stack has no members.

    >>> weight = Rotation(4, 2).weight
    >>> torch.allclose(weight.T @ weight, torch.eye(2), atol=1e-6)
    True
    """

    @checked
    def __init__(self, width: int, k: int, stack: int | None = None) -> None:
        super().__init__(width, k)
        if not 1 <= k <= width:
            raise SpecError(f"a subspace of vectors of {width} coordinates has 1 to {width} dimensions; asked for {k}")
        if stack is not None and stack < 1:
            raise SpecError(f"a stack has members; asked for {stack}")
        self.stack, self.takes_choice = stack, stack is not None
        self.free = nn.Parameter(torch.empty(*(() if stack is None else (stack,)), width, k))
        for matrix in self.free if stack is not None else [self.free]:
            nn.init.orthogonal_(matrix)
        self._built: tuple[Any, Tensor, Tensor] | None = None  # the parameter's state and checksum, and its factor

    @property
    def weight(self) -> Float[Tensor, "*stack width k"]:
        """The orthonormal matrix, differentiable with respect to `free` where gradients are on."""
        return self()

    @weight.setter
    def weight(self, columns: Float[Tensor, "*stack width k"]) -> None:
        self.set_weight(columns)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value.detach() if name == "weight" else value)  # a parameter would be registered

    def forward(self) -> Float[Tensor, "*stack width k"]:
        """Return the orthonormal matrix."""
        free = self.free
        if (torch.is_grad_enabled() and free.requires_grad) or free.is_inference() or free.is_meta:
            return orthonormal(free)
        # Values may be written through `.data`, which the counter of versions does not see: they have a checksum, too.
        state, checksum = (free.data_ptr(), free._version, free.dtype, free.device), _checksum(free)
        known = self._built
        if known is None or known[0] != state or not torch.equal(known[1], checksum):
            # Built outside inference mode: it may be used under autograd later.
            with torch.inference_mode(False), torch.no_grad():
                known = self._built = state, checksum, orthonormal(free)
        return known[2]

    def basis(self, base: Tensor | None = None, choice: Choice | None = None) -> Basis:
        """Return the columns; of a stack those of the member that each example chooses.

        Raises:
            SpecError: an example chooses no member, several, or one that does not exist.
        """
        if self.stack is None:
            return Basis.orthonormal(self.weight)
        if base is not None and base.shape[-1] != self.width:
            raise SpecError(f"the stack is one of width {self.width}; the vectors have {base.shape[-1]}")
        return Basis.orthonormal(self.weight[self._members(base, choice)])

    def arguments(self) -> dict[str, Any]:
        """Return `width`, `k` and `stack`."""
        return {"width": self.width, "k": self.size, "stack": self.stack}

    @torch.no_grad()
    def set_weight(self, columns: Float[Tensor, "*stack width k"]) -> None:
        """Make `columns`, orthonormalised in their order, the matrix, as `rotation.weight = columns` does.

        Raises:
            SpecError: they are of another shape.
        """
        if tuple(columns.shape) != tuple(self.free.shape):
            raise SpecError(f"the matrix has shape {tuple(self.free.shape)}; found {tuple(columns.shape)}")
        self.free.copy_(columns)

    @torch.no_grad()
    def orthonormalise(self) -> None:
        """Put the orthonormal matrix in the place of the free one.

        `weight` stays the same. The free columns grow during a fit, and steps become smaller relative to them; call
        this every hundred steps or so where that matters.
        """
        self.free.copy_(orthonormal(self.free))

    def _members(self, base: Tensor | None, choice: Choice | None) -> Tensor:
        """Return the number of each example's member."""
        chosen = [() if parts is None else tuple(parts) for parts in choice or ()]
        count = len(chosen) if base is None else len(base)
        numbers = [int(part) for parts in chosen for part in parts]
        fits = len(chosen) == count and all(len(parts) == 1 for parts in chosen)
        if not fits or any(not 0 <= number < (self.stack or 0) for number in numbers):
            raise SpecError(
                f"each of the {count} examples chooses one of {self.stack} members by subspaces, from 0; "
                f"found {choice!r}"
            )
        return torch.tensor(numbers, dtype=torch.long, device=self.free.device)
