"""Which channels of which linear layer are which head's: read off gradients, head by head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from .trace import Attention, ModuleCall

_PRESENT = 1e-6
"""A channel reaches a head if its gradient is above this share of the largest."""
_OWN = 0.3
"""Norms over the whole width let every channel reach every head a little: a head counts if above this share."""
_COVERED = 0.4
"""Fewer of a head's coordinates than this, and the linear layer is not the head's projection."""


@dataclass(frozen=True, eq=False)
class HeadMap:
    """The channels of a linear layer that make the heads of a query, key or value.

    Args:
        call: the linear layer's call.
        channels: `(n_heads, head_dim)`.
        how: in words.
        feeds: for each row of `channels` the heads, as attention saw them, that it makes.
    """

    call: ModuleCall
    channels: Int64[Tensor, "n_heads head_dim"]
    how: str
    feeds: tuple[tuple[int, ...], ...]


def split_heads(seen: Tensor | None, attention: Attention, batch: int, length: int, *, key: bool) -> Tensor | None:
    """Return a query, key or value as `(batch, heads, length, head_dim)`; `None` if its layout is not known.

    Args:
        seen: the tensor as attention got it.
        attention: the attention.
        batch: examples.
        length: positions of this tensor's sequence.
        key: keys reach a plain matrix product transposed.
    """
    if seen is None:
        return None
    if seen.ndim == 3 and seen.shape[0] % batch == 0:
        seen = seen.reshape(batch, seen.shape[0] // batch, *seen.shape[1:])
    if seen.ndim != 4 or seen.shape[0] != batch:
        return None
    if attention.source == "softmax" and seen.shape[1] == seen.shape[2] == length:
        return None  # as many heads as positions: which axis is which cannot be told
    if key and attention.source == "softmax" and seen.shape[3] == length and seen.shape[2] != length:
        return seen.transpose(2, 3)
    if seen.shape[2] == length:
        return seen
    if seen.shape[1] == length:
        return seen.transpose(1, 2)
    return None


def gradients_by_head(
    split: Float[Tensor, "batch heads length head_dim"], linears: Sequence[ModuleCall]
) -> dict[ModuleCall, Float[Tensor, "channels heads"]]:
    """Return how strongly each channel of each linear layer reaches each head.

    Args:
        split: a query, key or value, with the graph back to the linear layers.
        linears: calls whose outputs were cut loose.
    """
    leaves = [call.cut for call in linears if call.cut is not None]
    if not split.requires_grad or not leaves:
        return {}
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(split[:, 0].shape, generator=generator).to(split)
    columns: list[list[Tensor]] = [[] for _ in leaves]
    for head in range(split.shape[1]):
        total = (split[:, head] * weights).sum()
        for column, leaf, gradient in zip(
            columns, leaves, torch.autograd.grad(total, leaves, retain_graph=True, allow_unused=True), strict=True
        ):
            channels = leaf.shape[-1]
            reach = torch.zeros(channels) if gradient is None else gradient.abs().reshape(-1, channels).sum(0).float()
            column.append(reach.cpu())
    reached = [torch.stack(column, 1) for column in columns]
    calls = [call for call in linears if call.cut is not None]
    return {call: reach for call, reach in zip(calls, reached, strict=True) if bool(reach.max() > 0)}


def map_heads(
    roles: dict[str, dict[ModuleCall, Tensor]], role: str, head_dim: int | None, whole_heads: bool
) -> HeadMap | str:
    """Return the channels that make the heads of one role, or the reason why that cannot be said.

    Args:
        roles: for `query`, `key` and `value` the result of `gradients_by_head`.
        role: one of them.
        head_dim: coordinates of a head as attention saw it; `None` if not known.
        whole_heads: attention saw each head once (not repeated for the query heads that share it).
    """
    best: tuple[int, HeadMap] | None = None
    reason = f"no linear layer leads directly to the {role}"
    for call, reach in roles.get(role, {}).items():
        others = [roles[other][call].amax(1) for other in roles if other != role and call in roles[other]]
        rival = torch.stack(others).amax(0) if others else torch.zeros(reach.shape[0])
        strongest = reach.amax(1)
        own = (strongest > _PRESENT * reach.max()) & (strongest > 3 * rival)
        if not bool(own.any()):
            reason = (
                f"no channel of {call.path} makes the {role} alone: it makes another of query, key and value as well"
            )
            continue
        groups = _groups(reach, own)
        if groups is None:
            reason = f"the channels of {call.path} do not fall into heads of the {role}"
            continue
        if len(groups) == 1 and reach.shape[1] > 1 and whole_heads:
            reason = f"{call.path} feeds every head of the {role} alike"
            continue
        own_size = len(next(iter(groups.values())))
        if head_dim is not None and own_size < _COVERED * head_dim:
            reason = f"only {own_size} of a head's {head_dim} coordinates of the {role} come from {call.path} alone"
            continue
        if best is None or int(own.sum()) >= best[0]:
            channels = torch.tensor([groups[heads] for heads in sorted(groups)])
            kind = "part of" if int(own.sum()) < reach.shape[0] else "all of"
            how = f"by gradient: {kind} {call.path}, {_order(channels)}"
            best = int(own.sum()), HeadMap(call, channels, how, tuple(sorted(groups)))
    return reason if best is None else best[1]


def _groups(reach: Tensor, own: Tensor) -> dict[tuple[int, ...], list[int]] | None:
    """Return the channels of each head, or of each group of heads that share them; `None` if they do not divide."""
    dominant = reach > _OWN * reach.amax(1, keepdim=True)
    sets: dict[tuple[int, ...], list[int]] = {}
    for channel in own.nonzero().flatten().tolist():
        sets.setdefault(tuple(dominant[channel].nonzero().flatten().tolist()), []).append(channel)
    heads = [head for key in sets for head in key]
    divides = len(heads) == len(set(heads)) == reach.shape[1]
    even = len({len(key) for key in sets}) == 1 and len({len(channels) for channels in sets.values()}) == 1
    return sets if divides and even else None


def heads_used(
    attention: Attention, seen: Tensor, batch: int, length: int, sizes: tuple[int, int], *, key: bool
) -> list[int] | None:
    """Return for each head of the queries which head of the keys or values attention multiplies it with.

    Args:
        attention: one whose function was seen whole: transformers' interface, or the fused kernel.
        seen: its keys or values.
        batch: examples.
        length: positions of the queries.
        sizes: number of query heads, and positions of the keys.
        key: whether these are keys.

    Returns:
        The heads by number; `None` where that does not come out clearly.
    """
    core, (heads, key_length) = attention.uncut, sizes
    if attention.source == "softmax" or core is None or not core.requires_grad or not seen.requires_grad:
        return None
    axis = 1 if attention.source == "sdpa" else 2
    if core.ndim != 4 or core.shape[axis] != heads or core.shape[0] != batch or core.shape[3 - axis] != length:
        return None
    used = []
    for head in range(heads):
        own = core.select(axis, head)
        weights = torch.randn(own.shape, generator=torch.Generator().manual_seed(0)).to(own)
        (gradient,) = torch.autograd.grad((own * weights).sum(), [seen], retain_graph=True, allow_unused=True)
        split = split_heads(gradient, attention, batch, key_length, key=key)
        if split is None:
            return None
        (felt,) = split.abs().sum((0, 2, 3)).nonzero(as_tuple=True)
        if len(felt) != 1:
            return None
        used.append(int(felt))
    return used


def _order(channels: Tensor) -> str:
    flat = channels.flatten()
    straight = bool((flat == torch.arange(flat.numel()) + flat[0]).all())
    return "heads side by side" if straight else "heads interleaved"
