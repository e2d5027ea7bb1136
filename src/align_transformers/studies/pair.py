"""Base and source prompts side by side: their tokens, and which place of the one answers to which of the other."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .._errors import PositionError, SpecError
from ..engine import real_spans

Prompt = str | Sequence[str] | Mapping[str, Any]
Which = Sequence[int] | Literal["all"]
Place = tuple[int, int]
"""A position in the base and one in the source, both from 0 over the real tokens."""


@dataclass(frozen=True, eq=False)
class Prompts:
    """Prompts as the model gets them.

    Args:
        inputs: the model's keyword arguments, an example a prompt.
        texts: the prompts in words.
        ids: their real tokens.
        tokens: the texts of these.
        starts: for each prompt the column of its first real token (not 0 under left padding).
    """

    inputs: Mapping[str, Any]
    texts: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    tokens: tuple[tuple[str, ...], ...]
    starts: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def length(self) -> int:
        """Columns of the padded batch."""
        return int(self.inputs["input_ids"].shape[1])

    def columns(self, position: int | Sequence[int]) -> tuple[int, ...]:
        """Return the column of one position of every prompt.

        Args:
            position: from 0 over the real tokens, negative ones from the end; or one for each prompt.

        Raises:
            SpecError: the positions are not as many as the prompts.
            PositionError: a prompt has no such position.
        """
        each = [position] * len(self) if isinstance(position, int) else list(position)
        if len(each) != len(self):
            raise SpecError(f"at names {len(each)} positions, but there are {len(self)} prompts")
        chosen = zip(each, self.tokens, self.starts, strict=True)
        return tuple(s + indices([p], len(t), "position", f"a prompt has {len(t)} tokens")[0] for p, t, s in chosen)


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of prompts and the places to compare.

    Args:
        base: the prompts whose runs are edited, or read by those of the sources.
        source: as many.
        places: of each pair; those that it has.
    """

    base: Prompts
    source: Prompts
    places: tuple[tuple[Place, ...], ...]

    def __len__(self) -> int:
        return len(self.base)


def encode(prompts: Prompt, tokenizer: PreTrainedTokenizerBase | None, model: nn.Module) -> Prompts:
    """Encode prompts as one batch on the model's device.

    Texts of unequal lengths are padded: on the left, with `position_ids`, where a model that generates takes these
    (what follows a position is then as short as can be), otherwise on the right.

    Args:
        prompts: one text or several, or token tensors (`input_ids` and what goes with them).
        tokenizer: needed for texts; with token tensors it only gives the tokens their texts.
        model: that will get them.

    Raises:
        SpecError: there is text but no tokenizer, no `input_ids`, a prompt without a token, or the model is an
            encoder-decoder.
    """
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise SpecError(
            f"{type(model).__name__} is an encoder-decoder, whose positions count in two sequences: grid sweeps models "
            "with one sequence; build a Plan for it, or use IntervenableModel"
        )
    texts = None if isinstance(prompts, Mapping) else [prompts] if isinstance(prompts, str) else list(prompts)
    given = prompts if isinstance(prompts, Mapping) else _tokenized(texts or [], tokenizer, model)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    inputs = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in given.items()}
    batch = inputs.get("input_ids")
    if not isinstance(batch, Tensor) or batch.ndim != 2:
        raise SpecError(
            "prompts are texts, or a dict with input_ids of shape (prompts, tokens); found the keys "
            f"{sorted(map(str, inputs))}"
        )
    spans = real_spans(inputs) or [(0, batch.shape[1])] * len(batch)
    if not spans or any(start == end for start, end in spans):
        raise SpecError("a prompt has no token")
    ids = tuple(tuple(row[start:end]) for row, (start, end) in zip(batch.tolist(), spans, strict=True))
    words = {token: token_text(token, tokenizer) for row in ids for token in row}
    tokens = tuple(tuple(words[token] for token in row) for row in ids)
    said = texts or [("" if tokenizer is not None else " ").join(row) for row in tokens]
    return Prompts(inputs, tuple(said), ids, tokens, tuple(start for start, _ in spans))


