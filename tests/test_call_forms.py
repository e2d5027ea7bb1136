"""Calls as other libraries' users write them: each gives what a hook by hand gives, or says what to write."""

from __future__ import annotations

import pytest
import torch
from tests.helpers import FAMILIES, grab, locus, logits_with, tiny, tokens, writer
from tests.untyped import untyped
from torch import nn

from align_transformers import (
    AdditionIntervention,
    AlignError,
    CollectIntervention,
    IntervenableConfig,
    IntervenableModel,
    LowRankRotatedSpaceIntervention,
    PlanError,
    SiteError,
    SourcelessIntervention,
    SpecError,
    UnknownNameError,
    VanillaIntervention,
    ZeroIntervention,
)

BASE, SOURCE = tokens(2, 5), tokens(2, 5, 1)
MLP = {"layer": 1, "component": "mlp_output"}


@pytest.fixture(params=FAMILIES)
def model(request):
    return tiny(request.param)


def by_hand(model, columns, new, *, base=BASE):
    """Return the logits with `new(old, value, example)` at the columns of each example; value is the source's there."""
    place = locus(model, "mlp_output", 1)
    (value,) = grab(model, SOURCE, place)
    return logits_with(model, base, writer(place, columns, lambda old, n: new(old, value[n, list(columns[n])], n)))


# --- configurations ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        lambda: IntervenableConfig([MLP]),
        lambda: IntervenableConfig(MLP, VanillaIntervention),
        lambda: IntervenableConfig([MLP], VanillaIntervention, "serial", intervenable_model_type="gpt2"),
        lambda: IntervenableConfig("gpt2", [MLP], VanillaIntervention),
        lambda: {**MLP, "low_rank_dimension": 3, "intervention": VanillaIntervention(low_rank_dimension=3)},
    ],
)
def test_configurations_that_swap(model, config):
    _, got = IntervenableModel(config(), model)(BASE, SOURCE, 3 if config().__class__ is dict else {link(config()): 3})
    assert torch.equal(got.logits, by_hand(model, [[3], [3]], lambda old, value, n: value))


def link(config):
    return "sources->base" if config.mode == "parallel" else "source_0->base"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_that_says_again_what_a_path_says(family):
    model = tiny(family)
    path = "transformer.h[1].mlp.output" if family == "gpt2" else "model.layers.1.mlp.output"
    _, got = IntervenableModel({"layer": 1, "component": path}, model)(BASE, SOURCE, 3)
    assert torch.equal(got.logits, by_hand(model, [[3], [3]], lambda old, value, n: value))
    for layer in (0, 2):
        with pytest.raises(SpecError, match=f"names its module itself; found layer={layer} beside it"):
            IntervenableModel({"layer": layer, "component": path}, model)


@pytest.mark.parametrize(
    ("options", "instance"),
    [
        ({"low_rank_dimension": 2}, LowRankRotatedSpaceIntervention(embed_dim=32, low_rank_dimension=3)),
        ({"low_rank_dimension": 2}, VanillaIntervention()),
        ({"subspace_partition": [[0, 4]]}, VanillaIntervention(subspace_partition=[[0, 5]])),
        ({"source_representation": torch.zeros(32)}, VanillaIntervention(source_representation=torch.ones(32))),
        ({"source_representation": torch.zeros(32)}, VanillaIntervention()),
    ],
)
def test_options_beside_an_instance_that_was_made_with_others(options, instance):
    with pytest.raises(SpecError, match=f"{next(iter(options))} came with a finished {type(instance).__name__}"):
        IntervenableModel({**MLP, **options, "intervention": instance}, tiny("gpt2"))


def test_options_that_an_instance_has_already():
    constant = torch.randn(32)
    instance = VanillaIntervention(subspace_partition=[[0, 4], [4, 32]], source_representation=constant)
    options = {"subspace_partition": [range(4), range(4, 32)], "source_representation": constant.clone()}
    face = IntervenableModel({**MLP, **options, "intervention": instance}, tiny("gpt2"))
    assert list(face.interventions.values()) == [instance]


# --- units ---------------------------------------------------------------------------------------------------------


