"""Calling a part of the model again on its own, with its input changed, to see what follows from what."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .quiet import quietly
from .slot import find_leaf, replace_leaf
from .trace import ModuleCall

Change = Callable[[Tensor], Tensor]


def call_again(
    call: ModuleCall,
    change: Change,
    *,
    force: Mapping[nn.Module, Change] | None = None,
    watch: Sequence[nn.Module] = (),
) -> list[Tensor] | None:
    """Return the outputs of a call and of modules inside it when it is made again.

    Args:
        call: the call; it gets the arguments that it had, without gradients.
        change: what to do to its input, wherever that stands among the arguments.
        force: for modules inside, what to do to their outputs.
        watch: modules inside whose outputs are wanted.

    Returns:
        The call's output, then that of each watched module; `None` if it cannot be called on its own.
    """
    assert call.input is not None
    arguments = _with_input(call, change(call.input.detach().clone()))
    seen: dict[nn.Module, Tensor] = {}

    def leaving(module: nn.Module, output: Any) -> Any:
        forced = None if force is None else force.get(module)
        if forced is not None:
            leaf, tensor = find_leaf(output, None, "output")
            output = replace_leaf(output, leaf, forced(tensor))
        if module in watch:
            seen[module] = find_leaf(output, None, "output")[1].clone()
        return output

    with quietly(leaving=leaving), torch.no_grad():
        output = _output(call, arguments)
    if output is None or any(module not in seen for module in watch):
        return None
    return [output, *(seen[module] for module in watch)]


def call_differentiably(call: ModuleCall) -> tuple[Tensor, Tensor] | None:
    """Return a call's input as a leaf of the autograd graph, and its output from there, when it is made again.

    Args:
        call: the call; it gets the arguments that it had.

    Returns:
        `None` if it cannot be called on its own, or says nothing of gradients.
    """
    assert call.input is not None
    leaf = call.input.detach().clone().requires_grad_()
    with quietly():
        output = _output(call, _with_input(call, leaf.clone()))  # a clone, so that in-place code goes on working
    return None if output is None or not output.requires_grad else (leaf, output)


def _with_input(call: ModuleCall, tensor: Tensor) -> Any:
    """Return a call's arguments with another input, wherever that stands among them."""
    arguments: Any = call.arguments
    for leaf in (call.input_leaf, *call.input_twins):
        arguments = replace_leaf(arguments, leaf, tensor)
    return arguments


def _output(call: ModuleCall, arguments: Any) -> Tensor | None:
    try:
        return find_leaf(call.module(*arguments[0], **arguments[1]), call.output_leaf, call.path)[1]
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError):
        return None  # nothing can be said of a module that cannot be called on its own


def follow(call: ModuleCall, modules: Sequence[nn.Module]) -> list[bool] | None:
    """Return for each module inside a call whether its output changes with the call's input.

    Args:
        call: the call.
        modules: modules called inside it.

    Returns:
        `None` if it cannot be called on its own.
    """

    def stir(tensor: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return tensor + torch.randn(tensor.shape, generator=generator).to(tensor)

    before = call_again(call, lambda tensor: tensor, watch=modules)
    after = call_again(call, stir, watch=modules)
    if before is None or after is None:
        return None
    return [not torch.equal(a, b) for a, b in zip(before[1:], after[1:], strict=True)]


def passes_around(call: ModuleCall, silenced: Sequence[nn.Module]) -> bool:
    """Whether something of a call's input reaches its output past modules inside: with those silenced, rows differ.

    Args:
        call: the call; its output is `(batch, length, width)`.
        silenced: the modules whose output is set to zero.
    """
    outputs = call_again(call, lambda tensor: tensor, force=dict.fromkeys(silenced, torch.zeros_like))
    if outputs is None:
        return False
    rows = outputs[0].reshape(-1, outputs[0].shape[-1])
    return not torch.allclose(rows, rows[:1].expand_as(rows), rtol=1e-4, atol=1e-5)
