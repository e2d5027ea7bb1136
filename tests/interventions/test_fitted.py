"""Steering vectors, probe directions and erasure, against closed forms, optimality conditions and another library."""

from __future__ import annotations

import warnings

import pytest
import torch
from tests.untyped import untyped

from align_transformers import SpecError
from align_transformers.interventions import (
    DifferenceOfMeansIntervention,
    ErasureIntervention,
    LinearProbeIntervention,
)
from align_transformers.subspaces.concepts import inlp, leace, logistic_regression

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # it scripts a function with torch.jit while it is imported
    from concept_erasure import LeaceFitter

N, WIDTH = 300, 6


def labelled(classes: int = 2, gap: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return correlated activations of several classes, and their labels."""
    labels = torch.arange(N) % classes
    mixing = torch.randn(WIDTH, WIDTH, dtype=torch.float64)
    centres = gap * torch.randn(classes, WIDTH, dtype=torch.float64)
    return torch.randn(N, WIDTH, dtype=torch.float64) @ mixing + centres[labels] + 3, labels


def covariance(x: torch.Tensor, labels: torch.Tensor) -> float:
    z = torch.nn.functional.one_hot(labels).double()
    return float(((x - x.mean(0)).T @ (z - z.mean(0)) / len(x)).abs().max())


# --- difference of means ---------------------------------------------------------------------------------------------


def test_a_steering_vector_is_the_difference_of_the_means():
    x, labels = labelled()
    v = x[labels == 1].mean(0) - x[labels == 0].mean(0)
    base = torch.randn(2, 3, WIDTH, dtype=torch.float64)
    for given in (labels, labels.bool(), labels * 7 - 3):
        one = DifferenceOfMeansIntervention.fit(x, given, strength=-1.5)
        torch.testing.assert_close(one(base), base - 1.5 * v)
        torch.testing.assert_close(one.vector, v)
    assert one.source_kind == "none"
    assert list(one.parameters()) == []


def test_operations_along_the_direction():
    x, labels = labelled()
    v = x[labels == 1].mean(0) - x[labels == 0].mean(0)
    u = v / v.norm()
    base, source = torch.randn(2, 2, 3, WIDTH, dtype=torch.float64)
    along = (base @ u).unsqueeze(-1) * u
    wanted = {
        "swap": base - along + (source @ u).unsqueeze(-1) * u,
        "ablate": base - along,
    }
    for operation, new in wanted.items():
        one = DifferenceOfMeansIntervention.fit(x, labels, operation=operation)
        torch.testing.assert_close(one(base, source), new)
        assert torch.equal(one(base, source, ((0,), ()))[1], base[1])  # an example that chooses nothing
    kept = DifferenceOfMeansIntervention.fit(x, labels, operation="ablate", keep_mean=True)
    torch.testing.assert_close(kept(base), base - along + (x.mean(0) @ u) * u)
    torch.testing.assert_close(one.direction, u)


# --- probes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3])
def test_logistic_regression_is_where_the_gradient_of_its_loss_vanishes(classes):
    x, labels = labelled(classes, gap=0.5)
    l2 = 0.01
    found = logistic_regression(x, labels, l2=l2)
    scale = ((x - x.mean(0)) ** 2).mean().sqrt()
    p = torch.softmax(x @ found.weight + found.bias, -1) - torch.nn.functional.one_hot(labels).double()
    rows = (x - x.mean(0)) / scale
    assert float((rows.T @ p / N + l2 * found.weight * scale).abs().max()) < 1e-6
    assert float(p.mean(0).abs().max()) < 1e-6


def test_a_probe_swaps_along_its_weights():
    x, labels = labelled(gap=1.0)
    found = logistic_regression(x, labels)
    w = found.weight[:, 1] - found.weight[:, 0]
    u = w / w.norm()
    one = LinearProbeIntervention.fit(x, labels)
    torch.testing.assert_close(one.direction, u)
    base, source = torch.randn(2, 2, 3, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(one(base, source), base + ((source - base) @ u).unsqueeze(-1) * u)
    assert torch.equal(one.predict(x), (x @ found.weight + found.bias).argmax(1).bool())
    assert float((one.predict(x) == labels.bool()).double().mean()) > 0.8
    steer = LinearProbeIntervention.fit(x, labels, operation="add", strength=4.0)
    torch.testing.assert_close(steer(base), base + 4.0 * u)


# --- erasure ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 4])
def test_after_leace_the_labels_covary_with_nothing(classes):
    x, labels = labelled(classes)
    one = ErasureIntervention.fit(x, labels)
    new = one(x.unsqueeze(1)).squeeze(1)
    assert covariance(x, labels) > 0.05
    assert covariance(new, labels) <= 1e-8
    assert one.into.shape[1] == classes - 1
    torch.testing.assert_close(new.mean(0), x.mean(0))
    torch.testing.assert_close(one(new.unsqueeze(1)).squeeze(1), new)  # a projection
    erased = logistic_regression(new, labels)
    assert float(erased.weight.abs().max()) < 1e-6  # no linear classifier does better than a constant


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("rank", [WIDTH, 4], ids=["full rank", "deficient"])
def test_leace_is_that_of_concept_erasure(classes, rank):
    x, labels = labelled(classes)
    x = x @ torch.randn(WIDTH, rank, dtype=torch.float64) @ torch.randn(rank, WIDTH, dtype=torch.float64)
    z = torch.nn.functional.one_hot(labels).double()
    theirs = LeaceFitter.fit(x, z, shrinkage=False, constrain_cov_trace=False, svd_tol=1e-8).eraser
    ours = ErasureIntervention.fit(x, labels)
    torch.testing.assert_close(ours(x.unsqueeze(1)).squeeze(1), theirs(x), rtol=1e-6, atol=1e-6)


def test_leace_erases_any_features():
    x, _ = labelled()
    z = torch.randn(N, 2, dtype=torch.float64) + x[:, :2]
    new = ErasureIntervention.fit(x, z)(x.unsqueeze(1)).squeeze(1)
    assert float(((new - new.mean(0)).T @ (z - z.mean(0)) / N).abs().max()) <= 1e-8


def test_leace_changes_less_than_other_projections():
    x, labels = labelled()
    new = ErasureIntervention.fit(x, labels)(x.unsqueeze(1)).squeeze(1)
    u = x[labels == 1].mean(0) - x[labels == 0].mean(0)
    u = u / u.norm()
    other = x - ((x - x.mean(0)) @ u).unsqueeze(1) * u  # erases, too
    assert covariance(other, labels) <= 1e-8
    whitener = torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T)))
    for norm in (torch.eye(WIDTH, dtype=torch.float64), whitener):
        assert float(((new - x) @ norm.T).square().sum()) < float(((other - x) @ norm.T).square().sum())


def test_inlp_projects_until_nothing_is_found():
    x, labels = labelled(gap=0.7)
    eraser = inlp(x, labels, rounds=WIDTH)
    basis = eraser.into
    torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1], dtype=torch.float64))
    assert torch.equal(eraser.back, basis.T)
    first = logistic_regression(x, labels).weight
    contrast = first[:, 1] - first[:, 0]
    torch.testing.assert_close(contrast - basis @ (basis.T @ contrast), torch.zeros_like(contrast))
    one = ErasureIntervention.fit(x, labels, method="inlp", rounds=WIDTH)
    new = one(x.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(new, x - x @ basis @ basis.T)
    after = logistic_regression(new, labels)
    accuracy = float(((new @ after.weight + after.bias).argmax(1) == labels).double().mean())
    before = float(((x @ first + logistic_regression(x, labels).bias).argmax(1) == labels).double().mean())
    assert accuracy <= 0.5 + (1 / N) ** 0.5 < 0.6 < before
    assert basis.shape[1] < WIDTH
    assert inlp(x, labels, rounds=1).into.shape[1] == 1
    assert inlp(*labelled(3), rounds=1).into.shape[1] == 2


def test_a_part_of_what_is_erased_may_be_chosen():
    x, labels = labelled(4)
    one = ErasureIntervention.fit(x, labels, subspace_partition=[[0, 1], [1, 3]])
    base = x[:3].unsqueeze(1)
    eraser = leace(x, torch.nn.functional.one_hot(labels).double())
    steps = [((base - eraser.mean) @ eraser.into[:, part]) @ eraser.back[part] for part in ([0], [1, 2])]
    got = one(base, None, ((0,), (1,), ()))
    torch.testing.assert_close(got, torch.stack([base[0] - steps[0][0], base[1] - steps[1][1], base[2]]))


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [DifferenceOfMeansIntervention, LinearProbeIntervention, ErasureIntervention])
def test_refused(kind):
    x, labels = labelled(3)
    with pytest.raises(SpecError, match=r"300 activations need as many labels; found labels of shape \(299,\)"):
        kind.fit(x, labels[1:])
    with pytest.raises(SpecError, match=r"labels of at least two classes are needed; found \[0\]"):
        kind.fit(x, labels * 0)
    if kind is not ErasureIntervention:
        with pytest.raises(SpecError, match="a direction parts two classes; the labels have 3"):
            kind.fit(x, labels)
        with pytest.raises(SpecError, match="both classes are alike: there is no direction"):
            kind.fit(torch.ones(4, 2), torch.tensor([0, 1, 0, 1]))
    with untyped(), pytest.raises(SpecError, match=r"(operation|method) is '\w+'.* or '\w+'; found 'melt'"):
        kind(embed_dim=2, **{"method" if kind is ErasureIntervention else "operation": "melt"})
    with pytest.raises(SpecError, match=r"yet: make it with .*fit\(activations, labels\)"):
        kind(embed_dim=2)(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2))


def test_nothing_to_erase():
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    with pytest.raises(SpecError, match="nothing linear about the labels"):
        ErasureIntervention.fit(x, torch.tensor([0, 1, 0, 1]))
    with pytest.raises(SpecError, match="names coordinate 1, but the vector has 1"):
        ErasureIntervention.fit(*labelled(), subspace_partition=[[0, 2]])
    with pytest.raises(SpecError, match="l2 is above 0"):
        logistic_regression(*labelled(), l2=0.0)
    with pytest.raises(SpecError, match=r"threshold yet: make it with LinearProbeIntervention.fit\("):
        LinearProbeIntervention(embed_dim=2).predict(torch.zeros(2))


def test_inlp_moves_the_mean_as_published_and_keeps_it_where_that_is_asked_for():
    x, labels = labelled(gap=1.0)
    published, kept = (ErasureIntervention.fit(x, labels, method="inlp", keep_mean=keep) for keep in (False, True))
    directions = published.into
    torch.testing.assert_close(published(x.unsqueeze(1)).squeeze(1), x - x @ directions @ directions.T)
    mean = x.mean(0)
    new = kept(x.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(new, x - (x - mean) @ directions @ directions.T)
    torch.testing.assert_close(new.mean(0), mean)
    assert float((published(x.unsqueeze(1)).squeeze(1).mean(0) - mean).norm()) > 0.1
    again = ErasureIntervention(**kept.arguments())
    again.load_state_dict(kept.state_dict())
    assert torch.equal(again(x.unsqueeze(1)).squeeze(1), new)
    leace_mean = ErasureIntervention.fit(x, labels)(x.unsqueeze(1)).squeeze(1).mean(0)
    torch.testing.assert_close(leace_mean, mean)
