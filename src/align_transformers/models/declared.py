"""Models that say themselves where their components are, by an attribute `component_paths` of their class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from .._errors import SiteError, SpecError, near_misses
from ..sites import COMPONENTS, Site
from .component_map import Block, ComponentMap
from .modules import module_width, submodule
from .slot import Slot

ATTRIBUTE = "component_paths"
Widths = Mapping[tuple[str, str], int]
"""By path and side of a module the width of what it got or gave in a forward pass that was watched."""


def paths_of(model: nn.Module) -> Mapping[str, str] | None:
    """Return where a model's class says that its components are; `None` if it says nothing.

    Raises:
        SpecError: a name is that of no component.
    """
    said: Any = getattr(type(model), ATTRIBUTE, None)
    if not isinstance(said, Mapping):
        return None
    for name in said:
        if name not in COMPONENTS:
            raise SpecError(f"{type(model).__name__}.{ATTRIBUTE} names {name!r}: {near_misses(name, COMPONENTS)}")
    return said


def declared(model: nn.Module, paths: Mapping[str, str], widths: Widths) -> ComponentMap:
    """Return the components of a model that says itself where they are.

    Args:
        model: an instance of that class.
        paths: by component its path and side, with `{layer}` in it for the number of the block, as in
            `h[{layer}].act.output`.
        widths: of the model's modules, as far as they are known.

    Raises:
        SiteError: an end's module is not there.
    """
    ends = {
        name: _slot(model, path, widths, f"{ATTRIBUTE}[{name!r}]")
        for name, path in paths.items()
        if not COMPONENTS[name].in_block
    }
    inside = {name: path for name, path in paths.items() if COMPONENTS[name].in_block}
    blocks: list[Block] = []
    while inside and _block_is_there(model, inside, len(blocks)):
        layer = len(blocks)
        slots = {
            name: _slot(model, path.format(layer=layer), widths, f"{ATTRIBUTE}[{name!r}]")
            for name, path in inside.items()
        }
        blocks.append(Block(_block_path(inside, layer), 0, slots, dict.fromkeys(slots, "the model's own word"), {}, {}))
    return ComponentMap(type(model).__name__, {"": tuple(blocks)} if blocks else {}, ends, {}, widths=widths)


def _block_path(paths: Mapping[str, str], layer: int) -> str:
    """Return the path of a block: what stands in front of and at its number."""
    front = next(iter(paths.values())).partition("{layer}]")[0] + "{layer}]"
    path = Site(f"{front}.output".format(layer=layer)).path
    assert path is not None
    return path[0]


def _block_is_there(model: nn.Module, paths: Mapping[str, str], layer: int) -> bool:
    return submodule(model, _block_path(paths, layer)) is not None


def _slot(model: nn.Module, path: str, widths: Widths, what: str) -> Slot:
    at = Site(path).path
    module = None if at is None else submodule(model, at[0])
    if at is None or module is None:
        raise SiteError(f"{type(model).__name__} has no module {path!r}, which its {what} names")
    width = module_width(module, at[1])
    slot = Slot(module, *at, width=width)
    return replace(slot, width=widths.get(at)) if width is None else slot
