"""Edits that read several values, also of their own run, against plain hooks and against path patching."""

from __future__ import annotations

import pytest
import torch
from tests.helpers import FAMILIES, counted, grab, locus, logits_with, tiny, tokens

from align_transformers import (
    Edit,
    Plan,
    PlanError,
    Positions,
    Read,
    Run,
    Site,
    VanillaIntervention,
    bind,
    execute,
    path_patching,
)
from align_transformers.interventions import FunctionIntervention
from align_transformers.plan import Logits


@pytest.fixture(params=FAMILIES)
def model(request):
    return tiny(request.param)


def outcome(model, plan, function, base, source=None):
    inputs = {"x": base, "y": tokens(2, 6, 1) if source is None else source}
    return execute(bind(model, plan, inputs, {"f": FunctionIntervention(function), "swap": VanillaIntervention()}))


def difference(base, sources):
    own, other = sources
    return base + other - own


def plan_of(site, *reads, edits=()):
    edit = Edit("e", site, "f", source=reads if len(reads) > 1 else reads[0])
    return Plan((Run("base", "x", (*edits, edit)), Run("source", "y")), ("base",), Logits())


def test_a_value_of_the_own_run_and_one_of_another(model):
    base, source = tokens(2, 6), tokens(2, 6, 1)
    low, high = locus(model, "mlp_output", 0), locus(model, "block_output", 1)
    (other,) = grab(model, source, low)
    site = Site("mlp_output", 0)
    plan = plan_of(Site("block_output", 1), Read("base", site), Read("source", site))
    got = outcome(model, plan, difference, base, source).outputs["base"]
    kept = []
    keep = (low.module, low.side, lambda tensor: kept.append(tensor.clone()))
    put = (high.module, high.side, lambda tensor: tensor + other - kept[0])
    torch.testing.assert_close(got, logits_with(model, base, keep, put)[:, -1])


def test_the_own_value_is_read_behind_the_edits_of_its_site(model):
    base = tokens(2, 6)
    site, later = Site("mlp_output", 0), Site("mlp_output", 1)
    seen = []

    def f(base, source):
        seen.append(source)
        return base

    swap = Edit("swap", site, "swap", source=Read("source", site))
    outcome(model, plan_of(later, Read("base", site), edits=(swap,)), f, base)
    (other,) = grab(model, tokens(2, 6, 1), locus(model, "mlp_output", 0))
    torch.testing.assert_close(seen[0], other)


def test_of_each_run_what_it_has_itself(model):
    """Two runs of one input that are edited otherwise, in one plan: neither gets what the other has."""
    base, site, later = tokens(2, 6), Site("mlp_output", 0), Site("mlp_output", 1)
    seen = []

    def f(base, sources):
        seen.append(sources[0])
        return base + sources[0]

    swap = Edit("swap", site, "swap", source=Read("source", site))
    read = [Edit(f"e{n}", later, "f", source=(Read(f"{n}", site),)) for n in range(2)]
    runs = Run("0", "x", (read[0],)), Run("1", "x", (swap, read[1])), Run("clean", "x"), Run("source", "y")
    outcome(model, Plan(runs, ("0", "1", "clean"), Logits()), f, base)
    values = grab(model, base, locus(model, "mlp_output", 0)) + grab(
        model, tokens(2, 6, 1), locus(model, "mlp_output", 0)
    )
    assert len(seen) == 2
    for value in values:
        assert any(torch.allclose(one, value, atol=1e-6) for one in seen)


