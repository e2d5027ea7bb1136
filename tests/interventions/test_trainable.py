"""What a fit may ask of a trainable intervention, and that plain loops learn what is there to be learned."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from align_transformers import SpecError
from align_transformers.interventions import (
    BoundlessRotatedSpaceIntervention,
    Intervention,
    LowRankRotatedSpaceIntervention,
    RotatedSpaceIntervention,
    SigmoidMaskIntervention,
    SigmoidMaskRotatedSpaceIntervention,
    TrainableIntervention,
)


class Gate(TrainableIntervention):
    """A user's own, as a user writes it."""

    def __init__(self, *, embed_dim: int, slope: float = 1.0, **kwargs):
        super().__init__(embed_dim=embed_dim, **kwargs)
        self.slope = slope
        self.share = nn.Parameter(torch.zeros(embed_dim))

    def forward(self, base, source=None, subspaces=None):
        new = base + self.slope * self.share * (self.given(base, source) - base)
        return self.within(base, new, subspaces)


def test_a_users_own_is_fitted_without_further_ado():
    one = Gate(embed_dim=3)
    groups = one.parameter_groups(0.1)
    assert [(len(group["params"]), group["lr"]) for group in groups] == [(1, 0.1)]
    optimiser = torch.optim.Adam(groups)
    wanted = torch.tensor([1.0, 0.5, 0.0])
    for _ in range(200):
        base, source = torch.randn(16, 1, 3), torch.randn(16, 1, 3)
        loss = (one(base, source) - (base + wanted * (source - base))).square().mean() + one.penalty()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    torch.testing.assert_close(one.share.detach(), wanted, rtol=0, atol=1e-2)
    assert one.arguments()["slope"] == 1.0


def test_what_nothing_is_said_about():
    one = Gate(embed_dim=3)
    assert one.temperature_schedule is None
    assert one.dimensions is None
    assert float(one.penalty()) == 0.0
    with pytest.raises(SpecError, match="Gate has no temperature"):
        one.set_temperature(1.0)
    hard = one.hardened()
    assert hard is not one
    assert not hard.share.requires_grad
    assert one.share.requires_grad
    assert torch.equal(hard(torch.zeros(1, 1, 3), torch.ones(1, 1, 3)), torch.zeros(1, 1, 3))


def test_frozen_parameters_are_not_handed_out():
    one = Gate(embed_dim=3)
    one.share.requires_grad_(False)
    assert one.parameter_groups(0.1)[0]["params"] == []


# --- planted subspaces -----------------------------------------------------------------------------------------------

WIDTH, PLANTED = 10, 3


def angle(found: Tensor, planted: Tensor) -> float:
    """Return the largest principal angle between two column spaces, in degrees."""
    spans = [torch.linalg.qr(columns.detach().double())[0] for columns in (found, planted)]
    return math.degrees(math.acos(min(1.0, float(torch.linalg.svdvals(spans[0].T @ spans[1]).min()))))


def learned_columns(one: Intervention) -> Tensor:
    if isinstance(one, SigmoidMaskRotatedSpaceIntervention):
        return one.rotation[:, one.hard_mask()]
    return one.rotation[:, : one.dimensions or PLANTED]


PLANTS = {
    "low rank": (LowRankRotatedSpaceIntervention, {"low_rank_dimension": PLANTED}),
    "full": (RotatedSpaceIntervention, {"interchange_dim": PLANTED}),
    "boundless": (BoundlessRotatedSpaceIntervention, {"sparsity": 0.02}),
    "mask": (SigmoidMaskRotatedSpaceIntervention, {"sparsity": 0.002}),
}


def fit(one: Intervention, planted: Tensor, steps: int = 800) -> None:
    """Fit by hand: the network behind the swap is known, and so is what it makes of the planted swap."""
    read, write = torch.randn(WIDTH, 40) / WIDTH**0.5, torch.randn(40, 8) / 2
    optimiser = torch.optim.Adam(one.parameter_groups(0.01))
    for step in range(steps):
        if one.temperature_schedule is not None:
            start, end = one.temperature_schedule
            one.set_temperature(start + (end - start) * step / steps)
        base, source = torch.randn(64, 1, WIDTH), torch.randn(64, 1, WIDTH)
        wanted = torch.tanh((base + (source - base) @ planted @ planted.T) @ read) @ write
        loss = (torch.tanh(one(base, source) @ read) @ write - wanted).square().mean() + one.penalty()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


@pytest.mark.parametrize(("kind", "options"), PLANTS.values(), ids=PLANTS)
def test_a_planted_subspace_is_found(kind, options):
    planted = torch.linalg.qr(torch.randn(WIDTH, PLANTED))[0]
    one = kind(embed_dim=WIDTH, **options)
    fit(one, planted)
    assert angle(learned_columns(one), planted) < 5
    if one.dimensions is not None:
        assert one.dimensions == PLANTED
        base, source = torch.randn(5, 1, WIDTH), torch.randn(5, 1, WIDTH)
        wanted = base + (source - base) @ planted @ planted.T
        assert float((one.hardened()(base, source) - wanted).abs().max()) < 0.2


def test_planted_neurons_are_found():
    one = SigmoidMaskIntervention(embed_dim=WIDTH, sparsity=0.002)
    fit(one, torch.eye(WIDTH)[:, [1, 4, 7]], steps=400)
    assert one.hard_mask().nonzero().flatten().tolist() == [1, 4, 7]
