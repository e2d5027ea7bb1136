"""Edits inside transformers' attention and experts interfaces: what no module's input or output shows.

While a pass asks for such a component, the look-up of the interface is wrapped, so that the modules asked for go
through here. All others get the function that they would have got: fused attention stays on. No configuration
is touched.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import SiteError

Visit = Callable[[Any], Any]
"""Given a tensor `(batch, length, channels)`, returns it, or a new one."""

Visits = Mapping[str, Visit]
"""What is asked of one module, by `Slot.via`."""


@contextmanager
def inside_interfaces(visits: Mapping[int, Visits]) -> Iterator[None]:
    """Let the modules asked for go through this file while the context is open.

    Args:
        visits: by `id` of the attention or experts module.
    """
    from transformers.integrations.moe import ExpertsInterface
    from transformers.modeling_utils import AttentionInterface

    def wrapped(original: Any, go: Callable[..., Any]) -> Any:
        def get_interface(self: Any, *args: Any, **kwargs: Any) -> Any:
            function = original(self, *args, **kwargs)

            def call(module: nn.Module, *inputs: Any, **options: Any) -> Any:
                asked = visits.get(id(module))
                if asked is None:
                    return function(module, *inputs, **options)
                return go(asked, function, module, *inputs, **options)

            return call

        return get_interface

    originals = AttentionInterface.get_interface, ExpertsInterface.get_interface
    AttentionInterface.get_interface = wrapped(originals[0], _attend)
    ExpertsInterface.get_interface = wrapped(originals[1], _consult)
    try:
        yield
    finally:
        AttentionInterface.get_interface, ExpertsInterface.get_interface = originals


def _attend(
    visits: Visits,
    function: Callable[..., Any],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *rest: Any,
    **options: Any,
) -> Any:
    """Attend as the model would, with edits at the queries, keys, scores, pattern and heads' output."""
    query = _by_head(visits.get("query_rotary"), query)
    key = _by_head(visits.get("key_rotary"), key)
    core, *others = function(module, query, key, value, mask, *rest, **options)
    if "attention_score" in visits or "attention_pattern" in visits:
        plain, pattern = _pattern(visits, module, query, key, value, mask, options)
        changed = (plain != pattern).any(-1).transpose(1, 2).unsqueeze(-1)  # elsewhere the model's own result stands
        core = torch.where(changed, _mix(pattern, value).to(core.dtype), core)
    visit = visits.get("head_output")
    if visit is not None:
        flat = core.reshape(*core.shape[:2], -1)
        core = visit(flat).view_as(core)
    return (core, *others)


def _by_head(visit: Visit | None, tensor: Tensor) -> Tensor:
    """Show `(batch, heads, length, size)` to a visit as `(batch, length, heads * size)`."""
    if visit is None:
        return tensor
    flat = tensor.transpose(1, 2).flatten(2)
    new = visit(flat)
    return tensor if new is flat else new.view(*flat.shape[:2], tensor.shape[1], -1).transpose(1, 2)


def _pattern(
    visits: Visits,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    options: Mapping[str, Any],
) -> tuple[Tensor, Tensor]:
    """Return the attention pattern before and after edits, `(batch, heads, queries, keys)`.

    Raises:
        SiteError: the model's scores go through more than a softmax, so they cannot be edited on their own.
    """
    added = _additive(mask, query, key, module, options)
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if eager is None:
        raise SiteError(f"{type(module).__name__} has no eager attention beside it, so its pattern cannot be seen")
    quiet = {**options, "dropout": 0.0}
    pattern = plain = eager(module, query, key, value, added, **quiet)[1]
    if "attention_score" in visits:
        scale = options.get("scaling") or query.shape[-1] ** -0.5
        scores = query @ _repeated(key, query.shape[1]).transpose(2, 3) * scale
        scores = scores if added is None else scores + added[..., : key.shape[2]]
        if not torch.allclose(scores.float().softmax(-1), plain.float(), atol=1e-3):
            raise SiteError(
                f"the scores of {type(module).__name__} go through more than a softmax (a cap or a sink): "
                "edit attention_pattern instead"
            )
        edited = _by_head(visits["attention_score"], scores)
        pattern = plain if edited is scores else edited.float().softmax(-1).to(plain.dtype)
    return plain, _by_head(visits.get("attention_pattern"), pattern)


def _mix(pattern: Tensor, value: Tensor) -> Tensor:
    """Return `(batch, length, heads, size)`: what each head takes from where the pattern says."""
    return (pattern.to(value.dtype) @ _repeated(value, pattern.shape[1])).transpose(1, 2)


def _repeated(shared: Tensor, heads: int) -> Tensor:
    """Repeat key/value heads for the query heads that share them."""
    return shared.repeat_interleave(heads // shared.shape[1], dim=1)


def _additive(
    mask: Tensor | None, query: Tensor, key: Tensor, module: nn.Module, options: Mapping[str, Any]
) -> Tensor | None:
    """Return the mask as numbers to add to the scores, whatever form a fused kernel takes it in."""
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


class _Gate:
    """An experts module as its batched forward pass sees it, with the neurons shown on the way."""

    def __init__(self, module: nn.Module, show: Callable[[Tensor], Tensor]) -> None:
        self._module = module
        self._show = show

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        if name == ("_apply_gate" if self._module.has_gate else "act_fn"):
            return lambda tensor: self._show(value(tensor))
        return value


def _consult(
    visits: Visits, _function: Callable[..., Any], module: nn.Module, tokens: Tensor, chosen: Tensor, weights: Tensor
) -> Any:
    """Run the experts token by token, in routed order, with an edit at their neurons."""
    from transformers.integrations.moe import batched_mm_experts_forward

    visit, count = visits["expert_activation"], chosen.shape[-1]

    def show(neurons: Tensor) -> Tensor:
        flat = neurons.view(tokens.shape[0], count * neurons.shape[-1])
        return visit(flat).view_as(neurons)

    return batched_mm_experts_forward(_Gate(module, show), tokens, chosen, weights)
