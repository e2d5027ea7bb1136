"""Activations of a data set at one site: what directions, components and probes are fitted from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from .._bar import each
from .._checked import checked
from .._errors import PositionError, SpecError
from ..anchors import Offsets, Spots, TextTeller, TokenNumber, read_back, spots_of_each, tokens_at
from ..engine import Inputs, Planner, batch_size, real_spans
from ..interventions import PCARotatedSpaceIntervention
from ..models import chosen_layers, find_slot
from ..models.padding import check_counted, with_positions
from ..models.sequence import check_tokens
from ..planners import capture
from ..positions import Positions, Span
from ..sites import COMPONENTS, Site


@checked
@torch.no_grad()
def activations(
    model: nn.Module,
    data: Inputs | Iterable[Inputs],
    site: Site,
    positions: Spots = "last",
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    planner: Planner | None = None,
    progress: Callable[[int, int], None] | bool | None = None,
) -> Float[Tensor, "n width"]:
    """Return the activations of a data set at one site, one row an example (or a token).

    Every pass ends where the site is. The model is in eval mode meanwhile.

    Args:
        model: the user's; it is not changed.
        data: one input of the model, or batches of them.
        site: where in the network.
        positions: `"last"`: at the last real token of every example; `"all"`: at all real tokens; numbers, negative
            ones from the end of an example's real tokens, from 0 where no padding is in front of these; or anchors,
            `last_token("Spain")`. For all examples, or a list for each, counted over all batches.
        tokenizer: tells where anchors are, of the tokens in the data.
        planner: says which passes are run, as for `execute`.
        progress: called with the batches done and those in all, as far as that is known; `True` for a bar (rich).

    Returns:
        `(examples, width)`, or `(tokens, width)`; a model without a sequence gives `(examples, width)`.

    Raises:
        PositionError: an example, which is named, does not have a position.
        SpecError: there is no data, or the text of the tokens cannot be told.
        SiteError: the model has no such site.

    >>> mlp = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> activations(mlp, torch.ones(4, 2), Site("0.output")).shape
    torch.Size([4, 3])
    """
    batches = [data] if isinstance(data, Tensor | Mapping) else list(data)
    if not batches:
        raise SpecError("there is no data to take activations from")
    counts = [batch_size(batch, site.sequence) for batch in batches]
    spots = spots_of_each(positions, sum(counts))
    found, begin = [], 0
    for batch, count in zip(each(batches, "activations", progress), counts, strict=True):
        found.append(_activations(model, batch, site, (begin, spots[begin : begin + count]), tokenizer, planner))
        begin += count
    return torch.cat(found)


@checked
def attention_tensor(
    model: nn.Module,
    inputs: Inputs,
    layer: int,
    *,
    component: str = "attention_pattern",
    planner: Planner | None = None,
) -> Float[Tensor, "batch heads queries keys"]:
    """Return the attention patterns of one layer as a tensor; `attention_patterns` has them as a table, token by token.

    Args:
        model: the user's; in eval mode meanwhile, and not changed.
        inputs: its keyword arguments.
        layer: its number, from 0, negative from the last.
        component: another one that has a number for each query and key: `attention_score`, or with a stack's name in
            front.
        planner: as for `activations`.

    Returns:
        `(batch, heads, queries, keys)`; every row of a pattern sums to 1, also where the query is padding.

    Raises:
        SpecError: the component has no number for each key.
        SiteError: the model has no such site.

    >>> import transformers
    >>> sizes = dict(vocab_size=50, n_embd=16, n_head=2, n_layer=2, n_positions=8)
    >>> model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).eval()
    >>> attention_tensor(model, {"input_ids": torch.ones(3, 5, dtype=torch.long)}, 0).shape
    torch.Size([3, 2, 5, 5])
    """
    site = Site(component, 0)
    if site.definition is None or site.definition.by_token:
        known = [name for name, one in COMPONENTS.items() if not one.by_token]
        raise SpecError(f"{component!r} has no number for each query and key: choose one of {', '.join(known)}")
    if layer < 0:
        (layer,) = chosen_layers(model, component, layer)
    site = Site(component, layer)
    rows = capture(model, with_positions(model, inputs), site, Positions(), planner)
    return rows.unflatten(-1, (find_slot(model, site).n_heads, -1)).transpose(1, 2)


@checked
def fit_pca(
    model: nn.Module,
    data: Inputs | Iterable[Inputs],
    site: Site,
    k: int,
    *,
    positions: Spots = "last",
    tokenizer: PreTrainedTokenizerBase | None = None,
    standardise: bool = True,
    planner: Planner | None = None,
    progress: Callable[[int, int], None] | bool | None = None,
    **options: Any,
) -> PCARotatedSpaceIntervention:
    """Return an interchange of the first `k` principal components of a data set's activations at a site.

    Args:
        model: the user's; it is not changed.
        data: one input of the model, or batches of them.
        site: where in the network.
        k: how many components.
        positions: as for `activations`.
        tokenizer: as for `activations`.
        standardise: divide each coordinate by its standard deviation first.
        planner: as for `activations`.
        progress: likewise.
        **options: further arguments of the intervention.

    Raises:
        SpecError: there are too few activations for `k` components.

    >>> _ = torch.manual_seed(0)
    >>> mlp = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> fit_pca(mlp, torch.randn(8, 2), Site("0.output"), 2).rotation.shape
    torch.Size([3, 2])
    """
    rows = activations(model, data, site, positions, tokenizer=tokenizer, planner=planner, progress=progress)
    return PCARotatedSpaceIntervention.fit(rows, k, standardise=standardise, **options)


def _activations(
    model: nn.Module,
    inputs: Inputs,
    site: Site,
    spots: tuple[int, list[Any]],
    tokenizer: PreTrainedTokenizerBase | None,
    planner: Planner | None,
) -> Tensor:
    """Return the activations of one batch: a run that is only read ends at the site.

    Args:
        model: the user's.
        inputs: the batch.
        site: where in the network.
        spots: the number of its first example, and which spots are meant in each.
        tokenizer: as for `activations`.
        planner: likewise.
    """
    check_tokens(model, inputs, "the data")
    spans = real_spans(inputs, site.sequence)
    first, each = spots
    numbers = [one for row in each if row != "all" for one in row if isinstance(one, int)]
    check_counted(spans or [], [one for one in numbers if not isinstance(one, TokenNumber)])
    given, inputs = inputs, with_positions(model, inputs)
    if spans is None:
        values = capture(model, inputs, site, Positions(), planner)
        return values.flatten(0, -2)
    rows = []
    for number, (span, own) in enumerate(zip(spans, each, strict=True)):
        try:
            rows.append(_row(span, own, partial(_read, given, site, number, span, tokenizer)))
        except (PositionError, SpecError) as error:
            raise type(error)(f"example {first + number}: {error}") from error
    values = capture(model, inputs, site, Positions(tuple(rows)), planner)
    return torch.cat([value[: len(row)] for value, row in zip(values, rows, strict=True)])


def _row(span: Span, spots: Any, read: TextTeller) -> tuple[int, ...]:
    """Return the columns of one example."""
    start, end = span
    if spots == "all":
        return tuple(range(start, end))
    each = (tokens_at(spot, end - start, read) for spot in spots)
    return tuple(start + token for token in dict.fromkeys(token for several in each for token in several))


def _read(
    inputs: Inputs, site: Site, number: int, span: Span, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[str, Offsets]:
    """Return the text of one example, and where in it each of its tokens stands."""
    name = "decoder_input_ids" if site.sequence == "decoder" else "input_ids"
    ids = inputs.get(name) if isinstance(inputs, Mapping) else None
    if not isinstance(ids, Tensor):
        raise SpecError(
            f"where a text stands is told by the tokens, and there are no {name}: give positions as numbers"
        )
    return read_back(tokenizer, ids[number, slice(*span)].tolist())
