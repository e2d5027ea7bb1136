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

The unit is `pos`, `h` or `t`; with the unit `h.pos` there are two columns, `.h` and `.pos`. A batch may also hold the
call's own arguments `base`, `sources`, `unit_locations` and `subspaces`. Columns that the model's `forward` does not
name are not given to it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import SpecError, UnknownNameError
from ..compose import Representation
from ..engine import Inputs
from ..models import uncompiled

Batch = Mapping[str, Any]
"""What a data loader (or the collator behind it) gives."""

_OURS = ("labels", "base_labels", "source_labels", "subspaces", "base", "sources", "unit_locations")
_LOCATION = re.compile(r"source_?(?P<number>\d+)->(?P<target>base|source_?\d+)\.(?P<side>[01])\.(?P<unit>h|pos|t)")
_NUMBERED = re.compile(r"source_(?P<number>\d+)_(?P<name>\w+)")


@dataclass(frozen=True, eq=False)
class BatchCall:
    """The arguments of one call of an intervenable model.

    Args:
        base: the base's inputs.
        sources: the source's inputs, one a group, or `None`.
        unit_locations: where to read and write, as `locate` reads it.
        subspaces: the parts chosen for each example, or `None`.
    """

    base: Inputs
    sources: Any
    unit_locations: Any
    subspaces: Any


def read_batch(batch: Batch, model: nn.Module, representations: Sequence[Representation], mode: str) -> BatchCall:
    """Return what a batch asks for; its columns are explained above.

    Args:
        batch: the columns; they are only read.
        model: the model whose `forward` names the columns that are its inputs; tensors are moved to its device.
        representations: the interventions, in order.
        mode: `parallel` or `serial`.

    Raises:
        SpecError: there is no base, or a column has no form that is known.
        UnknownNameError: a column is misspelt.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    names = tuple(inspect.signature(uncompiled(model).forward).parameters)
    base = batch["base"] if "base" in batch else _inputs(batch, names)
    if not isinstance(base, Tensor | Mapping) or (isinstance(base, Mapping) and not base):
        raise SpecError(
            f"the batch has no base: it needs a column 'base', or some of {list(names)}; found {list(batch)}. "
            "A Trainer drops columns unless remove_unused_columns=False"
        )
    sources = batch["sources"] if "sources" in batch else _sources(batch, base)
    located = "unit_locations" in batch
    locations = batch["unit_locations"] if located else _locations(batch, representations, mode)
    return BatchCall(_moved(base, device), _moved(sources, device), locations, _subspaces(batch.get("subspaces")))


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


def _locations(batch: Batch, representations: Sequence[Representation], mode: str) -> Any:
    """Return `unit_locations` from the location columns, or `None` where there are none."""
    columns: dict[tuple[int, int, str], Any] = {}
    whole = {name: batch[name] for name in batch if "->" in name and not name.rpartition("->")[2].count(".")}
    for name in batch:
        found = _LOCATION.fullmatch(name)
        if found is not None:
            columns[int(found["number"]), int(found["side"]), found["unit"]] = batch[name]
        elif "->" in name and name not in whole:
            raise UnknownNameError(
                f"no location column {name!r}; they are written like 'source_0->base.0.pos' (read in the source) and "
                "'source_0->base.1.pos' (written in the base)"
            )
    if whole and columns:
        raise SpecError(f"give {sorted(whole)} or single location columns, not both: {sorted(batch)}")
    if whole:
        return {name: (value, value) if isinstance(value, Tensor) else value for name, value in whole.items()}
    if not columns:
        return None
    numbers = {number for number, _, _ in columns}
    if max(numbers) >= len(representations):
        raise SpecError(
            f"location columns name source_{max(numbers)}, but there are {len(representations)} interventions"
        )
    sides = [
        tuple(_entry(columns, 0 if numbers == {0} else number, side, one.addressed.unit) for side in (0, 1))
        for number, one in enumerate(representations)
    ]
    if mode == "parallel":
        return {"sources->base": _pair(sides)}
    last = len(sides) - 1
    targets = ["base" if number == last else f"source_{number + 1}" for number in range(len(sides))]
    return {f"source_{n}->{target}": _pair([pair]) for n, (target, pair) in enumerate(zip(targets, sides, strict=True))}


def _pair(sides: Sequence[tuple[Any, ...]]) -> tuple[Any, Any]:
    """Return the source side and the base side of a link; a side that no column speaks of is `None`."""
    read, written = [pair[0] for pair in sides], [pair[1] for pair in sides]
    return (
        None if all(one is None for one in read) else read,
        None if all(one is None for one in written) else written,
    )


def _entry(columns: Mapping[tuple[int, int, str], Any], number: int, side: int, unit: str) -> Any:
    """Return one intervention's locations on one side, `[batch][units]`; `None` where no column has them."""
    parts = [columns.get((number, side, part)) for part in unit.split(".")]
    if all(part is None for part in parts):
        return None
    missing = [f"source_{number}->... .{side}.{p}" for p, v in zip(unit.split("."), parts, strict=True) if v is None]
    if missing:
        raise SpecError(f"the unit {unit!r} needs a location column for each of its parts; missing {missing}")
    listed = [_by_example(part) for part in parts]
    return listed[0] if len(listed) == 1 else listed


def _by_example(value: Any) -> Any:
    """Return a column as `[batch][units]`: one number an example is one unit each."""
    plain = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(plain, list | tuple):
        return [[one] if isinstance(one, int) else one for one in plain]
    raise SpecError(f"a location column is batch first, (batch, units); found {value!r}")


def _subspaces(value: Any) -> Any:
    """Return `[batch][parts]`, or what is nested deeper as it is."""
    if value is None:
        return None
    plain = value.tolist() if hasattr(value, "tolist") else value
    return [[one] if isinstance(one, int) else one for one in plain]


def _moved(value: Any, device: torch.device) -> Any:
    """Return nested inputs with their tensors on `device`."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {name: _moved(one, device) for name, one in value.items()}
    return [_moved(one, device) for one in value] if isinstance(value, list | tuple) else value
