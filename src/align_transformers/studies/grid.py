"""Interchange at every layer and position: where does one swapped activation move the answer?"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from .._errors import SpecError
from .._version import library_version
from ..engine import Effect, bind, execute
from ..interventions import CollectIntervention, VanillaIntervention
from ..metrics import Metric, logit_difference
from ..models import resolve
from ..plan import Constant, Edit, Plan, Run
from ..positions import Positions
from ..sites import COMPONENT_NAMES, Site
from ..table import Table
from .pair import Encoded, Pair, Prompt, Which, encode, indices, pair_up, token_text

Answer = int | str
_TOKENS_A_PASS = 1024  # rows of a pass times their length: bounds the logits that a pass holds


@torch.no_grad()
def grid(
    model: nn.Module,
    base: Prompt,
    source: Prompt,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    components: Sequence[str] = ("block_output",),
    layers: Which = "all",
    positions: Which = "all",
    last: int | None = None,
    answers: tuple[Answer, Answer] | None = None,
    metric: Metric | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Table:
    """Swap the source's activation into the base, one layer and position at a time, and measure what comes of it.

    Both prompts run once; then the positions of a layer are the rows of one pass.

    Args:
        model: a causal language model whose components are known; it is not changed.
        base: the prompt whose run is edited: text, or token tensors of batch 1.
        source: the prompt whose activations are put in, likewise.
        tokenizer: needed where prompts or answers are texts; gives the tokens their texts.
        components: names from `COMPONENTS`.
        layers: numbers from 0, negative ones from the end, or `"all"`.
        positions: positions in the base, from 0 over its real tokens, negative ones from the end, or `"all"`.
        last: compare only the last so many tokens, aligned from the end; needed where lengths differ.
        answers: the base's answer and the source's, each one token (id or text). Default: what the model itself says.
        metric: what to measure at the base's last token. Default: logit of the source's answer minus the base's.
        progress: called after every pass with the cells done and the cells in all.

    Returns:
        A `Table`, one row a cell; its columns are explained in `align_transformers.table`.

    Raises:
        UnknownNameError: no such component.
        PositionError: unequal lengths without `last`, or a position or layer that does not exist.
        SpecError: both prompts have the same answer and neither `answers` nor `metric` is given, or another argument
            makes no sense.
        SiteError: the model's components are not known.

    Example:
        >>> import torch, transformers
        >>> _ = torch.manual_seed(0)
        >>> sizes = dict(vocab_size=50, n_embd=16, n_head=2, n_layer=2, n_positions=8)
        >>> model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).eval()
        >>> base, source = ({"input_ids": torch.tensor([ids])} for ids in ([1, 2, 3], [1, 7, 3]))
        >>> table = grid(model, base, source, answers=(4, 5))
        >>> len(table)
        6
        >>> [round(row["recovered"], 3) for row in table.rows() if row["layer"] == 1]  # the last layer: the last token
        [0.0, 0.0, 1.0]
    """
    sites = _sites(model, components, layers)
    device = next(model.parameters()).device
    pair = pair_up(encode(base, tokenizer, device), encode(source, tokenizer, device), positions, last)
    clean = _clean(model, pair, sites)
    named = _answers(clean, answers, metric, tokenizer)
    texts = tuple(a if isinstance(a, str) else token_text(a, tokenizer) for a in named)
    if metric is None:
        difference = logit_difference(named[1], named[0], tokenizer=tokenizer)
        metric = replace(difference, name=f"logit({texts[1]!r}) - logit({texts[0]!r})")
    values = metric(clean.base_logits).item(), metric(clean.source_logits).item()
    rows: list[dict[str, Any]] = []
    total = len(sites) * len(pair.places)
    for site in sites:
        for swapped in _swaps(model, pair, site, clean):
            rows += _rows(pair, site, clean, swapped, metric, values, tokenizer)
            if progress is not None:
                progress(len(rows), total)
    return Table.from_rows(rows, meta=_meta(model, pair, clean, texts, metric, values, tokenizer))


@dataclass(frozen=True, eq=False)
class _Clean:
    """The two unedited runs: logits `(1, vocab)` at the last token, and by site the values at the pair's places."""

    base_logits: Tensor
    source_logits: Tensor
    base_values: Mapping[Site, Tensor]  # (places, width)
    source_values: Mapping[Site, Tensor]


@dataclass(frozen=True, eq=False)
class _Swapped:
    """One pass: the places that were its rows (numbers into the pair's), its logits there, and its ledger."""

    numbers: range
    logits: Tensor
    effect: Effect


def _sites(model: nn.Module, components: Sequence[str], layers: Which) -> list[Site]:
    """Return the sites of the sweep, by component and layer."""
    if isinstance(components, str) or not components:
        raise SpecError(f"components is a list of names, such as ['block_output']; found {components!r}")
    for name in components:
        if Site(name, 0 if name in COMPONENT_NAMES else None).path is not None:
            raise SpecError(f"grid goes through the layers of a named component; {name!r} is the path of one module")
        resolve(model).slot(Site(name, 0))
    count = max(len(resolve(model).stacks[Site(name, 0).stack]) for name in components)
    chosen = indices(layers, count, "layer", f"{type(model).__name__} has {count} layers")
    return [Site(name, layer) for name in dict.fromkeys(components) for layer in chosen]


