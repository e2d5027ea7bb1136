"""Which inputs hold the same, told by what is in them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from ..engine import Inputs

_LOOKED_INTO = 2**16
"""Numbers of a tensor that is looked into; a larger one is only like itself."""


def same_inputs(inputs: Mapping[str, Inputs], names: Collection[str]) -> dict[str, str]:
    """Return for each input that holds the same as an earlier one the name of that one.

    Args:
        inputs: by name.
        names: of those that are compared.

    >>> ids = torch.tensor([[1, 2]])
    >>> same_inputs({"x": {"input_ids": ids}, "y": {"input_ids": ids.clone()}, "z": ids}, "xyz")
    {'y': 'x'}
    """
    if len(names) < 2:
        return {}
    first: dict[Any, str] = {}
    found = {}
    for name, given in inputs.items():
        if name in names:
            other = first.setdefault(_contents(given), name)
            if other != name:
                found[name] = other
    return found


def _contents(given: Inputs) -> Any:
    if isinstance(given, Tensor):
        return tensor_contents(given)
    values = (
        (name, tensor_contents(value) if isinstance(value, Tensor) else _plain(value)) for name, value in given.items()
    )
    return tuple(sorted(values, key=lambda pair: pair[0]))


def tensor_contents(tensor: Tensor) -> Any:
    """Return what two tensors have in common if and only if they hold the same; of a large one only itself has it."""
    if tensor.requires_grad or tensor.numel() > _LOOKED_INTO or tensor.device.type == "meta":
        return id(tensor)
    return tensor.shape, tensor.dtype, tensor.device, tensor_bytes(tensor)


def tensor_bytes(tensor: Tensor) -> bytes:
    """Return the numbers of a tensor, of any dtype, as bytes."""
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def _plain(value: Any) -> Any:
    return (type(value), value) if value is None or isinstance(value, bool | int | float | str) else id(value)
