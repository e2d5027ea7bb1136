"""Learned masks: what is soft, what is hard, what is penalised."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from align_transformers import SpecError
from align_transformers.interventions import (
    BoundlessRotatedSpaceIntervention,
    SigmoidMaskIntervention,
    SigmoidMaskRotatedSpaceIntervention,
)
from align_transformers.subspaces import boundary_mask, clamp_inward, hard_boundary

KINDS = [BoundlessRotatedSpaceIntervention, SigmoidMaskRotatedSpaceIntervention, SigmoidMaskIntervention]
every = pytest.mark.parametrize("kind", KINDS)


def test_no_coordinate_is_half_swapped_for_ever():
    one = BoundlessRotatedSpaceIntervention(embed_dim=8, temperature=0.1)
    with torch.no_grad():
        one.boundary.fill_(0.55)
    mask = one.soft_mask().tolist()
    assert mask == pytest.approx([1 / (1 + math.exp(-(4.4 - i) / 0.1)) for i in range(8)], abs=1e-5)
    assert mask[0] > 0.999999


@given(st.integers(1, 40), st.floats(0.001, 1.0))
def test_the_hard_boundary_is_where_the_soft_one_goes(width, share):
    boundary = torch.tensor(share)
    hard, soft = hard_boundary(boundary, width), boundary_mask(boundary, 1e-4, width)
    assert hard.tolist() == [i < float(boundary * width) for i in range(width)]
    far = (float(boundary * width) - torch.arange(width)).abs() > 1e-2
    assert torch.equal(hard[far], soft[far] > 0.5)
    assert 1 <= int(hard.sum()) <= width


@pytest.mark.parametrize("width", [8, 576, 4096])
def test_the_temperature_scales_with_the_width(width):
    start, end = width / 16, 0.1  # the default, as the next test has it
    mask = boundary_mask(torch.tensor(0.5), start, width)
    assert float(mask[0]) > 0.99
    assert 0.2 < float(mask[3 * width // 8 :].mean()) < 0.5  # the middle is soft: gradients reach many coordinates
    cold = boundary_mask(torch.tensor(0.5) + 0.5 / width, end, width)
    assert float((cold - cold.round()).abs().max()) < 0.01


def test_the_default_schedule_follows_the_width():
    made = {width: BoundlessRotatedSpaceIntervention(embed_dim=width).temperature_schedule for width in (1, 8, 64)}
    assert made == {1: (1 / 16, 1 / 16), 8: (0.5, 0.1), 64: (4.0, 0.1)}


@every
def test_a_schedule_is_followed_by_setting_the_temperature(kind):
    one = kind(embed_dim=4, temperature_schedule=(2.0, 0.5))
    assert one.temperature_schedule == (2.0, 0.5)
    assert one.temperature == 2.0
    before = one.soft_mask().detach()
    with torch.no_grad():
        next(p for name, p in one.named_parameters() if "rotate" not in name).add_(0.11)
    warm = one.soft_mask().detach()
    one.set_temperature(0.5)
    cold = one.soft_mask().detach()
    assert one.temperature == 0.5
    assert not torch.equal(before, warm)
    assert float((cold - 0.5).abs().sum()) > float((warm - 0.5).abs().sum())
    with pytest.raises(SpecError, match="a temperature is above 0; found 0"):
        one.set_temperature(0.0)


@every
@pytest.mark.parametrize("options", [{"temperature_schedule": (1.0,)}, {"temperature_schedule": (1.0, 0.0)}])
def test_wrong_temperatures(kind, options):
    with pytest.raises(SpecError, match=r"temperature_schedule is \(start, end\), both above 0"):
        kind(embed_dim=4, **options)
    with pytest.raises(SpecError, match="both above 0"):
        kind(embed_dim=4, temperature=-1.0)


@every
def test_the_hardened_one_is_frozen_and_swaps_whole_coordinates(kind):
    one = kind(embed_dim=5, temperature=0.7)
    with torch.no_grad():
        next(p for name, p in one.named_parameters() if "rotate" not in name).add_(torch.tensor(0.1))
    hard = one.hardened()
    kept = hard.hard_mask()
    r = hard.rotation.detach() if kind is not SigmoidMaskIntervention else torch.eye(5)
    base, source = torch.randn(3, 2, 5), torch.randn(3, 2, 5)
    wanted = base + (source - base) @ r[:, kept] @ r[:, kept].T
    torch.testing.assert_close(hard(base, source), wanted, rtol=1e-5, atol=1e-5)
    assert hard.dimensions == one.dimensions == int(kept.sum())
    assert hard.arguments()["hard"] is True
    assert not any(p.requires_grad for p in hard.parameters())
    assert all(p.requires_grad for p in one.parameters())  # the other one is as it was
    assert one.hard is False
    assert not torch.equal(one(base, source), hard(base, source))


def test_dimensions():
    boundless, mask = BoundlessRotatedSpaceIntervention(embed_dim=8), SigmoidMaskIntervention(embed_dim=3)
    counts = []
    for share in (-1.0, 0.2, 0.25, 0.3, 1.0, 2.0):
        with torch.no_grad():
            boundless.boundary.fill_(share)
        counts.append(boundless.dimensions)
    assert counts == [1, 2, 2, 3, 8, 8]
    with torch.no_grad():
        mask.mask.copy_(torch.tensor([-1.0, 0.0, 0.1]))
    assert mask.dimensions == 1  # a mask of exactly 0 is off
    assert mask.hard_mask().tolist() == [False, False, True]


def test_penalties_act_on_what_is_swapped():
    boundless = BoundlessRotatedSpaceIntervention(embed_dim=8, sparsity=3.0)
    assert float(boundless.penalty().detach()) == 1.5
    with torch.no_grad():
        boundless.boundary.fill_(1.7)  # a boundary past the end keeps all, and no more than all is paid for
    assert float(boundless.penalty().detach()) == 3.0
    for kind in (SigmoidMaskIntervention, SigmoidMaskRotatedSpaceIntervention):
        one = kind(embed_dim=3, sparsity=0.2, temperature=0.5)
        with torch.no_grad():
            one.mask.copy_(torch.tensor([-1.0, 0.0, 4.0]))
        share = [1 / (1 + math.exp(-m / 0.5)) for m in (-1.0, 0.0, 4.0)]
        assert float(one.penalty().detach()) == pytest.approx(0.2 * sum(share), rel=1e-6)
        one.penalty().backward()
        slope = [0.2 * g * (1 - g) / 0.5 for g in share]
        assert one.mask.grad.tolist() == pytest.approx(slope, rel=1e-3)  # none left where the mask is saturated


def test_the_boundary_comes_back_from_outside():
    for value, gradient, kept in ((1.5, 1.0, 1.0), (1.5, -1.0, 0.0), (-0.5, -1.0, -1.0), (-0.5, 1.0, 0.0), (0.5, 1, 1)):
        x = torch.tensor(value, requires_grad=True)
        (clamp_inward(x, 0.001, 1.0) * gradient).backward()
        assert float(x.grad) == kept
    one = BoundlessRotatedSpaceIntervention(embed_dim=4)
    with torch.no_grad():
        one.boundary.fill_(1.7)
    one.penalty().backward()
    assert float(one.boundary.grad) == 1.0


def test_the_boundary_may_have_a_learning_rate_of_its_own():
    one = BoundlessRotatedSpaceIntervention(embed_dim=4, boundary_rate=5.0)
    rotation, boundary = one.parameter_groups(0.01)
    assert (rotation["lr"], boundary["lr"]) == (0.01, 0.05)
    assert rotation["params"] == [one.rotate_layer.free]
    assert boundary["params"][0] is one.boundary
    assert one.hardened().parameter_groups(0.01) == []