def test_values_of_other_places_and_widths(model):
    base = tokens(2, 6)
    heads = locus(model, "attention_value_output", 0)
    reads = (
        Read("base", Site("attention_value_output", 0), Positions(((1,), (2,)), ((1,), (1,)))),
        Read("base", Site("block_input", 0)),
    )
    edit = Edit("e", Site("mlp_output", 1), "f", Positions(((4, 5), (0, 3))), source=reads)
    shapes = []

    def f(base, sources):
        shapes.append([tuple(one.shape) for one in sources])
        return base * sources[0].mean()

    got = outcome(model, Plan((Run("base", "x", (edit,)),), ("base",), Logits()), f, base).outputs["base"]
    size = heads.width // heads.heads
    assert shapes == [[(2, 1, size), (2, 6, locus(model, "block_input", 0).width)]]
    (z,) = grab(model, base, heads)
    mean = torch.stack([z[0, 1, size : 2 * size], z[1, 2, size : 2 * size]]).mean()
    high = locus(model, "mlp_output", 1)

    def put(tensor):
        new = tensor.clone()
        for row, columns in enumerate(((4, 5), (0, 3))):
            new[row, list(columns)] = tensor[row, list(columns)] * mean
        return new

    torch.testing.assert_close(got, logits_with(model, base, (high.module, high.side, put))[:, -1])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_path_patching_in_one_pass(family):
    """A query that reads its own stream with one head's value exchanged is what three runs of path patching make."""
    model = tiny(family)
    base, source = tokens(1, 6), tokens(1, 6, 1)
    z, stream, query = locus(model, "attention_value_output", 0), Site("block_input", 2), Site("query_output", 2)
    block = model.transformer.h[2] if family == "gpt2" else model.model.layers[2]
    norm = block.ln_1 if family == "gpt2" else block.input_layernorm
    size = z.width // z.heads
    own_weight = z.module.weight if family == "gpt2" else z.module.weight.T
    reads = (
        Read("base", stream),
        Read("base", Site("attention_value_output", 0)),
        Read("source", Site("attention_value_output", 0)),
    )

    def f(_base, sources):
        x, own, other = sources
        moved = (other - own)[..., size : 2 * size] @ own_weight[size : 2 * size]
        read = norm(x + moved)
        made = block.attn.c_attn(read)[..., : z.width] if family == "gpt2" else block.self_attn.q_proj(read)
        return made[..., 0:size]

    edit = Edit("e", query, "f", Positions(heads=((0,),)), source=reads)
    plan = Plan((Run("base", "x", (edit,)), Run("source", "y")), ("base",), Logits())
    with counted(model) as calls:
        got = outcome(model, plan, f, base, source).outputs["base"]
    assert len(calls) == 2
    answers = (3, 5)
    table = path_patching(model, base, source, "a2.h0<q>", senders=["a0.h1"], freeze="all", answers=answers)
    clean = model(**base).logits[:, -1]
    moved = (got - clean)[0, answers[1]] - (got - clean)[0, answers[0]]
    assert table.columns["effect"][0] == pytest.approx(float(moved.detach()), abs=2e-5)
    assert abs(float(moved.detach())) > 1e-4


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "later", [Site("block_output", 0), Site("mlp_output", 1), Site("mlp_output", 0), Site("logits")]
)
def test_what_surely_comes_later_is_refused_in_the_plan(later):
    with pytest.raises(PlanError, match="run 'base' reads its own"):
        plan_of(Site("mlp_output", 0), Read("base", later))


def test_what_comes_later_in_a_block_is_refused_when_it_is_known(model):
    plan = plan_of(Site("attention_output", 0), Read("base", Site("mlp_output", 0)))
    with pytest.raises(PlanError, match="comes by layer 0 attention_output before its own layer 0 mlp_output"):
        outcome(model, plan, lambda base, source: base, tokens(2, 6))


def test_several_values_need_somebody_who_takes_them(model):
    site = Site("mlp_output", 0)
    edit = Edit("e", Site("mlp_output", 1), "swap", source=(Read("source", site), Read("source", site)))
    with counted(model) as calls, pytest.raises(PlanError, match="takes one source; found 2 reads"):
        outcome(model, Plan((Run("base", "x", (edit,)), Run("source", "y")), ("base",)), difference, tokens(2, 6))
    assert not calls


def test_other_examples_are_refused(model):
    site = Site("mlp_output", 0)
    plan = plan_of(Site("mlp_output", 1), Read("base", site), Read("source", site))
    with counted(model) as calls, pytest.raises(PlanError, match="the base has 2 examples, but 3 are read"):
        outcome(model, plan, difference, tokens(2, 6), tokens(3, 6, 1))
    assert not calls


def test_a_function_may_not_write_into_what_others_read(model):
    """Each gets copies: what it does to them is seen by nobody."""
    site, sites = Site("mlp_output", 0), (Site("mlp_output", 1), Site("mlp_output", 2))
    seen = []

    def f(base, sources):
        seen.append(sources[0].clone())
        sources[0].zero_()
        return base

    edits = tuple(Edit(f"e{n}", later, "f", source=(Read("base", site),)) for n, later in enumerate(sites))
    outcome(model, Plan((Run("base", "x", edits),), ("base",)), f, tokens(2, 6))
    assert torch.equal(*seen)
    assert bool(seen[0].any())


def test_a_plan_with_several_reads_survives_json(model):
    site = Site("mlp_output", 0)
    plan = plan_of(Site("mlp_output", 1), Read("base", site), Read("source", site))
    assert Plan.from_dict(plan.to_dict()) == plan


def test_gradients_pass_through_own_values(model):
    base, site, later = tokens(1, 5), Site("mlp_output", 0), Site("mlp_output", 1)
    weight = torch.ones((), requires_grad=True)
    plan = plan_of(later, Read("base", site), Read("source", site))
    got = outcome(model, plan, lambda base, sources: base + weight * (sources[1] - sources[0]), base, tokens(1, 5, 1))
    (slope,) = torch.autograd.grad(got.outputs["base"][0, 3], weight)
    with torch.no_grad():
        ends = []
        for step in (1e-2, -1e-2):
            made = outcome(model, plan, lambda b, s, w=step: b + (1 + w) * (s[1] - s[0]), base, tokens(1, 5, 1))
            ends.append(float(made.outputs["base"][0, 3]))
    assert float(slope) == pytest.approx((ends[0] - ends[1]) / 2e-2, rel=0.05, abs=1e-3)
