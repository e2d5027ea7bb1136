"""The representations of a configuration, ready for use: their sites found, their interventions built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from .config import IntervenableConfig, RepresentationConfig
from .interventions import Intervention, build_intervention, needs_width
from .locations import Addressed
from .models import Slot, chosen_layers, find_slot, resolve
from .sites import Site


@dataclass(frozen=True, eq=False)
class Representation:
    """One intervention of a configuration, ready for use: its key, its site, its module and how it is addressed."""

    key: str
    site: Site
    intervention: Intervention
    addressed: Addressed


def expanded(config: IntervenableConfig, model: nn.Module) -> IntervenableConfig:
    """Return a configuration in which each representation is at one layer, counted from the first.

    What was one representation is one group, so that it has one source.

    Args:
        config: its representations may be at several layers, or at some counted from the last.
        model: says how many there are, and which have the component.

    Raises:
        SiteError: the model has no such layer.
    """
    if all(one.is_at_one_layer for one in config.representations):
        return config
    at: list[Sequence[Any]] = [
        [one.layer] if one.is_at_one_layer or one.layer is None else chosen_layers(model, one.component, one.layer)
        for one in config.representations
    ]
    grouped = any(len(layers) > 1 for layers in at)

    def for_each(values: Any) -> Any:
        listed = isinstance(values, list | tuple) and len(values) == len(at)
        return [value for value, layers in zip(values, at, strict=True) for _ in layers] if listed else values

    listed = [
        replace(one, layer=layer, group_key=number if grouped and one.group_key is None else one.group_key)
        for number, (one, layers) in enumerate(zip(config.representations, at, strict=True))
        for layer in layers
    ]
    kinds, instances = for_each(config.intervention_types), for_each(config.interventions)
    return replace(config, representations=listed, intervention_types=kinds, interventions=instances)


def represent(config: IntervenableConfig, model: nn.Module) -> list[Representation]:
    """Return the representations with their sites found and their interventions built; linked ones share a module.

    Args:
        config: each of its representations is at one layer.
        model: the user's.
    """
    linked: dict[Any, Intervention] = {}
    found = []
    for number, (spec, representation) in enumerate(zip(config.specs(), config.representations, strict=True)):
        site = representation.site
        slot = find_slot(model, site)
        link = representation.intervention_link_key
        intervention = linked.get(link) if link is not None else None
        if intervention is None:
            units = representation.max_number_of_units if representation.unit in ("pos", "t") else 1
            if slot.width is None and site.path is not None and needs_width(spec):
                slot = replace(slot, width=resolve(model).widths.get(site.path))
            intervention = build_intervention(spec, _options(representation, slot), units=units)
        if link is not None:
            linked[link] = intervention
        by_unit = intervention.keep_last_dim and representation.unit != "h"
        addressed = Addressed(representation.unit, representation.max_number_of_units, by_unit)
        found.append(Representation(_key(representation, number), site, intervention, addressed))
    return found


def _options(representation: RepresentationConfig, slot: Slot) -> dict[str, Any]:
    """Return the constructor arguments that a representation gives its intervention."""
    width = slot.width
    if representation.unit in ("h", "h.pos") and slot.heads is not None:
        width = slot.heads.shape[1] * representation.max_number_of_units
    return {
        "embed_dim": width,
        "subspace_partition": representation.subspace_partition,
        "low_rank_dimension": representation.low_rank_dimension,
        "source_representation": representation.source_representation,
    }


def _key(representation: RepresentationConfig, number: int) -> str:
    layer = "" if representation.layer is None else f"layer.{representation.layer}."
    units = f"unit.{representation.unit}.nunit.{representation.max_number_of_units}"
    return f"{layer}comp.{representation.component}.{units}#{number}"
