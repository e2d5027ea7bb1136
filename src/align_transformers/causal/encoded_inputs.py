"""Inputs as a network takes them, each encoded once: tokens of a text, vectors, or sequences of vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .._errors import PositionError, SpecError, UnknownNameError, near_misses
from ..anchors import Offsets, Spot, offsets_of, tokens_at
from ..vocabulary import token_id
from .domain import Column
from .rendering import RenderedText, Template, rendered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Encoder = Callable[[dict[str, Any]], Any]
"""From an input to a vector, a sequence of vectors or of tokens, or a dict of these by the names of the model."""
SpotRule = Spot | Sequence[Spot]
"""Places of an input, which answer to each other in base and source."""
SEQUENCES = ("input_ids", "inputs_embeds")
"""Columns that have a sequence, and are padded."""


@dataclass(frozen=True, eq=False)
class EncodedInputs:
    """Inputs as a network takes them.

    Args:
        columns: by the model's name for each input a tensor, without a batch.
        lengths: how long each one's sequence is; 0 where there is none.
        texts: of each; empty where they are no texts.
        pad: the token that stands for none.
        side: on which side padding is, `"left"` or `"right"`.
        tokenizer: made the tokens; `None` where there are no texts.
        offsets: of each text's tokens; `None` where the tokenizer does not tell.
    """

    columns: Mapping[str, Sequence[Tensor]]
    lengths: Sequence[int]
    texts: Sequence[RenderedText]
    pad: int
    side: str
    tokenizer: PreTrainedTokenizerBase | None
    offsets: Sequence[Offsets] | None = None

    def batch(self, numbers: Sequence[int]) -> tuple[dict[str, Tensor], list[int]]:
        """Return some of them as a batch, and the column of the first real token of each.

        Args:
            numbers: which.
        """
        lengths = [self.lengths[number] for number in numbers]
        longest = max(lengths, default=0)
        starts = [longest - length if self.side == "left" else 0 for length in lengths]
        found = {}
        for name, tensors in self.columns.items():
            rows = [tensors[number] for number in numbers]
            if name not in SEQUENCES:
                found[name] = torch.stack(rows)
                continue
            fill = self.pad if name == "input_ids" else 0
            found[name] = rows[0].new_full((len(rows), longest, *rows[0].shape[1:]), fill)
            for row, start, own in zip(found[name], starts, rows, strict=True):
                row[start : start + len(own)] = own
        # Texts of one length have a mask where others are longer: an example is then the same input in every batch.
        if len(set(self.lengths if self.texts else lengths)) > 1:
            columns = torch.arange(longest)
            first = torch.tensor(starts)[:, None]
            found["attention_mask"] = ((columns >= first) & (columns < first + torch.tensor(lengths)[:, None])).long()
        return found, starts

    def places(self, spots: SpotRule, settings: Sequence[Mapping[str, Any]], what: str) -> list[tuple[int, ...]]:
        """Return for each input the numbers of the tokens at some spots, from 0.

        Args:
            spots: which places.
            settings: of each input, by name.
            what: the argument, for messages.

        Raises:
            PositionError: an input, which is named, has no such place.
            SpecError: there is no sequence, or a text cannot be told.
        """
        each: list[Any] = list(spots) if isinstance(spots, Sequence) and not isinstance(spots, str) else [spots]
        if not each or not any(self.lengths):
            raise SpecError(f"{what}: {'no place is named' if not each else 'the inputs have no sequence'}")
        found = []
        for number, (length, setting) in enumerate(zip(self.lengths, settings, strict=True)):
            text = self.texts[number] if self.texts else None
            try:
                own = [
                    tokens_at(spot if text is None else text.meant(spot), length, partial(self._read, number), setting)
                    for spot in each
                ]
            except (PositionError, SpecError) as error:
                raise type(error)(f"{what}, the input {dict(setting)}: {error}") from error
            found.append(tuple(place for places in own for place in places))
        return found

    def _read(self, number: int) -> tuple[str, Offsets]:
        if self.tokenizer is None:
            raise SpecError("where a text stands is told by a tokenizer: give template and tokenizer, or numbers")
        text = self.texts[number].text
        return text, offsets_of(self.tokenizer, text) if self.offsets is None else self.offsets[number]


def encoded_texts(
    settings: Sequence[Mapping[str, Any]], template: Template, tokenizer: PreTrainedTokenizerBase
) -> EncodedInputs:
    """Return the tokens of the texts of some inputs.

    Args:
        settings: the inputs, by name.
        template: makes their texts.
        tokenizer: makes their tokens, special ones included.

    Raises:
        SpecError: a template is none, or a text has no token.
    """
    if not callable(tokenizer) or not hasattr(tokenizer, "padding_side"):
        raise SpecError(f"tokenizer is one of transformers; found {tokenizer!r:.80}")
    texts = [rendered(template, setting) for setting in settings]
    fast = bool(getattr(tokenizer, "is_fast", False))
    told = tokenizer([one.text for one in texts], return_offsets_mapping=fast)
    found = told["input_ids"]
    if empty := [text.text for text, own in zip(texts, found, strict=True) if not own]:
        raise SpecError(f"the text {empty[0]!r} has no token")
    ids = [torch.tensor(own) for own in found]
    pad = tokenizer.pad_token_id
    return EncodedInputs(
        {"input_ids": ids}, [len(own) for own in ids], texts, 0 if pad is None else int(pad), tokenizer.padding_side,
        tokenizer, told["offset_mapping"] if fast else None,
    )  # fmt: skip


def encoded_vectors(settings: Sequence[Mapping[str, Any]], encode: Encoder) -> EncodedInputs:
    """Return what a function makes of some inputs.

    Args:
        settings: the inputs, by name.
        encode: from an input to a vector, a sequence of vectors or of whole numbers, or a dict.

    Raises:
        SpecError: it gives something else, or not the same kind for all.
    """
    rows = [_columns(encode(dict(setting)), setting) for setting in settings]
    names = list(rows[0]) if rows else []
    for row, setting in zip(rows, settings, strict=True):
        for name in {*names, *row}:
            one = row.get(name)
            first = rows[0].get(name)
            skipped = 1 if name in SEQUENCES else 0
            if one is None or first is None or one.shape[skipped:] != first.shape[skipped:] or one.dtype != first.dtype:
                raise SpecError(
                    f"encode gives for {dict(setting)} the column {name!r} {_said(one)}, and for {dict(settings[0])} "
                    f"{_said(first)}: the same kind is needed for all"
                )
    columns = {name: [row[name] for row in rows] for name in names}
    sequence = next((name for name in SEQUENCES if name in columns), None)
    lengths = [0] * len(rows) if sequence is None else [len(own) for own in columns[sequence]]
    return EncodedInputs(columns, lengths, (), 0, "right", None)


def _columns(given: Any, setting: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return what a function made of an input as tensors by name."""
    if isinstance(given, Mapping):
        columns = {str(name): _tensor(of, setting) for name, of in given.items()}
        for name in SEQUENCES:
            if name in columns and columns[name].ndim != 1 + (name == "inputs_embeds"):
                shape = "(n, d)" if name == "inputs_embeds" else "(n,)"
                raise SpecError(
                    f"encode gives for {dict(setting)} the column {name!r} {_said(columns[name])}; it is {shape}, "
                    "without a batch"
                )
        return columns
    found = _tensor(given, setting)
    if not found.is_floating_point():
        if found.ndim != 1:
            raise SpecError(
                f"encode gives for {dict(setting)} whole numbers of shape {tuple(found.shape)}; tokens are (n,)"
            )
        return {"input_ids": found.long()}
    if found.ndim not in (1, 2):
        raise SpecError(
            f"encode gives for {dict(setting)} the shape {tuple(found.shape)}: (d,), or (n, d) of a sequence"
        )
    return {"inputs_embeds": found if found.ndim == 2 else found[None]}


