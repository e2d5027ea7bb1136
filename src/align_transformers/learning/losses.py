"""Losses and metrics of an alignment: functions of the logits that are read and their labels, one number a row.

Each can be the `loss` of `fit` or a metric of `evaluate`; so can any function of the same two arguments.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from .._errors import SpecError


def cross_entropy(logits: Float[Tensor, "rows vocab"], labels: Int[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """Return the cross-entropy of the counterfactual label, in nats: the loss of distributed alignment search.

    Args:
        logits: `(rows, vocab)`.
        labels: `(rows,)` the tokens or classes that the causal model says.

    Geiger et al. 2023, arXiv:2303.02536.

    >>> cross_entropy(torch.zeros(1, 2), torch.tensor([1]))
    tensor([0.6931])
    """
    return F.cross_entropy(logits.float(), labels.long(), reduction="none")


def kl_divergence(logits: Float[Tensor, "rows vocab"], target: Float[Tensor, "rows vocab"]) -> Float[Tensor, " rows"]:
    """Return KL(target || softmax(logits)), summed over the vocabulary, in nats.

    Args:
        logits: `(rows, vocab)`.
        target: `(rows, vocab)` the probabilities that the intervened model should give.

    Raises:
        SpecError: a row of `target` does not sum to 1.

    >>> kl_divergence(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]))
    tensor([0.6931])
    """
    target = target.float()
    if not torch.allclose(target.sum(-1), target.new_ones(()), atol=1e-3):
        raise SpecError("the target of kl_divergence is probabilities: every row sums to 1; give softmax(logits)")
    return F.kl_div(F.log_softmax(logits.float(), dim=-1), target, reduction="none").sum(-1)


def label_difference(logits: Float[Tensor, "rows vocab"], labels: Int[Tensor, "rows 2"]) -> Float[Tensor, " rows"]:
    """Return the logit difference: the logit of the counterfactual label minus that of the other label.

    It grows as the alignment gets better; as a loss give its negative.

    Args:
        logits: `(rows, vocab)`.
        labels: `(rows, 2)` the counterfactual label, and the one it competes with (the base's, as a rule).

    >>> label_difference(torch.tensor([[1.0, 4.0, 2.0]]), torch.tensor([[1, 0]]))
    tensor([3.])
    """
    chosen = logits.float().gather(-1, labels.long())
    return chosen[:, 0] - chosen[:, 1]


def iia(logits: Float[Tensor, "rows vocab"], labels: Int[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """Return 1 where the most probable answer is the counterfactual label, else 0.

    Its mean is the interchange intervention accuracy. Where an example has several labels, it is averaged over them.

    Args:
        logits: `(rows, vocab)`.
        labels: `(rows,)` the tokens or classes that the causal model says.

    Geiger et al. 2021, arXiv:2106.02997.

    >>> iia(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([1, 1]))
    tensor([1., 0.])
    """
    return (logits.argmax(dim=-1) == labels).float()
