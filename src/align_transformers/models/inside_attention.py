"""Edits inside transformers' attention interface: what no module's input or output shows.

While a pass asks for such a component, the look-up of the interface is wrapped, so that the modules asked for go
through here. All others get the function that they would have got: fused attention stays on. No configuration
is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import SiteError
from .interfaces import Around, around_interface

Visit = Callable[[Any], Any]
"""Given a tensor `(batch, length, channels)`, returns it, or a new one."""

Visits = Mapping[str, Visit]
"""What is asked of one module, by `Slot.via`."""

_MASKED = -1e15
"""What a masked key's score is shown as: far below any real score, yet its square is a finite number in the ledger."""


@contextmanager
def around_attention(act: Around) -> Iterator[None]:
    """Let every attention that goes through transformers' interface go through `act` while the context is open."""
    from transformers.modeling_utils import AttentionInterface

    with around_interface(AttentionInterface, act):
        yield


def attend(
    visits: Visits,
    function: Callable[..., Any],
    eager: Callable[..., Any],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any = None,
    **options: Any,
) -> Any:
    """Attend as the model would, with edits at the queries, keys, scores, pattern and heads' output."""
    query = _by_head(visits.get("query_rotary"), query)
    key = _by_head(visits.get("key_rotary"), key)
    core, *others = function(module, query, key, value, attention_mask, **options)
    if "attention_score" in visits or "attention_pattern" in visits:
        # Eager attention knows masks only as they are; a fused kernel may be given another form of them.
        added = attention_mask if function is eager else _additive(attention_mask, query, key, module, options)
        plain, pattern = _pattern(visits, eager, module, query, key, value, added, options)
        if pattern is not plain:
            core = _remixed(core, plain, pattern, value)
            others[:1] = [pattern if isinstance(weights, Tensor) else weights for weights in others[:1]]
    visit = visits.get("head_output")
    if visit is not None:
        flat = core.flatten(2)
        new = visit(flat)
        core = core if new is flat else new.reshape(core.shape)
    return (core, *others)


def _by_head(visit: Visit | None, tensor: Tensor) -> Tensor:
    """Show `(batch, heads, length, size)` to a visit as `(batch, length, heads * size)`."""
    if visit is None:
        return tensor
    flat = tensor.transpose(1, 2).flatten(2)
    new = visit(flat)
    return tensor if new is flat else new.reshape(*flat.shape[:2], tensor.shape[1], -1).transpose(1, 2)


def _pattern(
    visits: Visits,
    eager: Callable[..., Any],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    added: Tensor | None,
    options: Mapping[str, Any],
) -> tuple[Tensor, Tensor]:
    """Return the attention pattern before and after edits, `(batch, heads, queries, keys)`; one object if none wrote.

    Raises:
        SiteError: the model's scores go through more than a softmax, so they cannot be edited on their own.
    """
    pattern = plain = eager(module, query, key, value, added, **{**options, "dropout": 0.0})[1]
    if "attention_score" in visits:
        scores = _scores(query, key, added, options)
        more = options.get("softcap") is not None or options.get("s_aux") is not None
        if more or not torch.allclose(scores.float().softmax(-1), plain.float(), atol=1e-3):
            raise SiteError(
                f"the scores of {type(module).__name__} go through more than a softmax (a cap or a sink): "
                "edit attention_pattern instead"
            )
        edited = _by_head(visits["attention_score"], scores)
        pattern = plain if edited is scores else edited.float().softmax(-1).to(plain.dtype)
    return plain, _by_head(visits.get("attention_pattern"), pattern)


def _scores(query: Tensor, key: Tensor, added: Tensor | None, options: Mapping[str, Any]) -> Tensor:
    """Return what goes into the softmax, `(batch, heads, queries, keys)`; masked keys have `_MASKED`."""
    scale, bias = options.get("scaling"), options.get("position_bias")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = query @ _repeated(key, query.shape[1]).transpose(2, 3) * scale
    scores = scores if bias is None else scores + bias
    scores = scores if added is None else scores + added
    return scores.clamp(min=max(_MASKED, torch.finfo(scores.dtype).min))


def _remixed(core: Tensor, plain: Tensor, pattern: Tensor, value: Tensor) -> Tensor:
    """Return the heads' output under an edited pattern; bit for bit the model's own where the pattern is as it was."""
    changed = (plain != pattern).any(-1).transpose(1, 2).unsqueeze(-1)
    new = _mix(pattern, value).to(core.dtype)
    if torch.is_grad_enabled() and pattern.requires_grad:
        # Plus nothing; but an edit that changes nothing yet, such as a vector that is still 0, has a gradient.
        core = core + (new - _mix(plain, value).to(core.dtype))
    return torch.where(changed, new, core)


def _mix(pattern: Tensor, value: Tensor) -> Tensor:
    """Return `(batch, length, heads, size)`: what each head takes from where the pattern says."""
    return (pattern.to(value.dtype) @ _repeated(value, pattern.shape[1])).transpose(1, 2)


def _repeated(shared: Tensor, heads: int) -> Tensor:
    """Repeat key/value heads for the query heads that share them."""
    return shared.repeat_interleave(heads // shared.shape[1], dim=1)


def _additive(mask: Any, query: Tensor, key: Tensor, module: nn.Module, options: Mapping[str, Any]) -> Tensor | None:
    """Return the mask as numbers to add to the scores, whatever form a fused kernel takes it in.

    Raises:
        SiteError: the mask is in a form that is not known here, such as a flex attention's.
    """
    if mask is not None and not isinstance(mask, Tensor):
        raise SiteError(
            f"{type(module).__name__} attends under a {type(mask).__name__}, of which scores and patterns cannot be "
            "seen: load the model with attn_implementation='sdpa' or 'eager'"
        )
    lowest = torch.finfo(query.dtype).min
    queries, keys = query.shape[2], key.shape[2]
    if mask is not None and mask.ndim == 4:
        if mask.dtype != torch.bool:
            return mask
        return torch.zeros(mask.shape, dtype=query.dtype, device=query.device).masked_fill(~mask, lowest)
    causal = options.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    allowed = torch.ones(queries, keys, dtype=torch.bool, device=query.device)
    if causal and queries > 1:
        allowed = allowed.tril(keys - queries)
    window = options.get("sliding_window")
    if window:
        allowed = allowed & ~allowed.tril(keys - queries - window)
    allowed = allowed.view(1, 1, queries, keys)
    if mask is not None:  # one flag a key, as flash attention takes it
        allowed = allowed & mask[:, None, None, -keys:].bool()
    return torch.zeros(allowed.shape, dtype=query.dtype, device=query.device).masked_fill(~allowed, lowest)
