"""From logits to a table's rows: metrics pair by pair, effects, and what the most probable tokens are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .._errors import SpecError
from .._version import library_version
from ..metrics import Metric, logit_difference
from ._prompts import Pairs, token_text
from ._sweep import Clean, Measurement, Scorer

Answer = int | str
Answers = tuple[Answer, Answer]
"""The base's answer and the source's."""
_DEFAULT = "logit(source's answer) - logit(base's answer)"


@dataclass(frozen=True, eq=False)
class Scoring:
    """How the logits of a grid become numbers; called with what the clean runs gave, it makes the scorer.

    Args:
        model: its name.
        pairs: the prompts.
        metrics: of each pair; `None`: those of the model's own answers.
        answers: of each pair, where they are given.
        top: how many of the most probable tokens are told.
        tokenizer: gives tokens their texts.
        neurons: how many neurons are swapped at a time; `None` for all.
    """

    model: str
    pairs: Pairs
    metrics: Sequence[Metric] | None
    answers: Sequence[Answers] | None
    top: int
    tokenizer: PreTrainedTokenizerBase | None
    neurons: int | None

    def __call__(self, clean: Clean) -> GridScorer:
        """Return what scores the cells.

        Raises:
            SpecError: the metric is that of the model's own answers, and these are the same for both prompts.
        """
        says = list(zip(clean.says["base"], clean.says["source"], strict=True)) if clean.says else None
        metrics = self.metrics
        if metrics is None:
            check_told_apart(says or [], self.tokenizer)
            metrics = metrics_for(None, says, len(self.pairs), self.tokenizer)
        return GridScorer(self, clean, metrics or [], says)


@final
@dataclass(frozen=True, eq=False)
class GridScorer(Scorer):
    """Metrics pair by pair, their effects, and what the most probable tokens are.

    Args:
        asked: what is to be told.
        clean: what the clean runs gave.
        metrics: of each pair.
        says: of each pair what the model itself answers, where that is known.
    """

    asked: Scoring
    clean: Clean
    metrics: Sequence[Metric]
    says: Sequence[tuple[int, int]] | None

    def rows(self, found: Measurement) -> Iterator[dict[str, Any]]:
        """Yield the numbers of each cell of a run."""
        edited, pairs = found.of.run.input, [cell["pair"] for cell in found.cells]
        values = self._values(found.logits, pairs, self.clean.logits[edited])
        ends, tops = self._ends(edited), self._tops(found.logits)
        (effect,) = found.effects
        changes = effect.changes or [None] * len(pairs)
        for number, (pair, value) in enumerate(zip(pairs, values, strict=True)):
            own, other = (end[pair] for end in ends)
            yield {
                "metric": value,
                "effect": value - own,
                "recovered": (value - own) / (other - own) if other != own else None,
                "change": changes[number],
                "fired": effect.fired,
                **(tops[number] if tops else {}),
            }

    def meta(self) -> dict[str, Any]:
        """Return the facts about the whole table; of several pairs there are lists."""
        pairs, values = self.asked.pairs, self._ends("base")
        answers = self.asked.answers or self.says
        meta: dict[str, Any] = {"model": self.asked.model}
        for number, (name, prompts) in enumerate((("base", pairs.base), ("source", pairs.source))):
            facts: dict[str, Sequence[Any]] = {name: prompts.texts}
            for stack, of in prompts.sequences.items():
                facts[f"{name}_{'decoder_' * (stack == 'decoder')}tokens"] = of.texts
            for what, tokens in (("says", self.says), ("answer", answers)):
                if tokens is not None:
                    facts[f"{name}_{what}"] = [self._text(two[number]) for two in tokens]
            facts[f"{name}_value"] = values[number]
            meta |= {fact: of[0] if len(pairs) == 1 else of for fact, of in facts.items()}
        if self.asked.neurons is not None:
            meta["neurons"] = self.asked.neurons
        return {**meta, "pairs": len(pairs), "metric": self._name, "version": library_version()}

    @property
    def _name(self) -> str:
        """What the metric of all pairs is called."""
        names = list(dict.fromkeys(metric.name for metric in self.metrics))
        default = all(metric.function == logit_difference(0, 1).function for metric in self.metrics)
        return names[0] if len(names) == 1 else _DEFAULT if default else "; ".join(names)

    def _values(self, logits: Tensor, pairs: Sequence[int], clean: Tensor) -> list[float]:
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
        if self.clean.tokens is None or metric.tokens is None:
            return metric(logits, clean)
        columns = [self.clean.tokens.index(token) for token in metric.tokens]
        return metric.of(logits[:, columns], clean[:, columns])

    def _ends(self, edited: str) -> tuple[list[float], list[float]]:
        """Return for every pair the metric of the two clean runs: of the one that is edited, and of the other."""
        clean = self.clean.logits
        other = "source" if edited == "base" else "base"
        pairs = range(len(self.metrics))
        first, second = (self._values(clean[side], pairs, clean[edited]) for side in (edited, other))
        return first, second

    def _tops(self, logits: Tensor) -> list[dict[str, Any]]:
        """Return the most probable tokens of every cell; nothing if they are not asked for."""
        if not self.asked.top:
            return []
        best = torch.softmax(logits, dim=-1).topk(min(self.asked.top, logits.shape[-1]))
        texts = {token: self._text(token) for token in set(best.indices.flatten().tolist())}
        return [
            {"top_tokens": [texts[token] for token in tokens], "top_probabilities": probabilities}
            for tokens, probabilities in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def _text(self, answer: Answer) -> str:
        return answer if isinstance(answer, str) else token_text(answer, self.asked.tokenizer)


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
        SpecError: there are not as many metrics as pairs, they are none, or the answers are no tokens.
    """
    if isinstance(metric, Metric):
        return [metric] * count
    if metric is not None:
        if not isinstance(metric, Sequence) or not all(isinstance(one, Metric) for one in metric):
            raise SpecError(
                f"metric is a Metric, or one for each pair; found {metric!r}. Of a function from logits (batch, vocab) "
                "to numbers (batch,) make one: Metric('a name', function)"
            )
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
