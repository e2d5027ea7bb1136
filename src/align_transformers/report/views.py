"""What one may choose to see of a table on its page: another number, or one pair alone, each a picture of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from .._errors import AlignError
from .kinds import picture
from .panels import Picture
from .tabular import Tabular

_NUMBERS: Mapping[str, tuple[str, ...]] = {
    "grid": ("recovered", "effect"),
    "path_patching": ("effect", "recovered"),
    "attribution": ("recovered", "effect"),
    "logit_lens": ("probability", "rank", "logit"),
}
"""By study, what the names of the columns that may be chosen end in, the study's main one first."""
_MOST = 24


@dataclass(frozen=True)
class Views:
    """Pictures to choose from.

    Args:
        first: what is shown first.
        choices: by name the words of what may be chosen; the first of each is that of `first`.
        others: the other pictures, by the numbers of the choices.
    """

    first: Picture
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    others: Mapping[tuple[int, ...], Picture] = field(default_factory=dict)


def views_of(table: Tabular, value: str | None = None, component: str | None = None) -> Views:
    """Return what one may choose to see of a study's table.

    Args:
        table: of a study.
        value: which number is shown first, as for `picture`.
        component: which component is shown, likewise.

    Raises:
        SpecError, UnknownNameError: as for `picture`.
    """
    first = picture(table, value, component=component)
    own = value or next(iter(_numbers(table)), "main")
    whole = {own: first} | _pictures(table, [name for name in _numbers(table) if name != own], component)
    pairs = list(dict.fromkeys(table.columns.get("pair", ())))
    rows = {"all, their mean": whole}
    if len(pairs) > 1 and len(whole) * (len(pairs) + 1) <= _MOST:
        for pair in pairs:
            part = _pictures(table.select(where={"pair": pair}), whole, component, main=own if value is None else None)
            rows |= {f"pair {pair}": part} if len(part) == len(whole) else {}
    others: dict[tuple[int, ...], Picture] = {
        (n, k): one for k, row in enumerate(rows.values()) for n, one in enumerate(row.values()) if n or k
    }
    choices = {"number": tuple(name.replace("_", " ") for name in whole), "pairs": tuple(rows)}
    return Views(first, choices if others else {}, others)


def _pictures(
    table: Tabular, names: Iterable[str], component: str | None, main: str | None = None
) -> dict[str, Picture]:
    """Return the pictures of some numbers, without those that have none; `main` is drawn as the study's main one."""
    found: dict[str, Picture] = {}
    for name in names:
        with contextlib.suppress(AlignError):  # such as a pair that lacks the number: it is not offered
            found[name] = picture(table, None if name == main else name, component=component)
    return found


def _numbers(table: Tabular) -> list[str]:
    endings = _NUMBERS.get(str(table.meta.get("study", "grid")), ())
    known = [name for end in endings for name in table.columns if name == end or name.endswith(f"_{end}")]
    return list(dict.fromkeys(known))
