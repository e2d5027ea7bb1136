"""Only the logits that are read: the unembedding of the last real tokens, and of the tokens asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from .._errors import SiteError, SpecError
from ..models import Slot, find_leaf, replace_leaf
from .chain import forwards
from .hooks import before_call


@contextmanager
def only(
    unembedding: nn.Module,
    row: Int64[Tensor, " copies"],
    column: Int64[Tensor, " copies"],
    tokens: tuple[int, ...] | None,
    shape: tuple[int, int],
) -> Iterator[Callable[[], bool]]:
    """Let a model compute only some logits while the context is open, one place a copy.

    Args:
        unembedding: the linear layer that gives the logits, from `(rows, columns, width)`.
        row: of each copy.
        column: where each copy is read.
        tokens: ids of the tokens that are read; `None` for all.
        shape: rows and columns of the pass; an input of another form is left alone.

    Yields:
        A function that tells whether only these places were computed.
    """
    picked = False

    def pick(_module: nn.Module, arguments: Any) -> Any:
        nonlocal picked
        leaf, hidden = find_leaf(arguments, None, "the unembedding's input")
        picked = hidden.ndim == 3 and tuple(hidden.shape[:2]) == shape
        if not picked:
            return None
        return replace_leaf(arguments, leaf, hidden[row.to(hidden.device), column.to(hidden.device)].unsqueeze(1))

    def narrow(_forward: Callable[..., Any]) -> Callable[..., Any]:
        def forward(hidden: Tensor) -> Tensor:
            ids = torch.tensor(tokens, device=hidden.device)
            bias = unembedding.bias
            weight = unembedding.weight[ids]  # type: ignore[index]
            return F.linear(hidden, weight, None if bias is None else bias[ids])  # type: ignore[index]

        return forward

    with ExitStack() as stack:
        stack.enter_context(before_call(unembedding, pick))
        if tokens is not None:
            stack.enter_context(forwards({unembedding: narrow}))
        yield lambda: picked


def can_narrow(slot: Slot | None) -> bool:
    """Whether the logits come from a plain linear layer, whose output can be had in parts."""
    return slot is not None and slot.via == "module" and slot.side == "output" and type(slot.module) is nn.Linear


def logits_of(output: Any) -> Float[Tensor, "rows *columns vocab"]:
    """Return the logits in what a model returned: its `logits`, else its first tensor, or itself.

    Raises:
        SpecError: there are none.
    """
    if isinstance(output, Tensor):
        return output
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(found, Tensor):
        return found
    try:
        return find_leaf(output, None, "")[1]
    except SiteError:
        raise SpecError(f"the model returned {type(output).__name__}, which has no logits") from None


def pick_logits(
    output: Any, at: tuple[Tensor, Tensor] | None, tokens: tuple[int, ...] | None, narrowed: bool
) -> Float[Tensor, "copies tokens"]:
    """Return the logits that are wanted of what a model returned, one row a copy.

    Args:
        output: the model's.
        at: row and column of each copy; `None` if the sequence is not known: then the last column of every row.
        tokens: ids of the tokens that are wanted; `None` for all.
        narrowed: the model computed these places only.
    """
    logits = logits_of(output)
    if narrowed:
        logits = logits[:, 0]
    elif logits.ndim == 3:
        logits = logits[:, -1] if at is None else logits[at[0].to(logits.device), at[1].to(logits.device)]
    if tokens is None or logits.shape[-1] == len(tokens):
        return logits
    return logits[:, list(tokens)]
