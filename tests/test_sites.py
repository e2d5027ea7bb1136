"""Where in the network: names, paths and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from tests.untyped import untyped

from align_transformers import COMPONENTS, Site, SpecError, UnknownNameError
from align_transformers.sites import COMPONENT_NAMES
from align_transformers.zoo import GRU_COMPONENTS

SKIPS = {
    "block_output": "block_input",
    "mlp_output": "mlp_input",
    "attention_output": "attention_input",
    "mixer_output": "mixer_input",
    "moe_output": "moe_input",
    "per_layer_mlp_output": "per_layer_mlp_input",
}
ENDS = ("embedding_output", "final_norm_output", "logits")
IN_BLOCKS = [name for name in COMPONENT_NAMES if name not in ENDS]


def test_the_components_are_those_that_users_know():
    attention = {
        *(
            "attention_output",
            "attention_value_output",
            "query_output",
            "key_output",
            "value_output",
            "attention_input",
            "attention_contribution",
        ),
        *("query_rotary", "key_rotary", "attention_score", "attention_pattern", "head_output", "head_contribution"),
    }
    per_head = attention - {"attention_output", "attention_input", "attention_contribution"}
    assert set(COMPONENT_NAMES) == {
        *("block_input", "block_output", "mlp_input", "mlp_activation", "mlp_output", "mlp_contribution"),
        *("mixer_input", "mixer_output", "mixer_contribution", "router_output", "expert_activation"),
        *("moe_input", "moe_output", "moe_contribution"),
        *(f"per_layer_mlp_{part}" for part in ("input", "activation", "output", "contribution")),
        *attention,
        *(f"head_{name}" for name in per_head),
        *(f"cross_{name}" for name in attention),
        *(f"head_cross_{name}" for name in per_head),
        *GRU_COMPONENTS,
        *ENDS,
    }


@pytest.mark.parametrize("name", IN_BLOCKS)
def test_a_named_component(name):
    site = Site(name, 2)
    assert site.path is None
    assert site.name == (name if name in ("head_output", "head_contribution") else name.removeprefix("head_"))
    assert str(site) == f"layer 2 {name}"


@pytest.mark.parametrize("name", ENDS)
def test_an_end_of_the_model_has_no_layer(name):
    assert (Site(name).name, Site(name).path, str(Site(name))) == (name, None, name)
    with pytest.raises(SpecError, match="is an end of the model; found layer=0"):
        Site(name, 0)


@pytest.mark.parametrize("stack", ["encoder", "decoder", "vision", "model.vision_tower.layers"])
def test_a_stack_in_front(stack):
    site = Site(f"{stack}.head_value_output", 1)
    assert (site.stack, site.name, site.path) == (stack, "value_output", None)
    assert Site(f"{stack}.mlp_output", 1).skip_source() == Site(f"{stack}.mlp_input", 1)


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


@pytest.mark.parametrize("path", ["h[3].mlp.output", "model.layers.3.output", "h[3].experts[0].input", "3.output"])
def test_a_layer_that_a_path_says_too_is_left_out(path):
    assert Site(path, 3) == Site(path)


@pytest.mark.parametrize("path", ["h3.output", "h[13].output", "h[3x].output", "lm_head.output", "output"])
def test_a_layer_that_a_path_does_not_say(path):
    with pytest.raises(SpecError, match="names its module itself; found layer=3 beside it"):
        Site(path, 3)


def test_numbers_of_numpy_become_plain_ones():
    with untyped():
        site = Site("mlp_output", np.arange(3)[2])
    assert site == Site("mlp_output", 2)
    assert type(site.layer) is int


def names_with(**facts):
    """Return the components that have these fields."""
    return {n for n, known in COMPONENTS.items() if all(getattr(known, field) == v for field, v in facts.items())}


def test_the_point_of_a_block_where_a_component_is():
    assert names_with(point="input") == {"block_input", "cell_input", "embedding_output"}
    assert names_with(point="output") == {"block_output", "cell_output", "final_norm_output", "logits"}


def test_what_is_not_one_row_a_token():
    shown = {"attention_score", "attention_pattern"}
    assert names_with(by_token=False) == shown | {f"cross_{name}" for name in shown}
    assert names_with(over_keys=True) == {"key_rotary"}  # a cache of the other sequence does not grow


def test_components_of_another_sequence():
    assert names_with(other_sequence=True) == {"cross_key_output", "cross_value_output", "cross_key_rotary"}
    assert Site("decoder.head_cross_key_output", 0).sequence == "encoder"
    assert Site("decoder.cross_query_output", 0).sequence == "decoder"
    assert Site("decoder.key_output", 0).sequence == "decoder"


@pytest.mark.parametrize("name", [name for name in COMPONENTS if name.startswith("cross_")])
def test_cross_attention_has_the_same_parts_as_self_attention(name):
    other, own = COMPONENTS[name], COMPONENTS[name.removeprefix("cross_")]
    assert (other.point, other.per_head, other.by_token) == (own.point, own.per_head, own.by_token)


def test_what_is_known_of_a_site():
    assert Site("encoder.head_value_output", 3).definition is COMPONENTS["value_output"]
    assert Site("logits").definition is COMPONENTS["logits"]
    assert Site("h[0].output").definition is None


@pytest.mark.parametrize("name", IN_BLOCKS)
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
