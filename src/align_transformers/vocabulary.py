"""Texts that are one token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._errors import SpecError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def token_id(token: int | str, tokenizer: PreTrainedTokenizerBase | None) -> int:
    """Return the id of `token`; a text must be exactly one token."""
    if not isinstance(token, str):
        if token < 0:
            raise SpecError(f"token id {token} is negative; ids count from 0")
        return int(token)
    if tokenizer is None:
        raise SpecError(f"token {token!r} is a text: give tokenizer=..., or the token's id")
    ids = _encode(token, tokenizer)
    if len(ids) == 1:
        return ids[0]
    raise SpecError(_not_one_token(token, ids, tokenizer))


def _encode(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return [int(i) for i in tokenizer.encode(text, add_special_tokens=False)]


def _not_one_token(text: str, ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """Say which pieces the tokenizer makes of `text`, and what to give instead."""
    pieces = [tokenizer.decode([i]) for i in ids]
    message = f"{text!r} is not one token but {len(ids)}: {pieces}"
    variant = text.lstrip() if text[:1].isspace() else " " + text
    if variant.strip() and len(_encode(variant, tokenizer)) == 1:
        return f"{message}; did you mean {variant!r} ({'with' if variant[0] == ' ' else 'without'} the leading space)?"
    if pieces:
        return f"{message}; give one token, for instance the first piece {pieces[0]!r}, or a token id"
    return f"{message}; give a text of one token, or a token id"
