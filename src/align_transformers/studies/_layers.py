"""Which layers a study is about."""

from __future__ import annotations

from torch import nn

from ..models import chosen_layers
from ..sites import Site
from ._prompts import Which, indices


def sites_of(model: nn.Module, component: str, layers: Which) -> list[Site]:
    """Return the sites of a component in the layers that are asked for; `"all"` are those that have it.

    Args:
        model: the user's.
        component: by name.
        layers: numbers, negative ones from the end, or `"all"`.

    Raises:
        SpecError: no layer is named, or they are neither numbers nor `"all"`.
        SiteError: there is no such layer, or none has the component.
    """
    if isinstance(layers, str) or not layers:
        indices(layers, 1, "layer", "")
    return [Site(component, layer) for layer in chosen_layers(model, component, layers)]
