"""From a data set to a task: its distinct inputs as the model gets them, and labels as tokens or classes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..._errors import PositionError, SpecError
from ...causal import CausalModel, CounterfactualDataset
from ...causal.domain import as_column
from ...causal.encoded_inputs import Encoder, Labeller, encoded_vectors, label_numbers
from ...causal.rendering import RenderedText, Template, rendered
from ...engine import Inputs, token_axis
from ...models import uncompiled
from ...models.devices import input_device
from .._data import Given
from .._places import WhichPlaces, named_spots
from .._prompts import Prompts, encoded
from .._sweep import vocabulary
from .task import CounterfactualPairs, Indices, PlaceName, Task


@dataclass(frozen=True, eq=False)
class Writing:
    """How inputs and labels are written; the arguments are those of `CounterfactualDataset.batches`.

    Raises:
        SpecError: an input is written in two ways, or in none.
    """

    template: Template | None
    tokenizer: PreTrainedTokenizerBase | None
    encode: Encoder | None
    label: Labeller | None

    def __post_init__(self) -> None:
        if (self.template is None) == (self.encode is None):
            raise SpecError(
                "say how an input is written: template='{a}+{b}=' for a text, or encode= a function of an input that "
                "gives tokens or a vector; one of them"
            )


def make_task(
    model: nn.Module,
    causal_model: CausalModel,
    parts: Mapping[str, CounterfactualDataset],
    writing: Writing,
    positions: WhichPlaces | None,
) -> Task:
    """Encode the inputs of a data set, each once.

    Args:
        model: that will get them.
        causal_model: names the inputs.
        parts: of the data, by name.
        writing: how inputs and labels are written.
        positions: the places that are swapped; `None`: the last token or vector, or all of what is no sequence.

    Raises:
        SpecError: an input or a label cannot be encoded.
        PositionError: a prompt has no such place.
    """
    known: dict[tuple[Any, ...], int] = {}
    names, first = causal_model.inputs, next(iter(parts.values()))

    def numbers(columns: Mapping[str, Any]) -> Indices:
        rows = zip(*(np.asarray(columns[name]).tolist() for name in names), strict=True)
        return np.array([known.setdefault(tuple(row), len(known)) for row in rows], np.int64)

    found = {part: _numbered(data, numbers) for part, data in parts.items()}
    settings = tuple(dict(zip(names, row, strict=True)) for row in known)
    device, output = input_device(model), first.output
    tokenizer = writing.tokenizer if writing.template is not None else None

    def writer(labels: Any) -> Tensor:
        return label_numbers(as_column(labels), output, writing.label, causal_model.values[output], tokenizer).to(
            device
        )

    made = {
        part: CounterfactualPairs(
            base,
            sources,
            tuple(data.sets()),
            writer(data.labels),
            writer(data.base_labels),
            (data.entities("base"), {name: data.entities(name) for name in sources}),
        )
        for (part, data), (base, sources) in zip(parts.items(), found.values(), strict=True)
    }
    inputs, prompts, texts = _encoded(model, settings, writing)
    places = _places(prompts, inputs, positions)
    task = Task(model, causal_model, inputs, settings, prompts, texts, places, made, writer, output, first.entity)
    task.check_labels(vocabulary(model))
    return task


def _numbered(
    data: CounterfactualDataset, numbers: Callable[[Mapping[str, Any]], Indices]
) -> tuple[Indices, dict[str, Indices]]:
    base = numbers(data.base)
    return base, {name: np.where(data.where[name], numbers(of), base) for name, of in data.sources.items()}


def _encoded(
    model: nn.Module, settings: Sequence[Mapping[str, Any]], writing: Writing
) -> tuple[Inputs, Prompts | None, tuple[RenderedText, ...]]:
    """Return inputs as the model gets them, and as prompts where they are sequences of tokens."""
    if writing.template is not None:
        texts = tuple(rendered(writing.template, setting) for setting in settings)
        fields = [{name: str(value) for name, value in setting.items()} for setting in settings]
        told = Given([text.text for text in texts], None, {}, {"base": fields})
        prompts = encoded(told, "base", writing.tokenizer, model, "input")
        return prompts.inputs, prompts, texts
    assert writing.encode is not None
    vectors = encoded_vectors(settings, writing.encode)
    columns, _ = vectors.batch(range(len(settings)))
    device = input_device(model)
    floats = next((weight.dtype for weight in model.parameters() if weight.is_floating_point()), torch.float32)
    columns = {name: of.to(device, floats if of.is_floating_point() else of.dtype) for name, of in columns.items()}
    if "input_ids" in columns:
        prompts = encoded(Given(columns, None, {}, {}), "base", None, model, "input")
        return prompts.inputs, prompts, ()
    named = inspect.signature(uncompiled(model).forward).parameters
    open_ended = "inputs_embeds" in named and any(one.kind is one.VAR_KEYWORD for one in named.values())
    if "attention_mask" in columns and "attention_mask" not in {*named, *vectors.columns} and not open_ended:
        raise SpecError(
            f"encode gives sequences of {min(vectors.lengths)} to {max(vectors.lengths)} vectors, and this model takes "
            "no padding (it has no attention_mask): give all of one length"
        )
    if vectors.columns.keys() == {"inputs_embeds"} and "inputs_embeds" not in named:
        given = [writing.encode(dict(setting)) for setting in settings]
        rows = [torch.as_tensor(one["inputs_embeds"] if isinstance(one, Mapping) else one) for one in given]
        return torch.stack(rows).to(columns["inputs_embeds"]), None, ()  # the model's only argument, as it was made
    return columns, None, ()


def _places(prompts: Prompts | None, inputs: Inputs, positions: WhichPlaces | None) -> dict[PlaceName, Any]:
    """Return the tokens of each place by its name; those without a name are places of one token."""
    if prompts is None:
        axis = token_axis(inputs)
        if axis is not None and axis.shape[1] > 1:
            return dict(_each_step(int(axis.shape[1]), {"last": -1} if positions is None else positions))
        if positions is not None:
            raise SpecError("positions: these inputs are no sequences of tokens, so there are no places to name")
        return {None: "all"}
    return dict(_each_place(prompts, {"last": -1} if positions is None else positions))


def _each_place(prompts: Prompts, positions: WhichPlaces) -> Iterator[tuple[PlaceName, Any]]:
    for name, containers in named_spots(positions).items():
        if name is not None:
            yield name, containers
        elif isinstance(containers, str) and containers == "all":
            lengths = {len(ids) for ids in prompts.tokens("").ids}
            if len(lengths) > 1:
                raise SpecError("positions='all' needs prompts of one length: name places such as {'last': -1}")
            yield from ((str(token), token) for token in range(lengths.pop()))
        else:
            listed = containers if isinstance(containers, list | tuple) else [containers]
            yield from ((str(one), one) for one in listed)


def _each_step(length: int, positions: WhichPlaces) -> Iterator[tuple[PlaceName, tuple[int, ...]]]:
    """Yield the places of inputs that are so many vectors each."""
    for name, spots in named_spots(positions).items():
        listed = range(length) if isinstance(spots, str) else spots if isinstance(spots, list | tuple) else [spots]
        steps = [one for one in listed if isinstance(one, int)]
        if (isinstance(spots, str) and spots != "all") or len(steps) < len(listed):
            raise SpecError(f"positions of inputs that are vectors are numbers, or 'all'; found {spots!r}")
        if not all(-length <= one < length for one in steps):
            raise PositionError(f"an input has {length} vectors; positions names {spots!r}")
        if name is None:
            yield from ((str(one), (one % length,)) for one in steps)
        else:
            yield name, tuple(sorted({one % length for one in steps}))
