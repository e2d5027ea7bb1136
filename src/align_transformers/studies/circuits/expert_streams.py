"""Experts that are called one after the other, each with a residual stream of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...models import find_leaf, replace_leaf
from ...models.scope import before_call
from .._experts import ExpertCalls
from .wiring import Experts, StreamReader


class ExpertStreams(ExpertCalls):
    """What experts and routers read in one pass, and what each expert adds.

    Args:
        readers: the blocks whose experts are told apart; those of others are left alone.
    """

    def __init__(self, readers: Sequence[StreamReader]) -> None:
        self._readers = [(one, one.experts) for one in readers if one.experts is not None]
        super().__init__({experts.layer: experts.module for _, experts in self._readers})
        self._counts = {experts.layer: experts.count for _, experts in self._readers}
        self._plain: dict[int, Tensor] = {}
        self._own: dict[int, Mapping[int, Tensor]] = {}

    def note(self, experts: Experts, tensor: Tensor, _call: int, _owned: bool) -> None:
        """Note what all of them read whose stream is not their own."""
        self._plain[experts.layer] = tensor.flatten(0, 1)

    def take(self, reading: StreamReader, streams: Mapping[int, Tensor]) -> None:
        """Note what receivers of a block read.

        Args:
            reading: of the block.
            streams: by number of the receiver `(examples, tokens, width)`.
        """
        if reading.experts is not None:
            own = {number - reading.receivers.start: one.flatten(0, 1) for number, one in streams.items()}
            self._own[reading.experts.layer] = own

    def shares(self, experts: Experts) -> Tensor:
        """Return what each expert adds, `(experts, tokens, width)`; 0 for a token that was not sent there."""
        return self.by_expert(experts.layer, self.given[experts.layer], experts.count) * experts.scale

    def every_share(self) -> dict[int, Tensor]:
        """Return by layer what each expert adds."""
        return {experts.layer: self.shares(experts) for _, experts in self._readers}

    @contextmanager
    def open(self) -> Iterator[None]:
        """Stand at routers and experts while the context is open."""
        with ExitStack() as stack:
            for reading, experts in self._readers:
                last = len(reading.receivers) - 1
                stack.enter_context(before_call(experts.router, partial(self._route, experts.layer, last)))
            stack.enter_context(self.watched())
            yield

    def _route(self, layer: int, number: int, module: nn.Module, arguments: Any) -> Any:
        """Give the router its own stream."""
        stream = self._own.get(layer, {}).get(number, self._plain.get(layer))
        if stream is None:
            return None
        leaf, tensor = find_leaf(arguments, None, module)
        return replace_leaf(arguments, leaf, stream.reshape(tensor.shape))

    def readings(self, layer: int, hidden: Tensor, index: Tensor) -> list[Tensor]:
        """Return for each choice what experts read: their own streams, where they have such."""
        plain, own, count = self._plain.get(layer, hidden), self._own.get(layer, {}), self._counts[layer]
        if not any(number < count for number in own):
            return [plain] * index.shape[-1]
        each = torch.stack([own.get(number, plain) for number in range(count)])
        tokens = torch.arange(len(hidden), device=hidden.device)
        return [each[choice, tokens] for choice in index.unbind(1)]
