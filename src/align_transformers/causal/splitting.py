"""Parts of a data set that share no entity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .._errors import SpecError
from .domain import Column
from .sampling import generator_of

if TYPE_CHECKING:
    from .dataset import CounterfactualDataset

_PARTS = ("train", "validation", "test")


def shares_of(shares: Sequence[float] | Mapping[str, float]) -> dict[str, float]:
    """Return by part its share.

    Raises:
        SpecError: they are not three, one is not positive, or they are more than 1 together.
    """
    named = dict(shares) if isinstance(shares, Mapping) else dict(zip(_PARTS, shares, strict=False))
    if len(named) != len(shares) or not named or (not isinstance(shares, Mapping) and len(shares) != len(_PARTS)):
        raise SpecError(f"shares are those of {', '.join(_PARTS)}, or by name those of others; found {shares!r}")
    if min(named.values()) <= 0 or abs(sum(named.values()) - 1) > 1e-6:
        raise SpecError(f"shares are above 0 and 1 together; found {shares!r}")
    return named


def split(
    data: CounterfactualDataset, shares: Mapping[str, float], by: Sequence[str], seed: int
) -> dict[str, CounterfactualDataset]:
    """Return by part the pairs whose inputs are all of that part's entities.

    Args:
        data: is split.
        shares: by part that of the entities.
        by: inputs that tell the entity.
        seed: of the draw.

    Raises:
        SpecError: a part has no pair.
    """
    sides = [data.entities(side, by=by) for side in ("base", *data.variables)]
    entities, places = np.unique(np.stack(sides), return_inverse=True)
    ends = np.rint(np.cumsum(list(shares.values())) * len(entities)).astype(np.int64)
    part = np.empty(len(entities), np.int64)
    part[generator_of(seed).permutation(len(entities))] = np.searchsorted(ends, np.arange(len(entities)), "right")
    # A source that is not interchanged is the base.
    of = part[places.reshape(len(sides), -1)]
    whole = (of == of[0]).all(axis=0)
    said = {"by": list(by), "seed": seed, "left_out": int((~whole).sum()), "of": len(data)}
    found = {}
    for number, (name, share) in enumerate(shares.items()):
        rows = whole & (of[0] == number)
        count = int((part == number).sum())
        if not rows.any():
            raise SpecError(
                f"the part {name!r} has {count} of {len(entities)} entities ({', '.join(by)}) and no pair whose inputs "
                "are all among them: give more pairs, another share, or by= inputs with fewer values"
            )
        own: Mapping[str, Any] = {**said, "part": name, "share": share, "entities": count}
        found[name] = data.take(rows).told(split=own)
    check_disjoint(found, by)
    return found


def check_disjoint(parts: Mapping[str, CounterfactualDataset], by: Sequence[str] | None = None) -> None:
    """Refuse data sets that share an entity.

    Args:
        parts: by name.
        by: inputs that tell the entity; default: those of each.

    Raises:
        SpecError: two of them share one; the message says which.
    """
    seen: dict[str, Column] = {}
    for name, data in parts.items():
        own = np.unique(np.concatenate([data.entities(side, by=by) for side in ("base", *data.variables)]))
        for other, theirs in seen.items():
            both = np.intersect1d(own, theirs)
            if len(both):
                shown = _shown(data, int(both[0]), by)
                raise SpecError(f"{other!r} and {name!r} share {len(both)} entities, such as {shown}")
        seen[name] = own


def _shown(data: CounterfactualDataset, entity: int, by: Sequence[str] | None) -> dict[str, Any]:
    """Return the values of an entity."""
    for side in ("base", *data.variables):
        rows = np.flatnonzero(data.entities(side, by=by) == entity)
        if len(rows):
            columns = data.base if side == "base" else data.sources[side]
            return {name: columns[name][rows[:1]].tolist()[0] for name in by or data.entity}
    return {}
