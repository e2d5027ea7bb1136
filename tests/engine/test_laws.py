"""The laws of the engine, each with the defect of other libraries that it forbids (LESSONS A.2 has the numbers)."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from tests.helpers import (
    FAMILIES,
    LAYERS,
    VOCAB,
    grab,
    hook_counts,
    hooked,
    locus,
    logits_with,
    new_model,
    tiny,
    tokens,
    writer,
)
from torch import nn

from align_transformers import (
    AdditionIntervention,
    CollectIntervention,
    Edit,
    IntervenableModel,
    Intervention,
    InterventionError,
    NeverFiredError,
    Plan,
    PlanError,
    Positions,
    Read,
    Run,
    Site,
    VanillaIntervention,
    ZeroIntervention,
    bind,
    execute,
)

AT = [[1], [3]]


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def model(family):
    return tiny(family)


def at(component, layer, **more):
    return {"layer": layer, "component": component, **more}


# --- law 1: hooks (D3) ------------------------------------------------------------------------------------------------


def test_hooks_of_others_survive_and_see_the_edited_output(family):
    model, base, source = new_model(family), tokens(2, 5), tokens(2, 5, 1)
    place = locus(model, "mlp_output", 1)
    seen: list[torch.Tensor] = []
    with hooked((place.module, "output", lambda t: seen.append(t.clone()))):
        face = IntervenableModel(at("mlp_output", 1), model)  # watches a dummy pass, of which others do not hear
        before = hook_counts(model)
        face(base, source)
        assert hook_counts(model) == before
        model(**base)
    (value,), (plain,) = grab(model, source, place), grab(model, base, place)
    assert len(seen) == 3
    assert torch.equal(seen[1], value)
    assert torch.equal(seen[2], plain)


@pytest.mark.parametrize("first_use", ["inside", "before"])
def test_hidden_states_are_complete_and_show_the_edit(family, first_use):
    model, base, source = new_model(family), tokens(2, 5), tokens(2, 5, 1)
    if first_use == "before":
        model(**base, output_hidden_states=True)
    face = IntervenableModel(at("block_output", 1), model)
    _, during = face(base, source, output_hidden_states=True)
    after = model(**base, output_hidden_states=True)
    other = model(**source, output_hidden_states=True)
    assert len(during.hidden_states) == len(after.hidden_states) == LAYERS + 1
    assert torch.equal(during.hidden_states[1], after.hidden_states[1])
    assert torch.equal(during.hidden_states[2], other.hidden_states[2])
    assert torch.equal(during.hidden_states[3], other.hidden_states[3])
    assert not torch.equal(after.hidden_states[2], other.hidden_states[2])


def test_attentions_are_complete(family):
    model, base = new_model(family), tokens(2, 5)
    model.set_attn_implementation("eager")
    face = IntervenableModel(at("query_output", 1, intervention_type=ZeroIntervention), model)
    _, during = face(base, output_attentions=True)
    after = model(**base, output_attentions=True)
    assert len(during.attentions) == len(after.attentions) == LAYERS
    even = torch.tril(torch.ones(5, 5)) / torch.arange(1, 6).view(5, 1)
    torch.testing.assert_close(during.attentions[1], even.expand(2, 4, 5, 5))
    assert torch.equal(during.attentions[0], after.attentions[0])


def test_an_exception_in_a_source_run_leaves_no_hook(model):
    def broken(base):
        raise KeyError("mine")

    face = IntervenableModel(
        {
            "mode": "serial",
            "representations": [at("mlp_output", 0, intervention=broken), at("mlp_output", 1, group_key=None)],
        },
        model,
    )
    before = hook_counts(model)
    both = {"source_0->source_1": (AT, AT), "source_1->base": (AT, AT)}
    with pytest.raises(KeyError, match="mine"):
        face(tokens(2, 5), [tokens(2, 5, 1), tokens(2, 5, 2)], both)
    assert hook_counts(model) == before


def test_an_exception_in_the_model_leaves_no_hook(model):
    before = hook_counts(model)
    with pytest.raises(IndexError):
        IntervenableModel(at("mlp_output", 0), model)({"input_ids": torch.tensor([[VOCAB]])}, tokens(1, 1))
    assert hook_counts(model) == before


# --- law 2: nothing in place (D7, D22) --------------------------------------------------------------------------------


def test_zeroing_the_queries_input_leaves_keys_and_values_alone():
    model, base = tiny("llama"), tokens(2, 5)
    attention = model.model.layers[1].self_attn
    whole = [locus(model, name, 1) for name in ("key_output", "value_output")]
    key, value = grab(model, base, *whole)
    seen = {}
    face = IntervenableModel(
        {"component": "model.layers[1].self_attn.q_proj.input", "intervention_type": ZeroIntervention}, model
    )
    with hooked(
        (attention.q_proj, "output", lambda t: seen.update(q=t.clone())),
        (attention.k_proj, "output", lambda t: seen.update(k=t.clone())),
        (attention.v_proj, "output", lambda t: seen.update(v=t.clone())),
    ):
        face(base)
    assert not seen["q"].any()
    assert torch.equal(seen["k"], key)
    assert torch.equal(seen["v"], value)


def test_a_block_input_edit_leaves_the_block_before_alone(model):
    base, place = tokens(2, 5), locus(model, "block_output", 0)
    (plain,) = grab(model, base, place)
    kept = []
    with hooked((place.module, "output", lambda t: kept.append(t))):
        IntervenableModel(at("block_input", 1, intervention_type=ZeroIntervention), model)(base)
    assert torch.equal(kept[0], plain)


@pytest.mark.parametrize("heads", [[[1], [1]], [[1], [3]], [[0, 2], [3]]])
def test_a_head_edit_leaves_the_tensor_it_found_alone(model, heads):
    base, place = tokens(2, 5), locus(model, "attention_value_output", 1)
    (plain,) = grab(model, base, place)
    kept = []
    with hooked((place.module, "input", lambda t: kept.append(t))):
        zero = at("attention_value_output", 1, unit="h", intervention_type=ZeroIntervention, max_number_of_units=2)
        IntervenableModel(zero, model)(base, None, {"base": [heads]})
    assert torch.equal(kept[0], plain)


class Overwriting(nn.Module):
    """Writes into its own activations, as models may."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.act = nn.Linear(4, 4), nn.Linear(4, 2), nn.ReLU(inplace=True)

    def forward(self, x):
        return self.second(self.act(self.first(x)))


