"""A base and a source prompt side by side: their tokens, and which place of the one answers to which of the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .._errors import PositionError, SpecError
from ..engine import batch_size, real_spans

Prompt = str | Mapping[str, Any]
Which = Sequence[int] | Literal["all"]


@dataclass(frozen=True, eq=False)
class Encoded:
    """One prompt as the model gets it.

    Args:
        inputs: the model's keyword arguments, batch 1.
        text: the prompt in words.
        ids: the real tokens.
        tokens: their texts.
        start: column of the first real token (not 0 under left padding).
    """

    inputs: Mapping[str, Any]
    text: str
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    start: int

    @property
    def last(self) -> int:
        """Column of the last real token, where the answer is read."""
        return self.start + len(self.ids) - 1

    def repeated(self, times: int) -> dict[str, Any]:
        """Return the inputs as a batch of `times` equal examples."""
        return {
            name: value.repeat(times, *[1] * (value.ndim - 1)) if isinstance(value, Tensor) and value.ndim else value
            for name, value in self.inputs.items()
        }


@dataclass(frozen=True, eq=False)
class Pair:
    """Two encoded prompts and the places to compare.

    Args:
        base: the prompt whose run is edited.
        source: the prompt whose activations are put in.
        places: (position in the base, position in the source), both from 0 over the real tokens.
    """

    base: Encoded
    source: Encoded
    places: tuple[tuple[int, int], ...]


def encode(prompt: Prompt, tokenizer: PreTrainedTokenizerBase | None, device: torch.device) -> Encoded:
    """Encode one prompt.

    Args:
        prompt: text, or token tensors of batch 1 (`input_ids` and what goes with them).
        tokenizer: needed for text; with token tensors it only gives the tokens their texts.
        device: where the model is.

    Raises:
        SpecError: there is text but no tokenizer, no `input_ids`, several prompts, or no token.
    """
    if isinstance(prompt, str):
        if tokenizer is None:
            raise SpecError(f"the prompt {prompt!r} is a text: give tokenizer=...")
        given: Mapping[str, Any] = tokenizer(prompt, return_tensors="pt")
    else:
        given = prompt
    inputs = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in given.items()}
    if not isinstance(inputs.get("input_ids"), Tensor) or inputs["input_ids"].ndim != 2:
        raise SpecError(
            f"a prompt is a text, or a dict with input_ids of shape (1, tokens); found the keys {sorted(inputs)}"
        )
    if batch_size(inputs) != 1:
        raise SpecError(f"grid compares one pair of prompts at a time; found a batch of {batch_size(inputs)}")
    spans = real_spans(inputs)
    start, end = spans[0] if spans else (0, inputs["input_ids"].shape[1])
    if start == end:
        raise SpecError("a prompt has no token")
    ids = tuple(int(i) for i in inputs["input_ids"][0, start:end])
    tokens = tuple(token_text(i, tokenizer) for i in ids)
    text = prompt if isinstance(prompt, str) else "".join(tokens) if tokenizer is not None else " ".join(tokens)
    return Encoded(inputs, text, ids, tokens, start)


def token_text(token: int, tokenizer: PreTrainedTokenizerBase | None) -> str:
    """Return the text of one token, with its leading space; without a tokenizer its number."""
    if tokenizer is None:
        return str(token)
    text = str(tokenizer.decode([token]))
    piece = str(tokenizer.convert_ids_to_tokens(token))
    return " " + text if piece.startswith("\N{LOWER ONE EIGHTH BLOCK}") and not text.startswith(" ") else text


def pair_up(base: Encoded, source: Encoded, positions: Which, last: int | None) -> Pair:
    """Say which places of the two prompts answer to each other.

    Args:
        base: the prompt whose run is edited.
        source: the prompt whose activations are put in.
        positions: positions of the base, from 0, negative ones from its end; or `"all"`.
        last: compare the last so many tokens, aligned from the end; `None`: the prompts are of equal length.

    Raises:
        PositionError: the prompts are of unequal length and `last` is not given, or a position does not exist.
        SpecError: `last` is not a number from 1.
    """
    lengths = len(base.ids), len(source.ids)
    if last is None and lengths[0] != lengths[1]:
        raise PositionError(
            f"the base has {lengths[0]} tokens, the source {lengths[1]}, so positions do not answer to each other: "
            f"reword one of the prompts, or compare the last N tokens, aligned from the end: last=N, at most "
            f"{min(lengths)} (base {list(base.tokens)}, source {list(source.tokens)})"
        )
    if last is not None and last < 1:
        raise SpecError(f"last={last}: compare at least the last token, last=1")
    if last is not None and last > min(lengths):
        raise PositionError(f"last={last}, but the prompts have {lengths[0]} and {lengths[1]} tokens")
    first = 0 if last is None else lengths[0] - last
    wanted = indices(positions, lengths[0], "position", f"the base has {lengths[0]} tokens: {list(base.tokens)}")
    early = [position for position in wanted if position < first]
    if early and positions != "all":
        raise PositionError(
            f"position {early[0]} is not among the last {last} tokens of the base, {first} to {lengths[0] - 1}"
        )
    shift = lengths[1] - lengths[0]
    return Pair(base, source, tuple((position, position + shift) for position in wanted if position >= first))


def indices(which: Which, count: int, what: str, found: str) -> list[int]:
    """Return the chosen numbers below `count`, negative ones counted from the end, each once, in their order.

    Raises:
        PositionError: one does not exist; `found` says what there is.
        SpecError: none is chosen, or it is neither numbers nor `"all"`.

    >>> indices([0, -1, 0], 5, "position", "")
    [0, 4]
    """
    if isinstance(which, str):
        if which != "all":
            raise SpecError(f"{what}s are numbers or 'all'; found {which!r}")
        return list(range(count))
    chosen = []
    for number in which:
        if not -count <= number < count:
            raise PositionError(f"{what} {number} does not exist: {found} (0 to {count - 1})")
        chosen.append(int(number) % count)
    if not chosen:
        raise SpecError(f"no {what} is chosen; give numbers or 'all'")
    return list(dict.fromkeys(chosen))
