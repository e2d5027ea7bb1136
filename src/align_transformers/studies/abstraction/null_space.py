"""What of a subspace the weights that read it can see, and what they cannot."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..._checked import checked
from ..._errors import SpecError


@dataclass(frozen=True, eq=False)
class NullSpaceSplit:
    """A subspace in two parts: what its readers can see, and what they cannot.

    Args:
        disconnected: orthonormal basis of the part in the kernel of the readers, `(width, i)`.
        connected: orthonormal basis of the part in their row space, `(width, j)`.
        kernel_share: of each basis vector, the share of its squared length in the kernel, `(k,)`, 0 to 1.
        disconnected_variation: of each basis vector, the variance of clean activations along its part in the kernel,
            over their mean variance in a coordinate, `(k,)`; NaN where it has no such part.
        connected_variation: the same along its part in the row space; about 0: that part is dormant.
        explanation: one sentence.
    """

    disconnected: Float[Tensor, "width i"]
    connected: Float[Tensor, "width j"]
    kernel_share: Float[Tensor, " k"]
    disconnected_variation: Float[Tensor, " k"]
    connected_variation: Float[Tensor, " k"]
    explanation: str


@checked
def null_space_split(
    basis: Float[Tensor, "width k"], readers: Float[Tensor, "readers width"], clean: Float[Tensor, "examples width"]
) -> NullSpaceSplit:
    """Split a subspace by the kernel of what reads it, and say how clean activations vary along the parts.

    A direction that is partly disconnected (in the kernel, and varies with the variable) and partly dormant (it is
    read, and does not vary) can work though the network uses neither. Patch each part by itself to see which works.
    The split says little where the readers have a small kernel, as those of a residual stream.

    Args:
        basis: orthonormal columns.
        readers: the rows of the weights that read the site: of an MLP's hidden layer, the output weights.
        clean: activations of unedited runs.

    Raises:
        SpecError: there is no column or reader, the widths differ, the columns are not orthonormal, or the clean
            activations do not vary.

    Makelov et al. 2023, arXiv:2311.17030.

    >>> clean = torch.tensor([[1.0, 0.0, 1.0], [3.0, 0.0, 3.0]])
    >>> half = torch.tensor([[0.6], [0.8], [0.0]])
    >>> split = null_space_split(half, torch.tensor([[0.0, 1.0, 0.0]]), clean)
    >>> split.kernel_share, split.connected_variation
    (tensor([0.3600]), tensor([0.]))
    """
    columns, rows, states = (x.detach().cpu().double() for x in (basis, readers, clean))
    width = len(columns)
    if not columns.numel() or not len(rows) or rows.shape[1] != width or states.shape[1:] != (width,):
        raise SpecError(
            f"basis, readers and clean activations are (width, k), (readers, width) and (examples, width); found "
            f"{tuple(basis.shape)}, {tuple(readers.shape)} and {tuple(clean.shape)}"
        )
    if (columns.T @ columns - torch.eye(columns.shape[1])).abs().max() > 1e-3:
        raise SpecError("the columns of basis are orthonormal; found others: take the Q of torch.linalg.qr(basis)")
    values, seen = torch.linalg.svd(rows, full_matrices=False)[1:]
    seen = seen[values > values.max() * max(rows.shape) * torch.finfo(basis.dtype).eps]
    connected = seen.T @ (seen @ columns)
    disconnected = columns - connected
    share = (disconnected.norm(dim=0) ** 2).clamp(0, 1)
    if len(states) < 2 or not (mean := states.var(0).mean()) > 0:
        raise SpecError(f"clean activations are several and vary; found {len(states)}, all of them equal")
    variation = [(states @ _unit(part)).var(0) / mean for part in (disconnected, connected)]
    along = variation[1][share < 1 - 1e-6]
    said = f"the readers see {len(seen)} of {width} dimensions, {share.mean():.0%} of the subspace is in their kernel"
    if len(along):
        said += f", and along the rest clean activations vary {along.mean():.2g} times as much as in a mean coordinate"
    parts = (_orthonormal(disconnected), _orthonormal(connected), share, *variation)
    outside, inside, shares, unseen, varies = (part.to(basis.dtype) for part in parts)
    return NullSpaceSplit(outside, inside, shares, unseen, varies, said)


def _unit(columns: Tensor) -> Tensor:
    """Return columns of length 1; NaN for those that are nothing."""
    lengths = columns.norm(dim=0)
    return columns / torch.where(lengths > 1e-6, lengths, torch.nan)


def _orthonormal(columns: Tensor) -> Tensor:
    """Return an orthonormal basis of what columns span."""
    left, values, _ = torch.linalg.svd(columns, full_matrices=False)
    return left[:, values > 1e-6]