def test_sources_and_constants_survive_a_model_that_writes_in_place():
    model, base = Overwriting(), torch.randn(3, 4)
    vector = -torch.ones(3, 4)
    face = IntervenableModel({"component": "first.output"}, model)
    _, got = face(base, None, source_representations=vector)
    assert torch.equal(got, model.second(torch.zeros(3, 4)))
    assert torch.equal(vector, -torch.ones(3, 4))
    _, narrow = face(base, None, source_representations=-torch.ones(4))
    assert torch.equal(narrow, got)
    look = IntervenableModel({"component": "first.output", "intervention_type": CollectIntervention}, model)
    assert torch.equal(look(base, return_dict=True).collected_activations[0], model.first(base))


def test_one_captured_source_serves_several_edits_of_a_model_that_writes_in_place():
    model, base, source = Overwriting(), torch.randn(3, 4), torch.randn(3, 4)
    site = {"component": "first.output", "group_key": 0}
    face = IntervenableModel([site, {**site, "intervention": lambda b, s: s * 2}], model)
    assert torch.equal(face(base, source)[1], model.second(torch.relu(model.first(source) * 2)))


def test_a_function_that_writes_into_its_base_touches_nothing_else(model):
    base, place = tokens(2, 5), locus(model, "mlp_output", 1)

    def clobber(b):
        b[..., 0] = 7.0
        return b

    got = IntervenableModel(at("mlp_output", 1, intervention=clobber), model)(
        base, None, {"base": [AT]}, return_dict=True
    )

    def by_hand(old, n):
        old[:, 0] = 7.0
        return old

    assert torch.equal(got.intervened_outputs.logits, logits_with(model, base, writer(place, AT, by_hand)))
    old = grab(model, base, place)[0].detach()
    change = math.hypot(*(7.0 - float(old[n, AT[n][0], 0]) for n in range(2)))
    assert got.effects[0].change == pytest.approx(change, rel=1e-5)


