"""The binding of the last call, for the next one that differs from it in the contents of its tensors only."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .anchors import FoundPlaces
from .compose import Call, named_inputs
from .config import IntervenableConfig
from .engine import Bound, Inputs
from .interventions import Intervention
from .locations import Location
from .models import ComponentMap, uncompiled
from .models.resolve import known_map

_MASKS = ("attention_mask", "decoder_attention_mask")

_PathStep = tuple[Mapping[str, nn.Module | None], str, nn.Module]
"""The modules below a module, the name of one of them, and that one."""


@dataclass(frozen=True, eq=False)
class _CachedBinding:
    """A binding with what it was made for.

    Args:
        words: the locations, subspaces, times and names of the sources of the call.
        shapes: of the inputs' tensors, by input and name.
        masks: a copy of each attention mask, which says where the padding is.
        map: of the model's components.
        path: every step on the way from the model to the sites and to its blocks.
        bound: the binding.
    """

    words: Hashable
    shapes: Mapping[str, Any]
    masks: Mapping[tuple[str, str], Tensor]
    map: ComponentMap | None
    path: Sequence[_PathStep]
    bound: Bound


class BindingCache:
    """Remembers one binding.

    Args:
        config: says which sources there are.
        interventions: by key; looked at in every call.
    """

    def __init__(self, config: IntervenableConfig, interventions: Mapping[str, Intervention]) -> None:
        self._config, self._interventions = config, interventions
        self._cached: _CachedBinding | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> BindingCache:
        return BindingCache(self._config, deepcopy(self._interventions, memo))

    def bound(self, model: nn.Module, call: Call, original: bool, bind: Callable[[], Bound]) -> Bound:
        """Return the last binding with the inputs of this call if nothing that it rests on has changed, else a new one.

        Args:
            model: the user's.
            call: the arguments of the call.
            original: whether the base also runs without edits.
            bind: makes a new one.
        """
        names, inputs = named_inputs(self._config, call)
        words = None if call.source_representations is not None else _words(call, names, original)
        cached = self._cached
        if cached is not None and words == cached.words and self._fits(cached, model, inputs):
            return replace(cached.bound, inputs=inputs)
        bound = bind()
        path = None if words is None else _path(bound)
        self._cached = None
        if path is not None:
            emptied = replace(bound, inputs={})
            found = known_map(bound.model)
            self._cached = _CachedBinding(words, _shapes(inputs), _masks(inputs), found, path, emptied)
        return bound

    def _fits(self, cached: _CachedBinding, model: nn.Module, inputs: Mapping[str, Inputs]) -> bool:
        """Whether a binding is good for this model and these inputs."""
        model = uncompiled(model)
        same = model is cached.bound.model and known_map(model) is cached.map and _shapes(inputs) == cached.shapes
        return same and _same_masks(inputs, cached.masks) and self._holds(cached)

    def _holds(self, cached: _CachedBinding) -> bool:
        """Whether interventions and modules are those that were bound."""
        for name, edit in cached.bound.edits.items():
            intervention = edit.intervention
            if self._interventions.get(name) is not intervention:
                return False
            if edit.constant is not intervention.source_representation:
                return False
        return all(below.get(name) is module for below, name, module in cached.path)


def _path(bound: Bound) -> list[_PathStep] | None:
    """Return every step on the way to the sites and the blocks; `None` if one is not found that way."""
    steps: dict[tuple[int, str], _PathStep] = {}
    slots = [*(edit.slot for edit in bound.edits.values()), *(read.slot for read in bound.reads.values())]
    components = known_map(bound.model)
    blocks = [] if components is None else [block for stack in components.stacks.values() for block in stack]
    outputs = (block.slots.get("block_output") for block in blocks)
    for slot in [*slots, *(slot for slot in outputs if slot is not None)]:
        module = bound.model
        for name in slot.path.split(".") if slot.path else ():
            below, parent = module._modules, id(module)
            found = below.get(name)
            if found is None:
                return None
            steps[parent, name], module = (below, name, found), found
        if slot.fused is not None or module is not slot.module:
            return None
    return list(steps.values())


class _NotPlain(Exception):
    """Something that cannot be told from others by its value; never seen by a user."""


def _words(call: Call, names: Sequence[str | None], original: bool) -> Hashable | None:
    """Return the plain arguments of a call; `None` if they hold more than numbers, texts, lists and arrays of these.

    Args:
        call: the arguments.
        names: of each group's source: which groups share one, and which have none.
        original: whether the base also runs without edits.
    """
    sources = call.sources is None, tuple(names)
    timing = None if call.timing is None else (call.timing.on_prompt, call.timing.steps)
    try:
        return _frozen(call.unit_locations), _frozen(call.subspaces), sources, timing, original
    except _NotPlain:
        return None


def _frozen(value: Any) -> Hashable:
    """Return nested containers and arrays as tuples of what cannot change."""
    kind = type(value)
    if kind is list or kind is tuple:  # first: most of what a call names
        return tuple(map(_frozen, value))
    if value is None or kind is int or kind is str or isinstance(value, Location):
        return value
    if isinstance(value, FoundPlaces):
        return "found", value.shifts, tuple(map(tuple, value))
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple | range):
        return tuple(map(_frozen, value))
    if isinstance(value, Mapping):
        return "mapping", tuple((_frozen(key), _frozen(item)) for key, item in value.items())
    if isinstance(value, slice):
        return "slice", _frozen(value.start), _frozen(value.stop), _frozen(value.step)
    if isinstance(value, int | float | str):
        return type(value), value
    raise _NotPlain


def _shapes(inputs: Mapping[str, Inputs]) -> dict[str, Any]:
    """Return the shapes and kinds of the inputs' tensors."""
    return {name: _shape(given) for name, given in inputs.items()}


def _shape(given: Inputs) -> Any:
    if isinstance(given, Tensor):
        return given.shape, given.dtype
    return {name: (value.shape, value.dtype) for name, value in given.items() if isinstance(value, Tensor)}


def _masks(inputs: Mapping[str, Inputs]) -> dict[tuple[str, str], Tensor]:
    """Return a copy of each attention mask."""
    return {
        (name, mask): value.clone()
        for name, given in inputs.items()
        if isinstance(given, Mapping)
        for mask in _MASKS
        if isinstance(value := given.get(mask), Tensor)
    }


def _same_masks(inputs: Mapping[str, Inputs], masks: Mapping[tuple[str, str], Tensor]) -> bool:
    for (name, mask), before in masks.items():
        given = inputs[name]
        if not isinstance(given, Mapping) or not torch.equal(given[mask], before):
            return False
    return True
