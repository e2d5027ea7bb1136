"""Configurations: forms, names of old, and what is refused."""

from __future__ import annotations

import pytest
import torch
from tests.untyped import untyped

from align_transformers import (
    IntervenableConfig,
    IntervenableRepresentationConfig,
    RepresentationConfig,
    Site,
    SpecError,
    UnknownNameError,
    VanillaIntervention,
    ZeroIntervention,
)


def field_values(config):
    return {name: getattr(config, name) for name in RepresentationConfig.__dataclass_fields__}


def test_the_long_names_and_positions_are_the_same_thing():
    short = RepresentationConfig(3, "query_output", "h", 2, 8)
    named = RepresentationConfig(
        layer=3, component="query_output", unit="h", max_number_of_units=2, low_rank_dimension=8
    )
    long = IntervenableRepresentationConfig(
        intervenable_layer=3,
        intervenable_representation_type="query_output",
        intervenable_unit="h",
        max_number_of_units=2,
        intervenable_low_rank_dimension=8,
    )
    assert field_values(short) == field_values(named) == field_values(long)
    assert IntervenableRepresentationConfig is RepresentationConfig


def test_defaults():
    one = RepresentationConfig(0)
    assert (one.site, one.unit, one.max_number_of_units) == (Site("block_output", 0), "pos", 1)


def test_the_order_of_the_fields_is_the_fields_of_old():
    assert list(RepresentationConfig.__dataclass_fields__)[:10] == [
        *("layer", "component", "unit", "max_number_of_units", "low_rank_dimension"),
        *("intervention_type", "intervention", "subspace_partition", "group_key", "intervention_link_key"),
    ]


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"componnt": "mlp_output"}, UnknownNameError, "no field 'componnt'; did you mean 'component'"),
        ({"intervenable_layr": 0}, UnknownNameError, "did you mean 'intervenable_layer'"),
        ({"representations": []}, UnknownNameError, "RepresentationConfig has no field 'representations'"),
        ({"layer": 0, "intervenable_layer": 0}, SpecError, r"got 'layer' twice \(here as 'intervenable_layer'\)"),
        ({"layer": 0, "unit": "poss"}, UnknownNameError, "unknown unit 'poss'; did you mean 'pos'"),
        ({"layer": 0, "component": "mlp_outptu"}, UnknownNameError, "did you mean 'mlp_output'"),
        ({}, SpecError, "component 'block_output' needs a layer number from 0"),
        ({"layer": "mlp_output", "component": 0}, SpecError, "layer comes first; found 0"),
        ({"layer": 0, "unit": "h"}, SpecError, "'block_output' has no heads, so its unit cannot be 'h'"),
        ({"layer": 0, "component": "mlp_output", "unit": "h.pos"}, SpecError, "with heads: attention_value_output"),
        ({"layer": 0, "max_number_of_units": 0}, SpecError, "max_number_of_units is a number from 1; found 0"),
        ({"layer": 0, "max_number_of_units": "1"}, SpecError, "found '1'"),
        ({"layer": 0, "intervention": VanillaIntervention}, SpecError, "is a class: give it as intervention_type="),
        (
            {"layer": 0, "intervention_type": VanillaIntervention()},
            SpecError,
            "intervention_type is a class; found Van",
        ),
        ({"layer": 0, "intervention_type": [[0, 1]]}, SpecError, "a partition as subspace_partition="),
        ({"layer": 0, "subspace_partition": [[2, 1]]}, SpecError, "low < high"),
        (
            {"layer": 0, "intervention": VanillaIntervention(), "intervention_type": VanillaIntervention},
            *(SpecError, "not both"),
        ),
    ],
)
def test_a_representation_refused(fields, error, message):
    with untyped(), pytest.raises(error, match=message):
        RepresentationConfig(**fields)


def test_a_positional_field_given_again_by_name():
    with pytest.raises(SpecError, match="got 'layer' twice"):
        RepresentationConfig(0, intervenable_layer=1)


ONE = {"layer": 0, "component": "mlp_output"}


@pytest.mark.parametrize(
    ("spec", "layers"),
    [
        (ONE, [0]),
        ([ONE, {"intervenable_layer": 2}], [0, 2]),
        ((RepresentationConfig(1), ONE), [1, 0]),
        (RepresentationConfig(1), [1]),
        (IntervenableConfig(representations=RepresentationConfig(1)), [1]),
        (IntervenableConfig("gpt2", [RepresentationConfig(1)], ZeroIntervention), [1]),
        ({"representations": [ONE], "mode": "serial"}, [0]),
        ({"intervenable_representations": ONE, "intervenable_model_type": "gpt2"}, [0]),
    ],
)
def test_whatever_a_user_hands_over(spec, layers):
    config = IntervenableConfig.of(spec)
    assert [one.layer for one in config.representations] == layers
    assert IntervenableConfig.of(config) is config


