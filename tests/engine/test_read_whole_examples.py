"""A read of chosen examples needs no positions: it is of their whole sequences, against hooks and plain indexing."""

from __future__ import annotations

import pytest
import torch
from tests.helpers import FAMILIES, grab, hooked, locus, new_model, padded_tokens, tokens
from torch import nn

from align_transformers import (
    Edit,
    Logits,
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

SITE = Site("mlp_output", 1)


def swap(read, examples=None):
    """A plan that puts what is read into the whole of each example."""
    return Plan(
        (Run("base", "x", (Edit("swap", SITE, "swap", source=read),), examples), Run("source", "y")),
        ("base",),
        Logits(),
    )


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_each_copy_gets_another_example(family, planner):
    model, base, source = new_model(family), tokens(2, 5), tokens(3, 5, seed=1)
    at = locus(model, "mlp_output", 1)
    (there,) = grab(model, source, at)
    which, copies = (2, 0, 0, 1), (0, 1, 0, 1)
    plan = swap(Read("source", SITE, examples=which), copies)
    found = execute(bind(model, plan, {"x": base, "y": source}, {"swap": VanillaIntervention()})).outputs["base"]
    put = (at.module, "output", lambda _old: there[list(which)])
    with hooked(put):
        wanted = model(input_ids=base["input_ids"][list(copies)]).logits[:, -1]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_value_that_is_wanted_of_some_examples(planner):
    model, source = new_model("llama"), padded_tokens([3, 5, 4], "right")
    at = locus(model, "attention_value_output", 1)
    site = Site("attention_value_output", 1)
    (there,) = grab(model, source, at)
    whole = Read("run", site, examples=(2, 2, 0))
    heads = Read("run", site, Positions(None, ((0,), (3,), (1,))), examples=(2, 2, 0))
    plan = Plan((Run("run", "y"),), (), None, (whole, heads))
    values = execute(bind(model, plan, {"y": source}, {})).values
    torch.testing.assert_close(values[whole], there[[2, 2, 0]])
    by_head = there.unflatten(-1, (-1, at.head_dim))
    wanted = torch.stack([by_head[2, :, 0], by_head[2, :, 3], by_head[0, :, 1]])
    torch.testing.assert_close(values[heads], wanted)


@torch.no_grad()
def test_a_model_without_a_sequence(planner):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    x, y, site = torch.randn(2, 2), torch.randn(3, 2), Site("1.output")
    edit = Edit("swap", site, "swap", source=Read("source", site, examples=(2, 1)))
    plan = Plan((Run("base", "x", (edit,)), Run("source", "y")), ("base",))
    found = execute(bind(model, plan, {"x": x, "y": y}, {"swap": VanillaIntervention()})).outputs["base"]
    torch.testing.assert_close(found, model(y[[2, 1]]))


@torch.no_grad()
def test_examples_of_a_run_that_is_edited_itself(planner):
    model, base, source = new_model("gpt2"), tokens(2, 5), tokens(3, 5, seed=1)
    low, at, below = Site("block_output", 0), locus(model, "mlp_output", 1), locus(model, "block_output", 0)
    zero = Edit("zero", low, "zero", Positions(((1,), (2,), (3,))))
    plan = swap(Read("source", SITE, examples=(1, 2)))
    plan = Plan((plan.run("base"), Run("source", "y", (zero,))), ("base",), Logits())
    inputs, kinds = {"x": base, "y": source}, {"swap": VanillaIntervention(), "zero": ZeroIntervention()}
    found = execute(bind(model, plan, inputs, kinds)).outputs["base"]
    kept = []

    def nought(tensor):
        tensor = tensor.clone()
        tensor[range(3), [1, 2, 3]] = 0
        return tensor

    with hooked((below.module, "output", nought), (at.module, "output", lambda x: kept.append(x.clone()))):
        model(**source)
    with hooked((at.module, "output", lambda _old: kept[0][[1, 2]])):
        wanted = model(**base).logits[:, -1]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_mistakes_are_told_before_a_pass():
    model, inputs = new_model("gpt2"), {"x": tokens(2, 5), "y": tokens(3, 5)}
    for examples, said in (((0,) * 3, "3 are read"), ((0, 3), "example 3")):
        with pytest.raises(PlanError, match=said):
            bind(model, swap(Read("source", SITE, examples=examples)), inputs, {"swap": VanillaIntervention()})
    lines = Read("source", SITE, Positions(((1,),)), examples=(0, 1))
    with pytest.raises(PlanError, match="as many lines of positions"):
        bind(model, swap(lines), inputs, {"swap": VanillaIntervention()})
