"""From the many ways to write unit locations and subspaces to one canonical value, before anything runs.

The full form nests `[n_interventions][batch][n_units]`, or `[n_interventions][2][batch][n_units]` (heads first) for the
unit `h.pos`. Depth alone says which levels are there, never length. A level that is missing is the same for all:
`[batch][n_units]` holds for every intervention, a flat list of integers for every example of every intervention, and so
does a single integer. A slice stands for the list of units that it selects among an example's real tokens. What `where`
tells stands for the positions of a piece of text in each example, wherever its padding is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from ._errors import PositionError, SpecError, UnknownNameError, near_misses
from .anchors import Anchor, FoundPlaces
from .positions import EVERYWHERE, Positions, Rows, Span
from .subspaces import Choice

Unit = Literal["pos", "h", "h.pos", "t"]
UNITS: tuple[str, ...] = get_args(Unit)


@dataclass(frozen=True)
class Axis:
    """What locations in one run refer to.

    Args:
        batch: number of examples.
        spans: for each example the first column of a real token and one past the last; `None` if not known.
        shared: the run has one example, which stands for all of them.
    """

    batch: int
    spans: Sequence[Span] | None = None
    shared: bool = False

    def serving(self, batch: int) -> Axis:
        """Return this axis as seen by a batch: a single example serves every example of it."""
        if self.batch != 1:
            return self
        return Axis(batch, None if self.spans is None else list(self.spans) * batch, shared=True)


@dataclass(frozen=True)
class Location:
    """Where one intervention reads and where it writes."""

    source: Positions
    base: Positions


@dataclass(frozen=True, eq=False)
class Handed:
    """What a call hands to an intervention of the user's instead of numbers of parts."""

    value: Any


@dataclass(frozen=True)
class Addressed:
    """How one intervention is addressed.

    Args:
        unit: what locations count.
        max_number_of_units: how many units a call may name for an example.
        unit_by_unit: the intervention sees one position at a time, so that a call may name any number of positions.
    """

    unit: Unit
    max_number_of_units: int
    unit_by_unit: bool = False

    @property
    def most_positions(self) -> int | None:
        """How many positions a call may name for an example; `None` for any number."""
        return None if self.unit_by_unit else self.max_number_of_units


def locate(
    spec: Any, link: str, interventions: Sequence[Addressed], sources: Sequence[Axis], bases: Sequence[Axis]
) -> list[Location | None]:
    """Return where each intervention reads and writes.

    Args:
        spec: a mapping with the key `link`, whose value is a pair (source, base), or one integer or slice for both; or
            with the key of `link`'s target alone, whose value is the base's; or the bare value of `link`. `None` on a
            side, or altogether, is the whole tensor; `None` for one intervention's entry skips it.
        link: `"sources->base"`, or `"source_0->source_1"` and so on in serial mode.
        interventions: those that the link carries, in order.
        sources: for each of them what its source locations refer to.
        bases: for each of them what its base locations refer to.

    Returns:
        One entry an intervention; `None` where the call skips it.

    Raises:
        SpecError: the nesting fits no form, names more units than allowed, or the base's side is missing.
        UnknownNameError: a key is not the link's.
        PositionError: a position counted from the end does not exist, or a slice selects no real token.

    >>> axis = Axis(batch=2, spans=[(0, 5), (0, 3)])
    >>> locate({"sources->base": (1, -1)}, "sources->base", [Addressed("pos", 1)], [axis], [axis])
    [Location(source=Positions(rows=((1,), (1,)), ...), base=Positions(rows=((4,), (2,)), ...))]
    """
    source_spec, base_spec = _sides(spec, link)
    served = [source.serving(base.batch) for source, base in zip(sources, bases, strict=True)]
    reads = _normalise(source_spec, interventions, served, f"the source side of {link!r}")
    writes = _normalise(base_spec, interventions, bases, f"the base side of {link!r}")
    found: list[Location | None] = []
    for number, (read, written) in enumerate(zip(reads, writes, strict=True)):
        if written is None and read is not None and source_spec is not None:
            raise SpecError(
                f"intervention {number} of {link!r} has source locations but None for the base; None on both sides "
                "skips it"
            )
        found.append(None if written is None else Location(read or EVERYWHERE, written))
    return found


