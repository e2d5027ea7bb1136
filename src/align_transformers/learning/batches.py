"""From one batch of a data loader to the arguments of one call.

A batch is a dict whose columns are batch first:

| column | meaning |
|---|---|
| `input_ids`, `attention_mask`, `inputs_embeds`, ... | the base: what the model's `forward` names |
| `source_input_ids`, `source_attention_mask`, ... | the source; one a group as a list, or by one axis more |
| `source_0_input_ids`, `source_1_input_ids`, ... | the sources of the groups, numbered |
| `source_0->base.0.pos` | where the first intervention reads, in the source: `(batch, units)` |
| `source_0->base.1.pos` | where it writes, in the base: `(batch, units)` |
| `source_1->base.0.pos`, ... | the same for the second intervention, and so on; without them all share `source_0`'s |
| `source_0->source_1.0.pos`, ... | serial mode: where source 0 is read and where source 1 is written |
| `sources->base` | both sides at once, as `unit_locations` takes them; a tensor is for both sides |
| `subspaces` | the parts: `(batch,)` or `(batch, parts)`, or `[n_interventions][batch][parts]` |
| `labels` | what the intervened model should say |
| `base_labels`, `source_labels` | what the plain model should say of the base and of each source (read by `evaluate`) |

Location columns may be what `where` tells of the texts. The unit is `pos`, `h` or `t`; with the unit `h.pos` there are
two columns, `.h` and `.pos`. A batch may also hold the call's own arguments `base`, `sources`, `unit_locations` and
`subspaces`. Columns that the model's `forward` does not name are not given to it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import PositionError, SpecError, UnknownNameError
from ..anchors import Anchor, FoundPlaces
from ..compose import Call, axes_of
from ..config import IntervenableConfig
from ..engine import Inputs
from ..locations import Addressed, Axis, Location
from ..models.arguments import forward_parameters
from ..models.devices import input_device
from ..models.padding import as_alone
from ..models.sequence import check_tokens
from ..positions import EVERYWHERE, Positions, Rows
from ..representations import Representation

Batch = Mapping[str, Any]
"""What a data loader (or the collator behind it) gives."""

_OURS = ("labels", "base_labels", "source_labels", "subspaces", "base", "sources", "unit_locations")
_LOCATION = re.compile(r"source_?(?P<number>\d+)->(?P<target>base|source_?\d+)\.(?P<side>[01])\.(?P<unit>h|pos|t)")
_NUMBERED = re.compile(r"source_(?P<number>\d+)_(?P<name>\w+)")


def read_batch(
    batch: Batch, model: nn.Module, config: IntervenableConfig, representations: Sequence[Representation]
) -> Call:
    """Return the call that a batch asks for; its columns are explained above.

    Args:
        batch: the columns; they are only read.
        model: the model whose `forward` names the columns that are its inputs; tensors are moved to its device.
        config: says how the interventions are grouped and chained.
        representations: the interventions, in order.

    Raises:
        SpecError: there is no base, or a column has no form that is known.
        UnknownNameError: a column is misspelt.
        PositionError: a position counted from the end does not exist.
    """
    device = input_device(model)
    names = tuple(forward_parameters(model))
    base = batch["base"] if "base" in batch else _inputs(batch, names)
    if not isinstance(base, Tensor | Mapping) or (isinstance(base, Mapping) and not base):
        raise SpecError(
            f"the batch has no base: it needs a column 'base', or some of {list(names)}; found {list(batch)}. "
            "A Trainer drops columns unless remove_unused_columns=False"
        )
    sources = batch["sources"] if "sources" in batch else _sources(batch, base)
    for one in (base, *(sources if isinstance(sources, list | tuple) else [sources])):
        check_tokens(model, one, "a batch")
    call = Call(
        as_alone(model, _moved(base, device)),
        as_alone(model, _moved(sources, device)),
        subspaces=_subspaces(batch.get("subspaces")),
    )
    if "unit_locations" in batch:
        return replace(call, unit_locations=batch["unit_locations"])
    return replace(call, unit_locations=_unit_locations(batch, config, representations, call))


def _inputs(batch: Batch, names: Sequence[str]) -> dict[str, Any]:
    """Return the columns that the model's `forward` names; refuse one that is nearly a name that is missing."""
    wanted = [name for name in (*names, *_OURS) if name not in batch and len(name) > 4]
    found = {}
    for column, value in batch.items():
        if column in names and column not in _OURS:
            found[column] = value
        elif not (column in _OURS or column.startswith("source") or "->" in column):
            close = get_close_matches(column, wanted, n=1, cutoff=0.85)
            if close:
                raise UnknownNameError(f"a column of the batch is {column!r}: did you mean {close[0]!r}?")
            if column == "attention_mask" and not torch.as_tensor(value).all():
                raise SpecError(
                    "the batch is padded, as its attention_mask says, but the model's forward takes none: it would "
                    "read padding as it reads the rest; make batches of inputs of one length"
                )
    return found