class Clobber(Intervention):
    def forward(self, base, source=None, subspaces=None):
        return source.add_(1)


def test_an_intervention_that_writes_into_its_source_is_refused(model):
    before = hook_counts(model)
    with pytest.raises(InterventionError, match="wrote into its source"):
        IntervenableModel(at("mlp_output", 1, intervention=Clobber()), model)(tokens(2, 5), tokens(2, 5, 1))
    assert hook_counts(model) == before


@pytest.mark.parametrize("component", ["mlp_activation", "attention_value_output", "head_query_output", "block_input"])
def test_gradients_flow_through_an_edit_and_to_its_source(family, component):
    model, base, source = new_model(family).train(), tokens(2, 5), tokens(2, 5, 1)
    embeddings = {
        k: model.get_input_embeddings()(x["input_ids"]).detach().requires_grad_()
        for k, x in (("b", base), ("s", source))
    }
    face = IntervenableModel(at(component, 1), model)
    _, got = face(
        {"inputs_embeds": embeddings["b"]}, {"inputs_embeds": embeddings["s"]}, {"sources->base": ([AT], [AT])}
    )
    got.logits[:, -1].sum().backward()
    for name in "bs":
        assert embeddings[name].grad.abs().sum() > 0
    from_source = embeddings["s"].grad
    assert from_source[0, 2:].abs().sum() == 0, "nothing after the position that was read"
    weights = [p.grad for p in model.parameters() if p.grad is not None]
    assert weights
    assert all(torch.isfinite(grad).all() for grad in weights)


def test_the_gradient_is_that_of_the_hand_written_hook(family):
    base, source, grads = tokens(2, 5), tokens(2, 5, 1), []
    for how in ("library", "hand"):
        model = new_model(family, dtype=torch.float64)
        place = locus(model, "mlp_output", 1)
        if how == "library":
            _, got = IntervenableModel(at("mlp_output", 1), model)(base, source, {"sources->base": ([AT], [AT])})
            logits = got.logits
        else:
            (value,) = grab(model, source, place)
            logits = logits_with(model, base, writer(place, AT, lambda old, n, v=value: v[n, AT[n]]))
        logits.pow(2).sum().backward()
        grads.append([p.grad for p in model.parameters()])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


# --- law 3: the model and the caller's things are not changed (D12, D13) ----------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_as_it_was(family, training):
    model = new_model(family).train(training)
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 2 == 0)
    state = copy.deepcopy(model.state_dict())
    flags = [parameter.requires_grad for parameter in model.parameters()]
    config, attention = model.config.to_dict(), model.config._attn_implementation
    modes = [module.training for module in model.modules()]
    face = IntervenableModel(
        [at("query_output", 1, unit="h"), at("mlp_output", 0, intervention=lambda b: b * 0)], model
    )
    face(tokens(2, 5), [tokens(2, 5, 1), None], {"sources->base": ([[[0], [1]], None], [[[0], [1]], AT])})
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert (model.config.to_dict(), model.config._attn_implementation) == (config, attention)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_the_callers_arguments_are_as_they_were(model):
    base, source = tokens(2, 5), tokens(2, 5, 1)
    sources, locations, subspaces = [source], {"sources->base": ([AT, AT], [AT, AT])}, [[[0], [1]], None]
    config = [at("mlp_output", 0, group_key=0), at("mlp_output", 1, group_key=0)]
    given = (base, sources, locations, subspaces, config)
    kept = copy.deepcopy(given)
    face = IntervenableModel(config, model)
    face(base, sources, locations, subspaces=subspaces, use_cache=False)
    assert len(sources) == 1
    assert sources[0] is source
    assert (locations, subspaces, config) == kept[2:]
    for now, before in ((base, kept[0]), (source, kept[1][0])):
        assert now.keys() == before.keys()
        assert all(torch.equal(now[name], before[name]) for name in before)


