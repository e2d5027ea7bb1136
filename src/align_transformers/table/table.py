"""`Table` itself; its columns are explained in the page of this folder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from .._checked import checked
from .._errors import SpecError, UnknownNameError, near_misses
from .._files import write_atomically
from .._optional import optional
from .drawable import Drawable
from .parquet import as_parquet, from_parquet
from .values import TYPES, in_encoder, mean_of, plain_column, plain_meta

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, repr=False)
class Table(Drawable):
    """A frozen result: columns of equal length and a JSON-able description. Build one with `Table.from_rows`.

    Args:
        columns: column name -> tuple of values (text, whole number, float, bool, None, or a tuple of these).
        meta: JSON-able facts about the whole: `model`, `base`, `source`, `base_tokens`, `source_tokens` (of an
            encoder-decoder the encoder's, and `base_decoder_tokens`, `source_decoder_tokens`), `base_answer`,
            `source_answer`, `metric` (its name), `base_value`, `source_value`, `version`, ...

    Example:
        >>> rows = [{"layer": 0, "position": 4, "recovered": 0.25}, {"layer": 1, "position": 4, "recovered": 1.0}]
        >>> table = Table.from_rows(rows, meta={"model": "toy"})
        >>> len(table), table.meta["model"]
        (2, 'toy')
        >>> max(table.rows(), key=lambda row: row["recovered"])["layer"]
        1
    """

    columns: Mapping[str, tuple[Any, ...]]
    meta: Mapping[str, Any]

    @classmethod
    @checked
    def from_rows(
        cls, rows: Iterable[Mapping[str, Any]], *, meta: Mapping[str, Any], columns: Iterable[str] | None = None
    ) -> Table:
        """Build a table from mappings with the same keys.

        Args:
            rows: one mapping a cell; numbers may be numpy's, NaN becomes `None`, lists become tuples.
            meta: JSON-able facts about the whole.
            columns: the names of the columns, in order; default: those of the first row, and none without rows.

        Raises:
            SpecError: rows have unequal keys, a value is of a kind that tables do not hold, or `meta` is not JSON.

        >>> Table.from_rows([], meta={}, columns=["layer", "effect"]).columns["layer"]
        ()
        """
        listed = [dict(row) for row in rows]
        names = list(listed[0] if listed else ()) if columns is None else list(columns)
        known = set(names)
        for number, row in enumerate(listed):
            if row.keys() != known:
                wanted = "row 0 has" if columns is None else "the table has"
                raise SpecError(
                    f"row {number} has the columns {sorted(row)}, {wanted} {sorted(names)}; make them equal"
                )
        return cls.from_columns({name: [row[name] for row in listed] for name in names}, meta=meta)

    @classmethod
    @checked
    def from_columns(cls, columns: Mapping[str, Sequence[Any]], *, meta: Mapping[str, Any]) -> Table:
        """Build a table from its columns: where rows are many, far quicker than from mappings.

        Args:
            columns: by name its values, as many in each; numbers may be numpy's, NaN becomes `None`, lists tuples.
            meta: JSON-able facts about the whole.

        Raises:
            SpecError: columns differ in length, a value is of a kind that tables do not hold, or `meta` is not JSON.

        >>> list(Table.from_columns({"layer": [0, 1], "effect": [0.5, float("nan")]}, meta={}).rows())
        [{'layer': 0, 'effect': 0.5}, {'layer': 1, 'effect': None}]
        """
        lengths = {name: len(values) for name, values in columns.items()}
        if len(set(lengths.values())) > 1:
            raise SpecError(f"columns have as many values as each other; found {lengths}")
        plain = {name: plain_column(name, values) for name, values in columns.items()}
        return cls(MappingProxyType(plain), MappingProxyType(plain_meta(meta)))

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def __reduce__(self) -> tuple[Any, ...]:
        return Table.from_dict, (self.to_dict(),)  # mapping proxies do not copy to another process by themselves

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield each row as a new dict."""
        for values in zip(*self.columns.values(), strict=True):
            yield dict(zip(self.columns, values, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-able data, `{"meta": {...}, "rows": [{...}, ...]}`; `from_dict` is the inverse.

        Without rows there is an entry `"columns"`, too: their names.

        >>> table = Table.from_rows([{"layer": 0, "effect": float("nan")}], meta={})
        >>> table.to_dict()
        {'meta': {}, 'rows': [{'layer': 0, 'effect': None}]}
        """
        rows = [{name: list(v) if isinstance(v, tuple) else v for name, v in row.items()} for row in self.rows()]
        names = {"columns": list(self.columns)} if self.columns and not rows else {}
        return {"meta": plain_meta(self.meta), "rows": rows, **names}

    @classmethod
    @checked
    def from_dict(cls, data: Mapping[str, Any]) -> Table:
        """Build the table that `to_dict` described.

        Raises:
            SpecError: `data` is not of that form.
        """
        if set(data) - {"columns"} != {"meta", "rows"}:
            raise SpecError(f"a table's dict has the keys 'meta' and 'rows', this one has {sorted(data)}")
        return cls.from_rows(data["rows"], meta=data["meta"], columns=data.get("columns"))

    def to_frame(self) -> pandas.DataFrame:
        """Return the rows as a new pandas DataFrame; changing it does not change the table.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        pandas = optional("pandas", extra="tables")
        frame = {
            name: [list(v) if isinstance(v, tuple) else v for v in column] for name, column in self.columns.items()
        }
        for name, kind in TYPES.items():
            if kind is float and name in frame:
                frame[name] = pandas.array(frame[name], dtype="float64") if frame[name] else []
        return pandas.DataFrame(frame)

    @checked
    def pivot(
        self,
        value: str = "recovered",
        *,
        component: str | None = None,
        index: str = "layer",
        columns: str = "position",
        where: Mapping[str, Any] | None = None,
    ) -> pandas.DataFrame:
        """Return one number a cell as a DataFrame: a row for each layer, a column for each position, ascending.

        Words, such as names of places, stay in the order in which they first appear.

        Args:
            value: the column to show.
            component: which component's rows; may be left out where the table has one.
            index: the column whose values are the rows.
            columns: the column whose values are the columns, such as `head` or `place`.
            where: as for `select`.

        Raises:
            UnknownNameError: no such column or component.
            SpecError: several rows fall into one cell (for instance several components or pairs).
            MissingExtraError: pandas is not installed.

        Example:
            >>> rows = [{"layer": i, "position": 0, "recovered": i / 2} for i in range(3)]
            >>> Table.from_rows(rows, meta={}).pivot().loc[2, 0].item()
            1.0
        """
        for column in (index, columns, value):
            self._know(column)
        chosen = self.select(component, where)
        frame = chosen.to_frame()
        if frame.duplicated([index, columns]).any():
            others = {"direction", "pair", "prompt", "head", "neuron", "place", "position"} - {index, columns}
            several = [name for name in self.columns if name in others and chosen._several(name)]
            raise SpecError(
                f"several rows stand at one {index} and {columns}; components: {chosen.components()}"
                + (f"; several of {', '.join(several)}: choose with where=..., or take the mean" if several else "")
            )
        found = frame.pivot(index=index, columns=columns, values=value)
        if any(isinstance(one, str) for one in chosen.columns[index]):
            found = found.reindex(index=list(dict.fromkeys(chosen.columns[index])))
        if any(isinstance(one, str) for one in chosen.columns[columns]):
            found = found.reindex(columns=list(dict.fromkeys(chosen.columns[columns])))
        return found

    def components(self) -> list[str]:
        """Return the distinct components, in the order in which they first appear."""
        return list(dict.fromkeys(self.columns.get("component", ())))

    @checked
    def select(self, component: str | None = None, where: Mapping[str, Any] | None = None) -> Table:
        """Return the table of the rows of one component, or with other values.

        Args:
            component: keep its rows; `None` keeps those of all.
            where: column name -> the value that rows must have there.

        Raises:
            UnknownNameError: the table has no such component or column.

        >>> table = Table.from_rows([{"pair": n, "effect": n / 2} for n in range(3)], meta={})
        >>> list(table.select(where={"pair": 2}).rows())
        [{'pair': 2, 'effect': 1.0}]
        """
        if component is not None and component not in self.components():
            hint = near_misses(component, self.components())
            raise UnknownNameError(f"no rows for the component {component!r}; {hint}")
        wanted = ({} if component is None else {"component": component}) | dict(where or {})
        for column in wanted:
            self._know(column)
        if not wanted:
            return self
        kept = (row for row in self.rows() if all(row[name] == value for name, value in wanted.items()))
        return Table.from_rows(kept, meta=self.meta, columns=self.columns)

    @classmethod
    @checked
    def concat(cls, tables: Iterable[Table] | Mapping[str, Table], *, name: str = "table") -> Table:
        """Return the rows of several tables as one, the tables one after the other.

        Args:
            tables: the tables; or by what a further column says of each.
            name: of that column, such as `model`.

        Returns:
            A table with the columns of all; one that a table lacks is `None` in its rows. `meta` has the facts that all
            tables share, and under `"tables"` what each of them has.

        Raises:
            SpecError: there is no table, or one has a column of that name already.

        >>> small, large = (Table.from_rows([{"layer": 0, "effect": x}], meta={"pairs": 1}) for x in (0.5, 2.0))
        >>> both = Table.concat({"small": small, "large": large}, name="model")
        >>> list(both.rows())[1], both.meta["pairs"]
        ({'model': 'large', 'layer': 0, 'effect': 2.0}, 1)
        """
        named = dict(tables) if isinstance(tables, Mapping) else None
        listed = list(named.values() if named is not None else tables)
        if not listed or not all(isinstance(one, Table) for one in listed):
            raise SpecError(f"concat takes tables, at least one; found {listed!r}")
        columns = list(dict.fromkeys(column for one in listed for column in one.columns))
        if named is not None and name in columns:
            raise SpecError(f"a table has a column {name!r} already: give the further one another name")
        firsts: list[dict[str, Any]] = [{name: key} for key in named] if named is not None else [{}] * len(listed)
        missing = dict.fromkeys(columns)
        rows = [{**first, **missing, **row} for first, one in zip(firsts, listed, strict=True) for row in one.rows()]
        shared = {key: fact for key, fact in listed[0].meta.items() if all(one.meta.get(key) == fact for one in listed)}
        return cls.from_rows(
            rows,
            meta={**shared, "tables": [dict(one.meta) for one in listed]},
            columns=[*([name] if named is not None else []), *columns],
        )

    @checked
    def relative_to(self, anchor: int | Sequence[int] | Literal["last"] = "last") -> Table:
        """Return the table with a column `offset`: the position of a row, counted from a place that all pairs have.

        Means over pairs are then of what stands at the same place: `relative_to("last").mean(["layer", "offset"])`. An
        absolute position is a different word in prompts of other lengths.

        Args:
            anchor: the position in the base with the offset 0: `"last"`, the last token of every pair; one for all
                pairs, negative from the end; or one for each, such as that of the subject's last token.

        Raises:
            SpecError: the table does not tell positions or prompts, or `anchor` has not one entry for each pair.

        >>> meta = {"pairs": 2, "base_tokens": [["The", "cat"], ["The", "old", "cat"]]}
        >>> rows = [{"pair": 0, "position": 1, "effect": 0.5}, {"pair": 1, "position": 2, "effect": 1.5}]
        >>> table = Table.from_rows(rows, meta=meta).relative_to("last")
        >>> table.columns["offset"], table.mean(["offset"], value="effect").columns["effect"]
        ((0, 0), (1.0,))
        """
        for column in ("position", "pair"):
            self._know(column)
        count = self.meta.get("pairs")
        if not isinstance(count, int):
            raise SpecError("offsets are told of tables that know their pairs: of grid, before tables are joined")
        each = [anchor] * count if isinstance(anchor, int | str) else list(anchor)
        if len(each) != count or any(isinstance(one, str) and one != "last" for one in each):
            raise SpecError(f"anchor is 'last', a position, or one for each of {count} pairs; found {anchor!r}")
        rows = []
        for row in self.rows():
            at = -1 if each[row["pair"]] == "last" else int(each[row["pair"]])
            start = at if at >= 0 else self._length(row, count) + at
            rows.append({**row, "offset": None if row["position"] is None else row["position"] - start})
        return Table.from_rows(rows, meta=self.meta, columns=[*self.columns, "offset"])

    def _length(self, row: Mapping[str, Any], pairs: int) -> int:
        """Return how many tokens the base has in the sequence that a row's position counts in."""
        decoder = "base_decoder_tokens"
        said = decoder if decoder in self.meta and not in_encoder(row.get("component")) else "base_tokens"
        tokens = self.meta.get(said)
        if tokens is None:
            raise SpecError(f"the table does not tell its prompts: its meta has no {said!r}")
        return len(tokens if pairs == 1 else tokens[row["pair"]])

    @checked
    def mean(
        self,
        by: Iterable[str] = ("direction", "component", "layer", "position"),
        *,
        value: str = "recovered",
        unit: str | None = None,
        level: float = 0.95,
        draws: int = 2000,
        seed: int = 0,
    ) -> Table:
        """Return the mean of a column over the rows that agree elsewhere, as a rule over pairs, with its interval.

        The interval is the bootstrap's (percentiles of the means of resampled rows; Efron 1979,
        doi:10.1214/aos/1176344552). It is drawn with a seed, so it is the same every time. It is too narrow for a
        handful of rows, and there is none for one.

        Args:
            by: the columns that tell groups apart, such as `("layer", "head")`; those that the table lacks are refused.
            value: the column of numbers; rows without one are left out.
            unit: the column of what is independent, such as `prompt`, where it has several rows in a group: the mean of
                each is taken first, and these are counted and resampled. Default: every row is one.
            level: of the interval, between 0 and 1.
            draws: how often rows are resampled.
            seed: of the draws.

        Returns:
            A table with the columns of `by`, `count` (rows or units with a number), the mean under the column's own
            name, `low` and `high`; groups in the order in which they first appear.

        Raises:
            UnknownNameError: no such column.
            SpecError: the column has no numbers, or `level` or `draws` makes no sense.

        >>> rows = [{"layer": 0, "pair": n, "recovered": value} for n, value in enumerate((0.0, 0.5, 1.0))]
        >>> [row] = Table.from_rows(rows, meta={}).mean(by=["layer"]).rows()
        >>> row["count"], row["recovered"], row["low"] < 0.5 < row["high"]
        (3, 0.5, True)
        """
        names = [by] if isinstance(by, str) else list(by)
        for column in (*names, value, *([] if unit is None else [unit])):
            self._know(column)
        if not 0 < level < 1 or draws < 1:
            raise SpecError(f"an interval needs a level between 0 and 1 and draws from 1; found {level} and {draws}")
        columns = [*names, "count", value, "low", "high"]
        groups: dict[tuple[Any, ...], dict[Any, list[float]]] = {}
        for number, row in enumerate(self.rows()):
            if isinstance(row[value], str | tuple):
                raise SpecError(f"column {value!r} holds {row[value]!r}, of which there is no mean")
            units = groups.setdefault(tuple(row[name] for name in names), {})
            if row[value] is not None:
                units.setdefault(number if unit is None else row[unit], []).append(float(row[value]))
        rows = []
        for key, units in groups.items():
            found = [sum(of_unit) / len(of_unit) for of_unit in units.values()]
            middle, low, high = mean_of(found, level, draws, seed)
            rows.append(dict(zip(columns, (*key, len(found), middle, low, high), strict=True)))
        return Table.from_rows(rows, meta={**self.meta, "mean_of": value, "level": level}, columns=columns)

    @checked
    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the table as parquet, `meta` inside the file, in one step (a killed save leaves no half-made file).

        Returns:
            The path written.

        Raises:
            MissingExtraError: pyarrow is not installed.
            OSError: the folder cannot be written to.
        """
        return write_atomically(path, as_parquet(self.columns, self.meta))

    @classmethod
    @checked
    def load(cls, path: str | os.PathLike[str]) -> Table:
        """Read a table that `save` wrote.

        Raises:
            SpecError: the parquet file was not written by `Table.save`.
            ArtifactError: it is damaged, or no parquet file.
            FileNotFoundError: there is no such file.
            MissingExtraError: pyarrow is not installed.
        """
        columns, meta = from_parquet(os.fspath(path))
        return cls.from_columns(columns, meta=meta)

    def _several(self, column: str) -> bool:
        return len(set(self.columns.get(column, ()))) > 1

    def _know(self, column: str) -> None:
        if column not in self.columns:
            raise UnknownNameError(f"the table has no column {column!r}; {near_misses(column, self.columns)}")
