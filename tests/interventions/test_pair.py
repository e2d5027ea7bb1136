"""A pair is what the class of its name is, bit for bit; and what a fit asks of it."""

from __future__ import annotations

import copy

import pytest
import torch

from align_transformers import IntervenableModel, SpecError
from align_transformers import interventions as library
from align_transformers.interventions import SubspaceIntervention
from align_transformers.operations import Function, Learned, Mean, Noise, Operation, Shift, Swap, Zero
from align_transformers.subspaces import (
    Basis,
    Boundary,
    Concept,
    Direction,
    Eraser,
    Mask,
    PrincipalComponents,
    Rotation,
    Subspace,
    Whole,
    principal_components,
)

WIDTH = 6


def shaken(one):
    for parameter in one.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return one


def fill(subspace, **parameters):
    """Give a subspace the parameters of another intervention."""
    named = dict(subspace.named_parameters())
    for name, value in parameters.items():
        named[name.replace("__", ".")].data.copy_(value)
    return subspace


def low_rank():
    one = shaken(library.LowRankRotatedSpaceIntervention(embed_dim=WIDTH, low_rank_dimension=2))
    return one, SubspaceIntervention(Swap(), fill(Rotation(WIDTH, 2), free=one.rotate_layer.free))


def boundless():
    one = shaken(library.BoundlessRotatedSpaceIntervention(embed_dim=WIDTH, sparsity=0.3, boundary_rate=5.0))
    over = Boundary(Rotation(WIDTH, WIDTH), sparsity=0.3, boundary_rate=5.0)
    return one, SubspaceIntervention(Swap(), fill(over, over__free=one.rotate_layer.free, boundary=one.boundary))


def masked():
    one = shaken(library.SigmoidMaskIntervention(embed_dim=WIDTH, sparsity=0.2, temperature=0.5))
    return one, SubspaceIntervention(Swap(), fill(Mask(Whole(WIDTH), sparsity=0.2, temperature=0.5), mask=one.mask))


def loreft():
    one = shaken(library.LoreftIntervention(embed_dim=WIDTH, low_rank_dimension=2))
    learned = Learned(copy.deepcopy(one.learned_source))
    return one, SubspaceIntervention(learned, fill(Rotation(WIDTH, 2), free=one.rotate_layer.free))


def fitted():
    x = torch.randn(50, WIDTH)
    one = library.PCARotatedSpaceIntervention.fit(x, 3)
    yield one, SubspaceIntervention(Swap(), PrincipalComponents(principal_components(x, 3)))
    one = library.LinearProbeIntervention.fit(x, x[:, 0] > 0)
    yield one, SubspaceIntervention(Swap(), Direction(one.vector))
    one = library.DifferenceOfMeansIntervention.fit(x, x[:, 0] > 0, strength=2.0)
    yield one, SubspaceIntervention(Shift(float(2 * one.vector.norm())), Direction(one.vector))
    one = library.ErasureIntervention.fit(x, x[:, 0] > 0)
    yield one, SubspaceIntervention(Zero(), Concept(Eraser(one.mean, one.into, one.back)))
    yield library.NoiseIntervention(seed=3), SubspaceIntervention(Noise(seed=3))
    yield library.MeanIntervention(activations=x), SubspaceIntervention(Mean.of(x))


LEARNED = [low_rank, boundless, masked, loreft]


