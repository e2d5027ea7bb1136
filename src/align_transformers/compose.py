"""From a configuration and one call's arguments to a plan with its inputs and constants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ._errors import PlanError, SpecError, UnknownNameError, near_misses
from .config import IntervenableConfig
from .engine import Inputs, batch_size, real_spans
from .interventions import Intervention
from .interventions.user_function import HandedIntervention, takes_anything
from .locations import Axis, Handed, Location, choose_subspaces, locate
from .plan import Constant, Edit, Plan, Read, Run
from .positions import Positions, Steps
from .representations import Representation
from .subspaces import Choice


@dataclass(frozen=True)
class Timing:
    """While generating: whether the prompt is edited, and which generated tokens are."""

    on_prompt: bool
    steps: Steps


@dataclass(frozen=True, eq=False)
class Call:
    """The arguments of one call, as the user gave them; see `IntervenableModel.forward`.

    `unit_locations` may also be ready-made: a tuple with one `Location`, or `None` to skip it, for each representation.
    """

    base: Any
    sources: Any = None
    unit_locations: Any = None
    source_representations: Any = None
    subspaces: Any = None
    timing: Timing | None = None


@dataclass(frozen=True, eq=False)
class Composed:
    """A plan, with the inputs, interventions and constants that it names."""

    plan: Plan
    inputs: Mapping[str, Inputs]
    interventions: Mapping[str, Intervention]
    constants: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class LocationLink:
    """One key of `unit_locations`: the representations that it carries, the runs that they read and the one they edit.

    Args:
        name: the key, such as `sources->base`.
        sources: by number of the representation, ascending, the run that it reads; `None` if the call has none for it.
        target: name of the run that is edited.
    """

    name: str
    sources: Mapping[int, str | None]
    target: str


def compose(
    config: IntervenableConfig, representations: Sequence[Representation], call: Call, *, original: bool = False
) -> Composed:
    """Return the plan of one call.

    Args:
        config: says how the representations are grouped and chained.
        representations: those of the configuration, in its order.
        call: the call's arguments; they are only read.
        original: also run the base without edits.

    Raises:
        SpecError, UnknownNameError, PositionError: an argument has no form that is known.
        PlanError: sources and groups do not fit, or an edit would change nothing.
    """
    groups = config.groups()
    names, inputs = named_inputs(config, call)
    links = _links(config.mode, groups, names)
    located = _locations(call.unit_locations, links, representations, inputs)
    batches = [batch_size(call.base, one.site.sequence) for one in representations]
    by_batch = {batch: choose_subspaces(call.subspaces, len(representations), batch) for batch in set(batches)}
    constants = constants_of(call.source_representations, representations)
    interventions = {one.key: one.intervention for one in representations}
    edits: dict[str, list[Edit]] = {name: [] for name in inputs}
    for number, one in enumerate(representations):
        link, location = located[number]
        if location is not None:
            source = _source(one, link.sources[number], location, constants)
            if source is not None or not _is_skipped(one, call):
                _check_source(one, source, call)
                location, source = _once(one, location, source, constants)
                batch = batch_size(inputs[link.target], one.site.sequence)
                subspace = _subspace(one, by_batch[batches[number]][number], batch, interventions)
                edits[link.target].append(_edit(one, link.target, location, subspace, source, call))
    runs = [Run(name, name, tuple(made)) for name, made in edits.items()]
    if original:
        runs.append(Run("original", "base"))
    plan = Plan(tuple(runs), ("original", "base") if original else ("base",))
    _check_all_matter(plan)
    return Composed(plan, inputs, interventions, constants)


def named_inputs(config: IntervenableConfig, call: Call) -> tuple[list[str | None], dict[str, Inputs]]:
    """Return the name of each group's source (`None` for none), and the inputs under the names that its plan has.

    Raises:
        SpecError, PlanError: as for `compose`.
    """
    sources = _sources(call.sources, len(config.groups()))
    names = _names(config.mode, sources)
    inputs = {"base": _input("base", call.base)}
    inputs |= {name: source for name, source in zip(names, sources, strict=True) if name and source is not None}
    return names, inputs


def _input(name: str, value: Any) -> Inputs:
    if not isinstance(value, Tensor | Mapping):
        raise SpecError(f"the {name} is a dict of the model's arguments, or one tensor; found {type(value).__name__}")
    return value


def _sources(sources: Any, count: int) -> list[Inputs | None]:
    """Return one source (or `None`) for each group."""
    if sources is None or isinstance(sources, Tensor | Mapping):
        return [sources] * count
    if not isinstance(sources, list | tuple):
        raise SpecError(
            f"sources is a dict, or a list with one for each group; found {type(sources).__name__}. Of a text "
            "tokenizer(text, return_tensors='pt') makes one"
        )
    listed = [None if one is None else _input(f"source {number}", one) for number, one in enumerate(sources)]
    if len(listed) not in (1, count):
        raise PlanError(f"there are {count} groups of interventions, but {len(listed)} sources (None skips a group)")
    return listed * count if len(listed) == 1 else listed


def _names(mode: str, sources: Sequence[Inputs | None]) -> list[str | None]:
    """Return the name of each group's source run. In parallel mode one object is one run, however often it is given."""
    first: dict[int, int] = {}
    names: list[str | None] = []
    for number, source in enumerate(sources):
        same = first.setdefault(id(source), number) if mode == "parallel" else number
        names.append(None if source is None else f"source_{same}")
    return names


