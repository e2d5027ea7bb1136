"""Prompts as the model gets them: their tokens, texts and columns, and where in them a spot is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from .._errors import PositionError, SpecError
from ..anchors import Anchor, Offsets, Spot, TokenNumber, offsets_of, read_back, tokens_at
from ..engine import real_spans
from ..models.arguments import forward_parameters
from ..models.devices import input_device
from ..models.padding import check_counted, left_padding, with_positions
from ..models.sequence import check_tokens
from ._data import Fields, Given, read_data

Which = Sequence[int] | Literal["all"]
ReadAt = Spot | Sequence[Spot]
"""Where logits are read: one place, for all prompts or for each."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens of one sequence of every prompt.

    Args:
        ids: the real tokens.
        texts: the texts of these.
        starts: for each prompt the column of its first real token (not 0 under left padding).
        length: columns of the padded batch.
        given: the columns are those of tensors that the caller made.
    """

    ids: tuple[tuple[int, ...], ...]
    texts: tuple[tuple[str, ...], ...]
    starts: tuple[int, ...]
    length: int
    given: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    def check_counted(self, numbers: Iterable[int]) -> None:
        """Refuse numbers of tokens that might as well be columns of the caller's tensors.

        Raises:
            SpecError: these are padded on the left, and a number counts from 0.
        """
        if self.given:
            check_counted(((start, self.length) for start in self.starts), numbers)


@dataclass(frozen=True, eq=False)
class Prompts:
    """Prompts as the model gets them.

    Args:
        inputs: the model's keyword arguments, an example a prompt.
        texts: the prompts in words.
        sequences: the tokens by stack: of an encoder-decoder the `encoder`'s and the `decoder`'s, of other models one.
        tokenizer: tells where a piece of text stands.
        called: what one of them is called in messages.
        fields: of each prompt, what `{name}` in an anchor stands for; empty where nothing is known.
        answers: for each prompt the token in the data's column of answers; `None` where there is none.
    """

    inputs: Mapping[str, Any]
    texts: tuple[str, ...]
    sequences: Mapping[str, Tokens]
    tokenizer: PreTrainedTokenizerBase | None = None
    called: str = "prompt"
    fields: Sequence[Fields] = ()
    answers: Sequence[int | str] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def tokens(self, stack: str) -> Tokens:
        """Return the sequence that a stack works on; of `""` that of the logits."""
        found = self.sequences.get(stack)
        return list(self.sequences.values())[-1] if found is None else found

    def at(self, stack: str, number: int, spot: Spot) -> tuple[int, ...]:
        """Return the numbers of the tokens at a spot of one prompt, from 0 over the real tokens of a stack's sequence.

        Raises:
            PositionError: it is not there.
            SpecError: a number may be meant as a column, or where a text stands cannot be told.
        """
        tokens, fields = self.tokens(stack), self.fields[number] if self.fields else None
        if isinstance(spot, int) and not isinstance(spot, TokenNumber):
            tokens.check_counted([spot])
        try:
            return tokens_at(
                spot, len(tokens.ids[number]), lambda: self._read(tokens, number), fields, f"the {self.called} has"
            )
        except (PositionError, SpecError) as error:
            raise type(error)(f"{self.called} {number}: {error}") from error

    def columns(self, at: ReadAt) -> tuple[int, ...]:
        """Return the column of every prompt at which logits are read.

        Raises:
            SpecError: there are not as many places as prompts, one has several tokens, or may be meant as a column.
            PositionError: a prompt has no such place.
        """
        each: list[Spot] = [at] * len(self) if isinstance(at, int | str | Anchor) else list(at)
        if len(each) != len(self):
            raise SpecError(f"at names {len(each)} positions, but there are {len(self)} prompts")
        tokens, found = self.tokens(""), []
        for number, spot in enumerate(each):
            places = self.at("", number, spot)
            if len(places) > 1:
                said = self.said("", number, places)
                raise SpecError(
                    f"{self.called} {number}: at={spot} is {len(places)} tokens, {said!r}, and logits are read at one: "
                    "write first_token(...) or last_token(...)"
                )
            found.append(tokens.starts[number] + places[0])
        return tuple(found)

    def said(self, stack: str, number: int, places: Iterable[int]) -> str:
        """Return the text of some tokens of a prompt."""
        texts = self.tokens(stack).texts[number]
        return ("" if self.tokenizer is not None else " ").join(texts[place] for place in places)

    def _read(self, tokens: Tokens, number: int) -> tuple[str, Offsets]:
        """Return the text of one prompt, and where in it each of its tokens stands."""
        if tokens.given or self.tokenizer is None or tokens is not next(iter(self.sequences.values())):
            return read_back(self.tokenizer, tokens.ids[number])
        return self.texts[number], offsets_of(self.tokenizer, self.texts[number])


def encode(
    prompts: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    model: nn.Module,
    columns: Mapping[str, str] | None = None,
) -> Prompts:
    """Encode prompts as one batch on the model's device.

    Args:
        prompts: one text or several, token tensors, or data with columns.
        tokenizer: needed for texts; with token tensors it only gives the tokens their texts.
        model: that will get them.
        columns: what columns are called.

    Raises:
        SpecError: as for `encoded` and `read_data`, or there are pairs.
    """
    given = read_data(prompts, None, columns, "prompts")
    if given.source is not None and not given.fields:
        raise SpecError("prompts are texts, and these are pairs: give the texts of one side")
    return encoded(given, "base", tokenizer, model, "prompt")


def encoded(
    given: Given, side: str, tokenizer: PreTrainedTokenizerBase | None, model: nn.Module, called: str
) -> Prompts:
    """Encode one side of what was given.

    Texts of unequal lengths are padded: on the left, where a model that generates takes `position_ids`
    (what follows a position is then as short as can be), otherwise on the right. What is padded on the left gets
    `position_ids`, if it has none and the model needs them. A text is what an encoder-decoder's encoder gets; its
    decoder gets the token that begins an answer, if nothing else is said.

    Args:
        given: one text or several, or token tensors (`input_ids` and what goes with them).
        side: `base` or `source`.
        tokenizer: as for `encode`.
        model: that will get them.
        called: what one of them is called in messages.

    Raises:
        SpecError: there is text but no tokenizer, no `input_ids`, a prompt without a token, or it is not known what
            the decoder of an encoder-decoder begins with.
    """
    prompts = getattr(given, side)
    texts = None if isinstance(prompts, Mapping) else [prompts] if isinstance(prompts, str) else list(prompts)
    left = texts is not None and _counts_from_the_mask(model)
    check_tokens(model, prompts, "the prompts")
    inputs = _on_device(prompts if isinstance(prompts, Mapping) else _tokenized(texts or [], tokenizer, left), model)
    found = left_padding(model, inputs) if left else None
    if found is not None and not (found.placed or found.harmless):
        inputs = _on_device(_tokenized(texts or [], tokenizer, False), model)
    inputs = dict(with_positions(model, inputs))
    batch = inputs.get("input_ids")
    if not isinstance(batch, Tensor) or batch.ndim != 2:
        raise SpecError(
            "prompts are texts, or a dict with input_ids of shape (prompts, tokens); found the keys "
            f"{sorted(map(str, inputs))}"
        )
    stacks = [""]
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        stacks = ["encoder", "decoder"]
        inputs.setdefault("decoder_input_ids", _beginnings(model, batch))
    sequences = {stack: _sequence(inputs, stack, tokenizer, given=texts is None) for stack in stacks}
    said = texts or [("" if tokenizer is not None else " ").join(row) for row in sequences[stacks[0]].texts]
    fields, answers = given.fields.get(side, ()), given.answers.get(side)
    return Prompts(inputs, tuple(said), sequences, tokenizer, called, fields, answers)


def _on_device(inputs: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """Return an input with its tensors on a model's device."""
    device = input_device(model)
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()}


