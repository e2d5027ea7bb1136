"""`RepresentationConfig` and `IntervenableConfig`: an alignment as users write it down."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import FrozenInstanceError, dataclass, fields
from operator import index
from types import SimpleNamespace
from typing import Any, Literal, TypeVar, get_args

from torch import Tensor

from ._errors import SpecError, UnknownNameError, near_misses
from .interventions import VanillaIntervention
from .locations import UNITS, Unit
from .sites import COMPONENTS, Layers, Site, in_block, is_whole, read_layers
from .subspaces import Partition

Mode = Literal["parallel", "serial"]

ALIASES: Mapping[str, str] = {
    "intervenable_layer": "layer",
    "intervenable_representation_type": "component",
    "intervenable_unit": "unit",
    "intervenable_low_rank_dimension": "low_rank_dimension",
    "intervenable_model_type": "model_type",
    "intervenable_representations": "representations",
    "intervenable_interventions_type": "intervention_types",
    "intervenable_interventions": "interventions",
    "activations_sources": "source_representations",
}
"""Older and longer keywords of configurations and calls, and what each is called here."""

C = TypeVar("C", bound=type)


def _accepts_aliases(cls: C) -> C:
    """Let the constructor of a dataclass take the keywords of `ALIASES`, and name near misses of unknown ones."""
    construct: Callable[..., None] = cls.__init__  # type: ignore[misc]
    names = [f.name for f in fields(cls)]

    @functools.wraps(construct)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        order = names[1:] if args and _is_representations(args[0]) and names[1] == "representations" else names
        if len(args) > len(order):
            raise SpecError(f"{cls.__name__} has the fields {', '.join(order)}; found {len(args)} values")
        renamed = dict(zip(order, args, strict=False))
        for keyword, value in kwargs.items():
            name = ALIASES.get(keyword, keyword)
            if name not in names:
                known = names + [alias for alias, target in ALIASES.items() if target in names]
                raise UnknownNameError(f"{cls.__name__} has no field {keyword!r}; {near_misses(keyword, known)}")
            if name in renamed:
                raise SpecError(f"{cls.__name__} got {name!r} twice (here as {keyword!r})")
            renamed[name] = value
        construct(self, **renamed)

    cls.__init__ = __init__  # type: ignore[misc]
    return cls


@_accepts_aliases
@dataclass(frozen=True, eq=False)
class RepresentationConfig:
    """One intervention: where, addressed how, doing what.

    Args:
        layer: block number, from 0, negative from the last; `None` when `component` is a path. Several numbers, or
            `"all"` that have the component: as many interventions as layers, of one group (an `IntervenableModel` has
            them one by one). A class is constructed for each layer; an instance or a function is the same at all.
        component: a name from `COMPONENT_NAMES`, or a module's dotted path ending in `.input` or `.output`.
        unit: what locations count: `pos` positions, `h` heads, `h.pos` heads at positions, `t` time steps.
        max_number_of_units: how many units an example may name in a call.
        low_rank_dimension: handed to interventions that take it.
        intervention_type: an intervention class; default: that of the `IntervenableConfig`.
        intervention: an instance, or a function `(base, source) -> new`, instead of a class.
        subspace_partition: parts of the coordinates: half-open ranges `[low, high]`, or coordinates one by one.
        group_key: representations with equal keys share one source; all have a key, or none.
        intervention_link_key: representations with equal keys share one intervention module and its weights.
        source_representation: a constant source, `(width,)` or broadcastable to `(batch, units, width)`.
        call: which call of the module in a forward pass, from 0; `None` for every call.

    Raises:
        UnknownNameError: the component, the unit or a keyword is unknown.
        SpecError: a value is of the wrong kind, or two do not go together.

    >>> RepresentationConfig(0, "mlp_output").site
    Site(component='mlp_output', layer=0, call=None)
    """

    layer: Layers | None = None
    component: str = "block_output"
    unit: Unit = "pos"
    max_number_of_units: int = 1
    low_rank_dimension: int | None = None
    intervention_type: type | None = None
    intervention: Any = None
    subspace_partition: Any = None
    group_key: int | str | None = None
    intervention_link_key: int | str | None = None
    source_representation: Tensor | None = None
    call: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.component, str):  # else the site says what is wrong
            object.__setattr__(self, "layer", read_layers(self.layer))
            if not self.is_at_one_layer and not in_block(self.component):
                raise SpecError(f"{Site(self.component)} is not in a block; found layer={self.layer!r} beside it")
        site = self.site
        if self.unit not in UNITS:
            raise UnknownNameError(f"unknown unit {self.unit!r}; {near_misses(self.unit, UNITS)}")
        if site.name is not None and self.unit in ("h", "h.pos") and not COMPONENTS[site.name].per_head:
            per_head = ", ".join(name for name, component in COMPONENTS.items() if component.per_head)
            raise SpecError(
                f"{self.component!r} has no heads, so its unit cannot be {self.unit!r}; with heads: {per_head}"
            )
        if is_whole(self.max_number_of_units):
            object.__setattr__(self, "max_number_of_units", index(self.max_number_of_units))
        if type(self.max_number_of_units) is not int or self.max_number_of_units < 1:
            raise SpecError(f"max_number_of_units is a number from 1; found {self.max_number_of_units!r}")
        if self.intervention is not None and self.intervention_type is not None:
            raise SpecError("give intervention_type (a class) or intervention (an instance or a function), not both")
        if isinstance(self.intervention, type):
            raise SpecError(f"intervention={self.intervention.__name__} is a class: give it as intervention_type=")
        if self.intervention_type is not None and not isinstance(self.intervention_type, type):
            raise SpecError(
                f"intervention_type is a class; found {self.intervention_type!r}: an instance or a function is given "
                "as intervention=, a partition as subspace_partition="
            )
        if self.subspace_partition is not None:
            Partition.of(self.subspace_partition)

    @property
    def is_at_one_layer(self) -> bool:
        """Whether the layer is known without the model: one that is counted from the first, or none."""
        return self.layer is None or (isinstance(self.layer, int) and self.layer >= 0)

    @property
    def site(self) -> Site:
        """Where in the network: at the first layer where it takes the model to tell."""
        return Site(self.component, self.layer if self.is_at_one_layer else 0, self.call)  # type: ignore[arg-type]


@_accepts_aliases
@dataclass(frozen=True, eq=False)
class IntervenableConfig:
    """A set of representations and how they are combined.

    The representations may come first, too, then the intervention types: `IntervenableConfig([...], Class)`.

    Args:
        model_type: kept for the record; the model itself tells what it is.
        representations: one `RepresentationConfig`, or several; dicts are read as keyword arguments.
        intervention_types: the class for representations that name none: one for all, or one each.
        mode: `parallel`: every intervention edits the base; `serial`: the first source edits the second, and so on.
        interventions: instances or functions for representations that name none: one for all, or one each, with `None`
            where there is none.

    Raises:
        UnknownNameError: the mode or a keyword is unknown.
        SpecError: there is nothing to do, lists are of unequal length, or linked representations disagree.

    >>> IntervenableConfig(representations={"layer": 0, "component": "mlp_output"}).representations[0].layer
    0
    """

    model_type: str | None = None
    representations: Any = ()
    intervention_types: Any = VanillaIntervention
    mode: Mode = "parallel"
    interventions: Any = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "representations", _representations(self.representations))
        if self.mode not in get_args(Mode):
            raise UnknownNameError(f"unknown mode {self.mode!r}; {near_misses(self.mode, get_args(Mode))}")
        keyed = [r.group_key is not None for r in self.representations]
        if any(keyed) and not all(keyed):
            raise SpecError("group_key: give one to every representation, or to none")
        self._check_links()

    @classmethod
    def of(cls, spec: Any) -> IntervenableConfig:
        """Return `spec` if it is a configuration; else make one of a representation, a dict, or a list of these.

        A dict with `representations` (under either name) is read as the arguments of `IntervenableConfig`.
        """
        if isinstance(spec, cls):
            return spec
        if isinstance(spec, Mapping) and any(ALIASES.get(name, name) == "representations" for name in spec):
            return cls(**spec)
        return cls(representations=spec)

    def specs(self) -> list[Any]:
        """Return for each representation its intervention as it was written: a class, an instance or a function."""
        kinds = self._for_each("intervention_types", self.intervention_types)
        instances = self._for_each("interventions", self.interventions)
        found = []
        for representation, instance, kind in zip(self.representations, instances, kinds, strict=True):
            choices = (representation.intervention, representation.intervention_type, instance, kind)
            found.append(next((spec for spec in choices if spec is not None), VanillaIntervention))
        return found

    def groups(self) -> list[list[int]]:
        """Return the numbers of the representations that share a source, group by group, in order of appearance."""
        groups: dict[int | str, list[int]] = {}
        for number, one in enumerate(self.representations):
            groups.setdefault(number if one.group_key is None else one.group_key, []).append(number)
        return list(groups.values())

    def _for_each(self, name: str, value: Any) -> list[Any]:
        """Return one value a representation."""
        count = len(self.representations)
        values = list(value) if isinstance(value, list | tuple) else [value] * count
        if len(values) != count:
            raise SpecError(f"{name} has {len(values)} entries for {count} representations")
        return values

    def _check_links(self) -> None:
        """Refuse linked representations that ask for different interventions: there is only one module."""
        first: dict[Any, tuple[int, tuple[Any, ...]]] = {}
        for number, (spec, one) in enumerate(zip(self.specs(), self.representations, strict=True)):
            if one.intervention_link_key is None:
                continue
            partition = None if one.subspace_partition is None else Partition.of(one.subspace_partition)
            asked = (spec, partition, one.low_rank_dimension, id(one.source_representation))
            origin, before = first.setdefault(one.intervention_link_key, (number, asked))
            if asked != before:
                raise SpecError(
                    f"representations {origin} and {number} share intervention_link_key={one.intervention_link_key!r}, "
                    "so their intervention, partition, low_rank_dimension and source_representation must be the same"
                )


class ModelsConfig(IntervenableConfig):
    """The configuration of an `IntervenableModel`: its fields are frozen; all else is asked and set at the model's.

    What trains or logs a model reads `config.hidden_size` or `config.to_dict()`, and a `Trainer` sets
    `config.use_cache`, as at the configuration of any model.

    >>> from types import SimpleNamespace
    >>> config = ModelsConfig.at(IntervenableConfig(representations={"layer": 0}), SimpleNamespace(hidden_size=8))
    >>> config.hidden_size, config.mode
    (8, 'parallel')
    """

    @classmethod
    def at(cls, config: IntervenableConfig, models: Any) -> ModelsConfig:
        """Return a configuration that is one with that of the model.

        Args:
            config: of the interventions.
            models: the model's own; `None` where it has none, then what is set is kept here.
        """
        made = cls(**{one.name: getattr(config, one.name) for one in fields(config)})
        object.__setattr__(made, "_models", SimpleNamespace() if models is None else models)
        return made

    def __getattr__(self, name: str) -> Any:
        """Return what the model's configuration has under a name that is none of ours."""
        if name.startswith("__") or "_models" not in vars(self):
            raise AttributeError(f"IntervenableConfig has no {name!r}")
        return getattr(vars(self)["_models"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set something in the model's configuration; fields of ours are frozen."""
        if name in {one.name for one in fields(self)} or "_models" not in vars(self):
            raise FrozenInstanceError(f"cannot assign to {name!r}: a configuration of interventions stays as it is")
        setattr(vars(self)["_models"], name, value)


def _is_representations(given: Any) -> bool:
    return isinstance(given, RepresentationConfig | Mapping | list | tuple)


def _representations(given: Any) -> tuple[RepresentationConfig, ...]:
    """Return the representations that a user wrote down."""
    listed = [given] if isinstance(given, RepresentationConfig | Mapping) else given
    if not isinstance(listed, list | tuple) or not listed:
        raise SpecError(f"representations is a RepresentationConfig, a dict, or a list of these; found {given!r}")
    found = [RepresentationConfig(**one) if isinstance(one, Mapping) else one for one in listed]
    for one in found:
        if not isinstance(one, RepresentationConfig):
            raise SpecError(f"a representation is a RepresentationConfig or a dict; found {one!r}")
    return tuple(found)


IntervenableRepresentationConfig = RepresentationConfig
"""The older, longer name."""
