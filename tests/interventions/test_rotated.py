"""Theorems about swaps in rotated coordinates."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from align_transformers import IntervenableModel, SpecError
from align_transformers.interventions import (
    BoundlessRotatedSpaceIntervention,
    LoreftIntervention,
    LowRankRotatedSpaceIntervention,
    RotatedSpaceIntervention,
    SigmoidMaskIntervention,
    SigmoidMaskRotatedSpaceIntervention,
    StackedLowRankRotatedSpaceIntervention,
)

WIDTH = 6


def pair(batch: int = 4, units: int = 2, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, units, WIDTH, dtype=dtype), torch.randn(batch, units, WIDTH, dtype=dtype)


def low_rank(k: int = 3, **options) -> LowRankRotatedSpaceIntervention:
    return LowRankRotatedSpaceIntervention(embed_dim=WIDTH, low_rank_dimension=k, **options).double()


@pytest.mark.parametrize("kind", [RotatedSpaceIntervention, lambda embed_dim: low_rank(WIDTH)])
def test_a_swap_of_all_dimensions_is_a_plain_swap(kind):
    base, source = pair(dtype=torch.float64)
    torch.testing.assert_close(kind(embed_dim=WIDTH).double()(base, source), source, rtol=0, atol=1e-12)


def test_the_basis_inside_the_subspace_does_not_matter():
    base, source = pair(dtype=torch.float64)
    one, other = low_rank(), low_rank()
    inside = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    other.rotate_layer.set_weight(one.rotation.detach() @ inside)
    torch.testing.assert_close(other(base, source), one(base, source), rtol=0, atol=1e-12)
    other.rotate_layer.set_weight(-one.rotation.detach())
    torch.testing.assert_close(other(base, source), one(base, source), rtol=0, atol=1e-12)


def test_the_first_dimensions_of_a_full_rotation_are_a_low_rank_one():
    base, source = pair(dtype=torch.float64)
    full, thin = RotatedSpaceIntervention(embed_dim=WIDTH, interchange_dim=3).double(), low_rank()
    thin.rotate_layer.set_weight(full.rotation.detach()[:, :3])
    torch.testing.assert_close(full(base, source), thin(base, source), rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", [low_rank, lambda **o: RotatedSpaceIntervention(embed_dim=WIDTH, **o).double()])
def test_disjoint_parts_commute_and_their_union_is_one_swap(make):
    base, first = pair(dtype=torch.float64)
    _, second = pair(dtype=torch.float64)
    one = make(subspace_partition=[[0, 1], [1, 3]])
    a, b, both = (((parts,) * 4) for parts in ((0,), (1,), (0, 1)))
    ab, ba = one(one(base, first, a), second, b), one(one(base, second, b), first, a)
    torch.testing.assert_close(ab, ba, rtol=0, atol=1e-12)
    torch.testing.assert_close(one(one(base, first, a), first, b), one(base, first, both), rtol=0, atol=1e-12)


def test_variables_share_one_matrix_and_a_batch_may_mix_them():
    base, source = pair()
    one = low_rank(subspace_partition=[[0, 1], [1, 3]]).float()
    assert len(list(one.parameters())) == 1
    choice = ((0,), (1,), (), (1, 0))
    mixed = one(base, source, choice)
    for n, parts in enumerate(choice):
        alone = one(base[n : n + 1], source[n : n + 1], (parts,))
        torch.testing.assert_close(mixed[n : n + 1], alone)
    assert torch.equal(mixed[2], base[2])


CHECKED = {
    "low rank": (LowRankRotatedSpaceIntervention, {"low_rank_dimension": 2}),
    "full": (RotatedSpaceIntervention, {"interchange_dim": 2}),
    "boundless": (BoundlessRotatedSpaceIntervention, {"temperature": 0.8}),
    "mask, rotated": (SigmoidMaskRotatedSpaceIntervention, {"temperature": 0.8}),
    "mask": (SigmoidMaskIntervention, {"temperature": 0.8}),
    "loreft": (LoreftIntervention, {"low_rank_dimension": 2}),
    "stacked": (StackedLowRankRotatedSpaceIntervention, {"low_rank_dimension": 2, "members": 2}),
}


@pytest.mark.parametrize(("kind", "options"), CHECKED.values(), ids=CHECKED)
def test_gradients_are_those_of_finite_differences(kind, options):
    one = kind(embed_dim=4, **options).double()
    names, values = zip(*one.named_parameters(), strict=True)
    base, source = torch.randn(2, 1, 4, dtype=torch.float64), torch.randn(2, 1, 4, dtype=torch.float64)
    choice = ((1,), (0,)) if "members" in options else None

    def call(base, source, *values):
        return torch.func.functional_call(one, dict(zip(names, values, strict=True)), (base, source, choice))

    inputs = [value.detach().clone().requires_grad_() for value in (base, source, *values)]
    assert torch.autograd.gradcheck(call, inputs)


# --- several units ---------------------------------------------------------------------------------------------------


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(3, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2))


def run(model, spec, base, source, positions):
    locations = {"sources->base": ([positions] * len(base), [positions] * len(base))}
    return IntervenableModel(spec, model)(base, source, locations)[1]


def test_an_instance_is_applied_to_each_unit(model):
    base, source = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    one = low_rank().float()
    got = run(model, {"component": "0.output", "intervention": one, "max_number_of_units": 2}, base, source, [1, 3])
    h, other, r = model[0](base), model[0](source), one.rotation
    new = h.clone()
    for p in (1, 3):
        new[:, p] = h[:, p] + (other[:, p] - h[:, p]) @ r @ r.T
    torch.testing.assert_close(got, model[2](model[1](new)))


def test_an_instance_may_span_the_units_of_an_example(model):
    base, source = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    one = LowRankRotatedSpaceIntervention(embed_dim=2 * WIDTH, low_rank_dimension=4, keep_last_dim=False)
    got = run(model, {"component": "0.output", "intervention": one, "max_number_of_units": 2}, base, source, [1, 3])
    h, other, r = model[0](base), model[0](source), one.rotation
    long, long_other = (torch.cat([value[:, 1], value[:, 3]], -1) for value in (h, other))
    moved = long + (long_other - long) @ r @ r.T
    new = h.clone()
    new[:, 1], new[:, 3] = moved[:, :WIDTH], moved[:, WIDTH:]
    torch.testing.assert_close(got, model[2](model[1](new)))


def test_a_configuration_with_several_units_makes_one_subspace_of_them(model):
    base, source = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    spec = {
        "component": "0.output",
        "intervention_type": LowRankRotatedSpaceIntervention,
        "low_rank_dimension": 4,
        "max_number_of_units": 2,
    }
    face = IntervenableModel(spec, model)
    (one,) = face.interventions.values()
    assert one.rotation.shape == (2 * WIDTH, 4)
    got = face(base, source, {"sources->base": ([[1, 3]] * 2, [[1, 3]] * 2)})[1]
    h, other, r = model[0](base), model[0](source), one.rotation
    long, long_other = (torch.cat([value[:, 1], value[:, 3]], -1) for value in (h, other))
    moved = long + (long_other - long) @ r @ r.T
    new = h.clone()
    new[:, 1], new[:, 3] = moved[:, :WIDTH], moved[:, WIDTH:]
    torch.testing.assert_close(got, model[2](model[1](new)))
    whole = IntervenableModel({**spec, "max_number_of_units": 1}, model)  # one unit: the same for every position
    (one,) = whole.interventions.values()
    wanted = h + (other - h) @ one.rotation @ one.rotation.T
    torch.testing.assert_close(whole(base, source)[1], model[2](model[1](wanted)))


def test_a_wrong_width_is_refused_with_the_reason():
    with pytest.raises(SpecError, match=r"of 6 coordinates \(embed_dim\), but these have 12: with several"):
        low_rank()(torch.zeros(1, 12), torch.zeros(1, 12))


# --- stacks ----------------------------------------------------------------------------------------------------------


def stack(members: int = 3) -> StackedLowRankRotatedSpaceIntervention:
    return StackedLowRankRotatedSpaceIntervention(embed_dim=WIDTH, low_rank_dimension=2, members=members)


def test_a_stack_is_its_members():
    base, source = pair()
    one = stack()
    choice = (2, 0, 2, 1)
    new = one(base, source, tuple((n,) for n in choice))
    for n, number in enumerate(choice):
        alone = one.member(number)
        torch.testing.assert_close(alone.rotation, one.rotation[number])
        torch.testing.assert_close(alone(base[n : n + 1], source[n : n + 1]), new[n : n + 1])


def test_fitting_a_stack_is_fitting_its_members():
    one = stack()
    single = [one.member(n) for n in range(3)]
    together = torch.optim.SGD(one.parameters(), lr=0.1)
    apart = [torch.optim.SGD(member.parameters(), lr=0.1) for member in single]
    for _ in range(5):
        base, source = pair(6)
        one(base, source, tuple((n // 2,) for n in range(6))).pow(3).sum().backward()
        together.step()
        together.zero_grad()
        for n, (member, optimiser) in enumerate(zip(single, apart, strict=True)):
            member(base[2 * n : 2 * n + 2], source[2 * n : 2 * n + 2]).pow(3).sum().backward()
            optimiser.step()
            optimiser.zero_grad()
    for n, member in enumerate(single):
        torch.testing.assert_close(one.rotation[n], member.rotation, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("choice", [None, ((0,),), ((0,), (0, 1)), ((0,), ()), ((0,), (3,))], ids=str)
def test_every_example_chooses_one_member(choice):
    with pytest.raises(SpecError, match="each of the 2 examples chooses one of 3 members by subspaces"):
        stack()(*pair(2), choice)


def test_what_a_stack_does_not_take():
    with pytest.raises(SpecError, match="a stack has members; asked for 0"):
        stack(0)
    for options in ({"subspace_partition": [[0, 1]]}, {"interchange_dim": 1}):
        with pytest.raises(SpecError, match="subspaces choose the members of a stack"):
            StackedLowRankRotatedSpaceIntervention(embed_dim=WIDTH, low_rank_dimension=2, members=2, **options)
    with pytest.raises(SpecError, match="the stack is one of width 6; the vectors have 5"):
        stack()(torch.zeros(1, 1, 5), torch.zeros(1, 1, 5), ((0,),))