def _beginnings(model: nn.Module, prompts: Tensor) -> Tensor:
    """Return what a decoder begins an answer with, for each prompt."""
    config = getattr(model, "config", None)
    start = getattr(config, "decoder_start_token_id", None)
    start = getattr(config, "bos_token_id", None) if start is None else start
    if not isinstance(start, int):
        raise SpecError(
            f"it is not known what the decoder of {type(model).__name__} begins with (its configuration has no "
            "decoder_start_token_id): give prompts as dicts with decoder_input_ids"
        )
    return prompts.new_full((len(prompts), 1), start)


def _sequence(
    inputs: Mapping[str, Any], stack: str, tokenizer: PreTrainedTokenizerBase | None, *, given: bool
) -> Tokens:
    """Return one sequence of encoded prompts."""
    batch = inputs["decoder_input_ids" if stack == "decoder" else "input_ids"]
    spans = real_spans(inputs, stack) or [(0, batch.shape[1])] * len(batch)
    if not spans or any(start == end for start, end in spans):
        raise SpecError("a prompt has no token")
    ids = tuple(tuple(row[start:end]) for row, (start, end) in zip(batch.tolist(), spans, strict=True))
    words = {token: token_text(token, tokenizer) for row in ids for token in row}
    texts = tuple(tuple(words[token] for token in row) for row in ids)
    return Tokens(ids, texts, tuple(start for start, _ in spans), int(batch.shape[1]), given)


def _tokenized(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase | None, left: bool) -> Mapping[str, Any]:
    """Return texts as one batch, padded where their lengths differ: on the left or on the right."""
    if not texts:
        raise SpecError("there is no prompt: give at least one text")
    if tokenizer is None:
        raise SpecError(f"the prompt {texts[0]!r} is a text: give tokenizer=...")
    rows = [dict(tokenizer(text, return_tensors="pt")) for text in texts]
    lengths = [int(row["input_ids"].shape[1]) for row in rows]
    if len(rows) == 1:
        return rows[0]
    if min(lengths) == 0:
        raise SpecError("a prompt has no token")
    for row, length in zip(rows, lengths, strict=True):
        row.setdefault("attention_mask", torch.ones(1, length, dtype=torch.long))
    return {name: torch.cat(_padded([row[name] for row in rows], max(lengths), left)) for name in rows[0]}


def _padded(rows: Iterable[Tensor], length: int, left: bool) -> list[Tensor]:
    """Return rows `(1, tokens)` with zeros up to `length`; which tokens are not real is for the mask to say."""
    gaps = [(row, row.new_zeros(1, length - row.shape[1])) for row in rows]
    return [torch.cat([gap, row] if left else [row, gap], dim=1) for row, gap in gaps]


def _counts_from_the_mask(model: nn.Module) -> bool:
    """Whether a model gets prompts padded on the left as generation gives them to it: with `position_ids`."""
    generates = getattr(model, "can_generate", None)  # also of what a wrapper holds
    return callable(generates) and generates() and "position_ids" in forward_parameters(model)


def token_text(token: int, tokenizer: PreTrainedTokenizerBase | None) -> str:
    """Return the text of one token, with its leading space; without a tokenizer its number."""
    if tokenizer is None:
        return str(token)
    text = str(tokenizer.decode([token]))
    piece = str(tokenizer.convert_ids_to_tokens(token))
    return " " + text if piece.startswith("\N{LOWER ONE EIGHTH BLOCK}") and not text.startswith(" ") else text


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
