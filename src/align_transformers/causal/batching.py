"""Batches of counterfactual pairs, as `fit` and `evaluate` take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from .._errors import SpecError
from .distinct import DistinctInputs
from .domain import Column
from .encoded_inputs import (
    EncodedInputs,
    Encoder,
    Labeller,
    SpotRule,
    check_names,
    encoded_texts,
    encoded_vectors,
    label_numbers,
)
from .rendering import Template
from .sampling import generator_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .examples import CounterfactualExamples


@dataclass(frozen=True, eq=False)
class PairCollator:
    """Makes a batch of the numbers of some pairs.

    Args:
        inputs: all inputs, each once.
        base: `(n,)` the number of each pair's base among them.
        sources: by intervention `(n,)` that of its source.
        labels: `(n,)` what the model should say.
        plain: `(m,)` what it should say of each input.
        places: by intervention for each input the numbers of its tokens; empty where no places are named.
        unit: what these count, `"pos"` or `"t"`.
        parts: for each pair the parts of the intervention's subspace; `None` where it has none.
    """

    inputs: EncodedInputs
    base: Column
    sources: Sequence[Column]
    labels: Tensor
    plain: Tensor
    places: Sequence[Sequence[tuple[int, ...]]]
    unit: str
    parts: Sequence[list[int]] | None

    def __call__(self, numbers: Sequence[int]) -> dict[str, Any]:
        """Return a batch; its columns are explained in `learning.batches`."""
        base = self.base[list(numbers)]
        columns, starts = self.inputs.batch(base.tolist())
        batch: dict[str, Any] = dict(columns)
        said = []
        for number, of in enumerate(self.sources):
            source = of[list(numbers)]
            columns, begins = self.inputs.batch(source.tolist())
            batch |= {f"source_{number}_{name}": column for name, column in columns.items()}
            said.append(self.plain[source])
            if self.places:
                sides = ((source, begins), (base, starts))
                for side, (inputs, first) in enumerate(sides):
                    rows = [
                        [place + start for place in self.places[number][one]]
                        for one, start in zip(inputs.tolist(), first, strict=True)
                    ]
                    even = len({len(row) for row in rows}) == 1
                    batch[f"source_{number}->base.{side}.{self.unit}"] = torch.tensor(rows) if even else rows
        batch |= {"labels": self.labels[list(numbers)], "base_labels": self.plain[base]}
        batch["source_labels"] = torch.stack(said, dim=1)
        if self.parts is not None:
            batch["subspaces"] = [self.parts[number] for number in numbers]
        return batch


def pair_batches(
    data: CounterfactualExamples,
    batch_size: int,
    *,
    template: Template | None,
    tokenizer: PreTrainedTokenizerBase | None,
    encode: Encoder | None,
    label: Labeller | None,
    positions: SpotRule | Mapping[str, SpotRule] | None,
    unit: str,
    interventions: Sequence[str] | None,
    subspaces: Mapping[str, int | Sequence[int]] | None,
    seed: int | None,
) -> DataLoader[Any]:
    """Return a loader of batches; the arguments are those of `CounterfactualDataset.batches`."""
    if batch_size < 1 or not len(data):
        raise SpecError(f"there are {len(data)} pairs, to be put into batches of {batch_size}")
    distinct = data.distinct_inputs()
    settings = distinct.settings()
    if encode is not None and template is None and tokenizer is None:
        encoded = encoded_vectors(settings, encode)
    elif encode is None and template is not None and tokenizer is not None:
        encoded = encoded_texts(settings, template, tokenizer)
    else:
        raise SpecError("inputs become tokens by template= and tokenizer=, or else vectors by encode=")
    listed = data.causal_model.values[data.output]
    outcomes = data.causal_model.run_many(distinct.inputs)[data.output]
    labels, plain = (label_numbers(of, data.output, label, listed, tokenizer) for of in (data.labels, outcomes))
    if subspaces is None:
        carried = list(data.variables if interventions is None else interventions)
        check_names(dict.fromkeys(carried), data.variables, "interventions")
        sources, parts = [distinct.sources[name] for name in carried], None
    elif interventions is None:
        check_names(subspaces, data.variables, "subspaces")
        carried, sources, parts = [data.variables[0]], [_one_source(data, distinct)], _parts(data, subspaces)
    else:
        raise SpecError("subspaces are of one intervention that carries all variables: leave out interventions")
    places = _places(encoded, positions, settings, carried, data.variables)
    for name, own, source in zip(carried, places, sources, strict=False):
        _check_widths(own, distinct.base, source, name, settings)
    collate = PairCollator(encoded, distinct.base, sources, labels, plain, places, unit, parts)
    generator = torch.Generator()
    if seed is not None:
        generator_of(seed)
        generator.manual_seed(seed)
    numbers: Any = range(len(data))
    return DataLoader(numbers, batch_size, shuffle=seed is not None, generator=generator, collate_fn=collate)


def _places(
    inputs: EncodedInputs,
    positions: SpotRule | Mapping[str, SpotRule] | None,
    settings: Sequence[Mapping[str, Any]],
    carried: Sequence[str],
    variables: Sequence[str],
) -> list[list[tuple[int, ...]]]:
    """Return by intervention for each input the numbers of its tokens; nothing where no places are named."""
    if positions is None:
        return []
    if not isinstance(positions, Mapping):
        return [inputs.places(positions, settings, "positions")] * len(carried)
    check_names(positions, variables, "positions")
    each = {name: inputs.places(positions[name], settings, f"positions[{name!r}]") for name in dict.fromkeys(carried)}
    return [each[name] for name in carried]


def _check_widths(
    places: Sequence[tuple[int, ...]],
    base: Column,
    source: Column,
    name: str,
    settings: Sequence[Mapping[str, Any]],
) -> None:
    """Refuse pairs whose places are of unequal numbers of tokens.

    Raises:
        SpecError: there is one.
    """
    widths = np.array([len(one) for one in places])
    uneven = np.flatnonzero(widths[base] != widths[source])
    if len(uneven):
        one, two = int(base[uneven[0]]), int(source[uneven[0]])
        raise SpecError(
            f"the places of {name!r} are {widths[one]} tokens in the base {dict(settings[one])} and {widths[two]} in "
            f"the source {dict(settings[two])}: name one token of each, such as last_token(...)"
        )


def _parts(data: CounterfactualExamples, subspaces: Mapping[str, int | Sequence[int]]) -> list[list[int]]:
    """Return for each pair the parts of the variables that are interchanged in it."""
    own = {name: [parts] if isinstance(parts, int) else list(parts) for name, parts in subspaces.items()}
    known = {one: sorted({part for name in one for part in own[name]}) for one in set(data.sets())}
    return [known[one] for one in data.sets()]


def _one_source(data: CounterfactualExamples, distinct: DistinctInputs) -> Column:
    """Return the number of each pair's source.

    Raises:
        SpecError: a pair has several.
    """
    found = distinct.base.copy()
    done = np.zeros(len(data), bool)
    for name in data.variables:
        mask, own = data.where[name], distinct.sources[name]
        if (done & mask & (found != own)).any():
            raise SpecError(
                "one intervention reads one source, and there are pairs whose variables have several: interchange each "
                "variable alone, or make an intervention for each (leave out subspaces)"
            )
        found[mask] = own[mask]
        done |= mask
    return found
