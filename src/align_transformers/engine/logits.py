"""The logits in what a model returned, and those of them that are wanted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor

from .._errors import SiteError, SpecError
from ..models import find_leaf


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
    if narrowed and logits.ndim == 3:
        logits = logits[:, 0]
    elif logits.ndim == 3:
        logits = logits[:, -1] if at is None else logits[at[0].to(logits.device), at[1].to(logits.device)]
    if tokens is None or logits.shape[-1] == len(tokens):
        return logits
    return logits[:, list(tokens)]