# --- law 4: no silent no-op, and the ledger (D8) ----------------------------------------------------------------------


class TwoBranches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle, self.shared = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.shared(torch.relu(self.shared(self.used(x))))


@pytest.mark.parametrize("kind", [ZeroIntervention, CollectIntervention])
def test_an_edit_that_never_fires_raises(kind):
    model = TwoBranches()
    face = IntervenableModel({"component": "idle.output", "intervention_type": kind}, model)
    with pytest.raises(NeverFiredError, match=r"idle\.output"):
        face(torch.randn(2, 4), return_dict=True)
    assert sum(hook_counts(model).values()) == 0


def test_a_read_that_never_fires_raises():
    model, site = TwoBranches(), Site("idle.output")
    edit = Edit("e", Site("used.output"), "swap", source=Read("s", site))
    plan = Plan((Run("s", "x"), Run("b", "x", (edit,))), ("b",))
    bound = bind(model, plan, {"x": torch.randn(2, 4)}, {"swap": VanillaIntervention()})
    with pytest.raises(NeverFiredError, match=r"run 's' never reached idle\.output"):
        execute(bound)


def test_a_call_past_the_last_raises():
    face = IntervenableModel(
        {"component": "shared.output", "call": 2, "intervention_type": ZeroIntervention}, TwoBranches()
    )
    with pytest.raises(NeverFiredError, match="call 2"):
        face(torch.randn(2, 4))


def test_a_module_called_twice_is_edited_at_every_call_or_at_the_one_named():
    """D24."""
    model, x = TwoBranches(), torch.randn(2, 4)
    double = {"component": "shared.output", "intervention": lambda b: b * 2}
    h = model.used(x)
    every = model.shared(torch.relu(model.shared(h) * 2)) * 2
    second = model.shared(torch.relu(model.shared(h))) * 2
    first = model.shared(torch.relu(model.shared(h) * 2))
    got = IntervenableModel(double, model)(x, return_dict=True)
    assert torch.equal(got.intervened_outputs, every)
    assert got.effects[0].fired == 2
    assert torch.equal(IntervenableModel({**double, "call": 1}, model)(x)[1], second)
    assert torch.equal(IntervenableModel({**double, "call": 0}, model)(x)[1], first)


def test_a_module_called_twice_is_swapped_call_by_call():
    model, x, y = TwoBranches(), torch.randn(2, 4), torch.randn(2, 4)
    edit = {"component": "shared.output", "intervention": lambda b, s: b + s}
    h, g = model.used(x), model.shared(model.used(y))
    expected = model.shared(torch.relu(model.shared(h) + g)) + model.shared(torch.relu(g))
    assert torch.equal(IntervenableModel(edit, model)(x, y)[1], expected)


def test_the_ledger_counts_by_hand(model):
    base, source = tokens(3, 6), tokens(3, 6, 1)
    write = [[1, 4], [], [2]]
    place = locus(model, "mlp_output", 1)
    (old,), (new,) = grab(model, base, place), grab(model, source, place)
    face = IntervenableModel(at("mlp_output", 1, max_number_of_units=2), model)
    got = face(base, source, {"sources->base": ([write], [write])}, return_dict=True)
    (effect,) = got.effects
    squares = sum((new[n, c] - old[n, c]).pow(2).sum().item() for n in range(3) for c in write[n])
    assert (effect.fired, effect.rows, effect.positions) == (1, 2, 3)
    assert effect.change == pytest.approx(math.sqrt(squares), rel=1e-5)
    assert effect.site == "layer 1 mlp_output"


