"""Places named by the text that stands there: found example by example, through the tokenizer's offsets."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import TYPE_CHECKING, Any, Literal

from ._checked import checked, checked_class
from ._errors import PositionError, SpecError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WhichToken = Literal["all", "first", "last"]
Offsets = Sequence[tuple[int, int]]
"""For each token of a text its first character, and one past the last; equal where it stands for none."""

_FIELD = re.compile(r"\{(\w+)\}")


@checked_class
@dataclass(frozen=True)
class Anchor:
    """A piece of text, and which of its tokens are meant; written with `at`, `first_token` or `last_token`.

    Args:
        text: the piece; `{name}` in it stands for the example's field of that name. Or `(first, end)`, characters.
        which: all of its tokens, the first, or the last.
        occurrence: which of several such pieces, from 1; -1 is the last. `None`: there has to be only one.

    Raises:
        SpecError: there is no text, or another argument makes no sense.

    >>> Anchor("Spain", "last").tokens("Spain is", [(0, 2), (2, 5), (6, 8)])
    (1,)
    """

    text: str | tuple[int, int]
    which: WhichToken = "all"
    occurrence: int | None = None

    def __post_init__(self) -> None:
        if self.occurrence == 0 or isinstance(self.occurrence, bool):
            raise SpecError(f"occurrence counts from 1, or from the end with -1; found {self.occurrence!r}")
        if not self.text:
            raise SpecError("an anchor is a piece of text; this one is empty")

    def __str__(self) -> str:
        return repr(self.text) if isinstance(self.text, str) else f"characters {self.text[0]} to {self.text[1]}"

    def tokens(self, text: str, offsets: Offsets, fields: Mapping[str, Any] | None = None) -> tuple[int, ...]:
        """Return the numbers of the tokens that are meant, from 0 over the tokens of the text.

        Args:
            text: of the example.
            offsets: of its tokens.
            fields: what `{name}` stands for in this example.

        Raises:
            PositionError: the piece is not there, is there several times, or shares a token with what stands beside it.
            SpecError: the example has no such field.

        >>> at("capital").tokens("The capital of", [(0, 3), (4, 7), (7, 11), (12, 14)])  # The, cap, ital, of
        (1, 2)
        """
        begin, end = self._span(text, fields or {})
        inside = [number for number, (first, last) in enumerate(offsets) if max(first, begin) < min(last, end)]
        if not inside:
            raise PositionError(f"no token stands for {text[begin:end]!r} in {text!r}")
        for number, beside in (
            (inside[0], slice(offsets[inside[0]][0], begin)),
            (inside[-1], slice(end, offsets[inside[-1]][1])),
        ):
            if text[beside].strip():
                first, last = offsets[number]
                raise PositionError(
                    f"{text[begin:end]!r} shares the token {text[first:last]!r} with what stands beside it in "
                    f"{text!r}: name a piece that begins and ends where tokens do"
                )
        return {"all": tuple(inside), "first": (inside[0],), "last": (inside[-1],)}[self.which]

    def _span(self, text: str, fields: Mapping[str, Any]) -> tuple[int, int]:
        """Return the first character of the piece, and one past the last."""
        if not isinstance(self.text, str):
            begin, end, _ = slice(*self.text).indices(len(text))
            return begin, end
        piece = _FIELD.sub(lambda found: _field(found[1], fields), self.text)
        found = list(_spans(piece, text))
        if not found:
            raise PositionError(f"{piece!r} is not in {text!r}")
        if self.occurrence is None and len(found) > 1:
            raise PositionError(
                f"{piece!r} is {len(found)} times in {text!r}: {'; '.join(_around(text, span) for span in found)}. Say "
                "which: occurrence=1 is the first, -1 the last"
            )
        number = self.occurrence or 1
        if abs(number) > len(found):
            raise PositionError(
                f"occurrence={number} of {piece!r}, which is {len(found)} times in {text!r}: "
                f"{'; '.join(_around(text, span) for span in found)}"
            )
        return found[number - 1 if number > 0 else number]


class TokenNumber(int):
    """The number of a token that nobody could have meant as a column of a padded batch."""


class FoundPlaces(list[list[int]]):
    """For each prompt where in it a piece of text stands: what `where` tells.

    Args:
        rows: for each prompt its positions.
        shifts: for each prompt the column of its first token, if positions are columns; `None`: they count tokens.
    """

    def __init__(self, rows: Sequence[Sequence[int]], shifts: Sequence[int] | None = None) -> None:
        super().__init__(map(list, rows))
        self.shifts = None if shifts is None else tuple(shifts)

    def tokens(self) -> list[list[int]]:
        """Return the numbers of the tokens, from 0."""
        shifts = self.shifts or [0] * len(self)
        return [[TokenNumber(one - shift) for one in row] for row, shift in zip(self, shifts, strict=True)]

    def columns(self, starts: Sequence[int]) -> list[list[int]]:
        """Return the columns in a batch.

        Args:
            starts: for each prompt the column of its first token there; a single prompt may stand for all of them.
        """
        if len(self) == 1:
            starts = starts[:1]
        if self.shifts is not None or len(starts) != len(self):
            return list(self)
        return [[one + start for one in row] for row, start in zip(self, starts, strict=True)]


Spot = int | Literal["last"] | Anchor
"""One place of a prompt, or the tokens of a piece of its text: a number, from the end if negative, or an anchor."""
Spots = Literal["all"] | Spot | Sequence[Spot] | Sequence[Sequence[Spot]]
"""Several, for all prompts or a list for each; `"all"` tokens."""
TextTeller = Callable[[], tuple[str, Offsets]]
"""Tells the text of a prompt, and where in it its tokens stand."""


@checked
def at(text: str | slice, *, occurrence: int | None = None) -> Anchor:
    """Return the places of all tokens of a piece of text.

    Args:
        text: the piece; `{name}` in it stands for the example's field of that name. Or a slice of characters.
        occurrence: which of several such pieces, from 1; -1 is the last. Default: there has to be only one.

    Raises:
        SpecError: it is something else.

    >>> at("{country}", occurrence=2)
    Anchor(text='{country}', which='all', occurrence=2)
    """
    return Anchor(_piece(text), "all", occurrence)


@checked
def first_token(text: str | slice, *, occurrence: int | None = None) -> Anchor:
    """Return the place of the first token of a piece of text.

    Args:
        text: as for `at`.
        occurrence: as for `at`.

    Raises:
        SpecError: it is something else.

    >>> first_token("capital").tokens("The capital of", [(0, 3), (4, 7), (7, 11), (12, 14)])  # The, cap, ital, of
    (1,)
    """
    return Anchor(_piece(text), "first", occurrence)


@checked
def last_token(text: str | slice, *, occurrence: int | None = None) -> Anchor:
    """Return the place of the last token of a piece of text.

    Args:
        text: as for `at`.
        occurrence: as for `at`.

    Raises:
        SpecError: it is something else.

    >>> last_token("capital").tokens("The capital of", [(0, 3), (4, 7), (7, 11), (12, 14)])  # The, cap, ital, of
    (2,)
    """
    return Anchor(_piece(text), "last", occurrence)


@checked
def where(
    tokenizer: PreTrainedTokenizerBase,
    prompts: str | Sequence[str],
    text: str | slice | Anchor,
    which: WhichToken = "all",
    *,
    occurrence: int | None = None,
    fields: Sequence[Mapping[str, Any]] | None = None,
    attention_mask: Any = None,
) -> FoundPlaces:
    """Return the positions of a piece of text in each prompt, as integers.

    They may be given as they are wherever positions are taken: to studies, in `unit_locations`, in batches of a fit.

    Args:
        tokenizer: a fast one, which tells where in the text its tokens stand.
        prompts: one text or several.
        text: the piece, a slice of characters, or an `Anchor`.
        which: all of its tokens, the first, or the last; an `Anchor` says so itself.
        occurrence: which of several such pieces, from 1; -1 is the last. Default: there has to be only one.
        fields: for each prompt what `{name}` stands for in the piece.
        attention_mask: `(prompts, columns)` of the padded batch: positions are its columns then. Default: they count
            the tokens of each prompt, from 0, and where they are given to a batch its padding is counted in.

    Returns:
        For each prompt a list of its positions, ascending.

    Raises:
        PositionError: a prompt, which is named, lacks the piece, has it several times, or has a token that it cuts.
        SpecError: the tokenizer tells no offsets, or an argument makes no sense.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import PreTrainedTokenizerFast
        >>> words = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
        >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
        >>> where(tokenizer, ["In Spain they speak", "They speak Spanish in Spain"], "Spain")
        [[1], [4]]
    """
    anchor = text if isinstance(text, Anchor) else Anchor(_piece(text), which, occurrence)
    listed = [prompts] if isinstance(prompts, str) else list(prompts)
    if fields is not None and len(fields) != len(listed):
        raise SpecError(f"fields has {len(fields)} entries, but there are {len(listed)} prompts")
    shifts = _shifts(attention_mask, len(listed))
    found = []
    for number, prompt in enumerate(listed):
        try:
            own = anchor.tokens(prompt, offsets_of(tokenizer, prompt), None if fields is None else fields[number])
        except (PositionError, SpecError) as error:
            raise type(error)(f"prompt {number}: {error}") from error
        found.append([place + shifts[number] for place in own])
    return FoundPlaces(found, None if attention_mask is None else shifts)


def spots_of_each(spots: Spots, count: int, what: str = "positions") -> list[Any]:
    """Return which spots are meant in each prompt: `"all"`, or a list.

    Args:
        spots: for all prompts, or a list for each.
        count: of prompts.
        what: the argument, for messages.

    Raises:
        SpecError: there is a list for some prompts only, or for another number of them; or none is named.

    >>> spots_of_each([0, "last"], 2), spots_of_each([[0], [at("Spain")]], 2)[0]
    ([[0, 'last'], [0, 'last']], [0])
    """
    if isinstance(spots, str) and spots == "all":
        return ["all"] * count
    if isinstance(spots, FoundPlaces):
        spots = spots.tokens()
    listed: list[Any] = [spots] if isinstance(spots, int | str | Anchor) else list(spots)
    own = [isinstance(one, Sequence) and not isinstance(one, str) for one in listed]
    if any(own) and not all(own):
        raise SpecError(f"{what} has lists for some prompts, and for others not: {spots!r:.80}")
    if any(own) and len(own) != count:
        raise SpecError(f"{what} names {len(own)} prompts, but there are {count}: {spots!r:.80}")
    if not listed or not all(listed if any(own) else [listed]):
        raise SpecError(f"{what}: no position is chosen; give numbers, anchors or 'all'")
    return [list(one) for one in listed] if any(own) else [listed] * count


def tokens_at(
    spot: Spot, length: int, read: TextTeller, fields: Mapping[str, Any] | None = None, has: str = "it has"
) -> tuple[int, ...]:
    """Return the numbers of the tokens at a spot of a prompt, from 0.

    Args:
        spot: which place, or piece of text.
        length: of the prompt, in tokens.
        read: tells the text, where that is needed.
        fields: as for `Anchor.tokens`.
        has: the beginning of what a message says of the prompt.

    Raises:
        PositionError: there is no such token.
        SpecError: the text cannot be told.

    >>> tokens_at("last", 4, read=lambda: ("", [])), tokens_at(-2, 4, read=lambda: ("", []))
    ((3,), (2,))
    """
    if isinstance(spot, Anchor):
        return spot.tokens(*read(), fields)
    number = -1 if spot == "last" else int(spot)
    if not -length <= number < length:
        raise PositionError(f"position {number} does not exist: {has} {length} tokens (0 to {length - 1})")
    return (number % length,)


def read_back(tokenizer: PreTrainedTokenizerBase | None, ids: Sequence[int]) -> tuple[str, Offsets]:
    """Return the text that tokens stand for, and where in it each of them does.

    Args:
        tokenizer: a fast one.
        ids: the real tokens of one example, special ones included.

    Raises:
        SpecError: there is no tokenizer, or the text is not made of these tokens again.
    """
    if tokenizer is None:
        raise SpecError("where a piece of text stands is told by the tokenizer: give tokenizer=..., or numbers")
    text = str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
    _check_fast(tokenizer)
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    if list(found["input_ids"]) != list(ids):
        raise SpecError(
            f"the tokens {list(ids)!r:.80} stand for {text!r:.80}, but that text is made of other tokens, so places in "
            "it cannot be told: give the prompts as texts, or positions as numbers (of a text `where` tells them)"
        )
    return text, [(index(first), index(end)) for first, end in found["offset_mapping"]]


def offsets_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[tuple[int, int]]:
    """Return where in a text each of its tokens stands, special ones included.

    Raises:
        SpecError: the tokenizer does not tell.
    """
    _check_fast(tokenizer)
    return [(index(first), index(end)) for first, end in tokenizer(text, return_offsets_mapping=True)["offset_mapping"]]


def _check_fast(tokenizer: PreTrainedTokenizerBase) -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise SpecError(
            f"{type(tokenizer).__name__} does not tell where in a text its tokens stand: use the fast tokenizer, or "
            "give positions as integers"
        )


def _piece(text: Any) -> str | tuple[int, int]:
    if isinstance(text, slice) and text.step is None:
        end = text.stop
        return (text.start or 0, 2**31 - 1 if end is None else end)
    if not isinstance(text, str):
        raise SpecError(f"an anchor is a piece of text or a slice of characters; found {text!r}")
    return text


def _field(name: str, fields: Mapping[str, Any]) -> str:
    if name not in fields:
        raise SpecError(f"the example has no field {name!r}; it has {sorted(map(str, fields)) or 'none'}")
    return str(fields[name])


def _spans(piece: str, text: str) -> Iterator[tuple[int, int]]:
    begin = text.find(piece)
    while begin >= 0:
        yield begin, begin + len(piece)
        begin = text.find(piece, begin + 1)


def _around(text: str, span: tuple[int, int]) -> str:
    """Return a span with a little of what stands around it."""
    begin, end = max(0, span[0] - 12), min(len(text), span[1] + 12)
    before, behind = "…" * (begin > 0), "…" * (end < len(text))
    return f"{before}{text[begin : span[0]]}[{text[slice(*span)]}]{text[span[1] : end]}{behind}"


def _shifts(attention_mask: Any, count: int) -> list[int]:
    """Return for each prompt the column of its first token."""
    if attention_mask is None:
        return [0] * count
    rows = attention_mask.tolist() if hasattr(attention_mask, "tolist") else attention_mask
    if not isinstance(rows, list | tuple) or not all(isinstance(row, list | tuple) for row in rows):
        raise SpecError(f"attention_mask is (prompts, columns); found {attention_mask!r:.80}")
    if len(rows) != count or not all(any(row) for row in rows):
        raise SpecError(f"attention_mask has {len(rows)} rows for {count} prompts, or one without a token")
    return [next(column for column, real in enumerate(row) if real) for row in rows]
