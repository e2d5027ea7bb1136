"""From logits to a table's rows: metrics pair by pair, effects, and what the most probable tokens are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .._errors import SpecError
from ..metrics import Metric, logit_difference
from .cells import Swaps
from .pair import Pairs, token_text
from .sweep import Part, Swapped

Answer = int | str
Answers = tuple[Answer, Answer]
"""The base's answer and the source's."""
_DEFAULT = "logit(source's answer) - logit(base's answer)"


@dataclass(frozen=True, eq=False)
class Scoring:
    """How logits become numbers.

    Args:
        metrics: of each pair.
        tokens: what the columns of logits are; `None` for the whole vocabulary.
        top: how many of the most probable tokens are told.
        tokenizer: gives tokens their texts.
        neurons: how many neurons are swapped at a time; `None` for all.
        heads: single heads are swapped.
    """

    metrics: Sequence[Metric]
    tokens: tuple[int, ...] | None
    top: int
    tokenizer: PreTrainedTokenizerBase | None
    neurons: int | None
    heads: bool

    @property
    def name(self) -> str:
        """What the metric of all pairs is called."""
        names = list(dict.fromkeys(metric.name for metric in self.metrics))
        return names[0] if len(names) == 1 else _DEFAULT if self._default else "; ".join(names)

    @property
    def _default(self) -> bool:
        return all(metric.function == logit_difference(0, 1).function for metric in self.metrics)

    def values(self, logits: Tensor, pairs: Sequence[int], clean: Tensor) -> list[float]:
        """Return the metric of each line of logits.

        Args:
            logits: a line for each of `pairs`.
            pairs: numbers of pairs.
            clean: of the unedited run, a line for each pair there is.
        """
        lines: dict[int, list[int]] = {}
        for line, pair in enumerate(pairs):
            lines.setdefault(id(self.metrics[pair]), []).append(line)
        found = [0.0] * len(pairs)
        for which in lines.values():
            metric = self.metrics[pairs[which[0]]]
            values = self._metric(metric, logits[which], clean[[pairs[line] for line in which]])
            for line, value in zip(which, values.tolist(), strict=True):
                found[line] = value
        return found

    def _metric(self, metric: Metric, logits: Tensor, clean: Tensor) -> Tensor:
        if self.tokens is None or metric.tokens is None:
            return metric(logits, clean)
        columns = [self.tokens.index(token) for token in metric.tokens]
        return metric.of(logits[:, columns], clean[:, columns])

    def ends(self, clean: Mapping[str, Tensor], edited: str) -> tuple[list[float], list[float]]:
        """Return for every pair the metric of the two clean runs: of the one that is edited, and of the other.

        Args:
            clean: logits of both.
            edited: `base` or `source`.
        """
        pairs, other = range(len(self.metrics)), "source" if edited == "base" else "base"
        return self.values(clean[edited], pairs, clean[edited]), self.values(clean[other], pairs, clean[edited])

    def rows(self, part: Part, pairs: Pairs) -> Iterator[dict[str, Any]]:
        """Yield the table's rows of one part of a sweep."""
        ends = {name: self.ends(part.clean, name) for name in dict.fromkeys(one.swaps.edited for one in part.swapped)}
        for one in part.swapped:
            values = self.values(one.logits, one.swaps.pairs, part.clean[one.swaps.edited])
            tops = self._tops(one)
            for number, value in enumerate(values):
                own, other = (end[one.swaps.cells[number].pair] for end in ends[one.swaps.edited])
                effect = value - own
                yield {
                    **self._where(one.swaps, number, pairs),
                    "metric": value,
                    "effect": effect,
                    "recovered": effect / (other - own) if other != own else None,
                    "change": one.changes[number],
                    "fired": one.fired,
                    **(tops[number] if tops else {}),
                }

    def _where(self, swaps: Swaps, number: int, pairs: Pairs) -> dict[str, Any]:
        """Return the columns that say which cell it is."""
        cell = swaps.cells[number]
        here: tuple[int | None, int | None] = cell.places[0] if not swaps.together else (None, None)
        sides = (side.texts[cell.pair] for side in pairs.sides(swaps.site))
        texts = [None if at is None else tokens[at] for at, tokens in zip(here, sides, strict=True)]
        row: dict[str, Any] = {"component": swaps.site.component, "layer": swaps.site.layer}
        if self.heads:
            row["head"] = cell.head
        if self.neurons is not None:
            row["neuron"] = None if cell.block is None else cell.block * self.neurons
        row |= {"position": here[0], "source_position": here[1], "token": texts[0], "source_token": texts[1]}
        return {**row, "pair": cell.pair, "direction": swaps.direction}

    def _tops(self, one: Swapped) -> list[dict[str, Any]]:
        """Return the most probable tokens of every cell; nothing if they are not asked for."""
        if not self.top:
            return []
        best = torch.softmax(one.logits, dim=-1).topk(min(self.top, one.logits.shape[-1]))
        texts = {token: token_text(token, self.tokenizer) for token in set(best.indices.flatten().tolist())}
        return [
            {"top_tokens": [texts[token] for token in tokens], "top_probabilities": probabilities}
            for tokens, probabilities in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]


