"""Continuations of prompts, each with a vector added on the way; and how an unedited model finds them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerBase

from ..engine import bind, logits_of
from ..intervenable import IntervenableModel
from ..interventions import AdditionIntervention
from ..models import evaluating
from ..plan import Plan, Run
from ..planners import execute
from ..sites import Site
from ._prompts import Prompts
from ._sweep import vocabulary

_LOGITS = 2**25
"""Numbers of logits that a pass over continuations gives."""
_VOCABULARY = 2**17
"""Tokens, where the model does not tell."""

Continuation = tuple[int, tuple[int, ...]]
"""The number of a prompt, and what follows."""


@dataclass(frozen=True)
class Sample:
    """One continuation.

    Args:
        prompt: of which prompt.
        vector: with which of its vectors.
        tokens: what was generated, with the token that ends it, if one did.
        end: how many of these are text.
    """

    prompt: int
    vector: int
    tokens: tuple[int, ...]
    end: int

    def text(self, tokenizer: PreTrainedTokenizerBase | None) -> str:
        """Return it in words; without a tokenizer in numbers."""
        if tokenizer is None:
            return " ".join(map(str, self.tokens[: self.end]))
        return str(tokenizer.decode(list(self.tokens[: self.end])))

    def distinct(self, n: int) -> float | None:
        """Return the share of different ones among its n-grams of tokens; `None` where it has none."""
        grams = [self.tokens[begin : begin + n] for begin in range(self.end - n + 1)]
        return len(set(grams)) / len(grams) if grams else None


@dataclass(frozen=True, eq=False)
class Steered:
    """Generates under added vectors.

    Args:
        model: the user's.
        prompts: what is continued.
        rows: for each prompt the columns that are steered; `None`: none of the prompt's.
        generated: generated tokens are steered, too.
        length: of a continuation, at most.
        temperature: of sampling; `None`: the most probable token is taken.
        seed: of sampling.
        batch_size: continuations that are generated together.
        passes: how many generations and passes were made.
    """

    model: nn.Module
    prompts: Prompts
    rows: Sequence[Sequence[int]] | None
    generated: bool
    length: int
    temperature: float | int | None
    seed: int | None
    batch_size: int
    passes: Counter[str] = field(default_factory=Counter)

    def samples(self, site: Site, vectors: Float[Tensor, "prompts vectors width"]) -> Iterator[list[Sample]]:
        """Yield the continuations, batch by batch: those of a prompt with all its vectors side by side."""
        count = vectors.shape[1]
        together = max(1, self.batch_size // count) * count if count <= self.batch_size else self.batch_size
        for group, first, end in self._groups():
            rows = [(prompt, vector) for prompt in group for vector in range(count)]
            for begin in range(0, len(rows), together):
                self.passes["generate"] += 1
                yield self._batch(site, vectors, rows[begin : begin + together], first, end)

    def perplexities(self, samples: Iterable[Sample]) -> dict[Continuation, float]:
        """Return of each continuation exp(mean over its tokens of -log p(token | what is before it)), unsteered.

        Args:
            samples: continuations; equal ones are run once.
        """
        real = self.prompts.tokens("").ids
        waiting = list(dict.fromkeys((one.prompt, one.tokens) for one in samples if one.tokens))
        waiting.sort(key=lambda one: len(real[one[0]]) + len(one[1]))
        found: dict[Continuation, float] = {}
        while waiting:
            longest = len(real[waiting[-1][0]]) + len(waiting[-1][1])
            count = max(1, _LOGITS // (longest * (vocabulary(self.model) or _VOCABULARY)))
            waiting, part = waiting[:-count], waiting[-count:]
            plan = Plan((Run("plain", "texts"),), ("plain",))
            with torch.no_grad(), evaluating(self.model):
                outcome = execute(bind(self.model, plan, {"texts": _texts(self.prompts, part)}, {}))
            self.passes.update(passed.way for passed in outcome.passes)
            for row, (prompt, tokens) in zip(logits_of(outcome.outputs["plain"]), part, strict=True):
                begin = len(real[prompt]) - 1
                chances = row[begin : begin + len(tokens)].float().log_softmax(-1)
                own = chances.gather(1, torch.tensor(tokens, device=row.device)[:, None])
                found[prompt, tokens] = float(own.mean().neg().exp())
        return found

    def _groups(self) -> Iterator[tuple[list[int], int, int]]:
        """Yield prompts that can be continued together, and which columns are theirs: none is padded on the right."""
        tokens = self.prompts.tokens("")
        ends = [start + len(ids) for start, ids in zip(tokens.starts, tokens.ids, strict=True)]
        if set(ends) == {tokens.length} or "decoder" in self.prompts.sequences:
            yield list(range(len(ends))), 0, tokens.length
            return
        spans = list(zip(tokens.starts, ends, strict=True))
        for span in dict.fromkeys(spans):
            yield [number for number, one in enumerate(spans) if one == span], *span

    def _batch(
        self, site: Site, vectors: Tensor, rows: Sequence[tuple[int, int]], first: int, end: int
    ) -> list[Sample]:
        base = self._inputs([prompt for prompt, _ in rows], first, end)
        added = torch.stack([vectors[prompt, vector] for prompt, vector in rows])[:, None]
        where = None if self.rows is None else {"base": [[[c - first for c in self.rows[p]] for p, _ in rows]]}
        name = "decoder_input_ids" if "decoder" in self.prompts.sequences else "input_ids"
        length, config = base[name].shape[1], getattr(self.model, "generation_config", None)
        ends = _listed(getattr(config, "eos_token_id", None))
        with torch.no_grad(), evaluating(self.model):
            face = IntervenableModel(
                {"component": site.component, "layer": site.layer, "intervention": AdditionIntervention()}, self.model
            )
            given: Any = face.generate(
                base,
                None,
                where,
                added,
                intervene_on_prompt=self.rows is not None,
                steps="all" if self.generated else (),
                return_dict=True,
                max_new_tokens=self.length,
                do_sample=False,
                num_beams=1,
                num_return_sequences=1,
                return_dict_in_generate=False,
                pad_token_id=_listed(getattr(config, "pad_token_id", None), ends, [0])[0],
                **self._sampling([prompt for prompt, _ in rows], length),
            )
        found = []
        for (prompt, vector), ids in zip(rows, given.intervened_outputs[:, length:].tolist(), strict=True):
            text = next((place for place, token in enumerate(ids) if token in ends), len(ids))
            found.append(Sample(prompt, vector, tuple(ids[: text + 1]), text))
        return found

    def _inputs(self, chosen: Sequence[int], first: int, end: int) -> dict[str, Any]:
        """Return the inputs of some prompts. Generation makes positions of its own."""
        shape = self.prompts.inputs["input_ids"].shape
        cut = "decoder" not in self.prompts.sequences

        def part(value: Any) -> Any:
            if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != shape[0]:
                return value
            picked = value[list(chosen)]
            return picked[:, first:end] if cut and value.shape[:2] == shape else picked

        return {name: part(value) for name, value in self.prompts.inputs.items() if name != "position_ids"}

    def _sampling(self, prompts: Sequence[int], length: int) -> dict[str, Any]:
        if self.temperature is None:
            return {}
        noise = _GumbelNoise(self.temperature, self.seed or 0, prompts, length)
        return {"logits_processor": LogitsProcessorList([noise])}


class _GumbelNoise(LogitsProcessor):
    """Makes the most probable token a sample: argmax(logits / T + Gumbel noise) has the chances softmax(logits / T).

    The noise depends on seed, prompt and step alone: all doses of a prompt see the same, in whatever batch they are.

    Args:
        temperature: above 0.
        seed: of the noise.
        prompts: the number of each row's.
        length: tokens before the first step.
    """

    def __init__(self, temperature: float, seed: int, prompts: Sequence[int], length: int) -> None:
        self._temperature, self._seed, self._prompts, self._length = temperature, seed, prompts, length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores of the next tokens with noise."""
        step, drawn = input_ids.shape[1] - self._length, {}
        for prompt in set(self._prompts):
            generator = torch.Generator().manual_seed(((self._seed * 1_000_003 + prompt) * 1_000_003 + step) % 2**63)
            drawn[prompt] = -torch.empty(scores.shape[1], dtype=torch.double).exponential_(generator=generator).log()
        noise = torch.stack([drawn[prompt] for prompt in self._prompts]).to(scores.device)
        return (scores.double() / self._temperature + noise).to(scores.dtype)


def _texts(prompts: Prompts, part: Sequence[Continuation]) -> dict[str, Any]:
    """Return prompts with continuations as one batch, padded on the right."""
    of = prompts.tokens("")
    rows = [[*of.ids[prompt], *tokens] for prompt, tokens in part]
    longest = max(map(len, rows))
    like = prompts.inputs["input_ids"]
    ids = like.new_tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    mask = like.new_tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    if "decoder" not in prompts.sequences:
        return {"input_ids": ids, "attention_mask": mask}
    chosen = [prompt for prompt, _ in part]
    encoder: Mapping[str, Any] = {n: v[chosen] for n, v in prompts.inputs.items() if not n.startswith("decoder_")}
    return {**encoder, "decoder_input_ids": ids, "decoder_attention_mask": mask}


def _listed(*given: Any) -> list[int]:
    """Return the first of what is given that names a token, as a list."""
    for one in given:
        listed = [one] if isinstance(one, int) else list(one or [])
        if listed:
            return listed
    return []
