"""`Slot`: where a site's tensor is in one model. The meeting point of words and modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Int64
from torch import Tensor, nn

from .._errors import SiteError
from ..sites import Side

Leaf = tuple[int | str, ...]
"""Steps from a container to the tensor in it: indices of tuples and lists, keys of mappings."""


@dataclass(frozen=True, eq=False)
class Slot:
    """Where a site's tensor is in one model.

    Args:
        module: the module whose input or output holds the tensor.
        path: the module's dotted path, for messages.
        side: input or output.
        call: which call of the module in a forward pass; `None` for every call.
        leaf: where in the module's arguments `(args, kwargs)` or output the tensor is; `None`: the first
            floating-point tensor.
        channels: `(width,)` the last-axis entries that are this site's; `None` for all of them.
        heads: `(n_heads, head_dim)` the last-axis entries of each head; `None` where there are no heads.
        width: number of coordinates; `None` where the module does not tell.
        grouping: how heads are shared, for messages; empty when they are not.
        via: `module`, or what the tensor is inside `module`: of transformers' attention or experts interface, or a
            share of the module's output.
        n_heads: number of heads where their size depends on the input (attention patterns); else 0.
        also: further places in the arguments that hold the very same tensor, and are written with it.
        around: where the tensor is `(tokens, channels)`, the module whose input tells batch and length.
        fused: the recurrent module that runs by its cells for `module`, one of them, to be called.
        scale: a number of the model's with which the tensor is multiplied where no module does it: this site's values
            are the tensor times that.
    """

    module: nn.Module
    path: str
    side: Side
    call: int | None = None
    leaf: Leaf | None = None
    channels: Int64[Tensor, " width"] | None = None
    heads: Int64[Tensor, "n_heads head_dim"] | None = None
    width: int | None = None
    grouping: str = ""
    via: str = "module"
    n_heads: int = 0
    also: tuple[Leaf, ...] = ()
    around: nn.Module | None = None
    fused: nn.Module | None = None
    scale: float = 1.0

    def __str__(self) -> str:
        return f"{self.path}.{self.side}"


def twins(container: Any, leaf: Leaf, tensor: Tensor) -> tuple[Leaf, ...]:
    """Return the other places of a container that hold the very same tensor.

    >>> import torch
    >>> x = torch.ones(1)
    >>> twins(((x, x), {"key": x}), (0, 0), x)
    ((0, 1), (1, 'key'))
    """
    return tuple(other for other, value in _tensor_leaves(container) if value is tensor and other != leaf)


def _tensor_leaves(value: Any, at: Leaf = ()) -> Iterator[tuple[Leaf, Tensor]]:
    """Yield the floating-point tensors of a nested container, in order."""
    if isinstance(value, Tensor):
        if value.is_floating_point() or value.is_complex():
            yield at, value
    elif isinstance(value, tuple | list):
        for index, item in enumerate(value):
            yield from _tensor_leaves(item, (*at, index))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensor_leaves(item, (*at, key))


def find_leaf(container: Any, leaf: Leaf | None, where: object) -> tuple[Leaf, Tensor]:
    """Return the tensor that `leaf` points at, and the way to it.

    Args:
        container: a module's output, or its `(args, kwargs)`.
        leaf: the way, or `None` for the first floating-point tensor.
        where: name of the place, for the message.

    Raises:
        SiteError: there is no tensor.
    """
    if leaf is None:
        if isinstance(container, Tensor) and container.is_floating_point():  # what most modules return
            return (), container
        found = next(_tensor_leaves(container), None)
        if found is None:
            raise SiteError(f"{where} holds no floating-point tensor; found {type(container).__name__}")
        return found
    value = container
    for step in leaf:
        value = value[step]
    return leaf, value


def replace_leaf(container: Any, leaf: Leaf, tensor: Tensor) -> Any:
    """Return a copy of the container with one tensor replaced; the container itself is left alone.

    >>> import torch
    >>> replace_leaf((1, {"a": 2}), (1, "a"), torch.tensor(5))
    (1, {'a': tensor(5)})
    """
    if not leaf:
        return tensor
    step, rest = leaf[0], leaf[1:]
    new = replace_leaf(container[step], rest, tensor)
    if isinstance(container, Mapping):
        items = {key: new if key == step else value for key, value in container.items()}
        return items if type(container) is dict else type(container)(**items)
    items_list = [new if index == step else value for index, value in enumerate(container)]
    if isinstance(container, tuple) and hasattr(container, "_fields"):
        return type(container)(*items_list)
    return type(container)(items_list)
