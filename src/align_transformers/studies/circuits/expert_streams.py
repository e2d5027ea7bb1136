"""Experts that are called one after the other, each with a residual stream of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...models import find_leaf, replace_leaf
from ...models.inside_experts import around_experts
from ...models.scope import before_call
from .._experts import arguments_of
from .wiring import Experts, StreamReader


class ExpertStreams:
    """What experts and routers read in one pass, and what each expert adds.

    Args:
        readers: the blocks whose experts are told apart; those of others are left alone.
    """

    def __init__(self, readers: Sequence[StreamReader]) -> None:
        self._readers = [(one, one.experts) for one in readers if one.experts is not None]
        self._by_module = {id(experts.module): experts for _, experts in self._readers}
        self._plain: dict[int, Tensor] = {}
        self._own: dict[int, Mapping[int, Tensor]] = {}
        self.shares: dict[int, Tensor] = {}
        """By layer what each expert adds, `(experts, tokens, width)`; 0 for a token that was not sent there."""

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

    @contextmanager
    def open(self) -> Iterator[None]:
        """Stand at routers and experts while the context is open."""
        if not self._readers:
            yield
            return
        with ExitStack() as stack:
            for reading, experts in self._readers:
                last = len(reading.receivers) - 1
                stack.enter_context(before_call(experts.router, partial(self._route, experts.layer, last)))
            stack.enter_context(around_experts(self._call))
            yield

    def _route(self, layer: int, number: int, module: nn.Module, arguments: Any) -> Any:
        """Give the router its own stream."""
        stream = self._own.get(layer, {}).get(number, self._plain.get(layer))
        if stream is None:
            return None
        leaf, tensor = find_leaf(arguments, None, module)
        return replace_leaf(arguments, leaf, stream.reshape(tensor.shape))

    def _call(
        self,
        function: Callable[..., Any],
        _eager: Callable[..., Any],
        module: nn.Module,
        inputs: tuple[Any, ...],
        options: dict[str, Any],
    ) -> Any:
        experts = self._by_module.get(id(module))
        if experts is None:
            return function(module, *inputs, **options)
        hidden, index, weights = arguments_of(*inputs, **options)
        plain, own = self._plain.get(experts.layer, hidden), self._own.get(experts.layer, {})
        some = any(number < experts.count for number in own)
        each = torch.stack([own.get(number, plain) for number in range(experts.count)]) if some else None
        tokens = torch.arange(len(hidden), device=hidden.device)
        shares = hidden.new_zeros(experts.count, *hidden.shape)
        for choice, weight in zip(index.unbind(1), weights.unbind(1), strict=True):
            read = plain if each is None else each[choice, tokens]
            made = function(module, read, choice[:, None], weight[:, None])
            shares = shares.index_put((choice, tokens), made.to(shares), accumulate=True)
        self.shares[experts.layer] = shares * experts.scale
        return shares.sum(0)
