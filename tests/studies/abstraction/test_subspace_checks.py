"""Checks of a subspace: the illusion's toy in closed form, distances against scikit-learn, intervals by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from tests.untyped import untyped

from align_transformers import Interval, SpecError
from align_transformers.studies.abstraction.null_space import null_space_split
from align_transformers.studies.abstraction.subspace_checks import (
    against_container,
    against_random_network,
    memorised,
    off_manifold,
    shrunk_covariance,
    trivial,
)

INTO, OUT_OF = torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0.0, 2.0, 1.0])
"""The toy of arXiv:2311.17030: h = x INTO, out = h . OUT_OF = x; h1 is read by nothing, h2 is always 0, h3 is x."""


def swapped(basis, base, source):
    """Return the toy's hidden state and output after a swap in the span of orthonormal columns."""
    hidden = base[:, None] * INTO
    hidden = hidden + ((source - base)[:, None] * INTO) @ basis @ basis.T
    return hidden, hidden @ OUT_OF


def share_moved(basis, base, source):
    """Return how far the output of each pair moved from the base's towards the source's: 1 is all the way."""
    return ((swapped(basis, base, source)[1] - base) / (source - base)).double().numpy()


@pytest.fixture
def toy():
    x = torch.randn(12, generator=torch.Generator().manual_seed(0))
    base, source = (torch.tensor(side) for side in np.nonzero(~np.eye(12, dtype=bool)))
    return x, base, source


def column(*entries):
    vector = torch.tensor(entries)
    return (vector / vector.norm())[:, None]


def test_the_illusion_exceeds_its_container_and_the_truth_does_not(toy):
    x, base, source = toy
    entities, eye = (base.numpy(), source.numpy()), torch.eye(3)
    assert share_moved(column(1.0, 1.0, 0.0), x[base], x[source]) == pytest.approx(1.0, abs=1e-4)  # it seems to work
    illusion = against_container(
        share_moved(column(1.0, 1.0, 0.0), x[base], x[source]), share_moved(eye[:, :2], x[base], x[source]), *entities
    )
    assert illusion.raised
    assert illusion.numbers["container"] == pytest.approx(0.0, abs=1e-6)
    assert illusion.numbers["difference_low"] == pytest.approx(1.0, abs=1e-3)
    assert "the difference, 1.00 [1.00, 1.00], is above 0" in illusion.explanation
    for container in (eye[:, 2:], eye[:, 1:], eye):
        truth = against_container(
            share_moved(eye[:, 2:], x[base], x[source]), share_moved(container, x[base], x[source]), *entities
        )
        assert not truth.raised
        assert truth.numbers["subspace"] == pytest.approx(1.0, abs=1e-4)
        assert "is not above 0" in truth.explanation


def test_a_small_difference_is_not_raised():
    """Of 10 entities one alone makes the subspace better: the interval over entities holds 0."""
    base, source = np.nonzero(~np.eye(10, dtype=bool))
    container = np.zeros(90)
    found = against_container((source == 3) * 1.0, container, base, source)
    assert not found.raised
    assert found.numbers["difference"] == pytest.approx(0.1)
    assert found.numbers["difference_low"] == 0.0
    better = against_container(np.ones(90), np.where(source == 3, 0.9, 0.5), base, source)
    assert better.raised


def test_the_parts_of_the_illusion_in_closed_form(toy):
    x, _, _ = toy
    clean = x[:, None] * INTO
    split = null_space_split(column(1.0, 1.0, 0.0), OUT_OF[None], clean)
    row = column(*OUT_OF.tolist())
    rest = column(1.0, 1.0, 0.0) - row * (2 / 10**0.5)  # v . r = sqrt(2) / sqrt(5)
    assert split.kernel_share.tolist() == pytest.approx([0.6])
    assert (split.connected[:, 0] @ row[:, 0]).abs().item() == pytest.approx(1.0)
    assert (split.disconnected[:, 0] @ rest[:, 0] / rest.norm()).abs().item() == pytest.approx(1.0)
    # variance along r is var(x) / 5, along the rest 0.3 var(x); in a coordinate on average 2/3 var(x)
    assert split.connected_variation.tolist() == pytest.approx([0.3])
    assert split.disconnected_variation.tolist() == pytest.approx([0.45])
    assert share_moved(split.disconnected, x[:6], x[6:]) == pytest.approx(0.0, abs=1e-4)
    assert share_moved(split.connected, x[:6], x[6:]) == pytest.approx(1.0, abs=1e-4)  # in this toy it works by itself


