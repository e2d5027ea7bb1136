"""The false positive: a reversible network on a random one. What it is, and by which controls it is caught."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from tests.studies.abstraction.revnet import RevNetIntervention
from torch.nn.functional import cross_entropy

from align_transformers import LowRankRotatedSpaceIntervention, SpecError
from align_transformers.studies.abstraction.statistics import entity_bootstrap
from align_transformers.studies.abstraction.subspace_checks import against_random_network, memorised

ENTITIES = torch.randn(16, 4, generator=torch.Generator().manual_seed(42))
SEEN, FRESH = ENTITIES[:8], ENTITIES[8:]


def trained_a_little(dtype=torch.float32, **kwargs):
    """Return a RevNet whose functions are larger than when it is new, and whose rotations are exact in this dtype."""
    revnet = RevNetIntervention(embed_dim=16, low_rank_dimension=8, **kwargs).to(dtype)
    with torch.no_grad():
        revnet.turns.copy_(torch.linalg.qr(revnet.turns)[0])
        for parameter in revnet.parameters():
            parameter.mul_(2)
    return revnet


def pair(shape=(64, 1, 16), dtype=torch.float32):
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def test_it_is_invertible():
    (base, _), new, trained = (
        pair((500, 1, 16)),
        RevNetIntervention(embed_dim=16, low_rank_dimension=8),
        trained_a_little(),
    )
    for revnet in (new, trained):
        with torch.no_grad():
            features = revnet.encode(base)
            assert (features - base).abs().max() > 1  # it is not the identity
            size = features.abs().max() if revnet is trained else 1
            assert (revnet.decode(features) - base).abs().max() < 1e-5 * size
            assert (revnet.encode(revnet.decode(base)) - base).abs().max() < 1e-5 * size


def test_it_is_not_linear():
    revnet, (base, source) = trained_a_little(), pair()
    with torch.no_grad():
        both, zero = revnet.encode(base + source), revnet.encode(torch.zeros_like(base))
        assert (both - revnet.encode(base) - revnet.encode(source) + zero).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_source_equal_to_the_base_changes_nothing_bit_for_bit(dtype):
    revnet, (base, _) = trained_a_little(dtype), pair(dtype=dtype)
    assert torch.equal(revnet(base, base), base)


def test_it_swaps_the_first_features():
    revnet, (base, source) = trained_a_little(torch.float64), pair(dtype=torch.float64)
    with torch.no_grad():
        found = revnet.encode(revnet(base, source))
    assert found[..., :8] == pytest.approx(revnet.encode(source)[..., :8].detach(), abs=1e-9)
    assert found[..., 8:] == pytest.approx(revnet.encode(base)[..., 8:].detach(), abs=1e-9)
    whole = RevNetIntervention(embed_dim=16, low_rank_dimension=16)
    assert whole(base.float(), source.float()).detach().numpy() == pytest.approx(source.float().numpy(), abs=1e-5)


def test_parts_choose_among_the_swapped_features():
    revnet, (base, source) = (
        trained_a_little(torch.float64, subspace_partition=[[0, 4], [4, 8]]),
        pair((2, 1, 16), torch.float64),
    )
    with torch.no_grad():
        found = revnet.encode(revnet(base, source, ((0,), (0, 1))))
        expected = revnet.encode(base)
        expected[0, :, :4], expected[1, :, :8] = revnet.encode(source)[0, :, :4], revnet.encode(source)[1, :, :8]
    assert found.numpy() == pytest.approx(expected.numpy(), abs=1e-9)


def test_its_gradient_is_that_of_the_plain_formula():
    revnet, (base, source) = trained_a_little(torch.float64), pair((3, 1, 16), torch.float64).requires_grad_()
    weights = [base, source, *revnet.parameters()]
    plain = revnet.decode(torch.cat([revnet.encode(source)[..., :8], revnet.encode(base)[..., 8:]], -1))
    direction = torch.randn(3, 1, 16, generator=torch.Generator().manual_seed(2)).double()
    of_plain, found = (
        torch.autograd.grad((new * direction).sum(), weights, retain_graph=True)
        for new in (plain, revnet(base, source))
    )
    for one, other in zip(found, of_plain, strict=True):
        assert one.numpy() == pytest.approx(other.numpy(), abs=1e-9)


def test_it_is_made_from_its_arguments_and_its_seed():
    revnet = RevNetIntervention(embed_dim=6, low_rank_dimension=2, couplings=2, hidden=5, seed=3)
    state = torch.random.get_rng_state()
    again = type(revnet)(**revnet.arguments())
    assert torch.equal(state, torch.random.get_rng_state())
    for name, value in revnet.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    with pytest.raises(SpecError, match="3 of 5"):
        RevNetIntervention(embed_dim=5, low_rank_dimension=3)
    with pytest.raises(SpecError, match="7 of 6"):
        RevNetIntervention(embed_dim=6, low_rank_dimension=7)


# --- what it does to a random network -----------------------------------------------------------------------------


class Network:
    """A network up to a site of width 16, and from there to two logits."""

    def __init__(self, seed=None):
        generator = torch.Generator().manual_seed(seed or 0)
        self.weights = [(torch.rand(16, n, generator=generator) * 2 - 1) / 4 for n in (16, 16, 16, 2)]
        self.basis = torch.linalg.qr(torch.randn(16, 16, generator=generator))[0][:2]
        self.known = seed is None

    def below(self, vectors):
        """Return the state of `(n, 4, 4)` vectors w, x, y, z: where the network is known w = x and y = z."""
        if self.known:
            return (vectors[:, ::2] == vectors[:, 1::2]).all(-1).float() @ self.basis
        return (vectors.flatten(1) @ self.weights[0]).relu()

    def above(self, state):
        if self.known:
            both = (state @ self.basis.T - 0.5).prod(-1, keepdim=True) * 16
            return torch.cat([-both, both], -1)
        return ((state @ self.weights[1]).relu() @ self.weights[2]).relu() @ self.weights[3]


def drawn(count, generator):
    """Return which of 8 entities w, x, y and z are: w = x and y = z half of the time each."""
    entities, same = torch.randint(8, (count, 4), generator=generator), torch.rand(count, 2, generator=generator) < 0.5
    entities[:, 1::2] = torch.where(same, entities[:, ::2], entities[:, 1::2])
    return entities


def interchanged(network, intervention, table, seed, count):
    """Return logits after the swap, the label with w = x of the source, and the numbers of both inputs."""
    generator = torch.Generator().manual_seed(seed)
    inputs = [drawn(count, generator) for _ in range(2)]
    base, source = (network.below(table[one])[:, None] for one in inputs)
    label = (inputs[1][:, 0] == inputs[1][:, 1]) == (inputs[0][:, 2] == inputs[0][:, 3])
    numbers = [(one * torch.tensor([512, 64, 8, 1])).sum(1).numpy() for one in inputs]
    return network.above(intervention(base, source)[:, 0]), label.long(), numbers


@cache
def fitted(seed, kind):
    """Return the scores of a fit to 8 entities on pairs of these, and of 8 others."""
    network = Network(seed)
    if kind == "revnet":
        intervention, steps, rate = RevNetIntervention(embed_dim=16, low_rank_dimension=8), 400, 7e-3
    else:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            intervention, steps, rate = LowRankRotatedSpaceIntervention(embed_dim=16, low_rank_dimension=1), 200, 2e-2
    optimiser = torch.optim.Adam(intervention.parameters(), rate)
    for step in range(steps):
        logits, labels, _ = interchanged(network, intervention, SEEN, step, 512)
        optimiser.zero_grad()
        cross_entropy(logits, labels).backward()
        optimiser.step()
    scores = []
    for table in (SEEN, FRESH):
        with torch.no_grad():
            logits, labels, numbers = interchanged(network, intervention, table, 10**6, 4096)
        hit = (logits.argmax(-1) == labels).numpy()
        scores.append(entity_bootstrap(hit, *(one.astype(np.int64) for one in numbers), resamples=200))
    return scores


@pytest.mark.slow
def test_it_aligns_with_a_random_network_and_is_caught():
    (seen, fresh), (linear, _) = fitted(1, "revnet"), fitted(1, "linear")
    assert seen.mean > 0.75
    assert linear.mean < 0.6
    assert fresh.mean < 0.6
    assert memorised(seen, fresh).raised
    other, _ = fitted(4, "revnet")
    assert other.mean > 0.7
    assert against_random_network(seen, other, chance=0.5).raised


def test_the_truth_passes_the_same_controls():
    (seen, fresh), (other, _) = fitted(None, "linear"), fitted(1, "linear")
    assert seen.mean == fresh.mean == 1.0
    assert not memorised(seen, fresh).raised
    assert not against_random_network(seen, other, chance=0.5).raised