@pytest.mark.parametrize("make", LEARNED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_learned_pair_is_the_class_of_its_name(make, dtype):
    one, pair = make()
    base, source = (torch.randn(3, 2, WIDTH).to(dtype) for _ in range(2))
    assert torch.equal(pair(base, source), one(base, source))
    assert torch.equal(pair.penalty(), one.penalty())
    assert pair.dimensions == one.dimensions
    assert pair.temperature_schedule == one.temperature_schedule
    rates, wanted = (
        sorted((p.shape, group["lr"]) for group in each.parameter_groups(0.1) for p in group["params"])
        for each in (pair, one)
    )
    assert rates == wanted
    hard = pair.hardened()
    assert torch.equal(hard(base, source), one.hardened()(base, source))
    assert not any(p.requires_grad for p in hard.parameters())
    assert all(p.requires_grad for p in pair.parameters())
    assert hard.arguments() != pair.arguments() or pair.dimensions is None
    if one.temperature_schedule is None:
        with pytest.raises(SpecError, match="SubspaceIntervention has no temperature"):
            pair.set_temperature(1.0)
        return
    for each in (one, pair):
        each.set_temperature(0.3)
    assert torch.equal(pair(base, source), one(base, source))
    assert pair.arguments()["subspace"]["arguments"]["temperature"] == 0.3


def test_a_fitted_pair_is_the_class_of_its_name():
    base, source = torch.randn(3, 2, WIDTH), torch.randn(3, 2, WIDTH)
    for one, pair in fitted():
        given = source if one.source_kind == "run" else None
        torch.testing.assert_close(pair(base, given), one(base, given))
        assert list(pair.parameters()) == []


def test_arguments_are_those_that_were_given():
    pair = SubspaceIntervention(
        Noise(1.0, seed=4),
        Boundary(Rotation(WIDTH, 3), temperature_schedule=(2.0, 1.0), sparsity=0.5, boundary_rate=3.0, hard=True),
        coordinates=[2, 0, 2],
        interchange_dim=1,
    )
    rotation = {"class": "Rotation", "arguments": {"width": WIDTH, "k": 3, "stack": None}}
    boundary = {
        "over": rotation,
        "temperature_schedule": (2.0, 1.0),
        "temperature": 2.0,
        "sparsity": 0.5,
        "hard": True,
        "boundary_rate": 3.0,
    }
    assert pair.arguments() == {
        "operation": {"class": "Noise", "arguments": {"noise_level": 1.0, "std": 1.0, "seed": 4}},
        "subspace": {"class": "Boundary", "arguments": boundary},
        "coordinates": [0, 2],
        "subspace_partition": None,
        "keep_last_dim": True,
        "interchange_dim": 1,
    }


class Square(Operation):
    def new(self, base, source):
        return base * base


class Tail(Subspace):
    """The last coordinate."""

    def __init__(self, width):
        super().__init__(width, 1)

    def basis(self, base=None, choice=None):
        return Basis.orthonormal(torch.eye(self.width)[:, -1:])


def test_a_users_own_operation_and_subspace():
    base = torch.randn(2, 3, WIDTH)
    pair = SubspaceIntervention(Square(), Tail(WIDTH))
    wanted = base.clone()
    wanted[..., -1] = base[..., -1] ** 2
    torch.testing.assert_close(pair(base), wanted)
    for one in (SubspaceIntervention(Square()), SubspaceIntervention(Zero(), Mask(Tail(WIDTH)))):
        with pytest.raises(SpecError, match=r"(Square|Tail) is not the library's own, and nothing else is found"):
            one.arguments()
    with pytest.raises(SpecError, match="which is code and cannot be saved as data"):
        SubspaceIntervention(Function(lambda base: base)).arguments()


def test_what_does_not_go_together():
    with pytest.raises(SpecError, match="Mean in Rotation: it is for 3 coordinates, and the subspace has 2"):
        SubspaceIntervention(Mean(torch.zeros(3)), Rotation(WIDTH, 2))
    with pytest.raises(SpecError, match="Mask is a mask already: a subspace has one"):
        Boundary(Mask(Rotation(WIDTH, 2)))
    with pytest.raises(SpecError, match="how many coordinates there are: give Whole a width"):
        Mask(Whole())
    with pytest.raises(SpecError, match="a vector of zeros has no direction"):
        Direction(torch.zeros(3))
    model, finished = torch.nn.Sequential(torch.nn.Linear(3, 4)), {"intervention": SubspaceIntervention(Zero())}
    with pytest.raises(SpecError, match="came with a finished SubspaceIntervention"):
        IntervenableModel({"component": "0.output", **finished, "subspace_partition": [[0, 1]]}, model)
    with pytest.raises(SpecError, match="SubspaceIntervention needs operation: construct it yourself"):
        IntervenableModel({"component": "0.output", "intervention_type": SubspaceIntervention}, model)


def test_a_pair_is_fitted_through_the_model():
    model = torch.nn.Sequential(torch.nn.Linear(3, WIDTH), torch.nn.Tanh(), torch.nn.Linear(WIDTH, 2))
    pair = SubspaceIntervention(Swap(), Mask(Rotation(WIDTH, WIDTH)))
    face = IntervenableModel({"component": "0.output", "intervention": pair}, model)
    base, source = torch.randn(64, 3), torch.randn(64, 3)
    h, other, r = model[0](base), model[0](source), pair.subspace.over.weight.detach()
    planted = model[2](model[1](h + (other - h) @ r[:, :2] @ r[:, :2].T)).detach()
    optimiser = torch.optim.Adam(pair.parameter_groups(0.05))
    losses = []
    for step in range(150):
        pair.set_temperature(1.0 - step / 200)
        loss = (face(base, [source])[1] - planted).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 10
    assert torch.isfinite(pair.hardened()(h, other)).all()
