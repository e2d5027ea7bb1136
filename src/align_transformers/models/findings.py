"""What is being found out about one block, while the parts of the resolver look at it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..sites import Side
from .slot import Slot
from .trace import ModuleCall, Trace


@dataclass(eq=False)
class Findings:
    """One block under examination.

    Args:
        trace: the forward pass that was watched.
        block: the block's call.
        batch, length: examples and positions that attention and MLP work on; a block may carry several streams of them.
        slots, how, missing, flags: as in `Block`.
        taken: linear layers that belong to attention or to another mixer, so not to the MLP.
        regions: modules that are attention or another mixer as a whole.
    """

    trace: Trace
    block: ModuleCall
    batch: int
    length: int
    slots: dict[str, Slot] = field(default_factory=dict)
    how: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    flags: dict[str, Any] = field(default_factory=dict)
    taken: set[ModuleCall] = field(default_factory=set)
    regions: list[ModuleCall] = field(default_factory=list)

    def note(
        self,
        name: str,
        call: ModuleCall,
        side: Side,
        how: str,
        *,
        channels: Tensor | None = None,
        heads: Tensor | None = None,
    ) -> None:
        """Note where a component is.

        Args:
            name: the component.
            call: the call of the module that holds it.
            side: its input or its output.
            how: how it was found, in words.
            channels: `(width,)` last-axis entries that are the component's; `None` for all.
            heads: `(n_heads, head_dim)` last-axis entries of each head.
        """
        tensor, leaf = (call.input, call.input_leaf) if side == "input" else (call.output, call.output_leaf)
        if tensor is None:
            self.refuse([name], f"{call.path}.{side} holds no tensor")
            return
        times = sum(other.path == call.path for other in self.trace.calls)
        width = int(tensor.shape[-1]) if channels is None else len(channels)
        number = call.number if times > 1 else None
        self.slots[name] = Slot(
            call.module,
            call.path,
            side,
            number,
            leaf,
            channels,
            heads,
            width,
            also=call.input_twins if side == "input" else (),
            around=self._around(tensor),
        )
        self.how[name] = how

    def note_via(self, name: str, call: ModuleCall, via: str, how: str, **facts: Any) -> None:
        """Note a component that only transformers' attention or experts interface shows.

        Args:
            name: the component.
            call: the call of the attention or experts module.
            via: what of the interface it is.
            how: how it was found, in words.
            **facts: further fields of `Slot`.
        """
        times = sum(other.path == call.path for other in self.trace.calls)
        number = call.number if times > 1 else None
        self.slots[name] = Slot(call.module, call.path, "output", number, (), via=via, **facts)
        self.how[name] = how

    def _around(self, tensor: Tensor) -> nn.Module | None:
        """Return the block for tensors `(tokens, width)` in which its batch axis is folded away."""
        whole = self.block.input
        folded = tensor.ndim == 2 and tensor.shape[0] == self.batch * self.length
        return self.block.module if folded and whole is not None and whole.ndim > 2 else None

    def refuse(self, names: Iterable[str], reason: str) -> None:
        """Note why components are not to be had."""
        self.missing.update(dict.fromkeys(names, reason))

    def value(self, name: str) -> Tensor | None:
        """Return the traced value of a component that was found."""
        slot = self.slots.get(name)
        if slot is None:
            return None
        number = slot.call or 0
        call = next(c for c in self.trace.calls if c.path == slot.path and c.number == number)
        return call.input if slot.side == "input" else call.output

    @property
    def width(self) -> int:
        """Size of the last axis of the block's input."""
        return 0 if self.block.input is None else int(self.block.input.shape[-1])

    def take(self, region: ModuleCall, linears: Iterable[ModuleCall]) -> None:
        """Note that a whole module is no part of the MLP."""
        self.regions.append(region)
        self.taken.update(call for call in linears if call.inside(region))

    def free(self, call: ModuleCall) -> bool:
        """Whether a call may belong to the MLP: not taken, and neither in nor around what is."""
        held = [*self.taken, *self.regions]
        return not any(call is other or call.inside(other) or other.inside(call) for other in held)

    def keeps_rows(self, call: ModuleCall) -> bool:
        """Whether a call maps one vector of the block's width a position to another."""
        count = self.batch * self.length * self.width
        return all(
            t is not None and t.numel() == count and t.shape[-1] == self.width for t in (call.input, call.output)
        )


def reached(tensor: Tensor | None, leaves: Sequence[Tensor]) -> list[bool]:
    """Return for each leaf whether `tensor` depends on it directly, with no linear layer between.

    Args:
        tensor: any tensor seen in the trace.
        leaves: outputs that were cut loose.
    """
    if tensor is None or not tensor.requires_grad or not leaves:
        return [False] * len(leaves)
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(tensor.shape, generator=generator).to(tensor)
    gradients = torch.autograd.grad((tensor * weights).sum(), list(leaves), retain_graph=True, allow_unused=True)
    return [gradient is not None and bool((gradient != 0).any()) for gradient in gradients]


def common_ancestor(calls: Sequence[ModuleCall], below: ModuleCall) -> ModuleCall | None:
    """Return the innermost call that holds all of `calls` and lies inside `below`; `None` if only `below` does.

    A single call is its own ancestor only if it is composite; a bare linear layer is not.
    """
    ancestor = calls[0].parent
    while ancestor is not None and ancestor is not below:
        if all(call.inside(ancestor) for call in calls):
            return ancestor
        ancestor = ancestor.parent
    return None


def same_values(left: Tensor | None, right: Tensor | None) -> bool:
    """Whether two tensors hold the same numbers in the same order, whatever their shapes."""
    if left is None or right is None or left.numel() != right.numel():
        return False
    return left is right or torch.equal(left.reshape(-1), right.reshape(-1))