def metrics_for(
    metric: Metric | Sequence[Metric] | None,
    answers: Sequence[Answers] | None,
    count: int,
    tokenizer: PreTrainedTokenizerBase | None,
) -> list[Metric] | None:
    """Return the metric of every pair; `None` where that takes the model's own answers.

    Args:
        metric: one for all, or one for each pair; `None`: logit of the source's answer minus the base's.
        answers: of every pair.
        count: of pairs.
        tokenizer: needed where answers are texts.

    Raises:
        SpecError: there are not as many metrics as pairs, or the answers are no tokens.
    """
    if isinstance(metric, Metric):
        return [metric] * count
    if metric is not None:
        if len(metric) != count:
            raise SpecError(f"there are {len(metric)} metrics, but {count} pairs: give one, or one for each pair")
        return list(metric)
    if answers is None:
        return None
    known: dict[Answers, Metric] = {}
    for base, source in answers:
        if (base, source) not in known:
            difference = logit_difference(source, base, tokenizer=tokenizer)
            texts = (a if isinstance(a, str) else token_text(a, tokenizer) for a in (source, base))
            known[base, source] = replace(difference, name="logit({!r}) - logit({!r})".format(*texts))
    return [known[pair] for pair in answers]


def answers_for(answers: Answers | Sequence[Answers] | None, count: int) -> list[Answers] | None:
    """Return the answers of every pair; `None` if none are given.

    Args:
        answers: two tokens for all pairs, or two for each.
        count: of pairs.

    Raises:
        SpecError: they are not two, or not as many as pairs.
    """
    if answers is None:
        return None
    each = list(answers) if answers and isinstance(answers[0], tuple | list) else [answers] * count
    if len(each) != count:
        raise SpecError(f"there are answers for {len(each)} pairs, but {count} pairs")
    for two in each:
        if isinstance(two, int | str) or len(two) != 2:
            raise SpecError(f"answers are two tokens, the base's and the source's; found {two!r}")
    return [(two[0], two[1]) for two in each]  # type: ignore[index, misc]


def said(clean: Mapping[str, Tensor]) -> list[tuple[int, int]]:
    """Return what the model itself says after the base and the source of every pair, from logits of all tokens."""
    return list(zip(*(clean[side].argmax(-1).tolist() for side in ("base", "source")), strict=True))


def check_told_apart(says: Sequence[tuple[int, int]], tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Refuse pairs of which both prompts have the same answer.

    Raises:
        SpecError: there is one.
    """
    for number, (base, source) in enumerate(says):
        if base == source:
            which = f"pair {number}: " if len(says) > 1 else ""
            raise SpecError(
                f"{which}both prompts have the same answer, {token_text(base, tokenizer)!r}, so there is nothing to "
                "tell apart: choose prompts with different answers, or name two tokens with answers=(base's, source's)"
            )
