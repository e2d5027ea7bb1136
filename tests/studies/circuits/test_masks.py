"""Learned masks against their formulas, an optimiser of torch, and losses whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from align_transformers import SpecError
from align_transformers.studies.circuits.masks import Learning, Masks, _open, drawn, learn


class Squares:
    """The distance is the sum of `weights * (1 - mask)^2`; each of two parts of the pairs has one pair."""

    chunks = 2

    def __init__(self, weights: list[float]) -> None:
        self.weights, self.count, self.seen = torch.tensor(weights), len(weights), []

    def gradient(self, kept: Tensor, which: list[int] | None = None) -> tuple[Tensor, Tensor]:
        self.seen.append((kept, which))
        return (self.weights * (1 - kept) ** 2).sum()[None], -2 * self.weights * (1 - kept)


def test_a_mask_is_above_0_as_often_as_is_said():
    a, draws = torch.tensor([-3.0, -1.0, 0.0, 1.5]), torch.Generator().manual_seed(0)
    found = torch.stack([drawn(a, torch.rand(4, generator=draws)) for _ in range(20_000)])
    assert torch.allclose((found > 0).float().mean(0), _open(a), atol=0.01)
    assert found.min() == 0
    assert found.max() == 1
    assert ((found > 0) & (found < 1)).any(0).all()


def test_a_mask_is_what_the_paper_says():
    u, a = 0.3, 0.7
    s = 1 / (1 + math.exp(-(math.log(u / (1 - u)) + a) / (2 / 3)))
    assert drawn(torch.tensor([a]), torch.tensor([u])).item() == pytest.approx(s * 1.2 - 0.1, abs=1e-6)


@pytest.mark.parametrize("target", [None, 2])
def test_steps_are_those_of_torchs_adam(target):
    runner, how = Squares([1.0, 0.2, 0.0]), Learning(target, 0.05, 12, 0.1, 3)
    found = learn(runner, how, Masks.fresh(3))
    a = torch.full((3,), 2.0, requires_grad=True)
    multipliers = torch.zeros(2, requires_grad=True)
    optimizer, climbs = torch.optim.Adam([a], lr=0.1), torch.optim.Adam([multipliers], lr=0.1, maximize=True)
    for step, (mask, which) in enumerate(runner.seen):
        uniform = torch.rand(3, generator=torch.Generator().manual_seed(3 * 1_000_003 + step))
        own = ((torch.log(uniform / (1 - uniform)) + a) / (2 / 3)).sigmoid() * 1.2 - 0.1
        own = own.clamp(0, 1)
        assert torch.allclose(own, mask, atol=1e-5)
        assert which == [step % 2]
        above = torch.sigmoid(a - 2 / 3 * math.log(0.1 / 1.1)).sum()
        loss = (runner.weights * (1 - own) ** 2).sum()
        if target is None:
            loss = loss + 0.05 * above
        else:
            wanted = 3 - min(1.0, step / 6) * (3 - target)
            excess = (above - wanted) / 3
            loss = loss + multipliers[0] * excess + multipliers[1] * excess**2
        optimizer.zero_grad()
        climbs.zero_grad()
        loss.backward()
        optimizer.step()
        if target is not None:
            climbs.step()
    assert torch.allclose(found.tensors["a"], a, atol=1e-4)
    assert torch.allclose(found.tensors["multipliers"], multipliers, atol=1e-4)


@pytest.mark.parametrize("how", [Learning(None, 0.05, 300, 0.05, 0), Learning(2, 0.0, 300, 0.05, 0)])
def test_what_is_worth_more_than_its_price_is_left(how):
    found = learn(Squares([1.0, 0.0, 0.001, 2.0, 0.0, 0.0]), how, Masks.fresh(6))
    assert (found.tensors["a"] > 0).tolist() == [True, False, False, True, False, False]
    assert found.scores.argsort(descending=True)[:2].sort().values.tolist() == [0, 3]
    assert found.expected == pytest.approx(2, abs=0.5)


def test_a_distance_that_is_no_number_is_refused():
    with pytest.raises(SpecError, match="step 0: the distance from the whole model is not finite"):
        learn(Squares([float("nan")]), Learning(1, 0.0, 2, 0.1, 0), Masks.fresh(1))
