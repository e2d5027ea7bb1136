"""Principal components: fitted and applied on the same scale, and nothing is lost."""

from __future__ import annotations

import pytest
import torch

from align_transformers import SpecError
from align_transformers.interventions import PCARotatedSpaceIntervention
from align_transformers.subspaces import principal_components

WIDTH = 5


def activations(n: int = 200) -> torch.Tensor:
    """Return correlated activations, of coordinates with different means and scales."""
    mixing = torch.randn(WIDTH, WIDTH, dtype=torch.float64)
    scales = torch.tensor([0.1, 1.0, 3.0, 10.0, 50.0], dtype=torch.float64)
    return (torch.randn(n, WIDTH, dtype=torch.float64) @ mixing) * scales + 7


def by_eigenvectors(x: torch.Tensor, k: int, standardise: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return scale, directions and shares from the covariance matrix, the textbook's way."""
    centred = x - x.mean(0)
    scale = centred.pow(2).mean(0).sqrt() if standardise else torch.ones(WIDTH, dtype=x.dtype)
    covariance = torch.cov((centred / scale).T)
    values, vectors = torch.linalg.eigh(covariance)
    order = values.argsort(descending=True)
    return scale, vectors[:, order[:k]], values[order[:k]] / values.sum()


@pytest.mark.parametrize("standardise", [True, False])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_components_are_the_eigenvectors_of_the_covariance(standardise, k):
    x = activations()
    scale, vectors, shares = by_eigenvectors(x, k, standardise)
    found = principal_components(x, k, standardise=standardise)
    torch.testing.assert_close(found.mean, x.mean(0))
    torch.testing.assert_close(found.scale, scale)
    torch.testing.assert_close(found.share, shares)
    torch.testing.assert_close((found.directions * vectors).sum(0).abs(), torch.ones(k, dtype=torch.float64))
    assert all(column[column.abs().argmax()] > 0 for column in found.directions.T)
    one = PCARotatedSpaceIntervention.fit(x, k, standardise=standardise)
    assert torch.equal(one.rotation, found.directions)
    assert torch.equal(one.explained, found.share)


@pytest.mark.parametrize("standardise", [True, False])
def test_what_the_components_do_not_describe_is_kept_exactly(standardise):
    x = activations()
    one = PCARotatedSpaceIntervention.fit(x, 2, standardise=standardise)
    scale, vectors, _ = by_eigenvectors(x, 2, standardise)
    base, source = x[:4].unsqueeze(1), x[4:8].unsqueeze(1)
    new = one(base, source)
    there, before, other = (((value - x.mean(0)) / scale) for value in (new, base, source))
    torch.testing.assert_close(there @ vectors, other @ vectors)  # the source's components
    rest = torch.eye(WIDTH, dtype=torch.float64) - vectors @ vectors.T
    torch.testing.assert_close(there @ rest, before @ rest)  # the base's rest
    assert torch.equal(one(base, base), base)


def test_all_components_are_a_plain_swap():
    x = activations()
    one = PCARotatedSpaceIntervention.fit(x, WIDTH)
    torch.testing.assert_close(one(x[:3].unsqueeze(1), x[3:6].unsqueeze(1)), x[3:6].unsqueeze(1))


def test_a_coordinate_that_never_varies_is_left_alone():
    x = activations()
    x[:, 2] = 1e6
    one = PCARotatedSpaceIntervention.fit(x, 4)
    assert float(one.scale[2]) == 1.0
    new = one(x[:1].unsqueeze(1), x[1:2].unsqueeze(1))
    assert float(new[0, 0, 2]) == 1e6
    assert torch.isfinite(new).all()


def test_what_is_fitted_is_at_least_float32_and_frozen():
    one = PCARotatedSpaceIntervention.fit(activations().bfloat16(), 2)
    assert {value.dtype for value in one.state_dict().values()} == {torch.float32}
    assert list(one.parameters()) == []


def test_refused():
    with pytest.raises(SpecError, match="3 activations of width 5 have 1 to 3 principal components; asked for 4"):
        PCARotatedSpaceIntervention.fit(activations(3), 4)
    with pytest.raises(SpecError, match="vectors of width 5 have 1 to 5 components, not 6"):
        PCARotatedSpaceIntervention(embed_dim=5, low_rank_dimension=6)
    empty = PCARotatedSpaceIntervention(embed_dim=5, low_rank_dimension=2)
    with pytest.raises(SpecError, match=r"no components yet: make it with PCARotatedSpaceIntervention.fit\("):
        empty(torch.zeros(1, 1, 5), torch.zeros(1, 1, 5))
    with pytest.raises(SpecError, match="has no components yet"):
        _ = empty.rotation
