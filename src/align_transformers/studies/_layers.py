"""Which layers a study is about."""

from __future__ import annotations

from torch import nn

from ..models import find_slot, resolve
from ..sites import Site, in_block
from ._prompts import Which, indices


def depth_of(model: nn.Module, component: str) -> int:
    """Return how many layers there are where a component is.

    Raises:
        SiteError: there is no such stack of blocks.
    """
    found, first = resolve(model), Site(component, 0)
    if first.stack not in found.stacks:
        found.slot(first)  # which says why
    return len(found.stacks[first.stack])


def sites_of(model: nn.Module, component: str, layers: Which) -> list[Site]:
    """Return the sites of a component in the layers that are asked for; `"all"` are those that have it.

    Args:
        model: the user's.
        component: by name; an end of the model or a path is one site, whatever the layers.
        layers: numbers, negative ones from the end, or `"all"`.

    Raises:
        SpecError: no layer is named, or they are neither numbers nor `"all"`.
        PositionError: there is no such layer.
        SiteError: one has no such component, or none has it.
    """
    sites = [Site(component)] if not in_block(component) else []
    if not sites:
        depth = depth_of(model, component)
        deep = f"{type(model).__name__} has {depth} layers"
        sites = [Site(component, layer) for layer in indices(layers, depth, "layer", deep)]
    if layers == "all" and len(sites) > 1:
        found = resolve(model)
        sites = [site for site in sites if found.find(site) is not None] or sites[:1]
    for site in sites:
        find_slot(model, site)
    return sites