def _tensor(given: Any, setting: Mapping[str, Any]) -> Tensor:
    try:
        found = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise SpecError(f"encode gives for {dict(setting)} {given!r:.80}, no numbers: {error}") from error
    return found.float() if found.dtype == torch.float64 and not isinstance(given, Tensor) else found


def _said(tensor: Tensor | None) -> str:
    return "not at all" if tensor is None else f"of shape {tuple(tensor.shape)} and {tensor.dtype}"


Labeller = str | Callable[[Any], Any]
"""`" {label}"`, or a function from a value to the text of a token, or to a whole number."""


def label_numbers(
    values: Column,
    output: str,
    label: Labeller | None,
    listed: Any,
    tokenizer: PreTrainedTokenizerBase | None,
) -> Tensor:
    """Return the token or class of each value, `(n,)`.

    Args:
        values: of the variable that labels are of.
        output: its name.
        label: how a value is written; default, where there is a tokenizer: `" {label}"` for words, else `"{label}"`.
        listed: what the variable may be, in order, if that is listed.
        tokenizer: makes tokens of texts.

    Raises:
        SpecError: a text is not one token; or it is not said which class a value is.
    """
    known: dict[Any, int] = {}
    numbers = []
    for value in values.tolist():
        if value not in known:
            known[value] = _label(value, output, label, listed, tokenizer)
        numbers.append(known[value])
    return torch.tensor(numbers, dtype=torch.long)


def _label(
    value: Any, output: str, label: Labeller | None, listed: Any, tokenizer: PreTrainedTokenizerBase | None
) -> int:
    if label is None and tokenizer is None:
        if isinstance(value, int | np.integer):
            return int(value)
        if not isinstance(listed, tuple):
            raise SpecError(f"which class {value!r} is, is not known: give label=, a function from a value to a number")
        return listed.index(value)
    said = label if label is not None else " {label}" if isinstance(value, str) else "{label}"
    written = rendered(said, {"label": value, output: value}, "label").text if isinstance(said, str) else said(value)
    if isinstance(written, str) or (isinstance(written, int | np.integer) and not isinstance(written, bool)):
        try:
            return token_id(written if isinstance(written, str) else int(written), tokenizer)
        except SpecError as error:
            raise SpecError(f"the label of {output!r} = {value!r}: {error}") from error
    raise SpecError(f"label gives for {value!r} the text of a token, or a whole number; found {written!r:.80}")


def check_names(named: Mapping[str, Any], variables: Sequence[str], what: str) -> None:
    """Refuse what is not said of each variable.

    Raises:
        UnknownNameError: there is no such variable.
        SpecError: one is missing.
    """
    for name in named:
        if name not in variables:
            raise UnknownNameError(f"{what} tells of {name!r}; {near_misses(name, variables)}")
    if missing := [name for name in variables if name not in named]:
        raise SpecError(f"{what} tells nothing of {', '.join(missing)}")
