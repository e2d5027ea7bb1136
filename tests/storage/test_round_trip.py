"""What is saved comes back: every class, every argument, every tensor to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.storage.kit import WIDTH, Scale, assert_same, contents, examples, intervene, mlp, round_trip, shaken
from torch import nn

from align_transformers import IntervenableConfig, IntervenableModel, SpecError, VanillaIntervention
from align_transformers._errors import ArtifactError
from align_transformers.interventions import (
    BoundlessRotatedSpaceIntervention,
    LowRankRotatedSpaceIntervention,
    RotatedSpaceIntervention,
    SourcelessIntervention,
    TrainableIntervention,
)
from align_transformers.storage import Contents, load, save
from align_transformers.storage.plain import config_from_dict, config_to_dict, plain_metrics
from align_transformers.storage.types import OWN

EXAMPLES = [
    pytest.param(one, id=f"{name}-{number}") for name, ones in examples().items() for number, one in enumerate(ones)
]


def test_there_is_an_example_of_every_class():
    assert set(examples()) == set(OWN)


@pytest.mark.parametrize("intervention", EXAMPLES)
def test_every_intervention_comes_back(intervention, tmp_path):
    model = mlp()
    before = intervene([intervention], model)
    after, artifact = round_trip(before, tmp_path / "kept")
    (restored,) = after.interventions.values()
    assert_same(intervention, restored)

    units = (2,) if intervention.keep_last_dim else ()
    base, source = torch.randn(3, *units, intervention.embed_dim or WIDTH), torch.randn(
        3, *units, intervention.embed_dim or WIDTH
    )  # fmt: skip
    choices = [None, ((0,), (1,), (0,))]
    if type(intervention).__name__ == "StackedLowRankRotatedSpaceIntervention":
        choices = [((2,), (0,), (1,))]
    elif intervention.partition is None:
        choices = [None]
    for choice in choices:
        expected, found = intervention(base, source, choice), restored(base, source, choice)
        assert torch.equal(expected, found)
    assert artifact.config.representations[0].component == "2.output"


@pytest.mark.parametrize("intervention", EXAMPLES)
def test_outputs_of_the_model_are_bit_equal(intervention, tmp_path):
    if not intervention.keep_last_dim or type(intervention).__name__.startswith("Stacked"):
        pytest.skip("needs a call of its own; see the test of the intervention alone")
    model = mlp()
    before = intervene([intervention], model)
    after, _ = round_trip(before, tmp_path / "kept")
    base, source = torch.randn(4, 3), torch.randn(4, 3)
    pairs = [one(base, source, return_dict=True) for one in (before, after)]
    assert torch.equal(pairs[0].intervened_outputs, pairs[1].intervened_outputs)
    for left, right in zip(pairs[0].collected_activations, pairs[1].collected_activations, strict=True):
        assert torch.equal(left, right)


def test_saving_what_was_loaded_writes_the_same_files(tmp_path):
    model = mlp()
    ones = [ones[-1] for ones in examples().values()]
    before = intervene(ones, model)
    after, _ = round_trip(before, tmp_path / "first" / "kept")
    save(contents(after), tmp_path / "second" / "kept")
    for name in ("intervention.json", "weights.safetensors", "README.md"):
        assert (tmp_path / "first/kept" / name).read_bytes() == (tmp_path / "second/kept" / name).read_bytes()


def test_linked_representations_share_one_stored_module(tmp_path):
    linked = {"intervention_type": LowRankRotatedSpaceIntervention, "low_rank_dimension": 2, "intervention_link_key": 7}
    before = IntervenableModel([{"component": "0.output", **linked}, {"component": "2.output", **linked}], mlp())
    after, artifact = round_trip(before, tmp_path / "kept")
    record = json.loads((tmp_path / "kept/intervention.json").read_text())
    assert len(record["interventions"]) == 1
    first, second = after.interventions.values()
    assert first is second
    assert [one.intervention_link_key for one in artifact.config.representations] == [7, 7]
    assert len(after.get_trainable_parameters()) == 1


def test_one_instance_in_two_places_stays_one(tmp_path):
    shared = VanillaIntervention()
    after, _ = round_trip(intervene([shared, shared], mlp()), tmp_path / "kept")
    first, second = after.interventions.values()
    assert first is second


def test_everything_a_configuration_says_is_kept(tmp_path):
    representations = [
        {"layer": None, "component": "0.output", "unit": "pos", "max_number_of_units": 3, "group_key": "b", "call": 0},
        {"layer": None, "component": "2.output", "unit": "t", "max_number_of_units": 1, "group_key": 0, "call": None},
    ]
    made = [{**one, "intervention": VanillaIntervention()} for one in representations]
    before = IntervenableModel({"representations": made, "mode": "serial", "model_type": "mine"}, mlp())
    after, artifact = round_trip(before, tmp_path / "kept")
    assert (artifact.config.mode, artifact.config.model_type) == ("serial", "mine")
    for one, saved in zip(representations, after.config.representations, strict=True):
        assert {name: getattr(saved, name) for name in one} == one
    assert list(after.interventions) == list(before.interventions)
    assert after.config.groups() == before.config.groups()


def test_what_a_class_was_given_by_its_representation_is_kept(tmp_path):
    """Partition and constant come from the representation, and stand with the intervention afterwards."""
    constant = torch.arange(float(WIDTH))
    before = IntervenableModel(
        {"component": "0.output", "subspace_partition": [[0, 3], {3, 5}], "source_representation": constant}, mlp()
    )
    after, _ = round_trip(before, tmp_path / "kept")
    (restored,) = after.interventions.values()
    assert restored.partition.parts == (range(3), (3, 5))
    assert torch.equal(restored.source_representation, constant)
    base = torch.randn(2, 3)
    for subspaces in (None, [[[1], [0]]]):
        assert torch.equal(before(base, subspaces=subspaces)[1], after(base, subspaces=subspaces)[1])


def test_units_side_by_side_are_kept(tmp_path):
    model = nn.Sequential(nn.Linear(3, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 2))
    kind = {"intervention_type": RotatedSpaceIntervention, "max_number_of_units": 2}
    before = IntervenableModel({"component": "0.output", **kind}, model)
    after, _ = round_trip(before, tmp_path / "kept")
    base, source = torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    where = {"sources->base": ([[[0, 1], [2, 3]]], [[[1, 3], [0, 2]]])}
    assert torch.equal(before(base, source, where)[1], after(base, source, where)[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes_are_kept(dtype, tmp_path):
    intervention = shaken(LowRankRotatedSpaceIntervention(embed_dim=WIDTH, low_rank_dimension=2)).to(dtype)
    after, _ = round_trip(intervene([intervention], mlp()), tmp_path / "kept")
    assert_same(intervention, next(iter(after.interventions.values())))


def test_modes_and_frozen_parameters_are_kept(tmp_path):
    first = BoundlessRotatedSpaceIntervention(embed_dim=WIDTH).eval()
    first.rotate_layer.free.requires_grad_(False)
    second = BoundlessRotatedSpaceIntervention(embed_dim=WIDTH).hardened()
    after, _ = round_trip(intervene([first, second], mlp()), tmp_path / "kept")
    for one, restored in zip((first, second), after.interventions.values(), strict=True):
        assert_same(one, restored)


def test_a_change_after_construction_is_kept(tmp_path):
    one = BoundlessRotatedSpaceIntervention(embed_dim=WIDTH)
    one.set_temperature(0.125)
    one.set_interchange_dim(2)
    after, _ = round_trip(intervene([one], mlp()), tmp_path / "kept")
    (restored,) = after.interventions.values()
    assert (restored.temperature, restored.interchange_dim) == (0.125, 2)


def test_what_was_loaded_can_be_fitted_further(tmp_path):
    one = LowRankRotatedSpaceIntervention(embed_dim=WIDTH, low_rank_dimension=2)
    after, _ = round_trip(intervene([one], mlp()), tmp_path / "kept")
    after(torch.randn(2, 3), torch.randn(2, 3))[1].sum().backward()
    (parameter,) = after.get_trainable_parameters()
    assert parameter.grad is not None


def test_loading_changes_neither_the_random_state_nor_the_model(tmp_path):
    model = mlp()
    save(contents(intervene([RotatedSpaceIntervention(embed_dim=WIDTH)], model)), tmp_path / "kept")
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [p.requires_grad for p in model.parameters()]
    state = torch.get_rng_state()
    load(tmp_path / "kept", model=model)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == flags


def test_tensors_that_share_memory_are_stored_apart(tmp_path):
    whole = torch.randn(2, WIDTH)
    ones = [VanillaIntervention(source_representation=whole[0]), VanillaIntervention()]
    ones[1].register_buffer("source_representation", ones[0].source_representation)
    after, _ = round_trip(intervene(ones, mlp()), tmp_path / "kept")
    for restored in after.interventions.values():
        assert torch.equal(restored.source_representation, whole[0])


# --- Classes of the user's own ---------------------------------------------------------------------------------------


def test_a_class_of_the_users_own(tmp_path):
    one = shaken(Scale(embed_dim=WIDTH, power=2.0, subspace_partition=[[0, 2], [2, 6]]))
    after, _ = round_trip(intervene([one], mlp()), tmp_path / "kept", classes=[Scale])
    (restored,) = after.interventions.values()
    assert_same(one, restored)
    assert restored.power == 2.0


def test_a_class_that_does_not_keep_an_argument_is_refused(tmp_path):
    class Forgetful(Scale):
        def __init__(self, *, secret: int = 1, **kwargs: Any) -> None:
            super().__init__(**kwargs)

    with pytest.raises(SpecError, match=r"(?s)representation 0 \(Forgetful\).*secret"):
        save(contents(intervene([Forgetful(embed_dim=WIDTH, secret=2)], mlp())), tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


class Fixed(SourcelessIntervention, TrainableIntervention):
    """As in pyreft: an argument of the base class is fixed beside `**kwargs`."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs, keep_last_dim=True)
        self.lift = nn.Linear(self.embed_dim, kwargs["low_rank_dimension"])

    def forward(self, base, source=None, subspaces=None):
        return base + self.lift(base) @ self.lift.weight