def test_dormant_and_disconnected_directions():
    """Coordinates 0 to 3: varies and is read; varies and is not; is read and does not vary; neither."""
    clean = torch.zeros(50, 4)
    clean[:, :2] = torch.randn(50, 2, generator=torch.Generator().manual_seed(1))
    readers = torch.tensor([[1.0, 0.0, 1.0, 0.0], [1.0, 0.0, -1.0, 0.0], [2.0, 0.0, 0.0, 0.0]])
    turned, _ = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(2)))
    basis = torch.stack([torch.tensor([1.0, 0, 0, 0]), torch.tensor([0, 0.6, 0.8, 0])], dim=1)
    split = null_space_split(turned @ basis, readers @ turned.T, clean @ turned.T)
    assert split.kernel_share.tolist() == pytest.approx([0.0, 0.36], abs=1e-5)
    average = clean.var(0).mean().item()
    assert split.connected_variation.tolist() == pytest.approx([clean[:, 0].var().item() / average, 0.0], abs=1e-5)
    assert split.disconnected_variation[0].isnan()
    assert split.disconnected_variation[1].item() == pytest.approx(clean[:, 1].var().item() / average, rel=1e-4)
    assert split.disconnected.shape == (4, 1)
    assert split.connected.shape == (4, 2)
    assert (readers @ turned.T @ split.disconnected).norm().item() == pytest.approx(0.0, abs=1e-5)
    assert "the readers see 2 of 4 dimensions, 18% of the subspace is in their kernel" in split.explanation
    unread = null_space_split(turned[:, 3:], readers @ turned.T, clean @ turned.T)
    assert unread.connected.shape == (4, 0)
    assert unread.explanation.endswith("100% of the subspace is in their kernel")


def test_the_covariance_is_that_of_ledoit_and_wolf():
    generator = torch.Generator().manual_seed(3)
    for count, width in ((200, 5), (12, 30)):
        mixed = torch.randn(width, width, generator=generator).double()
        states = torch.randn(count, width, generator=generator).double() @ mixed + 7
        found = LedoitWolf().fit(states.numpy())
        assert 0.001 < found.shrinkage_ < 1
        assert shrunk_covariance(states).numpy() == pytest.approx(found.covariance_, rel=1e-9)


def test_distances_are_those_of_halves():
    generator = torch.Generator().manual_seed(4)
    clean, patched = torch.randn(40, 6, generator=generator).double(), torch.randn(9, 6, generator=generator).double()
    order = torch.randperm(40, generator=torch.Generator().manual_seed(5))
    halves, inside, outside = (clean[order[:20]], clean[order[20:]]), [], []
    for here, other in (halves, halves[::-1]):
        fitted = LedoitWolf().fit(here.numpy())
        inside += np.sqrt(fitted.mahalanobis(other.numpy())).tolist()
        outside.append(np.sqrt(fitted.mahalanobis(patched.numpy())))
    mean = np.mean(outside, axis=0)
    found = off_manifold(clean, patched, seed=5).numbers
    assert found["distance_ratio"] == pytest.approx(np.median(mean) / torch.tensor(inside).median().item())
    assert found["beyond"] == pytest.approx((mean > np.quantile(inside, 0.95)).mean())
    lengths = [x.norm(dim=1).mean().item() for x in (patched, clean)]
    assert found["norm_ratio"] == pytest.approx(lengths[0] / lengths[1])


def test_what_is_off_the_manifold_is_flagged_though_it_is_no_longer():
    """Clean activations lie near a plane in ten dimensions; a patched one of the same length stands upright on it."""
    generator = torch.Generator().manual_seed(6)
    spread = torch.tensor([3.0, 3.0] + [0.05] * 8)
    clean, new = (torch.randn(n, 10, generator=generator) * spread for n in (100, 30))
    assert not off_manifold(clean, new).raised
    assert off_manifold(clean, new).numbers["beyond"] < 0.3
    upright = torch.roll(new, 5, dims=1)
    found = off_manifold(clean, upright)
    assert found.raised
    assert found.numbers["norm_ratio"] == pytest.approx(1.0, abs=0.2)
    assert found.numbers["distance_ratio"] > 5
    assert off_manifold(clean[:8], new).numbers["beyond"] <= 1  # fewer than dimensions