def test_more_units_than_said_where_each_is_edited_by_itself(model):
    where = [[1, 3], [0, 2]]
    _, got = IntervenableModel(MLP, model)(BASE, SOURCE, {"sources->base": ([where], [where])})
    assert torch.equal(got.logits, by_hand(model, where, lambda old, value, n: value))
    das = LowRankRotatedSpaceIntervention(embed_dim=32, low_rank_dimension=2)
    _, got = IntervenableModel({**MLP, "intervention": das}, model)(BASE, SOURCE, {"sources->base": ([where], [where])})
    r = das.rotation
    expected = by_hand(model, where, lambda old, value, n: old + (value @ r - old @ r) @ r.T)
    assert torch.allclose(got.logits, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("spec", "locations"),
    [
        ({**MLP, "intervention": VanillaIntervention(keep_last_dim=False)}, {"base": [1, 3]}),
        ({"layer": 1, "component": "attention_value_output", "unit": "h"}, {"base": [1, 3]}),
        ({"layer": 1, "component": "attention_value_output", "unit": "h.pos"}, {"base": [[[[0, 1]] * 2, [[1]] * 2]]}),
    ],
)
def test_more_units_than_said_where_they_are_one_vector(spec, locations):
    with pytest.raises(SpecError, match="2 units, but max_number_of_units is 1"):
        IntervenableModel(spec, tiny("gpt2"))(BASE, SOURCE, locations)


def test_a_place_named_again_with_the_same_source_is_written_once(model):
    read, write = [[1, 2, 2], [0, 1, 0]], [[3, 4, 4], [2, 4, 2]]
    _, got = IntervenableModel(MLP, model)(BASE, SOURCE, {"sources->base": ([read], [write])})
    place = locus(model, "mlp_output", 1)
    (value,) = grab(model, SOURCE, place)
    once, of = [[3, 4], [2, 4]], [[1, 2], [0, 1]]
    assert torch.equal(got.logits, logits_with(model, BASE, writer(place, once, lambda old, n: value[n, of[n]])))
    plus = IntervenableModel({**MLP, "intervention": lambda base: base + 1}, model)
    _, got = plus(BASE, unit_locations={"base": [[[1, 1], [2, 3]]]})
    assert torch.equal(got.logits, logits_with(model, BASE, writer(place, [[1], [2, 3]], lambda old, n: old + 1)))


def test_a_place_with_two_sources_is_refused(model):
    with pytest.raises(SpecError, match="example 0 names a position twice"):
        IntervenableModel(MLP, model)(BASE, SOURCE, {"sources->base": ([1, 2], [3, 3])})
    face = IntervenableModel({**MLP, "intervention_type": AdditionIntervention}, model)
    with pytest.raises(SpecError, match="names a position twice"):  # a constant for each unit: which of the two?
        face(BASE, unit_locations={"base": [1, 1]}, source_representations=torch.randn(2, 32))


# --- subspaces -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subspaces", [[[None, None]], [None, None], [None], None])
def test_no_example_chooses_a_subspace(model, subspaces):
    where = [[1], [3]]
    _, got = IntervenableModel(MLP, model)(BASE, SOURCE, {"sources->base": ([where], [where])}, subspaces=subspaces)
    assert torch.equal(got.logits, by_hand(model, where, lambda old, value, n: value))


@pytest.mark.parametrize("subspaces", [[[[0, 1], None]], [[0, 1], None]])
@pytest.mark.parametrize("usual", [32, 5])
def test_one_example_chooses_none(model, subspaces, usual):
    """It is edited as in a call that chooses none: in the first `interchange_dim` coordinates, where that is said."""

    def new(old, value, n):
        old[:, : usual if n else 2] = value[:, : usual if n else 2]
        return old

    face = IntervenableModel({**MLP, "intervention": VanillaIntervention(interchange_dim=usual)}, model)
    _, got = face(BASE, SOURCE, {"sources->base": ([[1], [3]], [[1], [3]])}, subspaces=subspaces)
    assert torch.equal(got.logits, by_hand(model, [[1], [3]], new))