def choose_subspaces(spec: Any, count: int, batch: int) -> list[Choice | Handed | None]:
    """Return for each intervention the chosen subspaces of each example.

    Args:
        spec: `[n_interventions][batch][ids]`; missing outer levels are the same for all. `None` for one example, for
            one intervention's entry, or altogether, is the whole vector. What is not made of integers is handed on as
            it is: a list with one entry an intervention, or anything else for all.
        count: number of interventions.
        batch: number of examples.

    Raises:
        SpecError: the nesting fits no form, or names another number of examples or interventions.

    >>> choose_subspaces([[0], [1]], count=1, batch=2)
    [((0,), (1,))]
    >>> choose_subspaces([[[0], None]], count=1, batch=2)
    [((0,), None)]
    """
    if not _is_plain(spec):
        return _handed(spec, count, batch)
    value = _plain(spec)
    if isinstance(value, list) and value and all(item is None for item in value):
        if len(value) not in (count, batch):
            raise SpecError(
                f"subspaces names {len(value)} examples, but the batch has {batch} and there are {count} interventions"
            )
        return [None] * count
    entries = [None] * count if value is None else _entries(value, [2] * count, "subspaces", 1)
    return [None if entry is None else _choice(entry, batch) for entry in entries]


def _handed(spec: Any, count: int, batch: int) -> list[Choice | Handed | None]:
    """Return what is handed to each intervention, where not all of it is made of integers."""
    if not isinstance(spec, list | tuple):
        return [Handed(spec)] * count
    if len(spec) != count:
        raise SpecError(
            f"subspaces that are not made of integers have one entry for each of the {count} interventions; found "
            f"{len(spec)}"
        )
    return [
        Handed(entry) if not _is_plain(entry) else None if entry is None else _choice(_plain(entry), batch)
        for entry in spec
    ]


def _choice(value: Any, batch: int) -> Choice:
    """Return the parts of each example; an example with `None` chooses nothing."""
    if not isinstance(value, list) or None not in value:
        return _rows(value, Axis(batch), "subspaces")
    said = _rows([[] if entry is None else entry for entry in value], Axis(batch), "subspaces")
    return tuple(None if entry is None else row for entry, row in zip(value, said, strict=True))


def _sides(spec: Any, link: str) -> tuple[Any, Any]:
    """Return what is said of the source and of the base."""
    if spec is None:
        return None, None
    if not isinstance(spec, Mapping):
        spec = {link: spec}
    target = link.partition("->")[2]
    for key in spec:
        if key not in (link, target):
            raise UnknownNameError(f"unit_locations has no key {key!r} here; {near_misses(key, [link, target])}")
    if len(spec) != 1:
        raise SpecError(f"unit_locations takes one key, {link!r} or {target!r}; found {list(spec)}")
    ((key, value),) = spec.items()
    if key == target:
        return None, value
    value = _plain(value)
    if value is None or isinstance(value, int | slice):
        return value, value
    if isinstance(value, FoundPlaces):
        raise SpecError(
            f"the value of {link!r} is a pair (source, base): (where(tokenizer, sources, ...), where(tokenizer, bases, "
            f"...)); what `where` tells of one side is {list(value)}"
        )
    if len(value) != 2:
        raise SpecError(
            f"the value of {link!r} is a pair (source, base), or one integer or slice for both; found {value!r}. "
            "Several positions for everybody, the same on both sides, are written ([2, 3, 4], [2, 3, 4])"
        )
    return value[0], value[1]


