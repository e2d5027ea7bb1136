"""Attention patterns: from which tokens each head takes what it gives.

Vaswani et al. 2017, arXiv:1706.03762; Clark et al. 2019, arXiv:1906.04341.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from .._checked import checked
from .._errors import SpecError
from ..engine import Planner, bind
from ..models import evaluating, find_slot
from ..plan import Plan, Read, Run
from ..planners import execute
from ..positions import Positions
from ..sites import Site
from ..table import Table
from ..table.values import plain_meta
from ._data import Prompt
from ._layers import sites_of
from ._made_with import made_with
from ._places import WhichPlaces, tokens_of_each
from ._prompts import Tokens, Which, encode, indices

_PATTERNS = ("attention_pattern", "cross_attention_pattern")


@checked
@torch.no_grad()
def attention_patterns(
    model: nn.Module,
    prompts: Prompt,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    columns: Mapping[str, str] | None = None,
    component: str = "attention_pattern",
    layers: Which = "all",
    heads: Which = "all",
    positions: WhichPlaces = "all",
    planner: Planner | None = None,
) -> Table:
    """Read what share each head's query takes from each key: A = softmax(Q Kᵀ / sqrt(d) + mask), in one forward pass.

    Padding is in no row: neither as a query nor as a key. Where key/value heads are shared there is a pattern for every
    query head. Models that run fused attention are shown what the same queries and keys give without it.

    Args:
        model: any transformer whose attention goes through transformers' interface, in whatever mode; not changed.
        prompts: one text or several, token tensors, or data with columns, as for `grid`; an encoder-decoder gets texts
            in the encoder.
        tokenizer: needed where prompts are texts.
        columns: what the column `base` (the prompts) is called in the data, where it is called otherwise. Further ones
            are the fields of anchors.
        component: `attention_pattern`; of an encoder-decoder with the stack in front (`encoder.attention_pattern`), or
            `decoder.cross_attention_pattern`, whose keys are the encoder's tokens.
        layers: numbers from 0, negative ones from the end, or `"all"` that have such attention.
        heads: query heads, likewise.
        positions: of the queries: numbers from 0 over the real tokens, negative ones from the end, `"last"`, anchors,
            or `"all"`; for all prompts, or a list for each.
        planner: as for `execute`.

    Returns:
        A `Table`, one row a layer, head, prompt, query and key (positions over the prompt's real tokens, from 0):
        `attention`, from 0 to 1. `meta["tokens"]` has for each prompt the texts of the queries' tokens,
        `meta["key_tokens"]` those of the keys'. `table.pivot("attention", index="query", columns="key", where={"layer":
        0, "head": 0, "prompt": 0})` is one head's picture. Sums over keys are 1; with a learned sink, which takes the
        rest, less (`meta["sinks"]`: layers that have one).

    Raises:
        SiteError: the model has no such component, or attends under a mask of which no pattern can be seen.
        SpecError: it attends to more than the tokens of the prompt, or an argument makes no sense.
        PositionError: a layer, head or position does not exist.

    Example:
        >>> import transformers
        >>> _ = torch.manual_seed(0)
        >>> sizes = dict(vocab_size=50, n_embd=16, n_head=2, n_layer=2, n_positions=8)
        >>> model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).eval()
        >>> table = attention_patterns(model, {"input_ids": torch.tensor([[1, 2, 3]])}, layers=[0])
        >>> len(table), table.columns["attention"][:3]  # 2 heads x 3 queries x 3 keys; the first sees itself alone
        (18, (1.0, 0.0, 0.0))
    """
    site = Site(component, 0)
    if site.name not in _PATTERNS:
        raise SpecError(f"{component!r} is no attention pattern: choose one of {', '.join(_PATTERNS)}")
    encoded = encode(prompts, tokenizer, model, columns)
    crosses = site.name == _PATTERNS[1]
    queries, keys = encoded.tokens(site.stack), encoded.tokens("encoder" if crosses else site.stack)
    asked = _Queries(
        queries,
        keys,
        tokens_of_each(encoded, site.stack, positions),
    )
    sites = sites_of(model, component, layers)
    slots = {one: find_slot(model, one) for one in sites}
    chosen = {
        one: indices(heads, slot.n_heads, "head", f"{one} has {slot.n_heads} heads") for one, slot in slots.items()
    }
    rows = asked.columns()
    reads = {one: Read("prompts", one, Positions(rows, (tuple(chosen[one]),) * len(rows))) for one in sites}
    plan = Plan((Run("prompts", "prompts"),), (), None, tuple(reads.values()))
    with evaluating(model):
        outcome = execute(bind(model, plan, {"prompts": encoded.inputs}, {}), planner)
    sinks = [one.layer for one in sites if getattr(slots[one].module, "sinks", None) is not None]
    told: dict[str, list[Any]] = {name: [] for name in ("layer", "head", "prompt", "query", "key", "attention")}
    for one in sites:
        asked.tell(told, one, outcome.values[reads[one]], chosen[one], sinks=one.layer in sinks)
    return Table(  # columns as they are: there may be millions of rows
        MappingProxyType({name: tuple(values) for name, values in told.items()}),
        plain_meta(
            {
                "study": "attention_patterns",
                "component": component,
                "prompts": list(encoded.texts),
                "tokens": [list(row) for row in queries.texts],
                "key_tokens": [list(row) for row in keys.texts],
                "sinks": sinks,
                "passes": dict(Counter(passed.way for passed in outcome.passes)),
                **made_with(model),
            }
        ),
    )


@dataclass(frozen=True)
class _Queries:
    """Which queries of which prompts are told.

    Args:
        queries: the tokens that attend.
        keys: those that are attended to.
        positions: of each prompt the queries, from 0 over its real tokens.
    """

    queries: Tokens
    keys: Tokens
    positions: tuple[tuple[int, ...], ...]

    def columns(self) -> tuple[tuple[int, ...], ...]:
        """Return the columns of the queries in the padded batch."""
        return tuple(
            tuple(start + place for place in row)
            for start, row in zip(self.queries.starts, self.positions, strict=True)
        )

    def tell(
        self, columns: Mapping[str, list[Any]], site: Site, values: Tensor, heads: Sequence[int], *, sinks: bool
    ) -> None:
        """Add the rows of a layer to a table's columns.

        Args:
            columns: the table's, by name.
            site: the layer.
            values: `(prompts, queries, heads * keys)`.
            heads: their numbers.
            sinks: a part of the shares goes to no key.

        Raises:
            SpecError: the keys are others than the prompts' tokens, or a real query attends to padding.
        """
        patterns = values.unflatten(-1, (len(heads), -1)).float().cpu()
        if patterns.shape[-1] != self.keys.length:
            raise SpecError(
                f"{site} attends to {patterns.shape[-1]} keys, but the prompts have {self.keys.length} columns: "
                "something stands in front of them, such as a learned prefix"
            )
        close = 1e-3 if values.dtype in (torch.float32, torch.float64) else 3e-2
        for number, head in enumerate(heads):
            for prompt, queries in enumerate(self.positions):
                start, count = self.keys.starts[prompt], len(self.keys.ids[prompt])
                shares = patterns[prompt, : len(queries), number, start : start + count]
                totals = shares.sum(-1)
                off = totals - 1 if sinks else (totals - 1).abs()
                if not bool((off <= close).all()):
                    raise SpecError(
                        f"{site}, head {head}, prompt {prompt}: the shares of a query sum up to "
                        f"{float(totals[off.argmax()]):.4g} over the prompt's own tokens, not to 1: it attends to "
                        "padding, or to something that is no key"
                    )
                columns["layer"].extend([site.layer] * shares.numel())
                columns["head"].extend([head] * shares.numel())
                columns["prompt"].extend([prompt] * shares.numel())
                columns["query"].extend(query for query in queries for _ in range(count))
                columns["key"].extend(list(range(count)) * len(queries))
                columns["attention"].extend(shares.flatten().tolist())
