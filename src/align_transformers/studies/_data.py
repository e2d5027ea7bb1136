"""Data in: prompts as texts, pairs, rows or columns, and what stands beside them in other columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import Annotated, Any, Protocol, runtime_checkable

from .._errors import SpecError, UnknownNameError, near_misses

NAMES = ("base", "source", "base_answer", "source_answer")
"""What columns are for; they are called so where nothing else is said."""


@runtime_checkable
class DataFrame(Protocol):
    """What has columns as frames do."""

    columns: Any

    def __getitem__(self, name: str) -> Any: ...


@runtime_checkable
class Dataset(Protocol):
    """What has columns as data sets do."""

    column_names: Any

    def __getitem__(self, name: str) -> Any: ...


Prompt = Annotated[
    str | Sequence[str] | Mapping[str, Any] | Sequence[Mapping[str, Any]] | DataFrame | Dataset,
    "Tokens go into a dict: {'input_ids': tensor}",
]
PairedPrompt = Annotated[Prompt | Sequence[tuple[str, str]], "Pairs are (base, source)"]
Fields = Mapping[str, str]
"""What `{name}` in an anchor stands for, of one prompt."""


@dataclass(frozen=True, eq=False)
class Given:
    """Prompts as they were given, and what stands beside them.

    Args:
        base: texts or token tensors.
        source: likewise; `None` where there is only one side.
        answers: by side, a token for each prompt; empty where there is no such column.
        fields: by side, of each prompt; empty where there are no columns.
    """

    base: Any
    source: Any
    answers: Mapping[str, Sequence[int | str]]
    fields: Mapping[str, Sequence[Fields]]


def read_data(data: Any, source: Any, columns: Mapping[str, str] | None, what: str) -> Given:
    """Return prompts and what stands beside them.

    A field of the source is the column `source_NAME` where there is one, else `NAME`; of the base likewise.

    Args:
        data: texts, token tensors, pairs, a list of dicts, or anything with columns.
        source: the other side, where it is not in the data.
        columns: what columns are called, by what they are for.
        what: the argument, for messages.

    Raises:
        SpecError: there is no column of the prompts, one does not hold texts, or the source is given twice.
        UnknownNameError: `columns` names something else than these.
    """
    names = {name: name for name in NAMES} | dict(columns or {})
    for name in names:
        if name not in NAMES:
            raise UnknownNameError(f"columns says what {', '.join(NAMES)} are called; {near_misses(name, NAMES)}")
    table = _table(data, names["base"], columns is not None)
    if table is None:
        if columns is not None:
            raise SpecError(f"columns= names columns, and {what} has none: it is a {type(data).__name__}")
        if _is_pairs(data):
            if source is not None:
                raise SpecError(f"{what} is a list of pairs, so leave out source=")
            return Given([pair[0] for pair in data], [pair[1] for pair in data], {}, {})
        return Given(data, source, {}, {})
    lengths = {name: len(values) for name, values in table.items()}
    if len(set(lengths.values())) > 1:
        raise SpecError(f"{what}: the columns are of unequal lengths: {lengths}")
    for name in ("base", *(columns or ())):
        if names[name] not in table:
            raise SpecError(f"{what} has no column {names[name]!r}; it has {list(table)}: columns={{{name!r}: ...}}")
    if source is not None and names["source"] in table:
        raise SpecError(f"{what} has a column {names['source']!r}, so leave out source=")
    sides = {side: _texts(table, names[side], what) for side in ("base", "source") if names[side] in table}
    answers = {
        side: [_answer(value, name) for value in table[name]]
        for side in ("base", "source")
        if (name := names[f"{side}_answer"]) in table
    }
    fields = {side: _fields(table, side, set(names.values())) for side in ("base", "source")}
    return Given(sides["base"], sides.get("source", source), answers, fields)


def _table(data: Any, base: str, said: bool) -> dict[str, list[Any]] | None:
    """Return columns by name; `None` where the data has none."""
    if isinstance(data, Mapping):
        has = (said or base in data) and "input_ids" not in data
        return {str(name): _listed(name, value) for name, value in data.items()} if has else None
    if isinstance(data, Sequence):
        if isinstance(data, str) or not data or not all(isinstance(row, Mapping) for row in data):
            return None
        if any(row.keys() != data[0].keys() for row in data):
            number = next(n for n, row in enumerate(data) if row.keys() != data[0].keys())
            raise SpecError(f"row {number} of the data has the keys {list(data[number])}, row 0 {list(data[0])}")
        return {str(name): [row[name] for row in data] for name in data[0]}
    names = getattr(data, "column_names", None)
    names = getattr(data, "columns", None) if names is None else names
    return None if names is None else {str(name): _listed(name, data[name]) for name in names}


def _listed(name: Any, values: Any) -> list[Any]:
    if isinstance(values, str | Mapping) or not isinstance(values, Iterable):
        raise SpecError(f"column {name!r} has an entry for each prompt; found {values!r:.80}")
    return list(values)


def _is_pairs(data: Any) -> bool:
    several = isinstance(data, Sequence) and not isinstance(data, str) and len(data) > 0
    return several and all(isinstance(one, tuple | list) and len(one) == 2 for one in data)


def _texts(table: Mapping[str, list[Any]], name: str, what: str) -> list[str]:
    wrong = next((number for number, value in enumerate(table[name]) if not isinstance(value, str)), None)
    if wrong is not None:
        raise SpecError(f"{what}: column {name!r} holds texts; row {wrong} has {table[name][wrong]!r:.80}")
    return table[name]


def _answer(value: Any, name: str) -> int | str:
    """Return a token as its text or its number."""
    if isinstance(value, str):
        return value
    try:
        return index(value)
    except TypeError as error:
        raise SpecError(f"column {name!r} holds tokens, texts or numbers; found {value!r:.80}") from error


def _fields(table: Mapping[str, list[Any]], side: str, taken: set[str]) -> list[Fields]:
    """Return what columns of texts and numbers say of each prompt."""
    plain = {
        name: values
        for name, values in table.items()
        if name not in taken and all(isinstance(value, str | int | float | bool) for value in values)
    }
    own = {name.removeprefix(f"{side}_"): values for name, values in plain.items() if name.startswith(f"{side}_")}
    count = len(next(iter(table.values()), ()))
    return [{name: str(values[number]) for name, values in {**plain, **own}.items()} for number in range(count)]