class Kept(TrainableIntervention):
    """As in RAVEL: the width is taken and not handed on."""

    def __init__(self, embed_dim: int, **kwargs: Any) -> None:
        super().__init__()
        self.turn = nn.Linear(embed_dim, kwargs["low_rank_dimension"], bias=False)

    def forward(self, base, source, subspaces=None):
        return base + (self.turn(source) - self.turn(base)) @ self.turn.weight


@pytest.mark.parametrize("kind", [Fixed, Kept])
def test_classes_as_others_write_them_come_back(kind, tmp_path):
    model = mlp()
    place = {"component": "2.output", "intervention_type": kind, "low_rank_dimension": 2}
    before = IntervenableModel({**place}, model)
    if kind is Kept and next(iter(before.interventions.values())).embed_dim is None:
        pytest.fail("the width is known, and not told")
    after, _ = round_trip(before, tmp_path / "kept", classes=[kind])
    base, source = torch.randn(4, 3), torch.randn(4, 3)
    assert torch.equal(before(base, source)[1], after(base, source)[1])


class Counting(Scale):
    """Its `strength` is set by hand, and no argument."""

    strength = 1.0

    def forward(self, base, source=None, subspaces=None):
        return base * self.strength


class Grown(Scale):
    """It has a tensor that is not in the state dict."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.register_buffer("seen", torch.zeros(2), persistent=False)


def grown() -> Grown:
    one = Grown(embed_dim=WIDTH)
    one.seen += 1
    return one


def strong() -> Counting:
    one = Counting(embed_dim=WIDTH)
    one.strength = 2.0
    return one


def spoilt() -> Scale:
    one = Scale(embed_dim=WIDTH)
    one.factor.data[1] = float("nan")
    return one


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Kept(WIDTH, low_rank_dimension=2), r"could not be loaded again: .*Kept cannot be constructed"),
        (strong, r"attribute strength is 2.0, and would come back as None"),
        (grown, r"tensor seen would come back as another"),
        (spoilt, r"'factor' holds NaN or infinite"),
        (
            lambda: VanillaIntervention(subspace_partition=[list(range(0, 2**21 + 2, 2))]),
            "coordinates|bytes",
        ),
    ],
)
def test_what_would_not_come_back_is_refused_before_anything_is_written(make, match, tmp_path):
    with pytest.raises(SpecError, match=match):
        save(contents(intervene([make()], mlp())), tmp_path / "above/kept")
    assert list(tmp_path.iterdir()) == []


def test_metrics_that_could_not_be_read_are_refused(tmp_path):
    deep: Any = 1
    for _ in range(40):
        deep = [deep]
    with pytest.raises(SpecError, match="32 deep"):
        save(contents(intervene([VanillaIntervention()], mlp()), metrics={"x": deep}), tmp_path / "kept")


def test_arguments_that_the_constructor_does_not_take_are_refused(tmp_path):
    class Wrong(VanillaIntervention.__mro__[1]):  # Intervention
        def forward(self, base, source=None, subspaces=None):
            return base

        def arguments(self):
            return {"no_such": 1}

    with pytest.raises(SpecError, match="no_such"):
        save(contents(intervene([Wrong()], mlp())), tmp_path / "kept")


@pytest.mark.parametrize("arguments", [{"embed_dim": float("inf")}, {"embed_dim": torch.ones(1)}, [1]])
def test_arguments_that_are_not_plain_are_refused(arguments, tmp_path):
    class Odd(Scale):
        def arguments(self):
            return arguments

    with pytest.raises(SpecError, match="arguments"):
        save(contents(intervene([Odd(embed_dim=WIDTH)], mlp())), tmp_path / "kept")


def test_a_class_with_a_name_of_the_librarys_is_told_from_it(tmp_path):
    kind = type("VanillaIntervention", (Scale,), {})
    ones = [shaken(kind(embed_dim=WIDTH, power=3.0)), VanillaIntervention()]
    after, _ = round_trip(intervene(ones, mlp()), tmp_path / "kept", classes=[kind])
    for one, restored in zip(ones, after.interventions.values(), strict=True):
        assert_same(one, restored)
    with pytest.raises(ArtifactError, match="unknown intervention 'classes:VanillaIntervention'"):
        load(tmp_path / "kept", model=mlp())
    card = (tmp_path / "kept/README.md").read_text()
    assert "classes=[VanillaIntervention]" in card
    save(contents(intervene([VanillaIntervention()], mlp())), tmp_path / "ours")
    found = load(tmp_path / "ours", model=mlp(), classes=[kind])  # what is the library's stays the library's
    assert type(found.config.representations[0].intervention) is VanillaIntervention
    with pytest.raises(SpecError, match="two classes of the name Scale"):
        load(tmp_path / "ours", model=mlp(), classes=[Scale, type("Scale", (Scale,), {})])
    with pytest.raises(SpecError, match="subclasses of Intervention"):
        load(tmp_path, model=mlp(), classes=[nn.Linear])


def test_a_function_is_refused_with_the_reason(tmp_path):
    with pytest.raises(SpecError, match=r"representation 1 \(FunctionIntervention\).*function is code.*classes="):
        save(contents(intervene([VanillaIntervention(), lambda base: base * 2], mlp())), tmp_path / "kept")
    assert list(tmp_path.iterdir()) == []


def test_state_that_is_no_tensor_is_refused(tmp_path):
    class Stateful(Scale):
        def get_extra_state(self):
            return {"code": print}

        def set_extra_state(self, state):
            raise AssertionError("never called")

    with pytest.raises(SpecError, match="_extra_state"):
        save(contents(intervene([Stateful(embed_dim=WIDTH)], mlp())), tmp_path / "kept")


# --- Plain data ------------------------------------------------------------------------------------------------------

KEYS = st.one_of(st.none(), st.integers(0, 5), st.text(max_size=5))


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "layer": st.integers(0, 50),
                "component": st.sampled_from(["block_output", "mlp_output", "encoder.value_output"]),
                "unit": st.sampled_from(["pos", "t"]),
                "max_number_of_units": st.integers(1, 9),
                "intervention_link_key": KEYS,
                "call": st.one_of(st.none(), st.integers(0, 3)),
            }
        ),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from(["parallel", "serial"]),
    st.booleans(),
)
def test_configurations_come_back_from_json(representations, mode, grouped):
    shared = VanillaIntervention()
    for number, one in enumerate(representations):
        one |= {"intervention": shared, "group_key": f"group {number % 2}" if grouped else None}
    config = IntervenableConfig(representations=representations, mode=mode)
    plain = json.loads(json.dumps(config_to_dict(config, [0] * len(representations))))
    restored = config_from_dict(plain, [shared])
    assert config_to_dict(restored, [0] * len(representations)) == plain
    assert restored.mode == mode
    for one, other in zip(config.representations, restored.representations, strict=True):
        assert vars(one) == vars(other)


def test_keys_that_json_cannot_keep_are_refused():
    config = IntervenableConfig(representations={"component": "0.output", "intervention_link_key": 1.5})
    with pytest.raises(SpecError, match=r"intervention_link_key.*1\.5"):
        config_to_dict(config, [0])


def test_metrics_are_kept_as_plain_data(tmp_path):
    metrics = {"iia": torch.tensor(0.5), "by layer": [0.25, float("nan")], "n": 12, "note": "held out", "none": None}
    before = intervene([VanillaIntervention()], mlp())
    save(contents(before, metrics=metrics), tmp_path / "kept")
    found = load(tmp_path / "kept", model=before.model).metrics
    assert found == {"iia": 0.5, "by layer": [0.25, None], "n": 12, "note": "held out", "none": None}


@pytest.mark.parametrize("metrics", [{"iia": torch.ones(2)}, {"iia": object()}, {"iia": {1, 2}}])
def test_scores_that_are_none_are_refused(metrics):
    with pytest.raises(SpecError, match=r"metrics\.iia"):
        plain_metrics(metrics)


def test_saving_needs_one_intervention_for_each_representation(tmp_path: Path):
    config = IntervenableConfig(representations=[{"component": "0.output"}, {"component": "2.output"}])
    with pytest.raises(SpecError, match="2 representations and 1 interventions"):
        save(Contents(config, [VanillaIntervention()], mlp()), tmp_path / "kept")
