"""The parametrisation of rotations: always orthonormal, built once, cheap when thin."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from align_transformers import SpecError
from align_transformers.interventions import (
    BoundlessRotatedSpaceIntervention,
    DireftIntervention,
    LoreftIntervention,
    LowRankRotatedSpaceIntervention,
    RotatedSpaceIntervention,
    SigmoidMaskRotatedSpaceIntervention,
    StackedLowRankRotatedSpaceIntervention,
)
from align_transformers.subspaces import Rotation, orthonormal

WIDTH = 12
THIN = {"low_rank_dimension": 3}
LEARNED = {
    "full": (RotatedSpaceIntervention, {}),
    "low rank": (LowRankRotatedSpaceIntervention, THIN),
    "boundless": (BoundlessRotatedSpaceIntervention, {}),
    "mask": (SigmoidMaskRotatedSpaceIntervention, {}),
    "loreft": (LoreftIntervention, THIN),
    "direft": (DireftIntervention, THIN),
    "stacked": (StackedLowRankRotatedSpaceIntervention, {**THIN, "members": 4}),
}
learned = pytest.mark.parametrize(("kind", "options"), LEARNED.values(), ids=LEARNED)


def off(columns: torch.Tensor) -> float:
    """Return how far columns are from orthonormal, by hand."""
    columns = columns.detach().double()
    return float((columns.mT @ columns - torch.eye(columns.shape[-1], dtype=torch.float64)).abs().max())


@given(st.integers(1, 12), st.data())
def test_it_is_gram_schmidt_of_the_columns(width, data):
    k = data.draw(st.integers(1, width))
    free = torch.randn(width, k, generator=torch.Generator().manual_seed(width), dtype=torch.float64)
    wanted: list[torch.Tensor] = []
    for column in free.T:
        for one in wanted:
            column = column - (column @ one) * one
        wanted.append(column / column.norm())
    torch.testing.assert_close(orthonormal(free), torch.stack(wanted, 1), rtol=1e-8, atol=1e-8)


def test_orthonormal_columns_are_returned_as_they_are():
    columns = torch.linalg.svd(torch.randn(9, 4, dtype=torch.float64), full_matrices=False)[0]
    torch.testing.assert_close(orthonormal(columns), columns, rtol=0, atol=1e-14)


def test_its_gradient_is_right():
    assert torch.autograd.gradcheck(orthonormal, torch.randn(5, 3, dtype=torch.float64, requires_grad=True))
    assert torch.autograd.gradcheck(orthonormal, torch.randn(4, 4, dtype=torch.float64, requires_grad=True))
    assert torch.autograd.gradcheck(orthonormal, torch.randn(2, 4, 2, dtype=torch.float64, requires_grad=True))


@learned
def test_it_begins_orthonormal_and_depends_on_the_seed_only(kind, options):
    torch.manual_seed(3)
    one = kind(embed_dim=WIDTH, **options)
    other = kind(embed_dim=WIDTH, **options)
    torch.manual_seed(3)
    again = kind(embed_dim=WIDTH, **options)
    assert off(one.rotation) < 1e-5
    assert torch.equal(one.rotation, again.rotation)
    assert not torch.equal(one.rotation, other.rotation)
    assert off(one.rotate_layer.free) < 1e-5  # full rank from the start: gradients are defined


@learned
def test_it_stays_orthonormal_throughout_a_fit(kind, options):
    one = kind(embed_dim=WIDTH, **options)
    optimiser = torch.optim.Adam(one.parameters(), lr=0.3)
    choice = tuple((n % 4,) for n in range(8)) if "members" in options else None
    worst = 0.0
    for _ in range(200):
        base, source = torch.randn(8, 1, WIDTH), torch.randn(8, 1, WIDTH)
        new = one(base, source, choice)
        optimiser.zero_grad()
        ((new - source[..., [0]]) ** 2).mean().backward()
        optimiser.step()
        worst = max(worst, off(one.rotation))
    assert worst < 1e-5


@learned
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_activations_leave_it_in_float32(kind, options, dtype):
    one = kind(embed_dim=WIDTH, **options)
    choice = ((0,), (1,)) if "members" in options else None
    new = one(torch.randn(2, 1, WIDTH, dtype=dtype), torch.randn(2, 1, WIDTH, dtype=dtype), choice)
    assert new.dtype == dtype
    new.float().sum().backward()
    assert {p.dtype for p in one.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in one.parameters() if p.grad is not None} == {torch.float32}
    assert off(one.to(dtype).rotation) < 1e-5  # even where a whole model is cast with it


def factorisations(monkeypatch) -> list[int]:
    """Return a list that grows with every factorisation."""
    calls: list[int] = []
    qr = torch.linalg.qr
    monkeypatch.setattr(torch.linalg, "qr", lambda *args, **kwargs: calls.append(1) or qr(*args, **kwargs))
    return calls


@learned
def test_it_is_built_once_a_call_and_kept_where_nothing_changes(kind, options, monkeypatch):
    one = kind(embed_dim=WIDTH, **options)
    optimiser = torch.optim.SGD(one.parameters(), lr=0.1)
    base, source = torch.randn(2, 1, WIDTH), torch.randn(2, 1, WIDTH)
    choice = ((0,), (1,)) if "members" in options else None
    calls = factorisations(monkeypatch)
    before = one(base, source, choice)
    assert len(calls) == 1
    with torch.no_grad():
        assert torch.equal(one(base, source, choice), before)
        one(base, source, choice)
    assert len(calls) == 2
    before.square().sum().backward()
    optimiser.step()
    with torch.no_grad():
        assert not torch.equal(one(base, source, choice), before)
        one(base, source, choice)
    assert len(calls) == 3


def test_what_is_kept_is_never_stale():
    one, other = Rotation(6, 2), Rotation(6, 2)

    def check() -> None:
        with torch.no_grad():
            assert torch.equal(one(), orthonormal(one.free))

    check()
    one.load_state_dict(other.state_dict())
    check()
    one.free.data = torch.randn(6, 2)
    check()
    one.free.data.add_(torch.randn(6, 2))  # no version counts what is written through `.data`
    check()
    one.set_weight(torch.eye(6)[:, :2])
    check()
    assert torch.equal(one(), torch.eye(6)[:, :2])
    one.to(torch.float64)
    check()
    twin = copy.deepcopy(one)
    with torch.no_grad():
        twin.free.add_(torch.randn(6, 2))
        assert torch.equal(twin(), orthonormal(twin.free))
        assert not torch.equal(twin(), one())
    check()


def test_what_was_built_in_inference_mode_serves_autograd():
    one = Rotation(4, 2).requires_grad_(False)
    with torch.inference_mode():
        one()
    x = torch.randn(3, 4, requires_grad=True)
    (x @ one()).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("stack", [None, 2])
def test_its_weight_can_be_set(stack):
    rotation = Rotation(4, 2, stack)
    columns = orthonormal(torch.randn(*([] if stack is None else [stack]), 4, 2))
    for value in (columns, nn.Parameter(columns)):
        rotation.free.data.normal_()
        rotation.weight = value
        assert torch.allclose(rotation.weight, columns, atol=1e-6)
    assert [name for name, _ in rotation.named_parameters()] == ["free"]
    with pytest.raises(SpecError, match=r"has shape \(.*4, 2\); found \(4, 3\)"):
        rotation.weight = torch.zeros(4, 3)


def test_orthonormalising_keeps_the_matrix():
    one = Rotation(7, 3)
    with torch.no_grad():
        one.free.add_(torch.randn(7, 3))
    before = one().detach()
    one.orthonormalise()
    torch.testing.assert_close(one(), before)
    assert off(one.free) < 1e-5


class Largest(TorchDispatchMode):
    """Note the size of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            self.size = max(self.size, value.numel() if isinstance(value, torch.Tensor) else 0)
        return result


@pytest.mark.parametrize("kind", [LowRankRotatedSpaceIntervention, LoreftIntervention, DireftIntervention])
def test_thin_ones_never_make_a_full_matrix(kind):
    width = 100
    base, source = torch.randn(2, 1, width), torch.randn(2, 1, width)
    with Largest() as largest:
        one = kind(embed_dim=width, low_rank_dimension=3)
        one(base, source).square().sum().backward()
        with torch.no_grad():
            one(base, source)
    assert width <= largest.size <= 3 * width


@pytest.mark.parametrize("k", [0, 5])
def test_there_are_no_such_subspaces(k):
    with pytest.raises(SpecError, match=f"a subspace of vectors of 4 coordinates has 1 to 4 dimensions; asked for {k}"):
        LowRankRotatedSpaceIntervention(embed_dim=4, low_rank_dimension=k)