def interval(mean, low, high):
    return Interval(mean, low, high, 10)


def test_what_is_learned_by_heart_is_flagged():
    found = memorised(interval(1.0, 0.98, 1.0), interval(0.05, 0.0, 0.2))
    assert found.raised
    assert list(found.numbers) == ["train", "train_low", "train_high", "held_out", "held_out_low", "held_out_high"]
    assert list(found.numbers.values()) == [1.0, 0.98, 1.0, 0.05, 0.0, 0.2]
    assert not memorised(interval(1.0, 0.98, 1.0), interval(0.97, 0.9, 1.0)).raised
    other = memorised(interval(0.1, 0.0, 0.2), interval(0.9, 0.8, 1.0))
    assert not other.raised
    assert "other way" in other.explanation


def test_a_score_that_doing_nothing_reaches_is_flagged():
    same = np.array([True] * 6 + [False] * 4)
    assert trivial(same, interval(0.6, 0.5, 0.7)).raised
    assert trivial(same, interval(0.3, 0.2, 0.4)).raised
    assert trivial(same, interval(0.3, 0.2, 0.4)).numbers["trivial"] == 0.6
    assert not trivial(same, interval(0.9, 0.8, 1.0)).raised
    assert not trivial(np.zeros(10, dtype=bool), interval(0.0, 0.0, 0.0)).raised


def test_a_score_that_a_random_network_reaches_is_flagged():
    assert against_random_network(interval(0.86, 0.8, 0.9), interval(0.86, 0.8, 0.9)).raised
    assert against_random_network(interval(0.5, 0.4, 0.6), interval(0.9, 0.8, 1.0), chance=0.1).raised
    assert against_random_network(interval(0.4, 0.3, 0.45), interval(0.2, 0.1, 0.25), chance=0.5).raised  # both below
    assert not against_random_network(interval(0.4, 0.3, 0.45), interval(0.2, 0.1, 0.25)).raised
    several = interval(0.5, 0.4, 0.6), interval(0.6, 0.5, 0.7)
    found = against_random_network(interval(0.9, 0.8, 1.0), *several, chance=0.5)
    assert not found.raised
    assert found.numbers["random"] == 0.6
    assert found.numbers["reached"] == pytest.approx(0.25)
    assert "25% of the way from chance (0.50)" in found.explanation
    wide = interval(0.4, 0.1, 0.85)
    assert against_random_network(interval(0.9, 0.8, 1.0), *several, wide, chance=0.5).raised
    near = against_random_network(interval(0.9, 0.89, 0.91), interval(0.8, 0.79, 0.81), chance=0.5)  # apart, but near
    assert near.raised
    assert near.numbers["reached"] == pytest.approx(0.75)
    with pytest.raises(SpecError, match="found none"):
        against_random_network(interval(0.9, 0.8, 1.0))


def test_what_cannot_be_checked_is_refused():
    clean = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    axis = torch.eye(3)[:, :1]
    for basis, readers, states, message in (
        (torch.ones(3, 1), torch.eye(3), clean, "orthonormal"),
        (axis[:2], torch.eye(3), clean, r"found \(2, 1\), \(3, 3\) and \(10, 3\)"),
        (axis, torch.eye(3), torch.ones(5, 3), "all of them equal"),
        (axis, torch.eye(3)[:0], clean, "readers"),
    ):
        with untyped(), pytest.raises(SpecError, match=message):
            null_space_split(basis, readers, states)
    for states, patched, message in (
        (clean[:3], clean, "four"),
        (clean, clean[:0], "patched"),
        (clean, torch.ones(5, 4), r"\(5, 4\)"),
        (torch.ones(6, 3), clean, "all equal"),
    ):
        with untyped(), pytest.raises(SpecError, match=message):
            off_manifold(states, patched)
    with pytest.raises(SpecError, match="needs pairs"):
        trivial(np.zeros(0, dtype=bool), interval(0.5, 0.4, 0.6))
    with untyped(), pytest.raises(SpecError, match="4 and 5"):
        against_container(np.ones(4), np.ones(5), np.arange(4), np.arange(4))
