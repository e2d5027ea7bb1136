"""What a pass shows of a tensor that a module holds otherwise: without a batch axis, unscaled, as a sum of heads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from .slot import Slot, find_leaf, replace_leaf

Act = Callable[[Tensor, int, bool], Tensor | None]
"""Called with the tensor at a slot, the number of earlier calls of the module in this pass, and whether the tensor is a
new one, of an earlier act, that may be written into; returns the new tensor, or `None` to leave it alone."""


class WithBatchAxis:
    """Shows tokens without a batch axis `(tokens, channels)` as `(batch, length, channels)`.

    Args:
        act: what sees them so.
    """

    def __init__(self, act: Act) -> None:
        self._act = act
        self._shape: tuple[int, ...] = ()

    def note(self, _module: nn.Module, arguments: Any) -> None:
        """Note batch and length of a module's input `(batch, length, ...)`."""
        self._shape = find_leaf(arguments, None, "its input")[1].shape[:2]

    def act(self, tokens: Tensor, call: int, owned: bool) -> Tensor | None:
        """Act on them."""
        new = self._act(tokens.view(*self._shape, tokens.shape[-1]), call, owned)
        return None if new is None else new.reshape(tokens.shape)


def scaled(act: Act, scale: float) -> Act:
    """Return an act that sees a tensor times a number, and whose change is divided by it.

    Where nothing is changed, the tensor stays what it is, bit for bit.

    Args:
        act: what sees it so.
        scale: the number, not 0.

    >>> import torch
    >>> double = scaled(lambda tensor, call, owned: tensor + 1, 4.0)
    >>> double(torch.tensor([1.0]), 0, False)
    tensor([1.2500])
    """

    def on_scaled(tensor: Tensor, call: int, _owned: bool) -> Tensor | None:
        seen = tensor * scale
        new = act(seen, call, False)
        return None if new is None else tensor + (new - seen) / scale

    return on_scaled


def shares_of(slot: Slot, z: Tensor) -> Tensor:
    """Return the share of each head in what an output projection makes of some tokens, without a pass.

    Args:
        slot: of the shares; its module is called with the tokens alone.
        z: `(tokens, heads * head_dim)` what goes into it.

    Returns:
        `(tokens, heads * width)`.
    """
    seen: list[Tensor] = []

    def keep(shown: Any) -> Any:
        seen.append(shown[0][0])
        return shown

    head_shares(replace(slot, leaf=(0, 0)), keep)(slot.module, ((z.unsqueeze(0),), {}), None)
    return seen[0][0] * slot.scale


def head_shares(slot: Slot, visit: Callable[[Any], Any]) -> Callable[[nn.Module, Any, Any], Any]:
    """Return what shows the share of each head in an output projection's output, to be called after it.

    Any linear layer will do, adapters and packed weights included: it is called on each head alone.

    Args:
        slot: the projection; `leaf` is where its input is, `heads` has a row for each head.
        visit: given the shares `(batch, length, heads * width)` side by side in the place of the projection's input,
            returns what it was given, or a copy with new ones.
    """

    def show(module: nn.Module, arguments: Any, output: Any) -> Any:
        leaf, z = find_leaf(arguments, slot.leaf, slot)
        assert slot.heads is not None
        count, size = len(slot.heads), z.shape[-1] // len(slot.heads)
        alone = z.new_zeros(count + 1, *z.shape[:-1], count, size)  # the last is no head: the bias
        for head in range(count):
            alone[head, ..., head, :] = z[..., head * size : (head + 1) * size]
        args, kwargs = replace_leaf(arguments, leaf, alone.flatten(-2).flatten(0, 1))
        made = module.forward(*args, **kwargs).unflatten(0, (count + 1, -1))
        shares = (made[:-1] - made[-1:]).movedim(0, -2)
        flat = shares.flatten(-2)
        seen = replace_leaf(arguments, leaf, flat)  # where the input was
        new = visit(seen)
        return None if new is seen else output + (find_leaf(new, leaf, slot)[1] - flat).view(shares.shape).sum(-2)

    return show