def _links(mode: str, groups: Sequence[Sequence[int]], names: Sequence[str | None]) -> list[LocationLink]:
    """Return the links of a call: a single one in parallel mode, one a group in serial mode."""
    if mode == "parallel":
        pairs = zip(groups, names, strict=True)
        reads = {number: name for members, name in pairs for number in members}
        return [LocationLink("sources->base", dict(sorted(reads.items())), "base")]
    links = []
    for number, (members, name) in enumerate(zip(groups, names, strict=True), start=1):
        following = f"source_{number}" if number < len(groups) else "base"
        # A skipped source is no run, so the chain goes on with the next that there is.
        target = next((later for later in names[number:] if later is not None), "base")
        links.append(LocationLink(f"source_{number - 1}->{following}", dict.fromkeys(members, name), target))
    return links


def axes_of(
    config: IntervenableConfig, representations: Sequence[Representation], call: Call
) -> list[tuple[Axis, Axis]]:
    """Return for each representation what locations in the run that it reads, and in the run that it edits, refer to.

    Args:
        config: says how the representations are grouped and chained.
        representations: those of the configuration, in its order.
        call: the call's arguments; only its base and its sources are read.

    Raises:
        SpecError, PlanError: as for `compose`.
    """
    groups = config.groups()
    names, inputs = named_inputs(config, call)
    found = _axes(_links(config.mode, groups, names), representations, inputs)
    return [found[number] for number in range(len(representations))]


def _axes(
    links: Sequence[LocationLink], representations: Sequence[Representation], inputs: Mapping[str, Inputs]
) -> dict[int, tuple[Axis, Axis]]:
    """Return by number of the representation what its source locations and its base locations refer to."""

    def axis(number: int, run: str) -> Axis:
        stack = representations[number].site.sequence
        return Axis(batch_size(inputs[run], stack), real_spans(inputs[run], stack))

    found = {}
    for link in links:
        for number, name in link.sources.items():
            base = axis(number, link.target)
            found[number] = axis(number, name or link.target).serving(base.batch), base
    return found


