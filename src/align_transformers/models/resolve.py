"""`resolve(model, site)`: from a site's words to the module and the channels that hold its tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .._errors import SiteError, near_misses
from ..sites import COMPONENTS, Side, Site
from .families import Family, Place, find_family, submodule
from .slot import Slot


@dataclass(frozen=True, eq=False)
class ComponentMap:
    """Every named component of every block of one model.

    Args:
        family: name of the family it was recognised as; empty when none.
        slots: one mapping a block, from component name to slot.
    """

    family: str
    slots: tuple[Mapping[str, Slot], ...]


_maps: WeakKeyDictionary[nn.Module, ComponentMap] = WeakKeyDictionary()


def component_map(model: nn.Module) -> ComponentMap:
    """Return the components of a model; found once and remembered as long as the model lives.

    Args:
        model: any module; where no known family is found the map is empty, and only dotted paths can be used.
    """
    if model not in _maps:
        found = find_family(model)
        if found is None:
            _maps[model] = ComponentMap("", ())
        else:
            family, path, blocks = found
            slots = tuple(_block_slots(family, f"{path}.{number}", block) for number, block in enumerate(blocks))
            _maps[model] = ComponentMap(family.name, slots)
    return _maps[model]


def resolve(model: nn.Module, site: Site) -> Slot:
    """Return where a site's tensor is in this model.

    Args:
        model: the user's model.
        site: a named component or a dotted path.

    Raises:
        SiteError: the layer, the component or the module does not exist here.

    >>> resolve(torch.nn.Sequential(torch.nn.Linear(3, 5)), Site("0.output")).width
    5
    """
    if site.path is not None:
        return _resolve_path(model, site.path[0], site.path[1], site.call)
    components = component_map(model)
    if not components.slots:
        raise SiteError(
            f"{type(model).__name__} is of no known family (GPT-2, Llama), so {site.component!r} has no meaning there: "
            "give the module's dotted path, such as 'layers[0].mlp.output'"
        )
    if site.layer is None or site.layer >= len(components.slots):
        raise SiteError(
            f"layer {site.layer} does not exist: {type(model).__name__} has {len(components.slots)} blocks, from 0"
        )
    slot = components.slots[site.layer][str(site.name)]
    return slot if site.call is None else replace(slot, call=site.call)


def _resolve_path(model: nn.Module, path: str, side: Side, call: int | None) -> Slot:
    module = submodule(model, path)
    if module is None:
        names = [name for name, _ in model.named_modules() if name]
        raise SiteError(f"{type(model).__name__} has no module {path!r}; {near_misses(path, names)}"[:2000])
    return Slot(module, path, side, call, width=module_width(module, side))


def module_width(module: nn.Module, side: Side) -> int | None:
    """Return the size of the last axis of a module's input or output, read off its weights; `None` if it has none."""
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.Linear):
        return module.in_features if side == "input" else module.out_features
    if isinstance(module, nn.Embedding):
        return module.embedding_dim if side == "output" else None
    if not isinstance(weight, Tensor):
        return None
    if weight.ndim == 1:
        return int(weight.shape[0])
    if weight.ndim == 2 and hasattr(module, "nf"):  # transformers' Conv1D keeps its weight as (in, out)
        return int(weight.shape[0 if side == "input" else 1])
    return None


def _block_slots(family: Family, path: str, block: nn.Module) -> dict[str, Slot]:
    attention = submodule(block, family.attention)
    head_dim = int(attention.head_dim) if attention is not None else 0  # type: ignore[arg-type]
    slots = {name: _slot(family, name, place, path, block, head_dim) for name, place in family.places.items()}
    queries, keys = slots["query_output"].heads, slots["key_output"].heads
    if queries is not None and keys is not None and len(queries) != len(keys):
        shared = (
            f"{len(queries)} query heads share {len(keys)} key/value heads: query head h uses key/value head "
            f"h // {len(queries) // len(keys)}"
        )
        for name in ("key_output", "value_output"):
            slots[name] = replace(slots[name], grouping=shared)
    return slots


def _slot(family: Family, name: str, place: Place, path: str, block: nn.Module, head_dim: int) -> Slot:
    module = submodule(block, place.path)
    if module is None:
        raise SiteError(f"{path} looks like a {family.name} block, but has no {place.path!r}")
    full = module_width(module, place.side)
    if full is None:  # blocks, MLPs and attention modules read and write the residual stream
        full = _residual_width(family, block)
    width = full // place.parts
    channels = None if place.parts == 1 else torch.arange(place.part * width, (place.part + 1) * width)
    heads = None
    if COMPONENTS[name].per_head:
        heads = torch.arange(place.part * width, (place.part + 1) * width).view(-1, head_dim)
    whole = f"{path}.{place.path}" if place.path else path
    return Slot(module, whole, place.side, channels=channels, heads=heads, width=width)


def _residual_width(family: Family, block: nn.Module) -> int:
    output = family.places["attention_output"]
    module = submodule(block, output.path)
    width = None if module is None else module_width(module, "output")
    if width is None:
        raise SiteError(f"the width of the residual stream of a {family.name} block cannot be read off {output.path!r}")
    return width
