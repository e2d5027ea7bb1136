"""What an edit along a probe's direction is worth: the metric of each prompt after it less that before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from .._errors import SpecError
from ..metrics import Metric, logit_difference, probability
from ..plan import Logits
from ..vocabulary import token_id
from ._probe_draws import LabelledPrompts
from ._prompts import Prompts, ReadAt, token_text
from ._scoring import name_of, tokens_of, values_of
from ._sweep import Clean, Measurement, Scorer


def answers_of(
    answers: Any, known: LabelledPrompts, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[int, ...] | None:
    """Return the answer of each prompt as a token; `None` if there are none.

    Args:
        answers: by label, or one for each prompt.
        known: the labels.
        tokenizer: needed where answers are texts.

    Raises:
        SpecError: a label or a prompt has none, or two labels have the same.
    """
    if answers is None:
        return None
    if isinstance(answers, Mapping):
        lacking = [name for name in known.classes if name not in answers]
        if lacking:
            raise SpecError(f"answers has none for label {lacking[0]!r}; it has some for {list(answers)}")
        each = [answers[known.classes[number]] for number in known.labels]
    elif len(answers) == len(known):
        each = list(answers)
    else:
        raise SpecError(f"there are {len(answers)} answers for {len(known)} prompts: give one a label, or one a prompt")
    tokens = [token_id(answer, tokenizer) for answer in each]
    by_token: dict[int, int] = {}
    for number, token in zip(known.labels.tolist(), tokens, strict=True):
        if by_token.setdefault(token, number) != number:
            raise SpecError(
                f"labels {known.classes[by_token[token]]!r} and {known.classes[number]!r} have the same answer, "
                f"{token_text(token, tokenizer)!r}, so that nothing tells them apart"
            )
    return tuple(tokens)


@dataclass(frozen=True, eq=False)
class ProbeScoring:
    """Makes the scorer when the clean run is in.

    Args:
        prompts: how many.
        answers: a token for each prompt.
        metrics: by name, the only one under `""`; `None` where none is given.
    """

    prompts: int
    answers: tuple[int, ...] | None
    metrics: Mapping[str, Sequence[Metric]] | None

    def logits(self, model: nn.Module, prompts: Prompts, at: ReadAt) -> Logits:
        """Return which logits are needed."""
        columns, ends = prompts.columns(at), prompts.columns(-1)
        where = () if columns == ends else (("prompts", columns),)
        if self.answers is not None:
            return Logits(tuple(dict.fromkeys(self.answers)), where)
        return Logits(None if self.metrics is None else tokens_of(self.metrics, model), where)

    def __call__(self, clean: Clean) -> ProbeScorer:
        """Return what tells effects."""
        return ProbeScorer(self, clean, {})


@final
@dataclass(frozen=True, eq=False)
class ProbeScorer(Scorer):
    """The metric of each cell less that of its prompt without an edit.

    Args:
        asked: what is told.
        clean: the clean run.
        known: metrics that were made, by what they are of.
    """

    asked: ProbeScoring
    clean: Clean
    known: dict[Any, Metric]

    def rows(self, found: Measurement) -> Iterator[dict[str, Any]]:
        """Yield the effect of each cell."""
        prompts = [cell["prompt"] for cell in found.cells]
        metrics = [self._metric(cell["prompt"], cell["partner"]) for cell in found.cells]
        before = self.clean.logits["clean"][prompts]
        sign = 1 if self.asked.answers is not None or self.asked.metrics is not None else -1
        values = zip(self._values(metrics, found.logits, before), self._values(metrics, before, before), strict=True)
        for new, old in values:
            yield {"effect": sign * (new - old)}

    def meta(self) -> dict[str, Any]:
        """Return what the metric is, and how often the model gives the answers."""
        if self.asked.metrics is not None:
            return {"metric": name_of(self.asked.metrics[""])}
        if self.asked.answers is None:
            return {"metric": "1 - probability(the model's own answer)"}
        logits, tokens = self.clean.logits["clean"], list(self.clean.tokens or ())
        own = torch.tensor([tokens.index(token) for token in self.asked.answers], device=logits.device)
        solved = float((logits.argmax(-1) == own).double().mean())
        return {"metric": "logit(partner's answer) - logit(own answer)", "solved": solved}

    def _metric(self, prompt: int, partner: int) -> Metric:
        if self.asked.metrics is not None:
            return self.asked.metrics[""][prompt]
        answers = self.asked.answers
        of = (self.clean.says["clean"][prompt], None) if answers is None else (answers[partner], answers[prompt])
        if of not in self.known:
            self.known[of] = probability(of[0]) if of[1] is None else logit_difference(*of)
        return self.known[of]

    def _values(self, metrics: Sequence[Metric], logits: Tensor, clean: Tensor) -> list[float]:
        return values_of(metrics, logits, clean, self.clean.tokens)
