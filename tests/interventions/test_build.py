"""From what a user wrote to an intervention: classes, instances, functions, and users' own subclasses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from align_transformers import (
    ConstantSourceIntervention,
    FunctionIntervention,
    IntervenableModel,
    Intervention,
    SourcelessIntervention,
    SpecError,
    TrainableIntervention,
    VanillaIntervention,
)
from align_transformers.interventions import (
    LoreftIntervention,
    LowRankRotatedSpaceIntervention,
    build_intervention,
)

# --- users' subclasses, as they write them for libraries of this kind ------------------------------------------------


class Times99(ConstantSourceIntervention):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)

    def forward(self, base, source=None, subspaces=None):
        return base * 99


class Affine(SourcelessIntervention, TrainableIntervention):
    def __init__(self, embed_dim, **kwargs):
        super().__init__(**kwargs)
        self.weight = nn.Parameter(torch.full((embed_dim,), 2.0))

    def forward(self, base, source=None, subspaces=None):
        return base * self.weight


class Mix(TrainableIntervention):
    def __init__(self, embed_dim):
        super().__init__()
        self.share = nn.Parameter(torch.full((embed_dim,), 0.25))

    def forward(self, base, source, subspaces=None):
        return base + self.share * (source - base)


class Twice(Intervention):
    def forward(self, base, source):
        return 2 * source


class Keyed(VanillaIntervention):
    def __init__(self, **kwargs):
        super().__init__(**kwargs, keep_last_dim=True)
        self.rank = kwargs["low_rank_dimension"]


class InPlace(ConstantSourceIntervention):
    def forward(self, base, source=None, subspaces=None):
        base[..., :1] = 7.0
        return base


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def by_hand(model, base, change):
    """Return the model's output with the first layer's output changed."""
    return model[2](model[1](change(model[0](base))))


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (Times99, lambda b, s: b * 99),
        (Affine, lambda b, s: b * 2.0),
        (Mix, lambda b, s: b + 0.25 * (s - b)),
        (Twice, lambda b, s: 2 * s),
        (InPlace, lambda b, s: torch.cat([torch.full_like(b[..., :1], 7.0), b[..., 1:]], -1)),
    ],
)
@pytest.mark.parametrize("how", ["class", "instance"])
def test_a_users_subclass_just_works(model, kind, change, how):
    base, source = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    spec = {"component": "0.output"}
    if how == "class":
        spec["intervention_type"] = kind
    else:
        spec["intervention"] = kind(embed_dim=4) if kind in (Affine, Mix) else kind()
    _, got = IntervenableModel(spec, model)(base, [source])
    assert torch.equal(got, by_hand(model, base, lambda b: change(b, model[0](source))))


def test_gradients_reach_a_users_parameters(model):
    base, source = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    intervenable = IntervenableModel({"component": "0.output", "intervention_type": Mix}, model)
    intervenable(base, [source])[1].sum().backward()
    (share,) = intervenable.get_trainable_parameters()
    free = torch.full((4,), 0.25, requires_grad=True)
    wanted = by_hand(model, base, lambda b: b + free * (model[0](source) - b))
    assert torch.allclose(share.grad, torch.autograd.grad(wanted.sum(), free)[0])


@pytest.mark.parametrize("kind", [Mix, Twice])
def test_a_users_subclass_gets_a_constant_as_its_source(model, kind):
    base, constant = torch.randn(2, 5, 3), torch.randn(4)
    one = kind(embed_dim=4) if kind is Mix else kind()
    one.set_source_representation(constant)
    wanted = by_hand(model, base, lambda b: b + 0.25 * (constant - b) if kind is Mix else (2 * constant).expand_as(b))
    _, got = IntervenableModel({"component": "0.output", "intervention": one}, model)(base)
    assert torch.equal(got, wanted)


def test_subspaces_for_a_forward_that_takes_none_are_refused(model):
    spec = {"component": "0.output", "intervention_type": Twice}
    with pytest.raises(SpecError, match=r"Twice at 0.output got subspaces, but its forward\(base, source\) takes none"):
        IntervenableModel(spec, model)(torch.randn(2, 5, 3), [torch.randn(2, 5, 3)], subspaces=[[0], [1]])


def test_an_intervention_without_forward_cannot_be_made():
    class Empty(Intervention):
        pass

    with pytest.raises(TypeError, match="abstract"):
        Empty()


# --- building ------------------------------------------------------------------------------------------------------


def test_an_instance_is_handed_back():
    one = VanillaIntervention()
    assert build_intervention(one, {"embed_dim": 4, "subspace_partition": None}) is one
    with pytest.raises(SpecError, match="subspace_partition came with a finished VanillaIntervention"):
        build_intervention(one, {"subspace_partition": [[0, 1]]})


def test_a_class_gets_what_it_takes():
    options = {"embed_dim": 4, "low_rank_dimension": 3, "subspace_partition": None}
    assert build_intervention(Keyed, options).rank == 3
    assert build_intervention(VanillaIntervention, {"embed_dim": 4, "subspace_partition": [[0, 2]]}).partition.end == 2
    assert build_intervention(Mix, {"embed_dim": 4}).share.shape == (4,)


def test_units_are_joined_where_a_subspace_spans_them():
    options = {"embed_dim": 4, "low_rank_dimension": 3, "subspace_partition": [[0, 1], [1, 3]]}
    one = build_intervention(LowRankRotatedSpaceIntervention, options, units=5)
    assert (one.embed_dim, one.keep_last_dim, one.rotation.shape) == (20, False, (20, 3))
    one = build_intervention(LowRankRotatedSpaceIntervention, options)
    assert (one.embed_dim, one.keep_last_dim) == (4, True)
    one = build_intervention(LowRankRotatedSpaceIntervention, {**options, "keep_last_dim": True}, units=5)
    assert (one.embed_dim, one.keep_last_dim) == (4, True)
    for kind in (VanillaIntervention, LoreftIntervention):  # these see each unit on its own
        one = build_intervention(kind, {"embed_dim": 4, "low_rank_dimension": 3}, units=5)
        assert (one.embed_dim, one.keep_last_dim) == (4, True)
    with pytest.raises(SpecError, match="needs embed_dim"):
        build_intervention(LowRankRotatedSpaceIntervention, {"low_rank_dimension": 3}, units=5)
    with pytest.raises(SpecError, match="LowRankRotatedSpaceIntervention needs low_rank_dimension"):
        build_intervention(LowRankRotatedSpaceIntervention, {"embed_dim": 4})


def test_an_option_with_no_place_is_refused():
    with pytest.raises(SpecError, match=r"Mix.__init__ takes no low_rank_dimension, subspace_partition"):
        build_intervention(Mix, {"embed_dim": 4, "subspace_partition": [[0, 1]], "low_rank_dimension": 2})


def test_a_constructor_that_needs_more_is_refused():
    with pytest.raises(SpecError, match="Mix needs embed_dim: construct it yourself and give it as intervention="):
        build_intervention(Mix, {"embed_dim": None})


def test_a_function_is_wrapped():
    one = build_intervention(lambda base: base, {"embed_dim": 4, "subspace_partition": [[0, 1]]})
    assert isinstance(one, FunctionIntervention)
    assert (one.embed_dim, one.partition.end) == (4, 1)
    assert isinstance(build_intervention(nn.Identity(), {}), FunctionIntervention)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (5, "a subclass or an instance of Intervention, or a function .*; found 5"),
        ("VanillaIntervention", "found 'VanillaIntervention'"),
        (None, "found None"),
        (nn.Linear, "Linear is not a subclass of Intervention"),
        (dict, "dict is not a subclass of Intervention"),
    ],
)
def test_refused(spec, message):
    with pytest.raises(SpecError, match=message):
        build_intervention(spec, {})