def _clean(model: nn.Module, pair: Pair, sites: Sequence[Site]) -> _Clean:
    """Run both prompts once and keep what the swaps need."""
    runs = []
    for name, encoded, side in (("base", pair.base, 0), ("source", pair.source, 1)):
        at = Positions((tuple(encoded.start + place[side] for place in pair.places),))
        runs.append(Run(name, name, tuple(Edit(f"{name} {site}", site, "collect", at) for site in sites)))
    inputs = {name: _inputs(model, encoded) for name, encoded in (("base", pair.base), ("source", pair.source))}
    plan = Plan(tuple(runs), outputs=("base", "source"))
    outcome = execute(bind(model, plan, inputs, {"collect": CollectIntervention()}))
    values = {run.name: {s: outcome.collected[f"{run.name} {s}"].values[0][0] for s in sites} for run in runs}
    base, source = _logits(outcome.outputs["base"], pair.base), _logits(outcome.outputs["source"], pair.source)
    return _Clean(base, source, values["base"], values["source"])


def _swaps(model: nn.Module, pair: Pair, site: Site, clean: _Clean) -> Iterator[_Swapped]:
    """Yield the passes of one layer: row i of a pass has the source's value at its own place."""
    size = max(1, _TOKENS_A_PASS // int(pair.base.inputs["input_ids"].shape[1]))
    for start in range(0, len(pair.places), size):
        numbers = range(start, min(start + size, len(pair.places)))
        at = Positions(tuple((pair.base.start + pair.places[number][0],) for number in numbers))
        plan = Plan((Run("base", "base", (Edit("swap", site, "swap", at, None, Constant("source")),)),), ("base",))
        value = clean.source_values[site][numbers.start : numbers.stop].unsqueeze(1)
        inputs = {"base": _inputs(model, pair.base, len(numbers))}
        outcome = execute(bind(model, plan, inputs, {"swap": VanillaIntervention()}, {"source": value}))
        yield _Swapped(numbers, _logits(outcome.outputs["base"], pair.base), outcome.effects[0])


def _rows(
    pair: Pair,
    site: Site,
    clean: _Clean,
    swapped: _Swapped,
    metric: Metric,
    values: tuple[float, float],
    tokenizer: PreTrainedTokenizerBase | None,
) -> Iterator[dict[str, Any]]:
    """Yield the table's rows of one pass."""
    base_value, source_value = values
    best = torch.softmax(swapped.logits, dim=-1).topk(min(5, swapped.logits.shape[-1]))
    change = (clean.source_values[site].float() - clean.base_values[site].float()).norm(dim=-1)
    for row, (number, value) in enumerate(zip(swapped.numbers, metric(swapped.logits).tolist(), strict=True)):
        position, source_position = pair.places[number]
        yield {
            "component": site.component,
            "layer": site.layer,
            "position": position,
            "source_position": source_position,
            "token": pair.base.tokens[position],
            "source_token": pair.source.tokens[source_position],
            "metric": value,
            "effect": value - base_value,
            "recovered": (value - base_value) / (source_value - base_value) if source_value != base_value else None,
            "change": change[number].item(),
            "fired": swapped.effect.fired,
            "top_tokens": [token_text(token, tokenizer) for token in best.indices[row].tolist()],
            "top_probabilities": best.values[row].tolist(),
        }


def _answers(
    clean: _Clean,
    answers: tuple[Answer, Answer] | None,
    metric: Metric | None,
    tokenizer: PreTrainedTokenizerBase | None,
) -> tuple[Answer, Answer]:
    """Return the base's answer and the source's: those given, or the most probable tokens."""
    if answers is not None:
        if len(answers) != 2:
            raise SpecError(f"answers are two tokens, the base's and the source's; found {answers!r}")
        return answers
    base, source = int(clean.base_logits.argmax()), int(clean.source_logits.argmax())
    if base == source and metric is None:
        raise SpecError(
            f"both prompts have the same answer, {token_text(base, tokenizer)!r}, so there is nothing to tell apart: "
            "choose prompts with different answers, or name two tokens with answers=(base's, source's)"
        )
    return base, source


def _inputs(model: nn.Module, prompt: Encoded, times: int = 1) -> dict[str, Any]:
    """Return the prompt as a batch of equal examples; only the last column's logits where the model can do that."""
    inputs = prompt.repeated(times)
    ends_real = prompt.last == inputs["input_ids"].shape[1] - 1
    if ends_real and "logits_to_keep" in inspect.signature(model.forward).parameters:
        inputs["logits_to_keep"] = 1
    return inputs


def _logits(output: Any, prompt: Encoded) -> Tensor:
    """Return the logits at the prompt's last token, float32 `(batch, vocab)`."""
    logits: Tensor = output if isinstance(output, Tensor) else output["logits"]
    return logits[:, -1 if logits.shape[1] == 1 else prompt.last].float()


def _meta(
    model: nn.Module,
    pair: Pair,
    clean: _Clean,
    answers: tuple[str, ...],
    metric: Metric,
    values: tuple[float, float],
    tokenizer: PreTrainedTokenizerBase | None,
) -> dict[str, Any]:
    """Return the facts about the whole table; `base_says` is the model's own answer, whatever answers were given."""
    meta: dict[str, Any] = {"model": str(getattr(model, "name_or_path", "") or type(model).__name__)}
    sides = (("base", pair.base, clean.base_logits), ("source", pair.source, clean.source_logits))
    for number, (name, prompt, logits) in enumerate(sides):
        meta[name] = prompt.text
        meta[f"{name}_tokens"] = list(prompt.tokens)
        meta[f"{name}_says"] = token_text(int(logits.argmax()), tokenizer)
        meta[f"{name}_answer"] = answers[number]
        meta[f"{name}_value"] = values[number]
    return {**meta, "metric": metric.name, "version": library_version()}
