"""What each expert reads and gives: those that a token was sent to are called one after the other, each by itself.

So every one of them has a reading of its own, with a gradient of its own, and what it gives is known apart from what
the others do. The sum is what the module gives, up to the order in which it is summed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import SiteError
from ..models.component_map import Block
from ..models.inside_experts import around_experts
from ._module_kinds import same_numbers
from ._units import wide


def expert_modules(blocks: Sequence[Block]) -> dict[int, nn.Module]:
    """Return by layer the modules that hold experts, as far as these go through transformers' interface."""
    slots = {layer: block.slots.get("expert_activation") for layer, block in enumerate(blocks)}
    return {layer: slot.module for layer, slot in slots.items() if slot is not None}


class ExpertCalls:
    """The calls of the experts of one pass, by layer.

    Args:
        modules: that hold experts, by layer; those of other layers are left alone.
    """

    def __init__(self, modules: Mapping[int, nn.Module]) -> None:
        self._layers = {id(module): layer for layer, module in modules.items()}
        self.chosen: dict[int, Tensor] = {}
        """By layer `(tokens, k)` the numbers of the experts that a token was sent to."""
        self.read: dict[int, list[Tensor]] = {}
        """By layer, for each of these, `(tokens, width)` what they read, in the graph."""
        self.given: dict[int, list[Tensor]] = {}
        """Likewise what they give, with the router's weight."""

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Call them one after the other in this scope while the context is open; nothing to do without experts."""
        if not self._layers:
            yield
            return
        with around_experts(self._call):
            yield

    def _call(
        self,
        function: Callable[..., Any],
        _eager: Callable[..., Any],
        module: nn.Module,
        inputs: tuple[Any, ...],
        options: dict[str, Any],
    ) -> Any:
        layer = self._layers.get(id(module))
        if layer is None:
            return function(module, *inputs, **options)
        if layer in self.chosen:
            raise SiteError(f"the experts of layer {layer} are called twice in one pass: they are not told apart")
        hidden, index, weights = _arguments(*inputs, **options)
        self.chosen[layer] = index.detach()
        self.read[layer] = self.readings(layer, hidden, index)
        self.given[layer] = [
            function(module, own, index[:, n : n + 1], weights[:, n : n + 1]) for n, own in enumerate(self.read[layer])
        ]
        return torch.stack(self.given[layer]).sum(0).to(hidden.dtype)

    def readings(self, _layer: int, hidden: Tensor, index: Tensor) -> list[Tensor]:
        """Return for each choice `(tokens, width)` what experts read: what the model gives them, each a view of it."""
        return [hidden.view_as(hidden) for _ in range(index.shape[-1])]

    def by_expert(self, layer: int, each: Sequence[Tensor | None], count: int) -> Tensor:
        """Return `(experts, tokens, width)` of what there is of each choice; 0 for a token that was not sent there.

        Args:
            layer: of the experts.
            each: for each choice `(tokens, width)`; `None` stands for zeros.
            count: how many experts there are.
        """
        index, own = self.chosen[layer], wide(self.read[layer][0])
        found, tokens = own.new_zeros(count, *own.shape), torch.arange(len(own), device=own.device)
        for choice, one in zip(index.unbind(1), each, strict=True):
            if one is not None:
                found[choice, tokens] += one
        return found

    def scale(self, layer: int, reading: Tensor, added: Tensor) -> float | None:
        """Return the number with which what each expert gives is multiplied on its way to the stream.

        Args:
            layer: of the experts.
            reading: what the module reads that holds them, in the graph of this pass.
            added: what it adds to the stream, likewise.

        Returns:
            `None` where it is no number (a norm or a projection stands between), or where they read something else.
        """
        if layer not in self.given or not same_numbers(self.read[layer][0], reading.reshape(-1, reading.shape[-1])):
            return None
        probe = torch.randn(added.shape, generator=torch.Generator().manual_seed(0)).to(added)
        given = self.given[layer][0]
        (found,) = torch.autograd.grad(added, [given], probe, retain_graph=True, allow_unused=True)
        if found is None or found.shape[-1] != probe.shape[-1]:
            return None
        flat, found = wide(probe.reshape(found.shape)), wide(found)
        number = float((found * flat).sum() / (flat * flat).sum())
        return number if number and same_numbers(found, number * flat) else None


def _arguments(hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what experts are called with, however it was handed in."""
    return hidden_states, top_k_index, top_k_weights
