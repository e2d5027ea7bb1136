"""Counterfactual data as a `datasets.Dataset`, and in a folder; nothing in either is ever executed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from .._checked import checked
from .._errors import ArtifactError, SpecError
from .._files import new_folder, put_folder
from .._optional import optional
from .causal_model import CausalModel
from .domain import Column, as_column
from .drawing import labelled, output_of
from .examples import CounterfactualExamples, names_of

if TYPE_CHECKING:
    import datasets

Self = TypeVar("Self", bound="StoredExamples")
_FORMAT = 1
_FLAGS, _SIDES = "where", ("base", "sources", "where")


class StoredExamples(CounterfactualExamples):
    """The part of `CounterfactualDataset` that is told to, and read from, files and data sets."""

    def to_dataset(self) -> datasets.Dataset:
        """Return the pairs as a `datasets.Dataset`, which can be saved, streamed, mapped and shared.

        Its columns are `base` (the inputs by name), `sources` and `where` (by variable), `label` and `base_label`; what
        else there is, such as `facts`, is in its description. Tuples become lists.

        Raises:
            MissingExtraError: datasets is not installed.
            SpecError: the values of a variable are of kinds that one column cannot hold.
        """
        return dataset_of(self)

    @classmethod
    @checked
    def from_dataset(
        cls: type[Self],
        dataset: Any,
        causal_model: CausalModel,
        *,
        output: str | None = None,
        entity: str | Sequence[str] | None = None,
    ) -> Self:
        """Return the pairs of a `datasets.Dataset`.

        Args:
            dataset: with the columns of `to_dataset`; a stream of one (an `IterableDataset`); or rows as dicts. Without
                labels these are worked out, otherwise they have to be the causal model's.
            causal_model: says the labels. A data set holds no functions.
            output: the variable that labels are of; default: what the data set says, or the model's only output.
            entity: input variables whose joint value is the entity; default: what it says, or all inputs.

        Raises:
            SpecError: columns are missing, values are none of the model's, or labels are another model's.
        """
        found = fields_of(dataset, causal_model, output, None if entity is None else names_of(entity))
        said, output = found.pop("said"), output_of(causal_model, found.pop("output"))
        labels, plain = labelled(causal_model, found["base"], found["sources"], found["where"], output)
        made = cls(causal_model, output=output, labels=labels, base_labels=plain, **found)
        check_labels(said, made)
        return made

    @checked
    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write the pairs to a folder, in one step; `datasets.load_from_disk` reads it, too.

        Args:
            folder: is made.
            overwrite: replace what is there.

        Returns:
            The folder.

        Raises:
            ArtifactError: there is something already.
            MissingExtraError: datasets is not installed.
        """
        target = Path(folder)
        if target.exists() and not overwrite:
            raise ArtifactError(f"{target} is there already: choose another folder, or overwrite=True")
        made = dataset_of(self)
        with new_folder(target) as place, _quietly():
            made.save_to_disk(str(place))
            put_folder(place, target)
        return target

    @classmethod
    @checked
    def load(cls: type[Self], folder: str | os.PathLike[str], causal_model: CausalModel) -> Self:
        """Return the pairs that `save` wrote. Nothing in the folder is executed.

        Args:
            folder: of `save`.
            causal_model: that they were made with; its labels have to be those of the pairs.

        Raises:
            ArtifactError: there is no data set, or it is damaged.
            SpecError: labels are another causal model's.
        """
        return cls.from_dataset(saved_dataset(Path(folder)), causal_model)


def dataset_of(data: CounterfactualExamples) -> datasets.Dataset:
    """Return the pairs as a `datasets.Dataset`; see `StoredExamples.to_dataset`."""
    library = optional("datasets", extra="data")
    arrow = optional("pyarrow", extra="data")

    def array(name: str, column: Column) -> Any:
        try:
            return arrow.array(column.tolist())
        except (arrow.ArrowInvalid, arrow.ArrowTypeError, OverflowError) as error:
            raise SpecError(f"the values of {name!r} are of kinds that one column cannot hold: {error}") from error

    def struct(columns: Mapping[str, Column]) -> Any:
        return arrow.StructArray.from_arrays([array(name, of) for name, of in columns.items()], names=list(columns))

    columns = {"base": struct(data.base)}
    if data.variables:
        sources = [struct(of) for of in data.sources.values()]
        columns["sources"] = arrow.StructArray.from_arrays(sources, names=list(data.variables))
        columns[_FLAGS] = struct(data.where)
    columns |= {"label": array(data.output, data.labels), "base_label": array(data.output, data.base_labels)}
    shapes = {name: list(of.shape[1:]) for name, of in data.base.items() if of.ndim > 1}
    said = {
        "counterfactual_dataset": _FORMAT, "output": data.output, "entity": list(data.entity),
        "facts": dict(data.facts), "shapes": shapes,
    }  # fmt: skip
    made: datasets.Dataset = library.Dataset.from_dict(columns, info=library.DatasetInfo(description=json.dumps(said)))
    return made