def _locations(
    spec: Any, links: Sequence[LocationLink], representations: Sequence[Representation], inputs: Mapping[str, Inputs]
) -> dict[int, tuple[LocationLink, Location | None]]:
    """Return by number of the representation its link, and where it reads and writes (`None`: it is skipped)."""
    if isinstance(spec, tuple) and any(isinstance(one, Location) for one in spec):
        return _ready_made(spec, links)
    axes = _axes(links, representations, inputs)
    found: dict[int, tuple[LocationLink, Location | None]] = {}
    for link, value in zip(links, _by_link(spec, [link.name for link in links]), strict=True):
        addressed = [representations[number].addressed for number in link.sources]
        sources, bases = zip(*(axes[number] for number in link.sources), strict=True)
        located = locate(value, link.name, addressed, sources, bases)
        found |= {number: (link, one) for number, one in zip(link.sources, located, strict=True)}
    return found


def _ready_made(spec: Sequence[Any], links: Sequence[LocationLink]) -> dict[int, tuple[LocationLink, Location | None]]:
    """Return locations that are made already, by number of the representation, each with its link."""
    count = sum(len(link.sources) for link in links)
    if len(spec) != count or not all(one is None or isinstance(one, Location) for one in spec):
        raise SpecError(f"ready-made unit_locations are one Location or None for each of {count} interventions: {spec}")
    return {number: (link, spec[number]) for link in links for number in link.sources}


def _by_link(spec: Any, names: Sequence[str]) -> list[Any]:
    """Return what `unit_locations` says of each link."""
    if spec is None or len(names) == 1:
        return [spec] * len(names)
    if not isinstance(spec, Mapping):
        raise SpecError(f"unit_locations in serial mode is a dict with the keys {names}; found {spec!r}")
    for name in spec:
        if name not in names:
            raise UnknownNameError(f"unit_locations has no link {name!r}; {near_misses(name, names)}")
    missing = [name for name in names if name not in spec]
    if missing:
        raise SpecError(f"unit_locations lacks {missing}; serial mode has the links {names}, None is the whole tensor")
    return [{name: spec[name]} for name in names]


def constants_of(given: Any, representations: Sequence[Representation]) -> dict[str, Tensor]:
    """Return the constant sources by key: those of the call, and else those that interventions carry.

    Args:
        given: a call's `source_representations`.
        representations: those of the configuration, in its order.

    Raises:
        SpecError, UnknownNameError: they are of other interventions.
    """
    keys = [one.key for one in representations]
    carried = {one.key: one.intervention.source_representation for one in representations}
    if given is None:
        given = {}
    elif hasattr(given, "shape"):
        given = dict.fromkeys(keys, given)
    elif not isinstance(given, Mapping):
        if not isinstance(given, list | tuple):
            raise SpecError(
                "source_representations is a tensor for all, a list in the order of the interventions, or a dict by "
                f"key; found {given!r:.80}"
            )
        if len(given) != len(keys):
            raise SpecError(f"source_representations has {len(given)} entries for {len(keys)} interventions")
        given = dict(zip(keys, given, strict=True))
    named = {keys[name] if isinstance(name, int) and 0 <= name < len(keys) else name: v for name, v in given.items()}
    for name, value in named.items():
        if name not in keys:
            raise UnknownNameError(f"source_representations names {name!r}; {near_misses(name, keys)}")
        if value is not None:
            try:
                carried[name] = torch.as_tensor(value)
            except (TypeError, ValueError, RuntimeError) as error:
                raise SpecError(f"source_representations of {name!r} is a tensor; found {value!r:.80}") from error
    return {key: value for key, value in carried.items() if value is not None}


def _source(
    one: Representation, run: str | None, location: Location, constants: Mapping[str, Tensor]
) -> Read | Constant | None:
    """Return where a representation takes its value from."""
    if one.key in constants:
        return Constant(one.key)
    if one.intervention.source_kind not in ("run", "optional") or run is None:
        return None
    origin = one.site.skip_source() if one.intervention.reads_module_input else one.site
    return Read(run, origin, location.source)


def _is_skipped(one: Representation, call: Call) -> bool:
    """Whether a representation without a source is left out: the call has sources, but `None` for its group."""
    return call.sources is not None and one.intervention.source_kind in ("run", "optional")


