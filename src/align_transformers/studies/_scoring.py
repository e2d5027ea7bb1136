"""From logits to a table's rows: metrics pair by pair, effects, and what the most probable tokens are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from .._errors import SpecError
from ..metrics import Metric, logit_difference
from ..plan import Logits
from ..table import TAKEN
from ..vocabulary import token_id
from ._pairs import Pairs
from ._prompts import ReadAt, token_text
from ._sweep import Clean, Measurement, Scorer, vocabulary

Answer = int | str
Answers = tuple[Answer, Answer]
"""The base's answer and the source's."""
MetricsByName = Mapping[str, Sequence[Metric]]
"""By name the metric of every prompt or pair; the only one, whose columns are called as ever, is under `""`."""
_DEFAULT = "logit(source's answer) - logit(base's answer)"


@dataclass(frozen=True, eq=False)
class Scoring:
    """How the logits of a grid become numbers; called with what the clean runs gave, it makes the scorer.

    Args:
        pairs: the prompts.
        metrics: by name those of each pair, the only one under `""`; `None`: that of the model's own answers.
        answers: of each pair, where they are given.
        top: how many of the most probable tokens are told.
        tokenizer: gives tokens their texts.
        neurons: how many neurons are swapped at a time; `None` for all.
        said: further facts about the table.
    """

    pairs: Pairs
    metrics: MetricsByName | None
    answers: Sequence[Answers] | None
    top: int
    tokenizer: PreTrainedTokenizerBase | None
    neurons: int | None
    said: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, clean: Clean) -> GridScorer:
        """Return what scores the cells.

        Raises:
            SpecError: the metric is that of the model's own answers, and these are the same for both prompts.
        """
        says = list(zip(clean.says["base"], clean.says["source"], strict=True)) if clean.says else None
        metrics = self.metrics
        if metrics is None:
            check_told_apart(says or [], self.tokenizer)
            metrics = answers_metric(says, self.tokenizer)
        return GridScorer(self, clean, metrics or {}, says)


@final
@dataclass(frozen=True, eq=False)
class GridScorer(Scorer):
    """Metrics pair by pair, their effects, and what the most probable tokens are.

    Args:
        asked: what is to be told.
        clean: what the clean runs gave.
        metrics: by name those of each pair.
        says: of each pair what the model itself answers, where that is known.
    """

    asked: Scoring
    clean: Clean
    metrics: MetricsByName
    says: Sequence[tuple[int, int]] | None

    def rows(self, found: Measurement) -> Iterator[dict[str, Any]]:
        """Yield the numbers of each cell of a run."""
        edited, pairs = found.of.run.input, [cell["pair"] for cell in found.cells]
        numbers = {
            columns_of_metric(name): (
                self._values(name, found.logits, pairs, self.clean.logits[edited]),
                self.ends(name, edited),
            )
            for name in self.metrics
        }
        tops = self._tops(found.logits)
        changes, fired = _changes(found), sum(effect.fired for effect in found.effects)
        for number, pair in enumerate(pairs):
            row: dict[str, Any] = {}
            for (metric, moved, recovered), (values, (own, other)) in numbers.items():
                shift, whole = values[number] - own[pair], other[pair] - own[pair]
                row |= {metric: values[number], moved: shift, recovered: shift / whole if whole else None}
            yield {**row, "change": changes[number], "fired": fired, **(tops[number] if tops else {})}

    def meta(self) -> dict[str, Any]:
        """Return the facts about the whole table; of several pairs there are lists."""
        pairs, ends = self.asked.pairs, {name: self.ends(name, "base") for name in self.metrics}
        answers = self.asked.answers or self.says
        meta: dict[str, Any] = {}
        for number, (name, prompts) in enumerate((("base", pairs.base), ("source", pairs.source))):
            facts: dict[str, Sequence[Any]] = {name: prompts.texts}
            for stack, of in prompts.sequences.items():
                facts[f"{name}_{'decoder_' * (stack == 'decoder')}tokens"] = of.texts
            for what, tokens in (("says", self.says), ("answer", answers)):
                if tokens is not None:
                    facts[f"{name}_{what}"] = [self._text(two[number]) for two in tokens]
            for metric, values in ends.items():
                facts[f"{name}_{metric}_value" if metric else f"{name}_value"] = values[number]
            meta |= {fact: of[0] if len(pairs) == 1 else of for fact, of in facts.items()}
        if isinstance(pairs.positions, Mapping):
            meta["places"] = {name: repr(spots) for name, spots in pairs.positions.items()}
        if self.asked.neurons is not None:
            meta["neurons"] = self.asked.neurons
        names = {name: name_of(of_pair) for name, of_pair in self.metrics.items()}
        told = {"metric": names[""]} if "" in names else {"metrics": names}
        return {**meta, "pairs": len(pairs), **told, **self.asked.said}

    def _values(self, name: str, logits: Tensor, pairs: Sequence[int], clean: Tensor) -> list[float]:
        """Return a metric of each line of logits.

        Args:
            name: of the metric.
            logits: a line for each of `pairs`.
            pairs: numbers of pairs.
            clean: of the unedited run, a line for each pair there is.
        """
        return values_of([self.metrics[name][pair] for pair in pairs], logits, clean[list(pairs)], self.clean.tokens)

    def ends(self, name: str, edited: str) -> tuple[list[float], list[float]]:
        """Return for every pair a metric of the two clean runs: of the one that is edited, and of the other."""
        clean = self.clean.logits
        other = "source" if edited == "base" else "base"
        pairs = range(len(self.metrics[name]))
        first, second = (self._values(name, clean[side], pairs, clean[edited]) for side in (edited, other))
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


def _changes(found: Measurement) -> Sequence[float | None]:
    """Return for each cell the norm of all that its edits changed."""
    each = [effect.changes or [None] * len(found.cells) for effect in found.effects]
    if len(each) == 1:
        return each[0]
    return [None if None in several else math.hypot(*several) for several in zip(*each, strict=True)]


def columns_of_metric(name: str) -> tuple[str, str, str]:
    """Return the columns of a metric: its value after the swap, its effect, and the share that is recovered.

    >>> columns_of_metric(""), columns_of_metric("iia")
    (('metric', 'effect', 'recovered'), ('iia', 'iia_effect', 'iia_recovered'))
    """
    return (name, f"{name}_effect", f"{name}_recovered") if name else ("metric", "effect", "recovered")


def name_of(metrics: Sequence[Metric]) -> str:
    """Return what the metric of all prompts or pairs is called."""
    names = list(dict.fromkeys(metric.name for metric in metrics))
    default = all(metric.function == logit_difference(0, 1).function for metric in metrics)
    return names[0] if len(names) == 1 else _DEFAULT if default else "; ".join(names)


def values_of(metrics: Sequence[Metric], logits: Tensor, clean: Tensor, tokens: Sequence[int] | None) -> list[float]:
    """Return what each line of logits is worth.

    Args:
        metrics: of each line.
        logits: a line for each.
        clean: of the unedited runs, likewise.
        tokens: ids of the tokens that the columns are; `None` for the whole vocabulary.
    """
    return metric_values(metrics, logits, clean, tokens).tolist()


def metric_values(
    metrics: Sequence[Metric], logits: Tensor, clean: Tensor, tokens: Sequence[int] | None = None
) -> Tensor:
    """Return what each line of logits is worth, as a tensor, in the graph of the logits.

    Args:
        metrics: as for `values_of`.
        logits: likewise.
        clean: likewise.
        tokens: likewise.
    """
    lines: dict[int, list[int]] = {}
    for line, metric in enumerate(metrics):
        lines.setdefault(id(metric), []).append(line)
    parts = []
    for which in lines.values():
        metric, some, plain = metrics[which[0]], logits[which], clean[which]
        if tokens is None or metric.tokens is None:
            parts.append(metric(some, plain))
        else:
            columns = [tokens.index(token) for token in metric.tokens]
            parts.append(metric.of(some[:, columns], plain[:, columns]))
    order = torch.tensor([line for which in lines.values() for line in which], device=logits.device)
    return torch.cat([part.to(logits.device) for part in parts])[order.argsort()] if parts else logits.new_zeros(0)


def tokens_of(metrics: MetricsByName, model: nn.Module) -> tuple[int, ...] | None:
    """Return the tokens whose logits some metrics need; `None` for all.

    All, too, where the size of the vocabulary is not known or too small: metrics say then what is wrong.
    """
    listed = [one for of_each in metrics.values() for one in of_each]
    if any(one.tokens is None for one in listed):
        return None
    tokens = tuple(dict.fromkeys(token for one in listed for token in one.tokens or ()))
    return tokens if max(tokens, default=0) < (vocabulary(model) or 0) else None


def logits_wanted(model: nn.Module, metrics: MetricsByName | None, top: int, pairs: Pairs, at: ReadAt) -> Logits:
    """Return which logits the metrics need; of the model's own answers the ones that it gives.

    Args:
        model: gives them.
        metrics: by name; `None`: that of the model's own answers.
        top: how many of the most probable tokens are to be told.
        pairs: of prompts.
        at: where logits are read, for all prompts or for each.
    """
    sides = {"base": pairs.base, "source": pairs.source}
    columns, ends = ({side: of.columns(place) for side, of in sides.items()} for place in (at, -1))
    where = () if columns == ends else tuple(columns.items())
    if metrics is None:
        return Logits(None, where, ("base", "source")) if not top else Logits(None, where)
    return Logits(None if top else tokens_of(metrics, model), where)


def metrics_for(metric: Any, metrics: Any, count: int, what: str) -> MetricsByName | None:
    """Return the metrics of every prompt or pair, by name, the only one under `""`; `None` where none is given.

    Args:
        metric: one for all, or one for each.
        metrics: the same by name.
        count: of prompts or pairs.
        what: there are so many of: `pairs` or `prompts`.

    Raises:
        SpecError: there are not as many as are needed, they are no metrics, or a name cannot be a column.
    """
    if metrics is None:
        return None if metric is None else {"": _for_each(metric, count, what)}
    if metric is not None or not isinstance(metrics, Mapping) or not metrics:
        raise SpecError(f"give one metric=, or several by name: metrics={{'a name': Metric}}; found {metrics!r}")
    columns = [column for name in metrics for column in columns_of_metric(str(name))]
    wrong = [name for name in metrics if not isinstance(name, str) or not name.isidentifier()]
    wrong += [column for number, column in enumerate(columns) if column in TAKEN or column in columns[:number]]
    if wrong:
        raise SpecError(f"a metric's name is that of a column of its own, such as 'iia'; {wrong[0]!r} cannot be one")
    return {name: _for_each(one, count, what) for name, one in metrics.items()}


def _for_each(metric: Any, count: int, what: str) -> list[Metric]:
    if isinstance(metric, Metric):
        return [metric] * count
    if not isinstance(metric, Sequence) or not all(isinstance(one, Metric) for one in metric):
        raise SpecError(
            f"metric is a Metric, or one for each of the {what}; found {metric!r}. Of a function from logits (batch, "
            "vocab) to numbers (batch,) make one: Metric('a name', function)"
        )
    if len(metric) != count:
        raise SpecError(f"there are {len(metric)} metrics, but {count} {what}: give one, or one for each")
    return list(metric)


def answers_metric(
    answers: Sequence[Answers] | None, tokenizer: PreTrainedTokenizerBase | None
) -> MetricsByName | None:
    """Return the logit of the source's answer minus the base's, for every pair; `None` without answers.

    Args:
        answers: of every pair.
        tokenizer: needed where answers are texts.

    Raises:
        SpecError: the answers are no tokens.
    """
    if answers is None:
        return None
    known: dict[Answers, Metric] = {}
    for base, source in answers:
        if (base, source) not in known:
            difference = logit_difference(source, base, tokenizer=tokenizer)
            texts = (a if isinstance(a, str) else token_text(a, tokenizer) for a in (source, base))
            known[base, source] = replace(difference, name="logit({!r}) - logit({!r})".format(*texts))
    return {"": [known[pair] for pair in answers]}


def answers_for(
    answers: Answers | Sequence[Answers] | None, pairs: Pairs, metrics: MetricsByName | None
) -> list[Answers] | None:
    """Return the answers of every pair; `None` if none are given.

    Args:
        answers: two tokens for all pairs, or two for each; default: those in the data.
        pairs: of prompts.
        metrics: what is measured; `None`: the answers.

    Raises:
        SpecError: they are not two, or not as many as pairs.
    """
    if answers is None:
        if metrics is None and (pairs.base.answers is None) != (pairs.source.answers is None):
            raise SpecError("the data has a column for the answers of one side only: base_answer or source_answer")
        return pairs.answers
    count = len(pairs)
    each = list(answers) if answers and isinstance(answers[0], tuple | list) else [answers] * count
    if len(each) != count:
        raise SpecError(f"there are answers for {len(each)} pairs, but {count} pairs")
    for two in each:
        if isinstance(two, int | str) or len(two) != 2:
            raise SpecError(f"answers are two tokens, the base's and the source's; found {two!r}")
    return [(two[0], two[1]) for two in each]  # type: ignore[index, misc]


def token_of_each(
    answers: Answer | Sequence[Answer] | None,
    count: int,
    tokenizer: PreTrainedTokenizerBase | None,
    default: Sequence[Answer] | None = None,
    what: str = "answers",
) -> list[int]:
    """Return one token for each prompt.

    Args:
        answers: one (id or text) for all prompts or for each; `None` for the default.
        count: of prompts.
        tokenizer: needed for texts.
        default: what is taken where nothing is given.
        what: the argument, for messages.

    Raises:
        SpecError: there are not as many as prompts, or one is no token.
    """
    given = default or () if answers is None else answers
    each = [given] * count if isinstance(given, int | str) else list(given)
    if len(each) != count:
        raise SpecError(f"{what}: there are {len(each)} answers for {count} prompts: give one, or one for each")
    return [token_id(token, tokenizer) for token in each]


def own_answers_metric(base: Tensor, source: Tensor, tokenizer: PreTrainedTokenizerBase | None) -> Sequence[Metric]:
    """Return of each pair the logit of the answer that the model gives the source minus that of the base's.

    Args:
        base: `(pairs, vocab)` logits of the bases.
        source: likewise of the sources.
        tokenizer: for messages.

    Raises:
        SpecError: the answers of a pair are the same.
    """
    says = list(zip(base.argmax(-1).tolist(), source.argmax(-1).tolist(), strict=True))
    check_told_apart(says, tokenizer)
    return (answers_metric(says, tokenizer) or {})[""]


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
