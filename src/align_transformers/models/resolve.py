"""`resolve(model)`: watch one forward pass, and say where every component is, or why that is not sure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from .._errors import SiteError, near_misses
from ..sites import Side, Site
from .attention import block_axes, find_attention
from .component_map import Block, ComponentMap
from .dummy import BATCH, dummy_inputs
from .ends import find_ends
from .findings import Findings
from .mixer import find_mixer
from .mlp import find_mlp
from .overrides import Override, override
from .slot import Slot
from .stacks import Stack, find_stacks
from .towers import find_towers, said_name
from .trace import Call, Trace, evaluating, watch


@dataclass(frozen=True, eq=False)
class _Known:
    """A map that was made, what the caller said then, and the modules that the model had."""

    map: ComponentMap
    example: Mapping[str, Any] | None
    overrides: Mapping[str, Override]
    modules: tuple[int, ...]


_maps: WeakKeyDictionary[nn.Module, _Known] = WeakKeyDictionary()


def resolve(
    model: nn.Module,
    *,
    example_inputs: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Override] | None = None,
) -> ComponentMap:
    """Return where the components of a model are. One forward pass is run, once for each model object.

    That pass is an ordinary one: hooks that others have on the model see it. Parts of a block are then called again by
    themselves, to see whether they mix positions; hooks see that, too.

    Args:
        model: any module; nothing of it is changed.
        example_inputs: keyword arguments that its forward pass accepts, two or more examples; default: a dummy.
        overrides: for components that the caller knows better: `(path from the block, "input" or "output")`, and for
            rows of heads the number of heads as a third entry.

    Returns:
        The map. With `example_inputs` or `overrides` it is made anew, and used from then on. It is made again, with
        the same, where modules of the model have been exchanged since.

    Raises:
        SiteError: an override names a place that does not exist or has another shape.
    """
    known, modules = _maps.get(model), _fingerprint(model)
    if example_inputs is None and not overrides and known is not None:
        if known.modules == modules:
            return known.map
        example_inputs, overrides = known.example, known.overrides  # modules were put in or exchanged: look again
    found = _resolve(model, example_inputs, overrides or {})
    _maps[model] = _Known(found, example_inputs, overrides or {}, modules)
    return found


def _fingerprint(model: nn.Module) -> tuple[int, ...]:
    """Return what tells whether a model still has the modules that were looked at, and where its weights are."""
    meta = any(parameter.is_meta for parameter in model.parameters())
    return (*(id(module) for module in model.modules()), int(meta))


def find_slot(model: nn.Module, site: Site) -> Slot:
    """Return where a site's tensor is in this model.

    Args:
        model: the user's model.
        site: a named component or a dotted path.

    Raises:
        SiteError: the layer, the component or the module does not exist here.

    >>> find_slot(torch.nn.Sequential(torch.nn.Linear(3, 5)), Site("0.output")).width
    5
    """
    if site.path is None:
        return resolve(model).slot(site)
    path, side = site.path
    model = uncompiled(model)
    module = submodule(model, path)
    if module is None:
        known = near_misses(path, [name for name, _ in model.named_modules() if name])
        raise SiteError(f"{type(model).__name__} has no module {path!r}; {known}")
    return Slot(module, path, side, site.call, width=module_width(module, side))


def uncompiled(model: nn.Module) -> nn.Module:
    """Return the module inside a compiled one: compiled code does not see hooks that are added later."""
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, nn.Module) else model


def submodule(root: nn.Module, path: str) -> nn.Module | None:
    """Return the module at a dotted path below `root`, or `None`; the empty path is `root` itself."""
    module: nn.Module | None = root
    for name in path.split(".") if path else ():
        module = None if module is None else module._modules.get(name)
    return module


def module_width(module: nn.Module, side: Side) -> int | None:
    """Return the size of the last axis of a module's input or output where it is plain to see; else `None`."""
    if isinstance(module, nn.Linear):
        return module.in_features if side == "input" else module.out_features
    if isinstance(module, nn.Embedding):
        return module.embedding_dim if side == "output" else None
    return None


def _resolve(model: nn.Module, example: Mapping[str, Any] | None, overrides: Mapping[str, Override]) -> ComponentMap:
    name = type(model).__name__
    inner = uncompiled(model)
    # Gradients are needed whatever mode the caller is in; compiled blocks would not see the hooks.
    eager = torch.compiler.set_stance("force_eager")
    with torch.inference_mode(False), torch.enable_grad(), eager, evaluating(inner):
        trace = _trace(inner, example)
        if isinstance(trace, str):
            return ComponentMap(name, {}, missing={"": trace})
        stacks = find_stacks(inner, trace)
        if not stacks:
            return ComponentMap(name, {}, missing={"": "no stack of blocks was found in it"})
        batch = BATCH if example is None else _batch(example)
        named = {key: _resolve_stack(stack, trace, batch) for key, stack in _name_stacks(inner, stacks).items()}
        for key, component in overrides.items():
            override(named, key, component, trace)
        ends, missing = find_ends(inner, trace, _main(stacks))
        ran = {call.module for call in trace.calls}
        towers, untraced = find_towers(inner, ran, lambda tower: _resolve(tower, None, {}))
    blocks = {key: tuple(_block(found) for found in stack) for key, stack in named.items()}
    return ComponentMap(name, blocks | towers, ends, missing | untraced)


