"""Interchange at every layer and position, head or neuron: where does one swapped activation move the answer?"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from .._bar import bar
from .._errors import SpecError
from .._version import library_version
from ..metrics import Metric
from ..table import Table
from .cells import Asked, Direction, Swaps
from .pair import Pairs, Prompt, Which, encode, pair_up, token_text
from .scoring import Answer, Answers, Scoring, answers_for, check_told_apart, metrics_for, said
from .store import Store, fingerprint
from .sweep import Part, Task, carry_out, parts_of, vocabulary


@torch.no_grad()
def grid(
    model: nn.Module,
    base: Prompt,
    source: Prompt,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    components: Sequence[str] = ("block_output",),
    layers: Which = "all",
    positions: Which | None = "all",
    heads: Which | None = None,
    neurons: int | None = None,
    metric: Metric | Sequence[Metric] | None = None,
    answers: tuple[Answer, Answer] | Sequence[tuple[Answer, Answer]] | None = None,
    directions: Sequence[Direction] = ("denoise",),
    last: int | None = None,
    at: int | Sequence[int] = -1,
    top: int = 0,
    store: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | bool | None = None,
) -> Table:
    """Swap activations between two runs, one place at a time, and measure what comes of it.

    The whole sweep is one plan: both prompts run once, and every swap computes only the layers and positions that it
    can change, many swaps in one pass, as far as the model allows it.

    Args:
        model: gives logits for `input_ids`: a causal or masked language model, or an encoder-decoder; not changed.
        base: the prompt, or several: a text, texts, or token tensors. Texts of unequal length are padded and masked. An
            encoder-decoder's text is its encoder's; its decoder gets the token that begins an answer, or the
            `decoder_input_ids` that are given.
        source: the prompt that answers to each base, likewise.
        tokenizer: needed where prompts or answers are texts; gives the tokens their texts.
        components: names from `COMPONENTS`, or modules' dotted paths ending in `.input` or `.output`.
        layers: numbers from 0, negative ones from the end, or `"all"` that have the component.
        positions: positions in the base, from 0 over its real tokens, negative ones from the end, or `"all"`: a swap at
            each; in an encoder-decoder those of the component's own sequence. `None`: all positions are swapped at
            once. Of several pairs, those have no row whose base has no such position.
        heads: numbers or `"all"`: a swap of each head by itself (with `positions=[-1]` at the last token, with `None`
            at all tokens at once). `None`: the whole vector is swapped.
        neurons: how many neighbouring coordinates are swapped at a time. `None`: all of them.
        metric: what to measure, for all pairs or one for each. Default: logit of the source's answer minus the base's.
        answers: the base's answer and the source's, each one token (id or text), for all pairs or for each. Default:
            what the model itself says.
        directions: `denoise`: the source's activation into the base's run; `noise`: the base's into the source's run.
        last: compare only the last so many tokens, aligned from the end; needed where lengths in a pair differ.
        at: where the metric is read, for all prompts or for each, as `positions`.
        top: tell so many of the most probable tokens after each swap; this takes the logits of all tokens.
        store: a folder that parts are written to, each in one step. The same call goes on where a killed one was.
        progress: called after every pass with the cells done and the cells in all; `True` for a bar (rich).

    Returns:
        A `Table`, one row a cell; its columns are explained in `align_transformers.table`. `meta["passes"]` counts the
        forward passes of each kind.

    Raises:
        UnknownNameError: no such component.
        PositionError: unequal lengths without `last`, or a position, layer or head that does not exist.
        SpecError: both prompts have the same answer and neither `answers` nor `metric` is given, the store holds
            another sweep, or another argument makes no sense.
        SiteError: the model's components are not known, or have no heads.

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
        >>> by_head = grid(model, base, source, answers=(4, 5), components=["head_output"], heads="all", positions=[-1])
        >>> by_head.pivot(columns="head").shape
        (2, 2)
    """
    asked = Asked(components, layers, heads, neurons, positions is None, directions)
    asked.check()
    if top < 0:
        raise SpecError(f"top={top} is how many of the most probable tokens are told, from 0")
    pairs = pair_up(encode(base, tokenizer, model), encode(source, tokenizer, model), positions, last)
    swaps, sides = asked.swaps(model, pairs), {"base": pairs.base.tokens(""), "source": pairs.source.tokens("")}
    columns, ends = ({side: of.columns(place) for side, of in sides.items()} for place in (at, -1))
    task = Task(model, pairs, None, {} if columns == ends else columns, asked.interventions(swaps))
    named = answers_for(answers, len(pairs))
    sweep = _Sweep(task, swaps, metrics_for(metric, named, len(pairs), tokenizer), named, top, tokenizer, asked)
    study = {"columns": columns, "metric": metric, "answers": answers, "top": top}
    kept = None if store is None else Store(store, _facts(model, pairs, swaps, study))
    if progress is True:
        with bar("grid") as advance:
            return sweep.table(kept, lambda done, total: advance(done, total, ""))
    return sweep.table(kept, progress or None)


@dataclass(frozen=True, eq=False)
class _Sweep:
    """A sweep that only has to be run; `metrics` is `None` where the model's answers have to be known first."""

    task: Task
    swaps: Sequence[Swaps]
    metrics: Sequence[Metric] | None
    answers: Sequence[Answers] | None
    top: int
    tokenizer: PreTrainedTokenizerBase | None
    asked: Asked

    def table(self, store: Store | None, progress: Callable[[int, int], None] | None) -> Table:
        """Carry it out, part by part; parts that are in the store are not done again."""
        sweep, says = self, None
        passes: Counter[str] = Counter()
        if self.metrics is None and not self.top:  # cheaper than the logits of all tokens for every cell
            first = carry_out(self.task, [])
            says, passes = said(first.clean), Counter(first.passes)
            sweep = self._answered(says)
        task = replace(self.task, tokens=sweep._tokens())
        rows: list[dict[str, Any]] = []
        meta: dict[str, Any] = {}
        done, total = 0, sum(len(one.cells) for one in self.swaps)

        def tell(cells: int) -> None:
            nonlocal done
            done += cells
            if progress is not None:
                progress(done, total)

        for number, group in enumerate(parts_of(task, self.swaps, stored=store is not None)):
            cells = sum(len(one.cells) for one in group)
            part = None if store is None else store.load(number, cells)
            if part is None:
                part = sweep._part(carry_out(task, group, tell), says)
                if store is not None:
                    store.save(number, part)
            else:
                tell(len(part))
            rows += part.rows()
            meta = meta or dict(part.meta["whole"])
            passes.update(part.meta["passes"])
        return Table.from_rows(rows, meta={**meta, "passes": dict(passes)})

    def _tokens(self) -> tuple[int, ...] | None:
        """Return the tokens whose logits are needed; `None` for all.

        Also for all where the size of the vocabulary is not known or too small: metrics say then what is wrong.
        """
        if self.top or self.metrics is None or any(metric.tokens is None for metric in self.metrics):
            return None
        tokens = tuple(dict.fromkeys(token for metric in self.metrics for token in metric.tokens or ()))
        return tokens if max(tokens, default=0) < (vocabulary(self.task.model) or 0) else None

    def _answered(self, says: Sequence[tuple[int, int]]) -> _Sweep:
        """Return the same sweep with the model's own answers, where they are needed."""
        if self.metrics is not None:
            return self
        check_told_apart(says, self.tokenizer)
        return replace(self, metrics=metrics_for(None, says, len(says), self.tokenizer))

    def _part(self, part: Part, says: Sequence[tuple[int, int]] | None) -> Table:
        """Return what came of a part as a table of its own."""
        tokens = self._tokens()
        says = said(part.clean) if says is None and tokens is None else says
        sweep = self._answered(says or [])
        asked = self.asked
        scoring = Scoring(sweep.metrics or [], tokens, self.top, self.tokenizer, asked.neurons, asked.heads is not None)
        meta = {"whole": sweep._meta(scoring, part, says), "passes": dict(part.passes)}
        return Table.from_rows(scoring.rows(part, self.task.pairs), meta=meta)

    def _meta(self, scoring: Scoring, part: Part, says: Sequence[tuple[int, int]] | None) -> dict[str, Any]:
        """Return the facts about the whole table; of several pairs there are lists."""
        model, pairs = self.task.model, self.task.pairs
        values = scoring.ends(part.clean, "base")
        answers = self.answers or says
        meta: dict[str, Any] = {"model": str(getattr(model, "name_or_path", "") or type(model).__name__)}
        for number, (name, prompts) in enumerate((("base", pairs.base), ("source", pairs.source))):
            facts: dict[str, Sequence[Any]] = {name: prompts.texts}
            for stack, of in prompts.sequences.items():
                facts[f"{name}_{'decoder_' * (stack == 'decoder')}tokens"] = of.texts
            for what, tokens in (("says", says), ("answer", answers)):
                if tokens is not None:
                    facts[f"{name}_{what}"] = [self._text(two[number]) for two in tokens]
            facts[f"{name}_value"] = values[number]
            meta |= {fact: of[0] if len(pairs) == 1 else of for fact, of in facts.items()}
        if self.asked.neurons is not None:
            meta["neurons"] = self.asked.neurons
        return {**meta, "pairs": len(pairs), "metric": scoring.name, "version": library_version()}

    def _text(self, answer: Answer) -> str:
        return answer if isinstance(answer, str) else token_text(answer, self.tokenizer)


def _facts(model: nn.Module, pairs: Pairs, swaps: Sequence[Swaps], study: dict[str, Any]) -> dict[str, Any]:
    """Return what makes a sweep what it is, as plain data."""
    metric = study["metric"]
    metrics = [metric] if isinstance(metric, Metric) else metric
    kinds = None if metrics is None else [[m.name, m.tokens, m.compares, _named(m.function)] for m in metrics]
    cells = Counter((one.direction, str(one.site)) for one in swaps for _ in one.cells)
    first = sha256(repr(swaps[0].cells).encode()).hexdigest()[:16]
    return {
        **study,
        "model": fingerprint(model),
        "prompts": [of.ids for side in (pairs.base, pairs.source) for of in side.sequences.values()],
        "metric": kinds,
        "components, layers or directions": [[*key, count] for key, count in cells.items()],
        "positions, heads or neurons": [first, [one.width for one in swaps]],
    }


def _named(function: Any) -> str:
    """Return the name of a metric's function; of what has none, that of its kind."""
    return str(getattr(function, "__qualname__", None) or f"{type(function).__qualname__} {function!r}")
