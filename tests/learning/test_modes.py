"""Whatever measures does so in eval mode, and puts every mode back: models, adapters that are born in training mode."""

from __future__ import annotations

import warnings

import pytest
import torch
from tests.helpers import VOCAB, new_model, tokens
from tests.learning.tasks import batches
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from align_transformers import (
    ActivationCache,
    IntervenableModel,
    Logits,
    LowRankRotatedSpaceIntervention,
    Plan,
    Positions,
    Read,
    Run,
    Site,
    TrainableIntervention,
    VanillaIntervention,
    activations,
    attention_patterns,
    bind,
    compare,
    evaluate,
    execute,
    fit_pca,
    grid,
    precompute,
    probability,
    resolve,
    score,
)
from align_transformers.fast import remembered
from align_transformers.fast.trial import trials_of
from align_transformers.learning import CachedForward, cross_entropy
from align_transformers.learning.forward import Reader

SIZES = {"vocab_size": VOCAB, "n_positions": 64, "n_embd": 24, "n_layer": 3, "n_head": 3, "initializer_range": 0.3}
SITE = Site("block_output", 1)


def dropping():
    """A model that drops half of everything in training mode."""
    torch.manual_seed(1)
    return GPT2LMHeadModel(GPT2Config(**SIZES, resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)).eval()


def adapted():
    """A model in eval mode with an adapter that was made later, and is in training mode with a dropout of its own."""
    from peft import LoraConfig, get_peft_model

    options = LoraConfig(r=2, target_modules=["c_attn"], lora_dropout=0.5, fan_in_fan_out=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it asks transformers by an older name
        model = get_peft_model(dropping(), options)
    torch.manual_seed(2)
    for name, value in model.named_parameters():
        if "lora" in name:
            value.data.normal_()
    return model.base_model.model


class Dropping(TrainableIntervention):
    """A user's own, with a dropout inside, which is born in training mode."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.weight = nn.Parameter(torch.ones(24))
        self.drop = nn.Dropout(0.5)

    def forward(self, base, source=None, subspaces=None):
        return base + self.drop(self.weight * (source - base))


def face(model, kind=LowRankRotatedSpaceIntervention):
    torch.manual_seed(0)
    rank = {"low_rank_dimension": 4} if kind is LowRankRotatedSpaceIntervention else {}
    return IntervenableModel({"layer": 1, "component": "block_output", "intervention_type": kind, **rank}, model)


def kept(model, data):
    """Return the states that a cache holds."""
    memory = precompute(face(model), data)
    return torch.cat([part.float().flatten() for parts in memory._held.values() for part in parts.values()])


MEASURES = {
    "grid": lambda model, data: grid(model, tokens(1, 5, 1), tokens(1, 5, 2), answers=(4, 5)).columns["metric"],
    "score": lambda model, data: score(model, tokens(3, 5), metrics={"nine": probability(9)}).columns["nine"],
    "activations": lambda model, data: activations(model, tokens(3, 5), SITE, "all"),
    "attention_patterns": lambda model, data: attention_patterns(model, tokens(3, 5), layers=[1]).columns["attention"],
    "fit_pca": lambda model, data: fit_pca(model, tokens(4, 6), SITE, 2, positions="all").mean,
    "evaluate": lambda model, data: evaluate(face(model), data, metrics=cross_entropy)["cross_entropy"],
    "evaluate, an own intervention": lambda model, data: evaluate(face(model, Dropping), data, metrics=cross_entropy)[
        "cross_entropy"
    ],
    "compare": lambda model, data: compare({"x": face(model, Dropping)}, data, metrics=cross_entropy)["x"][
        "cross_entropy"
    ],
    "precompute": kept,
    "trial": lambda model, data: [trials_of(model).why_not(way) for way in ("partial", "together", "packed")],
}


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("make", [dropping, adapted])
def test_what_is_measured_is_that_of_eval_mode(make, name):
    data = batches((3, 2), model=new_model("gpt2"))
    still, model = make().eval(), make()
    if make is dropping:
        model.train()
        model.transformer.h[0].eval()  # a part that is frozen by hand stays so
    resolve(still), resolve(model)
    modes = {path: module.training for path, module in model.named_modules()}
    assert any(modes.values())
    wanted, found = MEASURES[name](still, data), MEASURES[name](model, data)
    if name == "trial":
        assert found == wanted == [""] * 3
    else:
        torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(wanted), rtol=0, atol=1e-5)
    assert {path: module.training for path, module in model.named_modules()} == modes


def test_a_cache_that_is_filled_directly_holds_states_of_eval_mode():
    """By a forward or a plan of one's own, which nothing holds in eval mode."""
    for make in (dropping, adapted):
        still, model = make().eval(), make()
        if make is dropping:
            model.train()
        data = batches((3,), model=still)[0]
        states = []
        for one in (still, model):
            memory = ActivationCache()
            forward = CachedForward(face(one), memory)
            forward.prepare(Reader(face(one)).call(data))
            states.append([part for parts in memory._held.values() for part in parts.values()])
        assert len(states[0]) == len(states[1]) > 1
        for first, second in zip(*states, strict=True):
            torch.testing.assert_close(first, second, rtol=0, atol=1e-5)


def test_modes_are_put_back_after_an_error():
    model = dropping().train()
    with pytest.raises(Exception, match="position 9"):
        activations(model, tokens(2, 5), SITE, 9)
    with pytest.raises(ZeroDivisionError):
        evaluate(face(model), batches((2,), model=new_model("gpt2")), metrics=lambda _l, _y: 1 / 0)
    assert all(module.training for module in model.modules())


def test_a_call_and_a_plan_of_ones_own_keep_the_mode():
    model = dropping().train()
    made, inputs = face(model, VanillaIntervention), tokens(2, 5)
    torch.manual_seed(0)
    _, first = made(inputs, tokens(2, 5, 1), {"sources->base": (2, 2)})
    torch.manual_seed(1)
    _, second = made(inputs, tokens(2, 5, 1), {"sources->base": (2, 2)})
    assert not torch.equal(first.logits, second.logits)
    assert all(module.training for module in model.modules())
    read = Read("run", SITE, Positions(((1,), (2,))))
    bound = bind(model, Plan((Run("run", "x"),), (), None, (read,)), {"x": inputs}, {})
    assert not torch.equal(execute(bound).values[read], execute(bound).values[read])
    plan = Plan((Run("run", "x"),), ("run",), Logits())
    assert remembered(model, plan, {"x": inputs}, {}, ActivationCache()).plan == plan