def _trace(model: nn.Module, example: Mapping[str, Any] | None) -> Trace | str:
    """Return a watched forward pass, or why there is none."""
    if example is not None:
        return watch(model, example)
    fetched = any(hasattr(module, "_hf_hook") for module in model.modules())  # accelerate fetches what it offloaded
    if not fetched and any(p.is_meta for p in model.parameters()):
        return "its weights are on the meta device, so no forward pass can be watched: load them first"
    reasons = []
    for inputs in dummy_inputs(model):
        try:
            return watch(model, inputs)
        except Exception as error:  # whatever a model says to inputs it does not like
            reasons.append(f"{type(error).__name__}: {error}".splitlines()[0][:200])
    return f"no dummy input was accepted, so give example_inputs ({'; '.join(dict.fromkeys(reasons))})"


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


def _resolve_stack(stack: Stack, trace: Trace, batch: int) -> list[Findings]:
    """Examine one block of each kind; blocks that ran alike are alike."""
    signatures = [_signature(call, trace) for call in stack.calls]
    # The last of a kind: a model that loops may run all but its last round without gradients.
    known = {
        signature: _examine(call, trace, batch)
        for signature, call in dict(zip(signatures, stack.calls, strict=True)).items()
    }
    result = []
    for signature, call in zip(signatures, stack.calls, strict=True):
        found = known[signature]
        result.append(found if found.block is call else _transfer(found, call, trace))
        result[-1].flags["signature"] = list(known).index(signature)
    return result


def _signature(block: Call, trace: Trace) -> Any:
    """What a block is and does: its class, the shapes of its weights, the calls in it and the attentions in it."""
    weights = tuple((name, tuple(p.shape)) for name, p in block.module.named_parameters())
    calls = tuple((_relative(call.path, block.path), call.number - block.number) for call in trace.during(block))
    attentions = tuple((_relative(a.owner.path, block.path), a.source) for a in trace.attentions_during(block))
    return type(block.module).__name__, weights, calls, attentions


def _relative(path: str, root: str) -> str:
    """Return a path from the block on, with a dot in front; a module outside the block keeps its whole path."""
    return path[len(root) :] if path == root or path.startswith(root + ".") else path


def _examine(block: Call, trace: Trace, batch: int) -> Findings:
    found = Findings(trace, block, *block_axes(block, trace.attentions_during(block), batch))
    how = "the block: a chain of modules, each given what the one before returned"
    found.found("block_input", block, "input", how)
    found.found("block_output", block, "output", how)
    linears = [call for call in trace.during(block) if call.cut is not None]
    find_attention(found, linears)
    find_mixer(found, linears)
    find_mlp(found, linears)
    found.flags["additive"] = _additive(found)
    return found


def _transfer(known: Findings, block: Call, trace: Trace) -> Findings:
    """Return what is known of a block for another one that ran alike."""
    by_path = {(_relative(call.path, block.path), call.number - block.number): call for call in trace.during(block)}
    by_path["", 0] = block
    how, missing, flags = (_renamed(said, known.block, block) for said in (known.how, known.missing, known.flags))
    found = Findings(trace, block, known.batch, known.length, {}, how, missing, flags)
    for name, slot in known.slots.items():
        number = 0 if slot.call is None else slot.call - known.block.number
        call = by_path[_relative(slot.path, known.block.path), number]
        found.slots[name] = replace(
            slot,
            module=call.module,
            path=call.path,
            call=None if slot.call is None else call.number,
            around=None if slot.around is None else block.module,
        )
    return found


def _renamed(said: Mapping[str, Any], known: Call, block: Call) -> dict[str, Any]:
    """Return what was said of one block with the paths of another in it."""
    old, new = f"{known.path}.", f"{block.path}."
    return {key: value.replace(old, new) if isinstance(value, str) else value for key, value in said.items()}


def _additive(found: Findings) -> bool:
    """Whether the block's output is its input plus what attention and the MLP say they add."""
    total, target = found.block.input, found.block.output
    names = ("attention_output", "cross_attention_output", "mixer_output", "mlp_output")
    parts = [part for part in (found.value(name) for name in names) if part is not None]
    if total is None or target is None or not parts or total.shape != target.shape:
        return False
    if any(part.numel() != total.numel() for part in parts):
        return False
    for part in parts:
        total = total + part.reshape(total.shape)
    tolerance = 1e-4 if target.dtype in (torch.float32, torch.float64) else 3e-2
    return bool((total - target).abs().max() <= tolerance * target.abs().max())


def _block(found: Findings) -> Block:
    return Block(found.block.path, found.block.number, found.slots, found.how, found.missing, found.flags)