class Steer(SourcelessIntervention):
    def forward(self, base, source=None, subspaces=None):
        return base + subspaces["mag"].view(-1, 1, 1)


MAG = torch.tensor([1.0, 2.0])


@pytest.mark.parametrize("subspaces", [[{"mag": MAG}], {"mag": MAG}])
def test_anything_is_handed_to_an_intervention_of_the_users(model, subspaces):
    expected = logits_with(model, BASE, writer(locus(model, "mlp_output", 1), None, lambda old, n: old + MAG[n]))
    one = IntervenableModel({**MLP, "intervention_type": Steer}, model)
    assert torch.equal(one(BASE, subspaces=subspaces)[1].logits, expected)
    again = {"mag": 3 * MAG}
    assert not torch.equal(one(BASE, subspaces=again)[1].logits, expected), "the last call's is not remembered"
    of_three = IntervenableModel(
        {**MLP, "intervention": lambda base, _, subspaces: Steer()(base, None, subspaces)}, model
    )
    assert torch.equal(of_three(BASE, subspaces=subspaces)[1].logits, expected)


def test_numbers_for_one_intervention_and_anything_for_another(model):
    specs = [{**MLP, "intervention_type": Steer}, {**MLP, "layer": 2, "intervention": VanillaIntervention()}]
    value = {"mag": MAG}
    together = IntervenableModel(specs, model)(BASE, SOURCE, subspaces=[value, [[0, 1], None]])[1].logits
    first, second = locus(model, "mlp_output", 1), locus(model, "mlp_output", 2)
    (seen,) = grab(model, SOURCE, second)

    def swap(old, n):
        old[:, : 32 if n else 2] = seen[n, :, : 32 if n else 2]
        return old

    edits = writer(first, None, lambda old, n: old + MAG[n]), writer(second, None, swap)
    assert torch.equal(together, logits_with(model, BASE, *edits))


def test_what_is_handed_is_read_by_nobody(model):
    for value in ({"mag": MAG}, "all", [[0.5]], torch.tensor([[0.5], [1.0]])):
        with pytest.raises(SpecError, match="subspaces of VanillaIntervention at layer 1 mlp_output are numbers"):
            IntervenableModel(MLP, model)(BASE, SOURCE, 3, subspaces=value)
    with pytest.raises(SpecError, match="one entry for each of the 1 interventions; found 2"):
        IntervenableModel({**MLP, "intervention_type": Steer}, model)(BASE, subspaces=[{"mag": MAG}] * 2)


@pytest.mark.parametrize("subspaces", [[1, 6], 3, "ab", [[0], ["x"]], [[0], [0.5]], [[0]], [[99], [0]], {"a": 1}])
def test_wrong_subspaces_by_hand(subspaces):
    with untyped(), pytest.raises(AlignError):
        VanillaIntervention()(torch.zeros(2, 3, 6), torch.ones(2, 3, 6), subspaces)


# --- keywords ------------------------------------------------------------------------------------------------------


def test_constant_sources_under_their_older_name(model):
    face, constant = IntervenableModel({**MLP, "intervention_type": AdditionIntervention}, model), torch.randn(32)
    place = locus(model, "mlp_output", 1)
    expected = logits_with(model, BASE, writer(place, [[3], [3]], lambda old, n: old + constant))
    assert torch.equal(face(BASE, unit_locations={"base": 3}, activations_sources=constant)[1].logits, expected)
    with pytest.raises(SpecError, match="'activations_sources' is another name of 'source_representations'"):
        face(BASE, activations_sources=constant, source_representations=constant)
    _, ids = face.generate(BASE, activations_sources=constant, max_new_tokens=2)
    assert torch.equal(ids, face.generate(BASE, source_representations=constant, max_new_tokens=2)[1])


@pytest.mark.parametrize("keyword", ["positions", "scale", "activation_sources", "token_ids", "position_id"])
def test_a_keyword_that_nobody_names_is_refused_before_anything_runs(model, keyword):
    face = IntervenableModel({**MLP, "intervention_type": ZeroIntervention}, model)

    def refuse(*_):
        raise AssertionError("the model ran")

    with model.register_forward_pre_hook(refuse):
        for call in (face, face.generate):
            with pytest.raises(UnknownNameError, match=f"no argument '{keyword}'"):
                call(BASE, **{keyword: 1})


