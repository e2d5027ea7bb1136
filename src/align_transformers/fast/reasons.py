"""Why passes may leave nothing out: what a model is asked for, what state it is in, and who else is looking on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..engine import Bound, Inputs
from ..models.detours import is_detoured
from ..models.modules import every_module
from ..models.scope import ScopedHook
from ..models.sequence import CACHES
from .depth import Blocks

SETTINGS = ("use_cache", "return_dict")
"""Arguments of a model that are no tensors."""

_TEXTS = tuple(
    f"{stack}{name}"
    for stack in ("", "encoder_", "decoder_")
    for name in ("input_ids", "attention_mask", "position_ids", "inputs_embeds", "token_type_ids")
)
_RECORDS = ("output_hidden_states", "output_attentions", "output_router_logits")
_RECORDER = "transformers.utils.output_capturing"


def why_never(bound: Bound, blocks: Blocks | None) -> str:
    """Return why no pass of a model may leave out blocks now; empty if one may."""
    if blocks is None:
        return "the order of its blocks is not known"
    for module in every_module(bound.model):
        if module.training:
            return "it is in training mode: dropout may be on"
        if module is not bound.model and has_hooks(module):
            return "somebody else's hooks stand in it"
    return "edits are applied to it" if is_detoured(bound.model, "forward") else ""


def has_hooks(module: nn.Module, *, outputs: bool = False) -> bool:
    """Whether hooks of others stand on a module: they may rest on the shapes or the calls of a pass as it was.

    Args:
        module: any.
        outputs: only those that see its output.
    """
    hooks = (*module._forward_hooks.values(), *(() if outputs else module._forward_pre_hooks.values()))
    return any(map(_may_act, hooks))


def _may_act(hook: Any) -> bool:
    """Whether a hook is one that looks on here; those of passes in other threads do not."""
    return hook.acts if isinstance(hook, ScopedHook) else getattr(hook, "__module__", "") != _RECORDER


def why_whole(bound: Bound, inputs: Inputs, whole: bool) -> str:
    """Return why a pass over an input has to run from the first block on; empty if it has not.

    Args:
        bound: the plan.
        inputs: the model's.
        whole: all that the model returns is wanted, with a cache if it makes one.
    """
    if isinstance(inputs, Tensor):
        return ""
    config = getattr(bound.model, "config", None)
    for name in CACHES:
        if inputs.get(name) is not None:
            return f"{name} is handed in"
    for name in _RECORDS:
        value = inputs.get(name, getattr(config, name, False))
        if value is not None and value is not False:
            return f"{name} is asked for"
    if labels_are_input(bound, inputs):
        return "the decoder's input is made of labels"
    if whole and inputs.get("use_cache", getattr(config, "use_cache", False)):
        return "its output holds a cache of all blocks (use_cache=False would do without)"
    return ""


def is_by_example(name: str, value: Any, batch: int) -> bool:
    """Whether the first axis of an input is that of the examples, or one for all."""
    if value is None:
        return True
    if name not in _TEXTS or not isinstance(value, Tensor) or (name.endswith("position_ids") and value.ndim != 2):
        return False
    return value.ndim > 1 and value.shape[0] in (1, batch)


def labels_are_input(bound: Bound, inputs: Mapping[str, Any]) -> bool:
    """Whether a decoder's input is made of labels."""
    said = any(name.startswith("decoder_input") for name in inputs)
    return (
        "labels" in inputs and not said and getattr(getattr(bound.model, "config", None), "is_encoder_decoder", False)
    )
