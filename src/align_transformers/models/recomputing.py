"""Gradient checkpointing runs parts of a model again in the backward pass, when the hooks of the forward pass are gone.

What was edited there would be computed anew without the edits, and gradients would be those of another run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from .._errors import PlanError
from .detours import detour

_CHECKPOINT = "_gradient_checkpointing_func"
"""What transformers' modules hand their forward pass to where they are `gradient_checkpointing`."""
_saved_tensors_hooks: Callable[[bool], Any] = getattr(
    torch._C._autograd, "_top_saved_tensors_default_hooks", lambda _: None
)


@contextmanager
def computed_once(model: nn.Module, modules: Iterable[nn.Module]) -> Iterator[None]:
    """Run the parts of a model that contain some modules without gradient checkpointing, in the present scope.

    Args:
        model: the user's; the other parts are run as it says.
        modules: at which something is read or written.
    """
    with ExitStack() as stack:
        if torch.is_grad_enabled():
            touched = set(modules)
            for module in model.modules():
                recomputes = getattr(module, "gradient_checkpointing", False) and hasattr(module, _CHECKPOINT)
                if recomputes and not touched.isdisjoint(module.modules()):
                    stack.enter_context(detour(module, _CHECKPOINT, lambda _: _at_once))
        yield


def _at_once(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)


def check_computed_once(part: Any, where: Any) -> None:
    """Refuse to write in a part of the model that is going to be run again without what is written.

    Args:
        part: that the whole pass is in, as `recomputation` has it: it is run again with all that belongs to the pass.
        where: for the message.

    Raises:
        PlanError: something in the pass is going to be run again.
    """
    if recomputation() is not part:
        raise PlanError(
            f"{where} is in a part of the model that is run again in the backward pass (torch.utils.checkpoint), and "
            "there without its edits: gradients would be wrong. Switch that off"
        )


def recomputation() -> Any:
    """Return a mark of the part that is run now and forgets its activations, to be run again; `None` outside of any.

    >>> from torch.utils.checkpoint import checkpoint
    >>> checkpoint(lambda x: recomputation() is None, torch.ones(1), use_reentrant=False), recomputation() is None
    (False, True)
    """
    hooks = _saved_tensors_hooks(True) if torch.is_grad_enabled() else None
    return hooks[0] if hooks is not None and hooks[0].__module__ == "torch.utils.checkpoint" else None