def fields_of(
    dataset: Any, causal_model: CausalModel, output: str | None, entity: Sequence[str] | None
) -> dict[str, Any]:
    """Return the fields of a `CounterfactualDataset` but for labels, and under `"said"` the labels that rows have.

    Args:
        dataset: a `datasets.Dataset`, a stream of one, or rows as dicts.
        causal_model: whose inputs they are.
        output: the variable that labels are of; default: what the data set says.
        entity: inputs that tell the entity; default: likewise.

    Raises:
        SpecError: columns are missing, or values are none of the causal model's.
    """
    told = _description(dataset)
    rows = dataset[:] if hasattr(dataset, "column_names") and hasattr(dataset, "num_rows") else _columns(dataset)
    missing = [name for name in _SIDES if name not in rows]
    if missing:
        raise SpecError(f"the rows have the columns {sorted(rows)}; {', '.join(missing)} are missing")
    sources = _columns(rows["sources"])
    shapes = told.get("shapes", {})
    found = {
        "base": _inputs(_columns(rows["base"]), causal_model, shapes, "base"),
        "sources": {
            name: _inputs(_columns(of), causal_model, shapes, f"sources[{name!r}]") for name, of in sources.items()
        },
        "where": {name: np.array(of, bool) for name, of in _columns(rows[_FLAGS]).items()},
        "output": output or told.get("output"),
        "entity": tuple(entity or told.get("entity") or causal_model.inputs),
        "facts": told.get("facts", {}),
    }
    return {**found, "said": {name: rows[name] for name in ("label", "base_label") if name in rows}}


def check_labels(said: Mapping[str, Sequence[Any]], data: CounterfactualExamples) -> None:
    """Refuse labels that are not the causal model's.

    Args:
        said: by name the labels that rows have.
        data: made of these rows.

    Raises:
        SpecError: one is another.
    """
    for name, known in (("label", data.labels), ("base_label", data.base_labels)):
        for number, (one, two) in enumerate(zip(said.get(name, known.tolist()), known.tolist(), strict=True)):
            if _plain(one) != _plain(two) and not (one != one and two != two):
                raise SpecError(
                    f"row {number} has the {name} {one!r}, where this causal model says {two!r}: it is another's"
                )


def saved_dataset(folder: Path) -> datasets.Dataset:
    """Return what `save` wrote.

    Raises:
        ArtifactError: there is none, or it is damaged.
    """
    library = optional("datasets", extra="data")
    if not (folder / "dataset_info.json").is_file():
        raise ArtifactError(f"{folder} has no data set: save() writes one")
    try:
        found: datasets.Dataset = library.Dataset.load_from_disk(str(folder))
        found[:1]
    except Exception as error:
        raise ArtifactError(f"the data set in {folder} is damaged: {error!r:.200}") from error
    if not _description(found):
        raise ArtifactError(f"{folder} has a data set that CounterfactualDataset.save did not write: see from_dataset")
    return found


def _description(dataset: Any) -> dict[str, Any]:
    """Return what a data set says of itself; nothing if it was not made here."""
    try:
        found = json.loads(dataset.info.description)
    except (AttributeError, TypeError, ValueError):
        return {}
    return found if isinstance(found, dict) and found.get("counterfactual_dataset") == _FORMAT else {}


def _columns(rows: Any) -> dict[str, list[Any]]:
    """Return by name the values of rows.

    Raises:
        SpecError: they are no dicts, or have not the same names.
    """
    listed = list(rows) if hasattr(rows, "__iter__") else []
    if not listed or not all(isinstance(row, Mapping) and row.keys() == listed[0].keys() for row in listed):
        raise SpecError(f"rows are dicts with the same names, at least one; found {rows!r:.80}")
    return {name: [row[name] for row in listed] for name in listed[0]}


def _inputs(
    columns: Mapping[str, list[Any]], causal_model: CausalModel, shapes: Mapping[str, Any], what: str
) -> dict[str, Column]:
    missing = [name for name in causal_model.inputs if name not in columns]
    if missing or len(columns) > len(causal_model.inputs):
        raise SpecError(
            f"{what} has {sorted(columns)}, where the inputs of the model are {sorted(causal_model.inputs)}"
        )
    given = {
        name: np.array(of) if name in shapes else as_column([_plain(value) for value in of])
        for name, of in columns.items()
    }
    found = causal_model.run_many(given)
    return {name: found[name] for name in causal_model.inputs}


def _plain(value: Any) -> Any:
    """Return lists, which is what becomes of tuples in a file, as tuples."""
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


@contextmanager
def _quietly() -> Iterator[None]:
    """Have no bars, which the library shows for every file."""
    library = optional("datasets", extra="data")
    shown = not library.are_progress_bars_disabled()
    library.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            library.enable_progress_bars()