def test_the_long_names_of_a_configuration():
    long = IntervenableConfig(
        intervenable_model_type="gpt2",
        intervenable_representations=[RepresentationConfig(0)],
        intervenable_interventions_type=ZeroIntervention,
        intervenable_interventions=[None],
    )
    assert (long.model_type, long.mode, long.specs()) == ("gpt2", "parallel", [ZeroIntervention])
    assert [one.layer for one in long.representations] == [0]


def test_the_callers_list_is_left_alone():
    given = [dict(ONE)]
    IntervenableConfig(representations=given)
    assert given == [ONE]


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({}, SpecError, "representations is a RepresentationConfig, a dict, or a list of these; found ()"),
        ({"representations": []}, SpecError, r"found \[\]"),
        ({"representations": None}, SpecError, "found None"),
        ({"representations": [ONE, 5]}, SpecError, "a representation is a RepresentationConfig or a dict; found 5"),
        (
            {"representations": ONE, "mode": "paralel"},
            UnknownNameError,
            "unknown mode 'paralel'; did you mean 'paralle",
        ),
        ({"representation": ONE}, UnknownNameError, "did you mean 'representations'"),
        ({"representations": [ONE] * 2, "intervention_types": [ZeroIntervention]}, SpecError, "1 entries for 2 repres"),
        ({"representations": ONE, "interventions": [None, None]}, SpecError, "interventions has 2 entries for 1 repr"),
        ({"representations": [{"layer": 0, "group_key": 0}, ONE]}, SpecError, "group_key: give one to every"),
    ],
)
def test_a_configuration_refused(fields, error, message):
    with untyped(), pytest.raises(error, match=message):
        IntervenableConfig(**fields)


def test_the_nearest_word_on_the_intervention_counts():
    def double(base):
        return 2 * base

    zero, vanilla = ZeroIntervention(), VanillaIntervention()
    config = IntervenableConfig(
        representations=[
            {"layer": 0, "intervention": double},
            {"layer": 0, "intervention_type": ZeroIntervention},
            {"layer": 0},
            {"layer": 0},
        ],
        intervention_types=[ZeroIntervention, VanillaIntervention, VanillaIntervention, None],
        interventions=[vanilla, vanilla, zero, None],
    )
    assert config.specs() == [double, ZeroIntervention, zero, VanillaIntervention]
    assert IntervenableConfig(representations=[ONE, ONE], interventions=zero).specs() == [zero, zero]
    for_all = IntervenableConfig(representations=[ONE, ONE], intervention_types=ZeroIntervention)
    assert for_all.specs() == [ZeroIntervention] * 2


def test_groups_in_order_of_appearance():
    def grouped(*keys):
        return IntervenableConfig(representations=[{"layer": 0, "group_key": key} for key in keys]).groups()

    assert grouped(None, None, None) == [[0], [1], [2]]
    assert grouped("b", "a", "b") == [[0, 2], [1]]
    assert grouped(7, 7) == [[0, 1]]
    assert grouped(1, 0) == [[0], [1]]


def test_linked_representations_must_agree():
    def linked(one, two):
        return IntervenableConfig(
            representations=[{"layer": n, "intervention_link_key": "a", **more} for n, more in enumerate((one, two))]
        )

    linked({"subspace_partition": [[0, 2], [2, 4]]}, {"subspace_partition": torch.tensor([[0, 2], [2, 4]])})
    for one, two in [
        ({"subspace_partition": [[0, 2]]}, {"subspace_partition": [[0, 3]]}),
        ({"subspace_partition": [[0, 2]]}, {}),
        ({"intervention_type": ZeroIntervention}, {}),
        ({"low_rank_dimension": 1}, {"low_rank_dimension": 2}),
        ({"source_representation": torch.ones(3)}, {}),
    ]:
        with pytest.raises(SpecError, match="representations 0 and 1 share intervention_link_key='a'"):
            linked(one, two)
    IntervenableConfig(
        representations=[{"layer": 0, "intervention_link_key": 0}, {"layer": 1, "low_rank_dimension": 2}]
    )