def _sources(batch: Batch, base: Inputs) -> Any:
    """Return one dict of inputs, a list with one a group, or `None` where the batch has no source."""
    numbered: dict[int, dict[str, Any]] = {}
    shared: dict[str, Any] = {}
    for column, value in batch.items():
        found = _NUMBERED.fullmatch(column)
        if found is not None:
            numbered.setdefault(int(found["number"]), {})[found["name"]] = value
        elif column.startswith("source_") and "->" not in column and column not in _OURS:
            shared[column.removeprefix("source_")] = value
    if numbered and shared:
        raise SpecError(f"number every source, or none: found {sorted(c for c in batch if c.startswith('source_'))}")
    if numbered:
        if sorted(numbered) != list(range(len(numbered))):
            raise SpecError(f"sources are numbered from 0; found {sorted(numbered)}")
        return [numbered[number] for number in range(len(numbered))]
    several = {name: _several(name, value, base) for name, value in shared.items()}
    counts = {len(values) for values in several.values() if values is not None}
    if not counts:
        return shared or None
    if len(counts) > 1 or any(values is None for values in several.values()):
        raise SpecError(f"every source column needs as many sources as the others; found {sorted(shared)}")
    return [{name: values[n] for name, values in several.items() if values is not None} for n in range(counts.pop())]


def _several(name: str, value: Any, base: Inputs) -> list[Tensor] | None:
    """Return one tensor a source, or `None` where the column holds a single source."""
    if isinstance(value, list | tuple) and all(isinstance(one, Tensor) for one in value):
        return list(value)
    like = base.get(name) if isinstance(base, Mapping) else None
    if isinstance(value, Tensor) and isinstance(like, Tensor) and value.ndim == like.ndim + 1:
        return list(value.unbind(1))
    return None


def _unit_locations(
    batch: Batch, config: IntervenableConfig, representations: Sequence[Representation], call: Call
) -> Any:
    """Return a `Location` for each intervention, or what the batch has for both sides at once; `None` for neither."""
    single: dict[tuple[int, int, str], tuple[str, Any]] = {}
    both = {name: batch[name] for name in batch if "->" in name and not name.rpartition("->")[2].count(".")}
    for name in batch:
        found = _LOCATION.fullmatch(name)
        if found is not None:
            single[int(found["number"]), int(found["side"]), found["unit"]] = name, batch[name]
        elif "->" in name and name not in both:
            raise UnknownNameError(
                f"no location column {name!r}; they are written like 'source_0->base.0.pos' (read in the source) and "
                "'source_0->base.1.pos' (written in the base)"
            )
    if both and single:
        raise SpecError(f"give {sorted(both)} or single location columns, not both: {sorted(batch)}")
    if both:
        return {name: (value, value) if isinstance(value, Tensor) else value for name, value in both.items()}
    return _located(single, config, representations, call) if single else None


def _located(
    columns: Mapping[tuple[int, int, str], tuple[str, Any]],
    config: IntervenableConfig,
    representations: Sequence[Representation],
    call: Call,
) -> tuple[Location | None, ...]:
    """Return where each intervention reads and writes; `None` for one that is skipped.

    Args:
        columns: name and value by number, side and unit; those of number 0 alone are for all.
        config: says how the interventions are grouped and chained.
        representations: the interventions, in order.
        call: the call, still without locations.
    """
    numbers = {number for number, _, _ in columns}
    if max(numbers) >= len(representations):
        raise SpecError(
            f"location columns name source_{max(numbers)}, but there are {len(representations)} interventions"
        )
    sides = [
        tuple(_positions(columns, 0 if numbers == {0} else number, side, one.addressed, axes[side]) for side in (0, 1))
        for number, (one, axes) in enumerate(zip(representations, axes_of(config, representations, call), strict=True))
    ]
    skips = config.mode == "parallel" and any(written is not None for _, written in sides)
    found: list[Location | None] = []
    for number, (read, written) in enumerate(sides):
        if skips and written is None and read is not None:
            raise SpecError(f"location columns say where intervention {number} reads, but not where it writes")
        found.append(None if skips and written is None else Location(read or EVERYWHERE, written or EVERYWHERE))
    return tuple(found)


