"""Learned masks: how much of each edge there is, drawn from hard concrete distributions that are pushed to 0.

Louizos et al. 2018, arXiv:1712.01312 (hard concrete); Bhaskar et al. 2024, arXiv:2406.16778 (Edge Pruning). A mask z is
s stretched to (-0.1, 1.1) and cut to 0 and 1, with s = sigmoid((logit(u) + a) / (2 / 3)) and u uniform; a is learned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ..._errors import SpecError

_HEAT, _LOW, _HIGH = 2 / 3, -0.1, 1.1
_START = 2.0
_WARM = 0.5
"""Share of the steps in which the target falls from all to what is wanted."""
_BETAS, _EPS = (0.9, 0.999), 1e-8


@runtime_checkable
class GivesGradients(Protocol):
    """What runs circuits and gives gradients by how much of each edge, node or neuron there is."""

    @property
    def count(self) -> int:
        """How many there are of them."""

    @property
    def chunks(self) -> int:
        """How many parts the pairs are run in."""

    def gradient(self, kept: Tensor, which: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Return `(pairs,)` values and the gradient `(count,)` of their sum."""


@dataclass(frozen=True)
class Learning:
    """How masks are learned.

    Args:
        target: how many are to be left, by a Lagrangian; `None`: as many as are worth their price.
        price: what each that is left adds to the loss.
        steps: of Adam, each on one part of the pairs.
        rate: of the masks; the multipliers of the Lagrangian have it, too.
        seed: of the draws.
    """

    target: int | None
    price: float
    steps: int
    rate: float
    seed: int


@dataclass
class Masks:
    """Where the learning of masks stands.

    Args:
        tensors: what is learned (`a`, and `multipliers` of the Lagrangian), the moments of Adam, and the sum of all `a`
            so far.
        done: steps that were made.
        loss: the mean distance from the whole model in each step.
    """

    tensors: dict[str, Tensor]
    done: int = 0
    loss: list[float] = field(default_factory=list)

    @classmethod
    def fresh(cls, count: int) -> Masks:
        """Return masks that let almost all through.

        Args:
            count: how many.
        """
        start = {"a": torch.full((count,), _START), "multipliers": torch.zeros(2)}
        moments = {f"{name} {n}": torch.zeros_like(one) for name, one in start.items() for n in ("mean", "square")}
        return cls({**start, **moments, "total": torch.zeros(count)})

    @property
    def scores(self) -> Tensor:
        """How long each held out: the mean over steps of what is learned, `(count,)`.

        Where a circuit falls apart at once, as one that computes by thresholds does, there are no gradients any more
        that would open masks again; but which ones were the last to close is still told.
        """
        return self.tensors["total"] / max(1, self.done)

    @property
    def expected(self) -> float:
        """How many masks are expected to be above 0."""
        return float(_open(self.tensors["a"]).sum())


def _open(a: Tensor) -> Tensor:
    """Return how probable each mask is to be above 0."""
    return torch.sigmoid(a - _HEAT * math.log(-_LOW / _HIGH))


def drawn(a: Tensor, uniform: Tensor) -> Tensor:
    """Return masks.

    Args:
        a: `(count,)` what is learned.
        uniform: `(count,)` numbers between 0 and 1.

    >>> drawn(torch.tensor([-9.0, 0.0, 9.0]), torch.full((3,), 0.5))
    tensor([0.0000, 0.5000, 1.0000])
    """
    s = torch.sigmoid((uniform.logit(1e-6) + a) / _HEAT)
    return (s * (_HIGH - _LOW) + _LOW).clamp(0, 1)


def learn(runner: GivesGradients, how: Learning, at: Masks, after: Callable[[Masks], None] = lambda _: None) -> Masks:
    """Learn masks that leave the distance from the whole model small, and few of them above 0.

    Args:
        runner: what it measures is the distance.
        how: how.
        at: where it begins; it is changed.
        after: called after each step.

    Raises:
        SpecError: the distance is no number.
    """
    while at.done < how.steps:
        draws = torch.Generator().manual_seed(how.seed * 1_000_003 + at.done)  # a step knows no other: it can go on
        a = at.tensors["a"].clone().requires_grad_()
        multipliers = at.tensors["multipliers"].clone().requires_grad_()
        mask = drawn(a, torch.rand(runner.count, generator=draws))
        which = at.done % runner.chunks
        values, gradient = runner.gradient(mask.detach(), [which])
        if not bool(values.isfinite().all()):
            raise SpecError(f"step {at.done}: the distance from the whole model is not finite: {values.tolist()}")
        loss = (mask * gradient / len(values)).sum() + _pressure(_open(a), multipliers, how, at.done)
        loss.backward()
        at.done += 1
        _adam(at, "a", _gradient(a), how.rate)
        if how.target is not None:
            _adam(at, "multipliers", -_gradient(multipliers), how.rate)  # these climb
        at.tensors["total"] += at.tensors["a"]
        at.loss.append(values.mean().item())
        after(at)
    return at


def _gradient(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def _pressure(above: Tensor, multipliers: Tensor, how: Learning, step: int) -> Tensor:
    """Return what is added to the loss for masks above 0, `above` being how probable each is to be that.

    With e the share by which they are more than the target, which falls for half of the steps, it is p e + q e^2; the
    multipliers p and q climb as long as they are more.
    """
    if how.target is None:
        return how.price * above.sum()
    target = len(above) - min(1.0, step / max(1.0, _WARM * how.steps)) * (len(above) - how.target)
    excess = (above.sum() - target) / len(above)
    return multipliers[0] * excess + multipliers[1] * excess**2


def _adam(at: Masks, name: str, gradient: Tensor, rate: float) -> None:
    """Make a step of Adam."""
    mean, square = at.tensors[f"{name} mean"], at.tensors[f"{name} square"]
    mean.mul_(_BETAS[0]).add_(gradient, alpha=1 - _BETAS[0])
    square.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
    near, far = (1 - beta**at.done for beta in _BETAS)
    at.tensors[name] = at.tensors[name] - rate * (mean / near) / ((square / far).sqrt() + _EPS)