def test_keywords_that_the_model_names(model):
    face = IntervenableModel({**MLP, "intervention": lambda base: base}, model)
    mask = BASE["attention_mask"]
    _, got = face({"input_ids": BASE["input_ids"]}, attention_mask=mask, output_hidden_states=True, labels=mask)
    assert (len(got.hidden_states), got.loss is None) == (4, False)
    _, ids = face.generate(BASE, max_new_tokens=2, do_sample=False, repetition_penalty=1.5, tokenizer=None)
    assert torch.equal(ids, model.generate(**BASE, max_new_tokens=2, do_sample=False, repetition_penalty=1.5))


class Wrapper(nn.Module):
    """Hands on what it gets to a model inside, and reads one thing that only its docstring tells.

    Args:
        scale: of the logits.
    """

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return self.inner(
            *args, **{k: v for k, v in kwargs.items() if k not in ("scale", "secret")}
        ).logits * kwargs.get("scale", 1)


def test_keywords_of_a_wrapper_are_those_of_what_it_wraps(model):
    face = IntervenableModel({"component": "inner.lm_head.output", "intervention": lambda base: base}, Wrapper(model))
    _, got = face({"input_ids": BASE["input_ids"]}, attention_mask=BASE["attention_mask"], scale=2)
    assert torch.equal(got, 2 * model(**BASE).logits)
    with pytest.raises(UnknownNameError, match="What the model reads without naming it goes into the base"):
        face(BASE, secret=1)
    face({**BASE, "secret": 1})


# --- nothing to do -------------------------------------------------------------------------------------------------


def test_a_call_with_nothing_to_do_says_what_to_call(model):
    with pytest.raises(
        PlanError, match=r"needs a source: .*For a run without interventions.*intervenable.model\(\*\*base\)"
    ):
        IntervenableModel(MLP, model)(BASE)


@pytest.mark.parametrize(
    ("layer", "meant"),
    [(-1, [2]), (-3, [0]), ([0, -1], [0, 2]), (range(1, 3), [1, 2]), ("all", [0, 1, 2]), (torch.tensor([1, 1]), [1])],
)
def test_layers_are_written_as_numbers_from_either_end_as_several_or_as_all(model, planner, layer, meant):
    face = IntervenableModel({"layer": layer, "component": "mlp_output", "intervention_type": ZeroIntervention}, model)
    by_hand = IntervenableModel(
        [{"layer": n, "component": "mlp_output", "intervention_type": ZeroIntervention} for n in meant], model
    )
    assert [one.layer for one in face.config.representations] == meant
    assert list(face.interventions) == list(by_hand.interventions)
    by_hooks = [writer(locus(model, "mlp_output", n), None, lambda old, _: torch.zeros_like(old)) for n in meant]
    assert torch.equal(face(BASE)[1].logits, logits_with(model, BASE, *by_hooks))