def _is_plain(value: Any) -> bool:
    """Whether a value is made of integers, slices, `None`, and lists of these."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple | range):
        return all(map(_is_plain, value))
    return isinstance(value, int | slice | None) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    """Return tensors, arrays, tuples and ranges as nested lists of Python integers; slices and `None` stay."""
    if isinstance(value, FoundPlaces):
        return value
    if isinstance(value, Anchor):
        raise SpecError(
            f"where {value} stands is not known here, as there are tokens and no texts: write where(tokenizer, texts, "
            f"{value}), with the texts that were tokenized"
        )
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, bool) or not isinstance(value, int | slice | list | tuple | range | None):
        raise SpecError(f"locations are made of integers, slices, lists, tensors and None; found {value!r}")
    return [_plain(item) for item in value] if isinstance(value, list | tuple | range) else value


def _depth(value: Any, of_none: int = 0) -> int:
    """Count the levels of nesting; a slice stands for a list of units, `None` for so many levels."""
    if isinstance(value, list):
        return 1 + max((_depth(item, of_none) for item in value), default=0)
    return of_none if value is None else 1 if isinstance(value, slice) else 0


def _entries(value: Any, depths: Sequence[int], what: str, of_none: int = 0) -> list[Any]:
    """Return one entry an intervention: those of a full form, or the same for all.

    Args:
        value: plain nested value.
        depths: for each intervention the depth of its entry in the full form.
        what: for the messages.
        of_none: levels of nesting that `None` stands for.
    """
    mixed = len(set(depths)) > 1  # which levels a short form lacks would depend on the intervention
    skips_all = isinstance(value, list) and value and all(item is None for item in value)
    wrong = SpecError(
        f"{what} is nested wrongly: {value!r}; the full form is {' or '.join(sorted({_FORMS[d] for d in depths}))}"
        + (", and interventions with the unit h.pos among others need it" if mixed else "")
    )
    if not (mixed or skips_all or _depth(value, of_none) > max(depths)):
        return [value] * len(depths)
    if not isinstance(value, list):
        raise wrong
    if len(value) != len(depths):
        raise SpecError(f"{what} names {len(value)} interventions, but there are {len(depths)}: {value!r}")
    if any(entry is not None and _depth(entry, of_none) != depth for entry, depth in zip(value, depths, strict=True)):
        raise wrong
    return value


_FORMS = {2: "[n_interventions][batch][n_units]", 3: "[n_interventions][2: heads, positions][batch][n_units]"}


def _normalise(
    spec: Any, interventions: Sequence[Addressed], axes: Sequence[Axis], what: str
) -> list[Positions | None]:
    """Return the positions of each intervention on one side."""
    if spec is None:
        return [EVERYWHERE] * len(interventions)
    entries = _entries(_plain(spec), [3 if one.unit == "h.pos" else 2 for one in interventions], what)
    return [
        None if entry is None else _positions(entry, one, axis, what)
        for entry, one, axis in zip(entries, interventions, axes, strict=True)
    ]


def _positions(value: Any, addressed: Addressed, axis: Axis, what: str) -> Positions:
    limit, heads = addressed.max_number_of_units, replace(axis, spans=None)
    most = addressed.most_positions
    if addressed.unit == "h.pos":
        if not isinstance(value, list) or len(value) != 2:
            raise SpecError(f"{what}: the unit h.pos takes a pair (heads, positions); found {value!r}")
        return Positions(_rows(value[1], axis, what, most), _rows(value[0], heads, f"{what} (heads)", limit))
    if addressed.unit == "h":
        return Positions(None, _rows(value, heads, f"{what} (heads)", limit))
    return Positions(_rows(value, axis, what, most))


def _rows(value: Any, axis: Axis, what: str, limit: int | None = None) -> Rows:
    """Return one tuple of integers for each example.

    Args:
        value: plain `[batch][n_units]`, `[n_units]` or an integer.
        axis: what the integers refer to.
        what: for the messages.
        limit: the largest number of units of an example; `None` for any.
    """
    if isinstance(value, FoundPlaces):
        value = value.columns([] if axis.spans is None else [start for start, _ in axis.spans])
    by_example = [value] * axis.batch
    if _depth(value) == 2:
        if not all(isinstance(units, list | slice) for units in value):
            raise SpecError(f"{what}: some examples have a list of units and some have not: {value!r}")
        by_example = value * axis.batch if axis.shared and len(value) == 1 else value
    if len(by_example) != axis.batch:
        raise SpecError(f"{what} names {len(by_example)} examples, but the batch has {axis.batch}: {value!r}")
    rows = []
    for example, units in enumerate(by_example):
        row = _row(units, None if axis.spans is None else axis.spans[example], f"{what}, example {example}")
        if limit is not None and len(row) > limit:
            raise SpecError(f"{what}, example {example}: {len(row)} units, but max_number_of_units is {limit}")
        rows.append(row)
    return tuple(rows)


def _row(value: Any, span: Span | None, where: str) -> tuple[int, ...]:
    """Return the integers of one example."""
    if isinstance(value, slice):
        return _sliced(value, span, where)
    numbers = value if isinstance(value, list) else [value]
    for number in numbers:
        if not isinstance(number, int):
            raise SpecError(f"{where}: expected integers; found {number!r} in {value!r}")
    return tuple(number if number >= 0 else _from_end(number, span, where) for number in numbers)


def _from_end(number: int, span: Span | None, where: str) -> int:
    if span is None:
        raise SpecError(f"{where}: {number} counts from the end, which is not known here; count from 0")
    start, end = span
    if end + number < start:
        raise PositionError(f"{where}: {number} does not exist; there are {end - start} real tokens")
    return end + number


def _sliced(value: slice, span: Span | None, where: str) -> tuple[int, ...]:
    """Return the columns that a slice selects; bounds are columns from 0, or count from the end of the real tokens."""
    step = 1 if value.step is None else value.step
    if step < 1:
        raise SpecError(f"{where}: {value} has a step of {step}; it must be 1 or more")
    if span is None:
        if value.stop is None or value.stop < 0 or (value.start or 0) < 0:
            raise SpecError(f"{where}: {value} needs the length, which is not known here; give start and stop from 0")
        return tuple(range(value.start or 0, value.stop, step))
    start, end = span
    first, stop = (b if b is None or b < 0 else max(b - start, 0) for b in (value.start, value.stop))
    columns = tuple(range(start, end)[first:stop:step])
    if not columns:
        raise PositionError(f"{where}: {value} selects nothing; the real tokens are at {start} to {end - 1}")
    return columns
