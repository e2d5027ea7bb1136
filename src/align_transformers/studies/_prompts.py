"""Base and source prompts side by side: their tokens, and which place of the one answers to which of the other."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .._errors import PositionError, SpecError
from ..engine import real_spans
from ..models.devices import input_device
from ..models.padding import check_counted, left_padding, with_positions
from ..models.sequence import check_tokens
from ..sites import Site

Prompt = Annotated[str | Sequence[str] | Mapping[str, Any], "Tokens go into a dict: {'input_ids': tensor}"]
Which = Sequence[int] | Literal["all"]
WhichPlaces = Annotated[Which, "Where a piece of text stands, `where` tells"]
Place = tuple[int, int]
"""A position in the base and one in the source, both from 0 over the real tokens."""


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

    def columns(self, position: int | Sequence[int]) -> tuple[int, ...]:
        """Return the column of one position of every prompt.

        Args:
            position: from 0 over the real tokens, negative ones from the end; or one for each prompt.

        Raises:
            SpecError: the positions are not as many as the prompts, or may be meant as columns.
            PositionError: a prompt has no such position.
        """
        each = [position] * len(self) if isinstance(position, int) else list(position)
        if len(each) != len(self):
            raise SpecError(f"at names {len(each)} positions, but there are {len(self)} prompts")
        self.check_counted(each)
        chosen = zip(each, self.texts, self.starts, strict=True)
        return tuple(s + indices([p], len(t), "position", f"a prompt has {len(t)} tokens")[0] for p, t, s in chosen)


@dataclass(frozen=True, eq=False)
class Prompts:
    """Prompts as the model gets them.

    Args:
        inputs: the model's keyword arguments, an example a prompt.
        texts: the prompts in words.
        sequences: the tokens by stack: of an encoder-decoder the `encoder`'s and the `decoder`'s, of other models one.
    """

    inputs: Mapping[str, Any]
    texts: tuple[str, ...]
    sequences: Mapping[str, Tokens]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def length(self) -> int:
        """Columns of the padded batch, of all sequences."""
        return sum(tokens.length for tokens in self.sequences.values())

    def tokens(self, stack: str) -> Tokens:
        """Return the sequence that a stack works on; of `""` that of the logits."""
        found = self.sequences.get(stack)
        return list(self.sequences.values())[-1] if found is None else found


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of prompts and the places to compare.

    Args:
        base: the prompts whose runs are edited, or read by those of the sources.
        source: as many.
        positions: of the base, from 0, negative ones from its end; `"all"` or `None` for all of them.
        last: compare the last so many tokens, aligned from the end; `None`: the prompts of a pair are of equal length.
    """

    base: Prompts
    source: Prompts
    positions: Which | None
    last: int | None

    def __len__(self) -> int:
        return len(self.base)

    def sides(self, site: Site) -> tuple[Tokens, Tokens]:
        """Return the base's tokens and the source's in the sequence that positions count in at a site."""
        return self.base.tokens(site.sequence), self.source.tokens(site.sequence)

    def places(self, site: Site) -> tuple[tuple[Place, ...], ...]:
        """Return of each pair the places that are compared at a site, those that it has.

        Raises:
            PositionError: the prompts of a pair are of unequal length and `last` is not given, or no base has a
                position.
        """
        return _places(*self.sides(site), self.positions, self.last)


def encode(prompts: Prompt, tokenizer: PreTrainedTokenizerBase | None, model: nn.Module) -> Prompts:
    """Encode prompts as one batch on the model's device.

    Texts of unequal lengths are padded: on the left, where a model that generates takes `position_ids`
    (what follows a position is then as short as can be), otherwise on the right. What is padded on the left gets
    `position_ids`, if it has none and the model needs them. A text is what an encoder-decoder's encoder gets; its
    decoder gets the token that begins an answer, if nothing else is said.

    Args:
        prompts: one text or several, or token tensors (`input_ids` and what goes with them).
        tokenizer: needed for texts; with token tensors it only gives the tokens their texts.
        model: that will get them.

    Raises:
        SpecError: there is text but no tokenizer, no `input_ids`, a prompt without a token, or it is not known what
            the decoder of an encoder-decoder begins with.
    """
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
    return Prompts(inputs, tuple(said), sequences)


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
    generates = isinstance(model, PreTrainedModel) and model.can_generate()
    return generates and "position_ids" in inspect.signature(model.forward).parameters


def token_text(token: int, tokenizer: PreTrainedTokenizerBase | None) -> str:
    """Return the text of one token, with its leading space; without a tokenizer its number."""
    if tokenizer is None:
        return str(token)
    text = str(tokenizer.decode([token]))
    piece = str(tokenizer.convert_ids_to_tokens(token))
    return " " + text if piece.startswith("\N{LOWER ONE EIGHTH BLOCK}") and not text.startswith(" ") else text


def pair_up(base: Prompts, source: Prompts, positions: Which | None, last: int | None) -> Pairs:
    """Put prompts side by side.

    Args:
        base: the prompts on the one side.
        source: those on the other, as many.
        positions: as `Pairs` has them.
        last: likewise.

    Raises:
        SpecError: there are not as many bases as sources, or `last` is not a number from 1.
    """
    if len(base) != len(source):
        raise SpecError(f"there are {len(base)} bases, but {len(source)} sources: give a source for each base")
    if last is not None and last < 1:
        raise SpecError(f"last={last}: compare at least the last token, last=1")
    return Pairs(base, source, positions, last)


def _places(base: Tokens, source: Tokens, positions: Which | None, last: int | None) -> tuple[tuple[Place, ...], ...]:
    """Say which places of the prompts answer to each other.

    Of several pairs, those are left out whose base has no such position (or not among the last ones).
    """
    for number in range(len(base)):
        _check_lengths(base, source, number, last)
    base.check_counted([] if positions is None or isinstance(positions, str) else positions)
    lengths = [len(ids) for ids in base.ids]
    wanted = "all" if positions is None else positions
    places = []
    for number, length in enumerate(lengths):
        first, shift = 0 if last is None else length - last, len(source.ids[number]) - length
        chosen = wanted
        if not isinstance(wanted, str):
            chosen = [p for p in wanted if length == max(lengths) or -length <= p < length]
        found = f"the base has {length} tokens: {list(base.texts[number])}"
        numbers = indices(chosen, length, "position", found) if chosen or not wanted else []
        early = [position for position in numbers if position < first]
        if early and wanted != "all" and len(base) == 1:
            raise PositionError(
                f"position {early[0]} is not among the last {last} tokens of the base, {first} to {length - 1}"
            )
        places.append(tuple((position, position + shift) for position in numbers if position >= first))
    if not any(places):
        raise PositionError(f"positions {list(wanted)} are not among the last {last} tokens of any base")
    return tuple(places)


def _check_lengths(base: Tokens, source: Tokens, number: int, last: int | None) -> None:
    """Refuse a pair whose places do not answer to each other."""
    lengths = len(base.ids[number]), len(source.ids[number])
    which = f"pair {number}: " if len(base) > 1 else ""
    if last is None and lengths[0] != lengths[1]:
        raise PositionError(
            f"{which}the base has {lengths[0]} tokens, the source {lengths[1]}, so positions do not answer to each "
            "other: reword one of the prompts, or compare the last N tokens, aligned from the end: last=N, at most "
            f"{min(lengths)} (base {list(base.texts[number])}, source {list(source.texts[number])})"
        )
    if last is not None and last > min(lengths):
        raise PositionError(f"{which}last={last}, but the prompts have {lengths[0]} and {lengths[1]} tokens")


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