def _positions(
    columns: Mapping[tuple[int, int, str], tuple[str, Any]], number: int, side: int, addressed: Addressed, axis: Axis
) -> Positions | None:
    """Return one intervention's positions on one side; `None` where no column has them."""
    parts = addressed.unit.split(".")
    missing = [f"source_{number}->... .{side}.{part}" for part in parts if (number, side, part) not in columns]
    if len(missing) == len(parts):
        return None
    if missing:
        raise SpecError(f"the unit {addressed.unit!r} needs a location column for each of its parts; missing {missing}")
    rows: dict[str, Rows] = {}
    for part in parts:
        name, value = columns[number, side, part]
        most = addressed.max_number_of_units if part == "h" else addressed.most_positions
        rows[part] = _rows(name, value, replace(axis, spans=None) if part == "h" else axis, most)
    return Positions(rows.get("pos", rows.get("t")), rows.get("h"))


def _rows(name: str, value: Any, axis: Axis, most: int | None) -> Rows:
    """Return a location column as one tuple of integers an example; one number an example is one unit each."""
    if isinstance(value, Anchor):
        raise SpecError(
            f"the location column {name!r}: where {value} stands is not known here, as there are tokens and no texts: "
            f"write where(tokenizer, texts, {value}) in the collator"
        )
    if isinstance(value, FoundPlaces):
        value = value.columns([] if axis.spans is None else [start for start, _ in axis.spans])
    listed = _plain(value)
    if not isinstance(listed, list | tuple):
        raise SpecError(f"the location column {name!r} is batch first, (batch, units); found {value!r}")
    listed = listed * axis.batch if axis.shared and len(listed) == 1 else listed
    if len(listed) != axis.batch:
        raise SpecError(f"the location column {name!r} names {len(listed)} examples, but the batch has {axis.batch}")
    rows = []
    for example, units in enumerate(map(_plain, listed)):
        row = tuple(map(_plain, units)) if isinstance(units, list | tuple | range) else (units,)
        where = f"the location column {name!r}, example {example}"
        if any(isinstance(unit, bool) or not isinstance(unit, int) for unit in row):
            raise SpecError(f"{where}: expected integers; found {units!r}")
        if most is not None and len(row) > most:
            raise SpecError(f"{where}: {len(row)} units, but max_number_of_units is {most}")
        span = None if axis.spans is None else axis.spans[example]
        rows.append(tuple(unit if unit >= 0 else _from_end(unit, span, where) for unit in row))
    return tuple(rows)


def _from_end(unit: int, span: tuple[int, int] | None, where: str) -> int:
    """Return the column of a position that is counted from the end of the real tokens."""
    if span is None:
        raise SpecError(f"{where}: {unit} counts from the end, which is not known here; count from 0")
    if span[1] + unit < span[0]:
        raise PositionError(f"{where}: {unit} does not exist; there are {span[1] - span[0]} real tokens")
    return span[1] + unit


def _plain(value: Any) -> Any:
    """Return tensors and arrays as (nested lists of) Python's numbers."""
    return value.tolist() if hasattr(value, "tolist") else value


def _subspaces(value: Any) -> Any:
    """Return `[batch][parts]`; a number, which is for all, and what is nested deeper as they are."""
    if value is None or isinstance(value, Mapping | int):
        return value
    return [[one] if isinstance(one, int) else one for one in _plain(value)]


def _moved(value: Any, device: torch.device) -> Any:
    """Return nested inputs with their tensors on `device`."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {name: _moved(one, device) for name, one in value.items()}
    return [_moved(one, device) for one in value] if isinstance(value, list | tuple) else value
