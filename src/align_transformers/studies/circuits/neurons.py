"""Circuits of neurons: coordinates of MLPs' activations and of heads' values, each there or absent for all readers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from ..._errors import SpecError
from ...engine.hooks import Tap
from ...models import find_slot, resolve
from ...models.sequence import examples_of
from ...sites import Site
from .._estimates import How, towards
from .._scoring import metric_values
from .._taped import Tape, embeddings_of, record, tapped_pass
from .circuit_runner import CircuitRunner, PairChunk, check_alike
from .exact import RecordedRun, Shares


@dataclass(frozen=True, eq=False)
class NeuronLayer:
    """Neurons of one layer.

    Args:
        site: where they are.
        columns: of its tensor that are neurons.
        heads: `(neurons,)` the head of each; `None`: they are an MLP's.
        first: the number of the first of them.
    """

    site: Site
    columns: Tensor
    heads: Tensor | None
    first: int

    @property
    def own(self) -> slice:
        """Their numbers."""
        return slice(self.first, self.first + len(self.columns))


@dataclass(eq=False)
class NeuronRunner(CircuitRunner):
    """Runs circuits of neurons; what it takes and gives is as of `CircuitRunner`, with neurons in the place of edges.

    Attributes:
        layers: the neurons, in the order in which they are worked out.
    """

    units = "neurons"

    def __post_init__(self) -> None:
        check_alike(self.pairs)
        self.layers: list[NeuronLayer] = []
        self.missing: dict[str, str] = {}
        first = 0
        for number, block in enumerate(resolve(self.model).stacks[""]):
            for name in ("attention_value_output", "mlp_activation"):
                if name not in block.slots:
                    self.missing[f"{name} of layer {number}"] = block.missing.get(name, "there is none")
                    continue
                layer = self._layer(Site(name, number), first)
                self.layers.append(layer)
                first += len(layer.columns)
        if not self.layers:
            raise SpecError(f"no neurons of this model are known: {'; '.join(map(': '.join, self.missing.items()))}")
        self._start()

    def _layer(self, site: Site, first: int) -> NeuronLayer:
        slot = find_slot(self.model, site)
        if slot.heads is not None and site.component == "attention_value_output":
            count, size = slot.heads.shape
            return NeuronLayer(site, slot.heads.flatten(), torch.arange(count).repeat_interleave(size), first)
        if slot.channels is None and slot.width is None:
            raise SpecError(f"{site} does not tell how many neurons it has")
        return NeuronLayer(site, torch.arange(slot.width or 0) if slot.channels is None else slot.channels, None, first)

    @cached_property
    def ends(self) -> tuple[Tensor, Tensor]:
        """The metric of each pair with all neurons and with none; the embeddings are the base's in both."""
        full = torch.cat([self._value(chunk, chunk.clean, 1) for chunk in self._chunks()])
        return full, self.measure(torch.zeros(1, self.count, dtype=torch.bool))[0]

    @property
    def count(self) -> int:
        """How many neurons there are."""
        return self.layers[-1].own.stop

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield of each neuron where it is: component, layer, head and number; `head` is `None` in MLPs."""
        for layer in self.layers:
            size = len(layer.columns)
            heads = [None] * size if layer.heads is None else layer.heads.tolist()
            each = size if layer.heads is None else size // (1 + int(layer.heads[-1]))
            for number, head in enumerate(heads):
                yield {
                    "component": layer.site.component, "layer": layer.site.layer, "head": head, "neuron": number % each
                }  # fmt: skip

    def absent(self, kept: Tensor) -> Tensor:
        """Return how much of each neuron is absent, `(..., neurons)`, of how much there is."""
        return 1.0 - kept.float()

    def _listed(self, matrix: Tensor) -> Tensor:
        return matrix

    def _recorded(self, inputs: Any) -> RecordedRun:
        return RecordedRun(record(self.model, inputs, [layer.site for layer in self.layers], graph=False), {})

    def _written(self, run: RecordedRun) -> Mapping[int, Tensor]:
        return {layer.first: run.values[layer.site][..., layer.columns][None] for layer in self.layers}

    def _others(self, chunk: PairChunk) -> Shares:
        """Return what stands for neurons, `(1, examples, tokens, neurons)`, by number of a layer's first one."""
        run, shares = chunk.replacement.run, chunk.replacement.shares
        if run is not None:
            return self._written(run)
        assert shares is not None
        return shares

    def _logits(self, chunk: PairChunk, inputs: Any, absent: Tensor, *, graph: bool = False) -> Tensor:
        others = self._others(chunk)
        taps = [
            Tap(find_slot(self.model, layer.site), partial(_put, layer, absent[:, layer.own], others[layer.first][0]))
            for layer in self.layers
            if graph or bool(absent[:, layer.own].any())
        ]
        output = tapped_pass(self.model, inputs, taps, graph=graph)
        return Tape(self.model, inputs, output, {}, {}).logits(chunk.columns * len(absent))

    def scores(self, how: How) -> Tensor:
        """Return what the metric's mean over pairs changes without each neuron, by gradient, `(neurons,)`.

        Args:
            how: `atp` takes the gradient at the base, `ig` its mean between the embeddings of base and source.
        """
        sites, ends = [layer.site for layer in self.layers], embeddings_of(self.model) if how.method == "ig" else []
        total = torch.zeros(self.count, dtype=torch.float64)
        for number in range(self.chunks):
            chunk, ends_of = self._chunk(number), self._ends(number, ends)
            others, moved = self._others(chunk), {}
            for share, weight in how.weights() if how.method == "ig" else [(0.0, 1.0)]:
                changes = {end: towards(other, share) for end, other in ends_of.items()}
                tape = record(self.model, chunk.inputs, sites, graph=True, changes=changes)
                self.passes["full"] += 1
                self.passes["backward"] += 1
                with torch.enable_grad():
                    values = metric_values(chunk.metrics, tape.logits(chunk.columns).float(), chunk.clean)
                if not values.requires_grad:
                    raise SpecError("the metric has no gradient, so neurons cannot be scored by it")
                gradients = tape.gradients(values.sum(), sites)
                for layer in self.layers:
                    if share == 0:
                        moved[layer.first] = others[layer.first][0] - tape.values[layer.site][..., layer.columns]
                    products = moved[layer.first] * gradients[layer.site][..., layer.columns]
                    total[layer.own] += weight * products.sum((0, 1)).double().cpu()
        return total / len(self.pairs)

    def _ends(self, number: int, ends: list[Site]) -> Mapping[Site, Tensor]:
        """Return what stands at the embeddings in the sources of some pairs."""
        if not ends:
            return {}
        self.passes["full"] += 1
        inputs = examples_of(self.pairs.source.inputs, self.of_chunk(number))
        return record(self.model, inputs, ends, graph=False).values


def _put(layer: NeuronLayer, absent: Tensor, other: Tensor, tensor: Tensor, _call: int, _owned: bool) -> Tensor:
    """Put other values in the place of absent neurons.

    Args:
        layer: of the neurons.
        absent: `(copies, neurons)` how much of each.
        other: `(examples, tokens, neurons)`, one copy's, or what can be spread to that.
        tensor: what stands there.
    """
    new, own = tensor.clone(), tensor[..., layer.columns].unflatten(0, (len(absent), -1))
    share, there = absent[:, None, None].to(own), other.to(own)
    mixed = own + share * (there - own)
    if not absent.requires_grad:
        mixed = torch.where(share == 1, there, mixed)  # to the last bit
    new[..., layer.columns] = mixed.flatten(0, 1)
    return new
