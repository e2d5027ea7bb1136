"""Losses and metrics of an alignment: functions of the logits that are read and their labels, one number a row.

Each can be the `loss` of `fit` or a metric of `evaluate`; so can any other `Measure`. `per_example` applies one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from .._checked import checked
from .._errors import SpecError
from .columns import Readout

Measure = Callable[[Tensor, Any], Any]
"""A loss or metric: `(logits, labels)` -> one number a row, one number for all, or a dict of these by name."""

ComputeMetrics = Callable[[list[Tensor], list[Any]], Any]
"""`([logits], [labels])` -> a dict of numbers: both are lists of batches, here of one."""


@dataclass(frozen=True, eq=False)
class Numbers:
    """What a measure said of each example.

    Args:
        values: `(count,)`.
        whole: whether it said one number for all of them.
    """

    values: Float[Tensor, " count"]
    whole: bool


@checked
def cross_entropy(logits: Float[Tensor, "rows vocab"], labels: Int[Tensor, " ..."]) -> Float[Tensor, " rows"]:
    """Return the cross-entropy of the counterfactual label, in nats: the loss of distributed alignment search.

    Args:
        logits: `(rows, vocab)`.
        labels: `(rows,)` the tokens or classes that the causal model says.

    Raises:
        SpecError: the labels have another shape, or one is no answer.

    Geiger et al. 2023, arXiv:2303.02536.

    >>> cross_entropy(torch.zeros(1, 2), torch.tensor([1]))
    tensor([0.6931])
    """
    _check_shape("cross_entropy", labels, logits.shape[:1])
    try:
        return F.cross_entropy(logits.float(), labels.long(), reduction="none")
    except IndexError as error:  # on a CPU; to look at the labels first would make a GPU wait
        raise SpecError(f"cross_entropy: a label is none of the {logits.shape[-1]} answers ({error})") from error


@checked
def kl_divergence(logits: Float[Tensor, "rows vocab"], target: Float[Tensor, " ..."]) -> Float[Tensor, " rows"]:
    """Return KL(target || softmax(logits)), summed over the vocabulary, in nats.

    Args:
        logits: `(rows, vocab)`.
        target: `(rows, vocab)` the probabilities that the intervened model should give.

    Raises:
        SpecError: `target` has another shape, or a row of it does not sum to 1.

    >>> kl_divergence(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]))
    tensor([0.6931])
    """
    _check_shape("kl_divergence", target, logits.shape)
    target = target.float()
    if not torch.allclose(target.sum(-1), target.new_ones(()), atol=1e-3):
        raise SpecError("the target of kl_divergence is probabilities: every row sums to 1; give softmax(logits)")
    return F.kl_div(F.log_softmax(logits.float(), dim=-1), target, reduction="none").sum(-1)


@checked
def label_difference(logits: Float[Tensor, "rows vocab"], labels: Int[Tensor, " ..."]) -> Float[Tensor, " rows"]:
    """Return the logit difference: the logit of the counterfactual label minus that of the other label.

    It grows as the alignment gets better; as a loss give its negative.

    Args:
        logits: `(rows, vocab)`.
        labels: `(rows, 2)` the counterfactual label, and the one it competes with (the base's, as a rule).

    Raises:
        SpecError: the labels have another shape.

    >>> label_difference(torch.tensor([[1.0, 4.0, 2.0]]), torch.tensor([[1, 0]]))
    tensor([3.])
    """
    _check_shape("label_difference", labels, (len(logits), 2))
    chosen = logits.float().gather(-1, labels.long())
    return chosen[:, 0] - chosen[:, 1]


@checked
def iia(logits: Float[Tensor, "rows vocab"], labels: Int[Tensor, " ..."]) -> Float[Tensor, " rows"]:
    """Return 1 where the most probable answer is the counterfactual label, else 0.

    Its mean is the interchange intervention accuracy. Where an example has several labels, it is averaged over them.

    Args:
        logits: `(rows, vocab)`.
        labels: `(rows,)` the tokens or classes that the causal model says.

    Raises:
        SpecError: the labels have another shape.

    Geiger et al. 2021, arXiv:2106.02997.

    >>> iia(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([1, 1]))
    tensor([1., 0.])
    """
    _check_shape("iia", labels, logits.shape[:1])
    return (logits.argmax(dim=-1) == labels).float()


def _check_shape(name: str, labels: Tensor, wanted: Sequence[int]) -> None:
    """Refuse labels of another shape: PyTorch would stretch them to that of the logits, or leave rows out."""
    if tuple(labels.shape) != tuple(wanted):
        raise SpecError(f"{name} compares with labels of shape {tuple(wanted)} here; found {tuple(labels.shape)}")


def measure_of(compute_metrics: ComputeMetrics | None) -> Measure:
    """Return a metric that calls a user's function with lists of one batch; without one, IIA."""
    if compute_metrics is None:
        return iia
    wanted = compute_metrics
    return lambda logits, labels: wanted([logits], [labels])


def per_example(measure: Measure, read: Readout, name: str) -> dict[str, Numbers]:
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


def numbers_of(measure: Measure, read: Readout, name: str) -> Float[Tensor, " count"]:
    """Return the first number that a measure has for each example."""
    return next(iter(per_example(measure, read, name).values())).values


def _spread(value: Any, read: Readout, name: str) -> Numbers:
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
