"""`resolve(model)`: watch one forward pass, and say where every component is, or why that is not sure."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from .._checked import checked
from .._errors import SpecError
from .blocks import block_of, examine_stack
from .component_map import ComponentMap
from .contributions import find_contributions
from .copies import has_no_values, moved, random_copy
from .declared import declared, paths_of
from .dummy import BATCH, dummy_inputs
from .ends import find_ends
from .modules import evaluating, every_module, uncompiled
from .overrides import Override, override
from .stacks import Stack, find_stacks
from .towers import find_towers, said_name
from .trace import Trace, watch


@dataclass(frozen=True, eq=False)
class _Known:
    """A map that was made, what the caller said then, and the modules that the model had."""

    map: ComponentMap
    example: Mapping[str, Any] | None
    overrides: Mapping[str, Override]
    modules: tuple[int, ...]


_maps: WeakKeyDictionary[nn.Module, _Known] = WeakKeyDictionary()
_resolving = threading.RLock()


@checked
def resolve(
    model: nn.Module,
    *,
    example_inputs: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> ComponentMap:
    """Return where the components of a model are. One forward pass is run, once for each model object.

    Parts of a block are then called again by themselves, to see whether they mix positions. The user's hooks are not
    called; those of frameworks are that a model needs to run. A model in training mode is in eval mode meanwhile.

    Args:
        model: any module; nothing of it is changed.
        example_inputs: keyword arguments that its forward pass accepts, two or more examples; default: a dummy.
        overrides: for components that the caller knows better: `(path from the block, "input" or "output")`, and for
            rows of heads the number of heads as a third entry.

    Returns:
        The map. With `example_inputs` or `overrides` it is made anew, and used from then on. It is made again, with
        the same, where modules of the model have been exchanged since.

    Raises:
        SpecError: the model does not take `example_inputs`.
        SiteError: an override names a place that does not exist or has another shape.
    """
    known, modules = _maps.get(model), _fingerprint(model)
    if example_inputs is None and not overrides and known is not None:
        if known.modules == modules:
            return known.map
        example_inputs, overrides = known.example, known.overrides  # modules were put in or exchanged: look again
    with _resolving:  # compiled modules run as they are written meanwhile, in all threads
        found = _resolve_anywhere(model, example_inputs, overrides or {})
    _maps[model] = _Known(found, example_inputs, overrides or {}, modules)
    return found


def known_map(model: nn.Module) -> ComponentMap | None:
    """Return the map that was made of a model last, as it is, without a look at the model; `None` if there is none."""
    known = _maps.get(model)
    return None if known is None else known.map


def _fingerprint(model: nn.Module) -> tuple[int, ...]:
    """Return what tells whether a model still has the modules that were looked at, and where its weights are."""
    meta = any(parameter.is_meta for parameter in model.parameters())
    return (*map(id, every_module(model)), int(meta))


def _resolve_anywhere(
    model: nn.Module, example: Mapping[str, Any] | None, overrides: Mapping[str, Override]
) -> ComponentMap:
    """Return the map of a model, if need be by way of a copy that has values."""
    inner = uncompiled(model)
    if not has_no_values(inner):
        return _resolve(model, example, overrides)
    twin = random_copy(inner)
    if isinstance(twin, str):
        return ComponentMap(type(model).__name__, {}, missing={"": twin})
    return replace(moved(_resolve(twin, example, overrides), inner), model_class=type(model).__name__)


def _resolve(model: nn.Module, example: Mapping[str, Any] | None, overrides: Mapping[str, Override]) -> ComponentMap:
    name = type(model).__name__
    inner = uncompiled(model)
    # Gradients are needed whatever mode the caller is in; compiled blocks would not see the hooks.
    eager = torch.compiler.set_stance("force_eager")
    paths = paths_of(inner)
    if paths is not None and overrides:
        raise SpecError(f"{name} says itself where its components are (component_paths): overrides have no say there")
    with torch.inference_mode(False), torch.enable_grad(), eager, evaluating(inner):
        trace = _trace(inner, example)
        widths = {} if isinstance(trace, str) else _widths(trace)
        if paths is not None:
            return replace(declared(inner, paths, widths), model_class=name)
        if isinstance(trace, str):
            return ComponentMap(name, {}, missing={"": trace})
        stacks = find_stacks(inner, trace)
        if not stacks:
            return ComponentMap(name, {}, missing={"": "no stack of blocks was found in it"}, widths=widths)
        batch = BATCH if example is None else _batch(example)
        by_name = _name_stacks(inner, stacks)
        named = {key: examine_stack(stack, trace, batch) for key, stack in by_name.items()}
        for key, component in overrides.items():
            override(named, key, component, trace)
        for found in (found for stack in named.values() for found in stack if overrides):
            find_contributions(found)  # the sum may hold with what the caller knows
        ends, missing = find_ends(inner, trace, by_name)
        ran = {call.module for call in trace.calls}
        towers = find_towers(inner, ran, lambda tower: _resolve(tower, None, {}))
    blocks = {key: tuple(block_of(found) for found in stack) for key, stack in named.items()}
    return ComponentMap(name, blocks | towers.stacks, ends | towers.ends, missing | towers.missing, widths=widths)


def _trace(model: nn.Module, example: Mapping[str, Any] | None) -> Trace | str:
    """Return a watched forward pass, or why there is none."""
    if example is not None:
        try:
            return watch(model, example)
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
            raise SpecError(f"example_inputs are no input of {type(model).__name__}: {error}") from error
    reasons = []
    for inputs in dummy_inputs(model):
        try:
            return watch(model, inputs)
        except Exception as error:  # whatever a model says to inputs it does not like
            reasons.append(f"{type(error).__name__}: {error}".splitlines()[0][:200])
    return f"no dummy input was accepted, so give example_inputs ({'; '.join(dict.fromkeys(reasons))})"


def _widths(trace: Trace) -> dict[tuple[str, str], int]:
    """Return the widths of what modules got and gave; not of those that differ, or may be the sequence's length."""
    seen: dict[tuple[str, str], set[int]] = {}
    for call in trace.calls:
        for side, tensor in (("input", call.input), ("output", call.output)):
            if tensor is not None and tensor.ndim:
                seen.setdefault((call.path, side), set()).add(int(tensor.shape[-1]))
    whole = trace.calls[0].arguments
    given = [value for value in (*whole[0], *whole[1].values()) if isinstance(value, torch.Tensor)]
    axes = (value.shape[1:-1] if value.is_floating_point() else value.shape[1:] for value in given)
    lengths = {int(size) for sizes in axes for size in sizes}
    return {place: min(sizes) for place, sizes in seen.items() if len(sizes) == 1 and not sizes & lengths}


def _batch(example: Mapping[str, Any]) -> int:
    return next(int(value.shape[0]) for value in example.values() if isinstance(value, torch.Tensor))


def _main(stacks: Sequence[Stack]) -> Stack:
    """Return the stack that the output comes from: the last to run of those that attend, else of all."""
    return max(stacks, key=lambda stack: (stack.attends, stack.calls[-1].end))


def _name_stacks(model: nn.Module, stacks: Sequence[Stack]) -> dict[str, Stack]:
    """Return the stacks by the name that a site uses for them."""
    main = _main(stacks)
    named = {"": main}
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False) and len(stacks) > 1:
        first = min((stack for stack in stacks if stack is not main), key=lambda stack: stack.calls[0].start)
        named = {"encoder": first, "decoder": main}
    for stack in stacks:
        if stack not in named.values():
            said = said_name(model, stack.path)
            named[stack.path if said in named else said] = stack
    return named
