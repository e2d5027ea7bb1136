"""Where in the network: names, paths and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from tests.untyped import untyped

from align_transformers import COMPONENTS, Site, SpecError, UnknownNameError
from align_transformers.sites import COMPONENT_NAMES

SKIPS = {"block_output": "block_input", "mlp_output": "mlp_input", "attention_output": "attention_input"}


def test_the_components_are_those_that_users_know():
    assert set(COMPONENT_NAMES) == {
        *("block_input", "block_output", "mlp_input", "mlp_activation", "mlp_output"),
        *("attention_input", "attention_output", "attention_value_output"),
        *("query_output", "key_output", "value_output", "head_attention_value_output"),
        *("head_query_output", "head_key_output", "head_value_output"),
    }


@pytest.mark.parametrize("name", COMPONENT_NAMES)
def test_a_named_component(name):
    site = Site(name, 2)
    assert site.path is None
    assert site.name == name.removeprefix("head_")
    assert str(site) == f"layer 2 {name}"


@pytest.mark.parametrize(
    ("component", "path"),
    [
        ("transformer.h[0].mlp.output", ("transformer.h.0.mlp", "output")),
        ("transformer.h.0.mlp.input", ("transformer.h.0.mlp", "input")),
        ("experts[name].input", ("experts.name", "input")),
        ("a.output.input", ("a.output", "input")),
        ("output", ("", "output")),
        ("input", ("", "input")),
    ],
)
def test_a_path(component, path):
    assert Site(component).path == path
    assert Site(component).name is None


@pytest.mark.parametrize("component", ["mlp_outptu", "transformer.h.0.mlp", "", ".output", "mlp_output.", "outputs"])
def test_neither_a_name_nor_a_path(component):
    with pytest.raises(UnknownNameError, match=r"unknown component .*\.input or \.output"):
        Site(component, 0)


def test_near_misses_are_named():
    with pytest.raises(UnknownNameError, match="did you mean 'mlp_output'"):
        Site("mlp_outptu", 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mlp_output",), "needs a layer number from 0"),
        (("mlp_output", -1), "layer is a number from 0; found layer=-1"),
        (("mlp_output", "0"), "found layer='0'"),
        (("mlp_output", 1.0), "found layer=1.0"),
        (("mlp_output", True), "found layer=True"),
        (("mlp_output", 0, -1), "call is a number from 0; found call=-1"),
        (("h[0].output", 1), "names its module itself; found layer=1 beside it"),
        ((0, "mlp_output"), "layer comes first; found 0"),
    ],
)
def test_refused(arguments, message):
    with untyped(), pytest.raises(SpecError, match=message):
        Site(*arguments)


def test_numbers_of_numpy_become_plain_ones():
    with untyped():
        site = Site("mlp_output", np.arange(3)[2])
    assert site == Site("mlp_output", 2)
    assert type(site.layer) is int


@pytest.mark.parametrize("name", COMPONENT_NAMES)
def test_skipping_a_component(name):
    if name in SKIPS:
        assert Site(name, 3, call=1).skip_source() == Site(SKIPS[name], 3, call=1)
    else:
        with pytest.raises(SpecError, match="cannot be skipped: only block_output, mlp_output, attention_output"):
            Site(name, 3).skip_source()


def test_skipping_a_path():
    assert Site("h[0].mlp.output", call=2).skip_source() == Site("h.0.mlp.input", call=2)
    assert Site("output").skip_source() == Site("input")
    with pytest.raises(SpecError, match="cannot be skipped"):
        Site("h[0].mlp.input").skip_source()


def test_words():
    assert str(Site("h[0].output", call=1)) == "h[0].output (call 1)"
    assert all(component.meaning for component in COMPONENTS.values())