def _tokenized(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase | None, model: nn.Module) -> Mapping[str, Any]:
    """Return texts as one batch, padded where their lengths differ."""
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
    left = isinstance(model, PreTrainedModel) and model.can_generate() and _takes_position_ids(model)
    for row, length in zip(rows, lengths, strict=True):
        row.setdefault("attention_mask", torch.ones(1, length, dtype=torch.long))
    batch = {name: torch.cat(_padded([row[name] for row in rows], max(lengths), left)) for name in rows[0]}
    if left and min(lengths) < max(lengths):
        batch["position_ids"] = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    return batch


def _padded(rows: Iterable[Tensor], length: int, left: bool) -> list[Tensor]:
    """Return rows `(1, tokens)` with zeros up to `length`; which tokens are not real is for the mask to say."""
    gaps = [(row, row.new_zeros(1, length - row.shape[1])) for row in rows]
    return [torch.cat([gap, row] if left else [row, gap], dim=1) for row, gap in gaps]


def _takes_position_ids(model: nn.Module) -> bool:
    return "position_ids" in inspect.signature(model.forward).parameters


def token_text(token: int, tokenizer: PreTrainedTokenizerBase | None) -> str:
    """Return the text of one token, with its leading space; without a tokenizer its number."""
    if tokenizer is None:
        return str(token)
    text = str(tokenizer.decode([token]))
    piece = str(tokenizer.convert_ids_to_tokens(token))
    return " " + text if piece.startswith("\N{LOWER ONE EIGHTH BLOCK}") and not text.startswith(" ") else text


def pair_up(base: Prompts, source: Prompts, positions: Which | None, last: int | None) -> Pairs:
    """Say which places of the prompts answer to each other.

    Args:
        base: the prompts on the one side.
        source: those on the other, as many.
        positions: positions of the base, from 0, negative ones from its end; `"all"` or `None` for all of them. Of
            several pairs, those are left out whose base has no such position (or not among the last ones).
        last: compare the last so many tokens, aligned from the end; `None`: the prompts of a pair are of equal length.

    Raises:
        PositionError: the prompts of a pair are of unequal length and `last` is not given, or no base has a position.
        SpecError: there are not as many bases as sources, or `last` is not a number from 1.
    """
    if len(base) != len(source):
        raise SpecError(f"there are {len(base)} bases, but {len(source)} sources: give a source for each base")
    if last is not None and last < 1:
        raise SpecError(f"last={last}: compare at least the last token, last=1")
    for number in range(len(base)):
        _check_lengths(base, source, number, last)
    lengths = [len(ids) for ids in base.ids]
    wanted = "all" if positions is None else positions
    places = []
    for number, length in enumerate(lengths):
        first, shift = 0 if last is None else length - last, len(source.ids[number]) - length
        chosen = wanted
        if not isinstance(wanted, str):
            chosen = [p for p in wanted if length == max(lengths) or -length <= p < length]
        found = f"the base has {length} tokens: {list(base.tokens[number])}"
        numbers = indices(chosen, length, "position", found) if chosen or not wanted else []
        early = [position for position in numbers if position < first]
        if early and wanted != "all" and len(base) == 1:
            raise PositionError(
                f"position {early[0]} is not among the last {last} tokens of the base, {first} to {length - 1}"
            )
        places.append(tuple((position, position + shift) for position in numbers if position >= first))
    if not any(places):
        raise PositionError(f"positions {list(wanted)} are not among the last {last} tokens of any base")
    return Pairs(base, source, tuple(places))


def _check_lengths(base: Prompts, source: Prompts, number: int, last: int | None) -> None:
    """Refuse a pair whose places do not answer to each other."""
    lengths = len(base.ids[number]), len(source.ids[number])
    which = f"pair {number}: " if len(base) > 1 else ""
    if last is None and lengths[0] != lengths[1]:
        raise PositionError(
            f"{which}the base has {lengths[0]} tokens, the source {lengths[1]}, so positions do not answer to each "
            "other: reword one of the prompts, or compare the last N tokens, aligned from the end: last=N, at most "
            f"{min(lengths)} (base {list(base.tokens[number])}, source {list(source.tokens[number])})"
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