def test_the_ledger_of_a_look_has_no_change(model):
    face = IntervenableModel(at("mlp_output", 1, intervention_type=CollectIntervention), model)
    (effect,) = face(tokens(2, 5), return_dict=True).effects
    assert (effect.fired, effect.rows, effect.positions, effect.change) == (1, 2, 10, 0.0)


def test_edits_of_generated_tokens_are_refused_in_a_forward_pass(model):
    edit = Edit("e", Site("mlp_output", 0), "zero", Positions(((),), steps="all"))
    bound = bind(model, Plan((Run("b", "b", (edit,)),), ("b",)), {"b": tokens(1, 4)}, {"zero": ZeroIntervention()})
    with pytest.raises(PlanError, match="generates none"):
        execute(bound)


# --- wrong interventions, other precisions ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong", [lambda b: b[..., :3], lambda b: b.repeat(1, 2, 1), lambda b: b.mean()[None, None, None, None]]
)
def test_a_wrong_shape_is_refused_with_both_shapes(model, wrong):
    face = IntervenableModel(at("mlp_output", 1, intervention=wrong), model)
    before = hook_counts(model)
    with pytest.raises(InterventionError, match=r"returned shape .*; the base has \(2, 1, 32\)"):
        face(tokens(2, 5), None, {"base": [AT]})
    assert hook_counts(model) == before


def test_something_that_is_no_tensor_is_refused(model):
    class Wrong(Intervention):
        source_kind = "none"

        def forward(self, base, source=None, subspaces=None):
            return (base,)

    with pytest.raises(InterventionError, match="returned tuple"):
        IntervenableModel(at("mlp_output", 1, intervention=Wrong()), model)(tokens(2, 5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("component", ["block_output", "mlp_activation", "query_output"])
def test_other_precisions(family, dtype, component):
    model, base, source = new_model(family, dtype=dtype), tokens(2, 5), tokens(2, 5, 1)
    place = locus(model, component, 1)
    (value,) = grab(model, source, place)
    _, got = IntervenableModel(at(component, 1), model)(base, source, {"sources->base": ([AT], [AT])})
    assert got.logits.dtype == dtype
    assert torch.equal(got.logits, logits_with(model, base, writer(place, AT, lambda old, n: value[n, AT[n]])))
    steer = IntervenableModel(at(component, 1, intervention_type=AdditionIntervention), model)
    vector = torch.randn(place.width)
    _, got = steer(base, None, {"base": [AT]}, source_representations=vector)
    expected = logits_with(model, base, writer(place, AT, lambda old, n: old + vector.to(dtype)))
    assert torch.equal(got.logits, expected)


@pytest.mark.parametrize("where", [None, {"base": [AT]}])
def test_what_is_computed_in_another_precision_is_written_in_the_models(model, where):
    base, place = tokens(2, 5), locus(model, "mlp_output", 1)
    _, got = IntervenableModel(at("mlp_output", 1, intervention=lambda b: b.double() / 3), model)(base, None, where)
    touch = writer(place, None if where is None else AT, lambda old, n: (old.double() / 3).float())
    assert torch.equal(got.logits, logits_with(model, base, touch))


def test_under_inference_mode(model):
    base, source, place = tokens(2, 5), tokens(2, 5, 1), locus(model, "mlp_output", 1)
    with torch.inference_mode():
        (value,) = grab(model, source, place)
        _, got = IntervenableModel(at("mlp_output", 1), model)(base, source)
        assert torch.equal(got.logits, logits_with(model, base, writer(place, None, lambda old, n: value[n])))
