"""The two ends of a model: the embedding before the blocks, the last norm and the logits after them."""

from __future__ import annotations

from torch import nn

from .findings import Findings, same_values
from .slot import Slot
from .stacks import Stack
from .trace import Call, Trace

NAMES = ("embedding_output", "final_norm_output", "logits")


def find_ends(model: nn.Module, trace: Trace, main: Stack) -> tuple[dict[str, Slot], dict[str, str]]:
    """Return the slots of the ends, and why those that are missing are.

    Args:
        model: the model that was traced.
        trace: the forward pass.
        main: the stack that the output comes from.
    """
    found = Findings(trace, main.calls[0], 0, 0)
    last = main.calls[-1]
    for name, module in (
        ("embedding_output", _ask(model, "get_input_embeddings")),
        ("logits", _ask(model, "get_output_embeddings")),
    ):
        call = None if module is None else next((c for c in trace.calls if _is(c.module, module)), None)
        if call is None:
            found.refuse([name], "the model does not say which module that is, or did not call it")
        else:
            found.found(name, call, "output", "the model names it")
    after = [call for call in trace.calls if call.start > last.end and same_values(call.input, last.output)]
    norm = next((call for call in after if _is_norm(call)), None)
    if norm is None:
        found.refuse(["final_norm_output"], "no norm reads the last block's output")
    else:
        found.found("final_norm_output", norm, "output", "the norm that reads the last block's output")
    return found.slots, found.missing


def _ask(model: nn.Module, method: str) -> nn.Module | None:
    """Return what a model of transformers says of itself; `None` where it says nothing."""
    asked = getattr(model, method, None)
    try:
        return asked() if callable(asked) else None
    except (NotImplementedError, AttributeError):
        return None


def _is(module: nn.Module, asked: nn.Module) -> bool:
    """Whether a module is the one asked for, or one of its kind that shares its weight."""
    weight = getattr(module, "weight", None)
    return module is asked or (type(module) is type(asked) and weight is not None and weight is asked.weight)


def _is_norm(call: Call) -> bool:
    """Whether a call keeps the shape and has no weights but vectors of the last axis's size."""
    if call.input is None or call.output is None or call.input.shape != call.output.shape:
        return False
    weights = list(call.module.parameters())
    return bool(weights) and all(p.ndim == 1 and p.shape[0] == call.input.shape[-1] for p in weights)