def test_a_representation_at_several_layers_has_one_source_and_an_intervention_for_each(model, planner):
    two = {"layer": "all", "component": "mlp_output", "intervention_type": LowRankRotatedSpaceIntervention}
    one = {"layer": -1, "component": "attention_output", "intervention_type": VanillaIntervention}
    face = IntervenableModel([{**two, "low_rank_dimension": 2}, one], model)
    assert len(set(face.interventions.values())) == 4
    assert face.config.groups() == [[0, 1, 2], [3]]
    other = tokens(2, 5, 7)
    got = face(BASE, [SOURCE, other], {"sources->base": 2})[1].logits
    apart = IntervenableModel(
        [
            {"layer": n, "component": "mlp_output", "intervention": face.representations[n].intervention}
            for n in range(3)
        ]
        + [{**one, "layer": 2}],
        model,
    )
    assert torch.equal(got, apart(BASE, [SOURCE, SOURCE, SOURCE, other], {"sources->base": 2})[1].logits)
    shared = IntervenableModel({"layer": [0, 1], "component": "mlp_output", "intervention": lambda b: b * 2}, model)
    kinds = IntervenableConfig(
        representations=[{"layer": [0, 1]}, {"layer": 2}], intervention_types=[ZeroIntervention, VanillaIntervention]
    )
    names = [type(i).__name__ for i in IntervenableModel(kinds, model).interventions.values()]
    assert len(shared.interventions) == 2
    assert names == ["ZeroIntervention", "ZeroIntervention", "VanillaIntervention"]


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"layer": -4}, SiteError, "layer -4 does not exist: .* has 3 blocks"),
        ({"layer": [0, 3]}, SiteError, "layer 3 does not exist"),
        ({"layer": []}, SpecError, "layer is a number, several numbers, or 'all'; found layer="),
        ({"layer": "last"}, SpecError, "found layer='last'"),
        ({"layer": True}, SpecError, "found layer=True"),
        ({"layer": -1, "component": "logits"}, SpecError, "logits is not in a block; found layer=-1 beside it"),
        ({"layer": "all", "component": "lm_head.output"}, SpecError, "is not in a block"),
    ],
)
def test_layers_that_there_are_not_are_refused(model, fields, error, message):
    with untyped(), pytest.raises(error, match=message):
        IntervenableModel({"component": "mlp_output", "intervention_type": ZeroIntervention, **fields}, model)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("The capital", "return_tensors='pt'"),
        ({"input_ids": torch.tensor([4, 5])}, r"found the shape \(2,\): a single example is input_ids\[None\]"),
        ({"input_ids": torch.ones(1, 2)}, r"found torch.float32: input_ids.long\(\)"),
        ({"input_ids": torch.ones(0, 2, dtype=torch.long)}, "there are no examples"),
        ({"input_ids": [[4, 5]]}, "found a list: torch.tensor makes one"),
        (torch.ones(1, 2), r"found torch.float32: input_ids.long\(\)"),
    ],
)
def test_what_is_no_batch_of_token_ids_is_refused_before_the_model_sees_it(model, inputs, message):
    face = IntervenableModel({**MLP, "intervention_type": ZeroIntervention}, model)
    swap = IntervenableModel({**MLP, "intervention_type": VanillaIntervention}, model)
    with untyped(), model.register_forward_pre_hook(lambda *_: pytest.fail("the model was called")):
        calls = [lambda: face(inputs), lambda: swap(BASE, inputs)]
        if not isinstance(inputs, torch.Tensor):
            calls.append(lambda: face.generate(inputs, max_new_tokens=1))
        for call in calls:
            with pytest.raises(SpecError, match=message):
                call()


@pytest.mark.parametrize("where", [None, 1, [1, 2], [], -1])
def test_a_batch_without_examples_gives_an_output_without_examples(planner, where):
    mixer = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    site = {"component": "1.output", "max_number_of_units": 2}
    empty = torch.zeros(0, 5, 3)
    zero = IntervenableModel({**site, "intervention_type": ZeroIntervention}, mixer)
    assert zero(empty, unit_locations=None if where is None else {"base": where})[1].shape == (0, 5, 2)
    swap = IntervenableModel({**site, "intervention_type": VanillaIntervention}, mixer)
    assert swap(empty, empty, None if where is None else {"sources->base": (where, where)})[1].shape == (0, 5, 2)


def test_what_is_collected_is_returned_or_not_asked_for(model, planner):
    look = IntervenableModel({**MLP, "intervention_type": CollectIntervention}, model)
    with model.register_forward_pre_hook(lambda *_: pytest.fail("the model was called")):
        with pytest.raises(PlanError, match="with return_dict=True there are collected_activations"):
            look(BASE, unit_locations={"base": 2})
        with pytest.raises(PlanError, match="with return_dict=True there are collected_activations"):
            look.generate(BASE, max_new_tokens=1)
    assert torch.equal(look(BASE, return_dict=False)[1].logits, model(**BASE).logits)
    (seen,) = grab(model, BASE, locus(model, "mlp_output", 1))
    assert torch.equal(look(BASE, unit_locations={"base": 2}, return_dict=True).collected_activations[0], seen[:, 2:3])
