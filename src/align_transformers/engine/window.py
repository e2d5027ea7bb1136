"""Which part of the sequence a forward pass works on, and so which places of an edit it can see."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from .._errors import PositionError
from ..plan import Edit
from .places import Places


@dataclass(frozen=True)
class Window:
    """The columns of the whole sequence that a forward pass works on; all of them, except while generating.

    With a cache, the pass after the prompt's works on one column at a time. Without one, every pass begins at column 0
    again, and edits of earlier columns are made again, so that both give the same text.

    Args:
        start: first column of this forward pass.
        length: number of columns of this forward pass.
        fresh: first column that no earlier pass has worked on.
        prompt: length of the prompt: columns from there on are generated tokens; `None` outside generation.
        repeats: rows of this pass for each example of the input (beams, samples).
    """

    start: int = 0
    length: int = 0
    fresh: int = 0
    prompt: int | None = None
    repeats: int = 1


def visible(edit: Edit, places: Places, window: Window, tensor: Tensor, looks_only: bool) -> Iterator[Places]:
    """Yield the places of an edit that a pass of a generation can see: those of the prompt, then each generated token.

    Args:
        edit: what was asked.
        places: the edit's places in the prompt.
        window: the columns of this pass.
        tensor: `(rows, columns, channels)` the activation.
        looks_only: the edit only collects, so columns that it has seen before are left out.

    Raises:
        PositionError: the activation has another number of columns than the pass.
    """
    for seen in _visible(edit, places.repeated(window.repeats), window, tensor.shape[0], looks_only):
        if tensor.ndim < 3 or tensor.shape[1] != window.length:
            raise PositionError(
                f"{edit.site} has shape {tuple(tensor.shape)} in a forward pass over {window.length} tokens: it is not "
                "known which of them it is about (a model that generates computes the prompt's last logits only)"
            )
        yield seen


def _visible(edit: Edit, places: Places, window: Window, rows: int, looks_only: bool) -> Iterator[Places]:
    prompt = window.prompt or 0
    if not (looks_only and window.fresh >= prompt):
        yield from _in_prompt(edit, places, window.start, window.length, prompt, rows)
    first = max(prompt, window.start, window.fresh if looks_only else 0)
    for column in range(first, window.start + window.length):
        if edit.positions.steps == "all" or column - prompt in edit.positions.steps:
            yield places.at_columns([column - window.start], rows)


def _in_prompt(edit: Edit, places: Places, start: int, length: int, prompt: int, rows: int) -> Iterator[Places]:
    end = min(start + length, prompt)
    if start >= end:
        return
    if edit.positions.rows is None:
        yield places if start + length <= prompt else places.at_columns(range(end - start), rows)
    elif any(edit.positions.rows):
        seen = places.shifted(start, length)
        if seen is not None:
            yield seen
