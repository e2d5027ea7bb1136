"""Which logits a loss or a metric reads, and the labels that belong to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from .._errors import SpecError
from ..engine import Inputs, batch_size, logits_stack, real_spans

ColumnRule = Literal["last", "labels", "all"]
"""Which logits are read: at each example's last real token; wherever its labels are not -100; or all, as they come."""

IGNORED = -100
"""The label of a column that is not read."""


@dataclass(frozen=True, eq=False)
class LogitColumns:
    """The logits that are read, one row each.

    Args:
        example: `(rows,)` which example of the batch.
        column: `(rows,)` which column of the padded sequence; from 0.
    """

    example: Int64[Tensor, " rows"]
    column: Int64[Tensor, " rows"]


@dataclass(frozen=True, eq=False)
class Readout:
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


def columns_of(where: ColumnRule, base: Inputs, labels: Any) -> LogitColumns | None:
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
    return LogitColumns(torch.arange(len(spans)), torch.tensor([end - 1 for _, end in spans]))


def _labelled(labels: Any, batch: int) -> LogitColumns:
    if not isinstance(labels, Tensor) or labels.ndim != 2 or labels.shape[0] != batch:
        found = tuple(labels.shape) if isinstance(labels, Tensor) else labels
        raise SpecError(f"positions='labels' needs labels of shape (batch, tokens), -100 where none; found {found}")
    example, column = (labels != IGNORED).nonzero(as_tuple=True)
    if len(example.unique()) < batch:
        raise SpecError("positions='labels': every example needs a label that is not -100")
    return LogitColumns(example.cpu(), column.cpu())


def labels_at(where: ColumnRule, columns: LogitColumns | None, labels: Any, count: int, device: torch.device) -> Any:
    """Return the label of each row that is read, on `device`.

    Args:
        where: which logits are read.
        columns: from `columns_of`.
        labels: the batch's; `(batch, 1)` whole numbers count as `(batch,)`, and numbers in a list or an array as a
            tensor.
        count: number of examples.
        device: the logits'.

    Raises:
        SpecError: there are not as many labels as examples.
    """
    labels = as_labels(labels)
    if not isinstance(labels, Tensor):
        return labels
    labels = labels.to(device)
    if where == "labels" and columns is not None:
        return labels[columns.example.to(device), columns.column.to(device)]
    if where == "last" and labels.shape[:1] != (count,):
        raise SpecError(
            f"'labels' needs a label for each of the {count} examples of the batch; found the shape "
            f"{tuple(labels.shape)}"
        )
    return one_each(labels) if where == "last" else labels


def as_labels(labels: Any) -> Any:
    """Return numbers in a list or an array as a tensor, and labels of other kinds as they are.

    >>> as_labels([4, 7]), as_labels(["yes", "no"])
    (tensor([4, 7]), ['yes', 'no'])
    """
    numbers = isinstance(labels, list | tuple) and labels and all(isinstance(one, int | float) for one in labels)
    return torch.as_tensor(labels) if numbers or isinstance(labels, np.ndarray) else labels


def one_each(labels: Tensor) -> Tensor:
    """Return labels with one whole number an example as `(batch,)`, if they are `(batch, 1)`; others as they are.

    >>> one_each(torch.tensor([[4], [7]]))
    tensor([4, 7])
    """
    if labels.ndim == 2 and labels.shape[1] == 1 and not labels.is_floating_point():
        return labels[:, 0]
    return labels


def label_column(name: str, labels: Any, where: ColumnRule, batch: int) -> Tensor:
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


def rows_of(logits: Tensor, columns: LogitColumns | None, where: ColumnRule) -> Tensor:
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
