"""Which logits a loss or a metric reads, and what came of them for each example."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from .._errors import SpecError
from ..engine import Inputs, batch_size, logits_stack, real_spans

Where = Literal["last", "labels", "all"]
"""Which logits are read: at each example's last real token; wherever its labels are not -100; or all, as they come."""

Measure = Callable[[Tensor, Any], Any]
"""A loss or metric: `(logits, labels)` -> one number a row, one number for all, or a dict of these by name."""

IGNORED = -100
"""The label of a column that is not read."""


@dataclass(frozen=True, eq=False)
class Columns:
    """The logits that are read, one row each.

    Args:
        example: `(rows,)` which example of the batch.
        column: `(rows,)` which column of the padded sequence; from 0.
    """

    example: Int64[Tensor, " rows"]
    column: Int64[Tensor, " rows"]


@dataclass(frozen=True, eq=False)
class Read:
    """Logits that were read, with the labels that belong to them.

    Args:
        logits: `(rows, vocab)`; the model's own shape where everything is read.
        labels: for each row; as they were given where everything is read; `None` without labels.
        example: `(rows,)` which example each row is of; `None` where a row is an example, or everything is read.
        count: number of examples.
    """

    logits: Tensor
    labels: Any
    example: Int64[Tensor, " rows"] | None
    count: int


@dataclass(frozen=True, eq=False)
class Numbers:
    """What a measure said of each example.

    Args:
        values: `(count,)`.
        whole: whether it said one number for all of them.
    """

    values: Float[Tensor, " count"]
    whole: bool


def columns_of(where: Where, base: Inputs, labels: Any) -> Columns | None:
    """Return the columns that are read; `None` for all, and where the input has no sequence.

    Args:
        where: which logits are read.
        base: the base's inputs; their attention mask tells which tokens are real, on whichever side the padding is.
        labels: `(batch, tokens)` for `"labels"`: the label at a column is what the logits *of that column* should say
            (nothing is shifted); -100 is not read.

    Raises:
        SpecError: the labels do not fit, or an example has nothing to read.

    >>> inputs = {"input_ids": torch.zeros(2, 3).long(), "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}
    >>> columns_of("last", inputs, None).column
    tensor([1, 2])
    """
    if where == "all":
        return None
    if where == "labels":
        return _labelled(labels, batch_size(base))
    spans = real_spans(base, logits_stack(base))
    if spans is None:
        return None
    empty = [example for example, (start, end) in enumerate(spans) if start == end]
    if empty:
        raise SpecError(
            f"examples {empty} have no real token, so there are no logits to read: see their attention mask"
        )
    return Columns(torch.arange(len(spans)), torch.tensor([end - 1 for _, end in spans]))


def _labelled(labels: Any, batch: int) -> Columns:
    if not isinstance(labels, Tensor) or labels.ndim != 2 or labels.shape[0] != batch:
        found = tuple(labels.shape) if isinstance(labels, Tensor) else labels
        raise SpecError(f"positions='labels' needs labels of shape (batch, tokens), -100 where none; found {found}")
    example, column = (labels != IGNORED).nonzero(as_tuple=True)
    if len(example.unique()) < batch:
        raise SpecError("positions='labels': every example needs a label that is not -100")
    return Columns(example.cpu(), column.cpu())


def labels_at(where: Where, columns: Columns | None, labels: Any, device: torch.device) -> Any:
    """Return the label of each row that is read, on `device`.

    Args:
        where: which logits are read.
        columns: from `columns_of`.
        labels: the batch's; `(batch, 1)` whole numbers count as `(batch,)`.
        device: the logits'.
    """
    if not isinstance(labels, Tensor):
        return labels
    labels = labels.to(device)
    if where == "labels" and columns is not None:
        return labels[columns.example.to(device), columns.column.to(device)]
    return one_each(labels) if where == "last" else labels


def one_each(labels: Tensor) -> Tensor:
    """Return labels with one whole number an example as `(batch,)`, if they are `(batch, 1)`; others as they are.

    >>> one_each(torch.tensor([[4], [7]]))
    tensor([4, 7])
    """
    if labels.ndim == 2 and labels.shape[1] == 1 and not labels.is_floating_point():
        return labels[:, 0]
    return labels


def label_column(name: str, labels: Any, where: Where, batch: int) -> Tensor:
    """Return one of the label columns in the one form in which they are compared with each other.

    Args:
        name: of the column, for the message.
        labels: the column; `(batch,)` or `(batch, 1)`, or `(batch, tokens)` where `"labels"` are read.
        where: which logits are read; `"last"` or `"labels"`.
        batch: number of examples.

    Returns:
        `(batch,)`, or `(batch, tokens)` where `"labels"` are read.

    Raises:
        SpecError: it has another shape.

    >>> label_column("base_labels", [[4], [7]], "last", 2)
    tensor([4, 7])
    """
    found = torch.as_tensor(labels)
    column = one_each(found) if where == "last" else found
    if column.ndim != (2 if where == "labels" else 1) or len(column) != batch:
        form = f"({batch}, tokens)" if where == "labels" else f"({batch},) or ({batch}, 1)"
        raise SpecError(
            f"{name!r} needs the shape {form} to be compared with the other label columns; found {tuple(found.shape)}"
        )
    return column


def rows_of(logits: Tensor, columns: Columns | None, where: Where) -> Tensor:
    """Return the logits that are read: `(rows, vocab)`, or all of them.

    Args:
        logits: `(batch, tokens, vocab)`, or `(batch, classes)` of a model that says one thing an example.
        columns: from `columns_of`.
        where: which logits are read.

    Raises:
        SpecError: columns are asked for, but there is no sequence.
    """
    if where == "all":
        return logits
    if logits.ndim == 2:
        if where == "labels":
            raise SpecError(f"positions='labels', but the logits have no sequence: shape {tuple(logits.shape)}")
        return logits
    if columns is None:
        return logits[:, -1]
    return logits[columns.example.to(logits.device), columns.column.to(logits.device)]


def per_example(measure: Measure, read: Read, name: str) -> dict[str, Numbers]:
    """Return what a measure says of each example; several rows of one example are averaged.

    A measure that gives one number for a whole batch gives that number to each of its examples.

    Args:
        measure: the loss or metric.
        read: the logits and labels.
        name: what its number is called; a measure that gives a dict has names of its own.

    Raises:
        SpecError: it gave neither one number a row nor one for all.
    """
    found = measure(read.logits, read.labels)
    named = found if isinstance(found, Mapping) else {name: found}
    return {str(key): _spread(value, read, str(key)) for key, value in named.items()}


def first(measure: Measure, read: Read, name: str) -> Float[Tensor, " count"]:
    """Return the first number that a measure has for each example."""
    return next(iter(per_example(measure, read, name).values())).values


def _spread(value: Any, read: Read, name: str) -> Numbers:
    values = torch.as_tensor(value, device=read.logits.device)
    values = values if values.is_floating_point() else values.float()
    if values.ndim == 0:
        return Numbers(values.expand(read.count), whole=True)
    rows = read.count if read.example is None else len(read.example)
    if tuple(values.shape) != (rows,):
        raise SpecError(
            f"{name!r} must give one number for each of {rows} rows, or one for all; found {tuple(values.shape)}"
        )
    if read.example is None:
        return Numbers(values, whole=False)
    example = read.example.to(values.device)
    empty = values.new_zeros(read.count)
    counts = empty.index_add(0, example, torch.ones_like(values))
    return Numbers(empty.index_add(0, example, values) / counts, whole=False)