def _once(
    one: Representation, location: Location, source: Read | Constant | None, constants: Mapping[str, Tensor]
) -> tuple[Location, Read | Constant | None]:
    """Return where an edit writes and what it reads, without places that an example names again: it is the same value.

    Only where the intervention works unit by unit; a place with two sources stays named twice, and is refused.
    """
    rows, reads = location.base.rows, location.source.rows
    by_unit = isinstance(source, Constant) and constants[source.name].ndim > 1 and constants[source.name].shape[-2] > 1
    if rows is None or not (one.intervention.writes and one.intervention.keep_last_dim) or by_unit:
        return location, source
    if not isinstance(source, Read):
        base = replace(location.base, rows=tuple(tuple(dict.fromkeys(row)) for row in rows))
        return replace(location, base=base), source
    if reads is None or list(map(len, reads)) != list(map(len, rows)):
        return location, source
    pairs = [list(dict.fromkeys(zip(read, row, strict=True))) for read, row in zip(reads, rows, strict=True)]
    base = replace(location.base, rows=tuple(tuple(place for _, place in row) for row in pairs))
    origin = replace(location.source, rows=tuple(tuple(place for place, _ in row) for row in pairs))
    return Location(origin, base), replace(source, positions=origin)


def _check_source(one: Representation, source: Read | Constant | None, call: Call) -> None:
    """Refuse an intervention that needs a source where the call has none: without it there is nothing to do."""
    if source is None and call.sources is None and one.intervention.source_kind == "run":
        raise PlanError(
            f"{type(one.intervention).__name__} at {one.site} needs a source: give sources=..., or "
            "source_representations=..., or an instance constructed with source_representation=. For a run without "
            "interventions call the model itself: intervenable.model(**base)"
        )


def _subspace(
    one: Representation, chosen: Choice | Handed | None, batch: int, interventions: dict[str, Intervention]
) -> Choice | None:
    """Return the parts that an intervention gets; for one that is handed something else, put in one that has it."""
    if chosen is None:
        return None
    name = f"{type(one.intervention).__name__} at {one.site}"
    if not one.intervention.takes_subspaces():
        raise SpecError(f"{name} got subspaces, but its forward(base, source) takes none: add subspaces=None to it")
    if not isinstance(chosen, Handed):
        return chosen
    if not takes_anything(one.intervention):
        raise SpecError(f"subspaces of {name} are numbers of parts, a list for each example; found {chosen.value!r}")
    interventions[one.key] = HandedIntervention(one.intervention, chosen.value, batch)
    return None


def _edit(
    one: Representation,
    target: str,
    location: Location,
    subspace: Choice | None,
    source: Read | Constant | None,
    call: Call,
) -> Edit:
    """Return the edit of one representation."""
    positions = location.base
    if call.timing is not None and target == "base":
        positions = _timed(positions, call.timing, batch_size(call.base, one.site.sequence))
    return Edit(one.key, one.site, one.key, positions, subspace, source)


def _check_all_matter(plan: Plan) -> None:
    """Refuse edits of runs that nothing reads (in serial mode, when the next group needs no source)."""
    needed = {run.name for run in plan.order()}
    for run in plan.runs:
        if run.edits and run.name not in needed:
            raise PlanError(
                f"{run.edits[0].site} of {run.name!r} would be edited in vain: no later intervention reads that run"
            )


def _timed(positions: Positions, timing: Timing, batch: int) -> Positions:
    """Return the positions of an edit during generation."""
    if timing.on_prompt:
        return replace(positions, steps=timing.steps)
    if any(row not in ((), (0,)) for row in positions.rows or ()):
        raise SpecError(
            f"base positions {positions.rows} are positions of the prompt: pass intervene_on_prompt=True to edit them; "
            "while tokens are generated the only base position is 0, the token being processed"
        )
    return Positions(((),) * batch, positions.heads, timing.steps)
