"""Representation fine-tuning: it reads no source, and it can be fitted to write what is wanted."""

from __future__ import annotations

import pytest
import torch

from align_transformers.interventions import DireftIntervention, LoreftIntervention, SourcelessIntervention

KINDS = [LoreftIntervention, DireftIntervention]
every = pytest.mark.parametrize("kind", KINDS)


@every
def test_it_reads_no_source(kind):
    one = kind(embed_dim=5, low_rank_dimension=2)
    base = torch.randn(2, 3, 5)
    assert isinstance(one, SourcelessIntervention)
    assert one.source_kind == "none"
    assert torch.equal(one(base), one(base, torch.randn(2, 3, 5)))


@every
def test_it_moves_the_base_within_its_subspace_only(kind):
    one = kind(embed_dim=5, low_rank_dimension=2)
    base, r = torch.randn(2, 3, 5), one.rotation
    step = one(base) - base
    torch.testing.assert_close(step @ r @ r.T, step, rtol=1e-4, atol=1e-5)


def test_loreft_sets_its_coordinates_and_direft_adds_to_them():
    base = torch.randn(2, 3, 5)
    for kind in KINDS:
        one = kind(embed_dim=5, low_rank_dimension=2)
        r, learned = one.rotation, one.learned_source(base)
        there = one(base) @ r
        wanted = learned if kind is LoreftIntervention else base @ r + learned
        torch.testing.assert_close(there, wanted, rtol=1e-4, atol=1e-5)


def test_constant_coordinates_are_learned():
    one = LoreftIntervention(embed_dim=4, low_rank_dimension=1)
    direction = torch.tensor([0.6, 0.8, 0.0, 0.0])
    optimiser = torch.optim.Adam(one.parameter_groups(0.05))
    for _ in range(300):
        base = torch.randn(64, 1, 4)
        wanted = base + (2 - (base @ direction).unsqueeze(-1)) * direction
        loss = (one(base) - wanted).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 1e-4
    assert abs(float(one.rotation.detach()[:, 0] @ direction)) > 0.999
