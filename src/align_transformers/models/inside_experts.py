"""Edits of experts' neurons and of the logits that choose experts: what no module's input or output shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .detours import ModuleForward, forwards
from .inside_attention import Visit, Visits
from .interfaces import Around, around_interface


@contextmanager
def around_experts(act: Around) -> Iterator[None]:
    """Let all experts that go through transformers' interface go through `act` while the context is open."""
    from transformers.integrations.moe import ExpertsInterface

    with around_interface(ExpertsInterface, act):
        yield


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


def consult(
    visits: Visits,
    function: Callable[..., Any],
    _eager: Callable[..., Any],
    module: nn.Module,
    hidden_states: Tensor,
    top_k_index: Tensor,
    top_k_weights: Tensor,
) -> Any:
    """Run the experts token by token, in routed order, with an edit at their neurons.

    Where nothing is written, the model's own result stands.
    """
    from transformers.integrations.moe import batched_mm_experts_forward

    visit, tokens, written = visits["expert_activation"], hidden_states.shape[0], False

    def show(neurons: Tensor) -> Tensor:
        nonlocal written
        flat = neurons.reshape(tokens, top_k_index.shape[-1] * neurons.shape[-1])
        new = visit(flat)
        written = written or new is not flat
        return new.reshape(neurons.shape)

    edited = batched_mm_experts_forward(_Gate(module, show), hidden_states, top_k_index, top_k_weights)
    return edited if written else function(module, hidden_states, top_k_index, top_k_weights)


class _RouterLogits(TorchFunctionMode):
    """Shows the result of the first linear map in a forward pass of a router."""

    def __init__(self, visit: Visit) -> None:
        super().__init__()
        self._visit: Visit | None = visit

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is nn.functional.linear and self._visit is not None:
            visit, self._visit = self._visit, None
            result = visit(result)
        return result


@contextmanager
def inside_router(module: nn.Module, visit: Visit) -> Iterator[None]:
    """Show the logits of a router that chooses within the same module, before it chooses.

    Args:
        module: the router; what it returns of its logits is not read by anyone.
        visit: what sees them, `(tokens, experts)`.
    """

    def watching(forward: ModuleForward) -> ModuleForward:
        def watched(*args: Any, **kwargs: Any) -> Any:
            with _RouterLogits(visit):
                return forward(*args, **kwargs)

        return watched

    with forwards({module: watching}):
        yield
