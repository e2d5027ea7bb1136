"""Padding on the left: every call of the library's own gives the numbers that an example has alone."""

from __future__ import annotations

import warnings

import pytest
import torch
from tests.helpers import counted, new_model, padded_tokens, tiny
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2Model,
    OPTConfig,
    OPTForCausalLM,
    RobertaConfig,
    RobertaForCausalLM,
)

from align_transformers import (
    IntervenableModel,
    RotatedSpaceIntervention,
    Site,
    VanillaIntervention,
    activations,
    evaluate,
    fit,
    precompute,
)
from align_transformers.models.padding import left_padding, with_positions

LENGTHS = (5, 3, 8)
SMALL = {"vocab_size": 60, "n_embd": 16, "n_head": 2, "n_layer": 2, "n_positions": 16, "initializer_range": 0.3}
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
MASKED = {"vocab_size": 60, "max_position_embeddings": 32, "initializer_range": 0.3, **SIZES}


def lora():
    peft = pytest.importorskip("peft")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft on GPT-2's transposed layers
        return peft.get_peft_model(new_model("gpt2"), peft.LoraConfig(target_modules=["c_attn"])).eval()


def opt():
    sizes = {"vocab_size": 60, "hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 24, "num_hidden_layers": 2}
    return OPTForCausalLM(OPTConfig(**sizes, num_attention_heads=2, max_position_embeddings=32, init_std=0.3))


MODELS = {
    "gpt2": (lambda: new_model("gpt2"), True),
    "a model without a head": (lambda: GPT2Model(GPT2Config(**SMALL)), True),
    "a classifier": (lambda: GPT2ForSequenceClassification(GPT2Config(**SMALL, pad_token_id=0)), True),
    "a model around the model": (lora, True),
    "bert": (lambda: BertForMaskedLM(BertConfig(**MASKED)), True),
    "llama": (lambda: new_model("llama"), False),
    "opt, which looks at the mask": (opt, False),
    "roberta, which looks at the tokens": (
        lambda: RobertaForCausalLM(RobertaConfig(**MASKED, pad_token_id=0, is_decoder=True)),
        False,
    ),
}


@pytest.fixture(params=MODELS)
def case(request):
    make, needs = MODELS[request.param]
    torch.manual_seed(0)
    return make().eval(), needs


def alone(inputs, example):
    """Return one example without its padding."""
    real = inputs["attention_mask"][example].bool()
    return {name: value[example, real][None] for name, value in inputs.items() if value.ndim == 2}


@torch.no_grad()
def test_positions_are_given_to_a_model_that_needs_them_and_to_no_other(case):
    model, needs = case
    inputs = padded_tokens(LENGTHS, "left")
    placed = with_positions(model, inputs)
    assert ("position_ids" in placed) == needs
    assert "position_ids" not in inputs
    got = model(**placed).to_tuple()[0]
    for example in range(len(LENGTHS)):
        wanted = model(**alone(inputs, example)).to_tuple()[0][0]
        mine = got[example] if got.ndim == 2 else got[example, -1]
        torch.testing.assert_close(mine, wanted if wanted.ndim == 1 else wanted[-1], rtol=0, atol=1e-4)


def test_nothing_is_run_and_nothing_added_where_nothing_is_shifted():
    model, inputs = new_model("gpt2"), padded_tokens(LENGTHS, "right")
    said = {**padded_tokens(LENGTHS, "left"), "position_ids": torch.arange(8).expand(3, 8)}
    with counted(model) as calls:
        for given in (inputs, said, {"input_ids": inputs["input_ids"]}, inputs["input_ids"]):
            assert with_positions(model, given) is given
    assert not calls


def test_a_model_is_measured_once_in_eval_mode_and_left_as_it_is():
    model, inputs = new_model("gpt2").train(), padded_tokens(LENGTHS, "left")
    modes: list[bool] = []
    with model.register_forward_pre_hook(lambda module, _args: modes.append(module.training)):
        with_positions(model, inputs)
        first = len(modes)
        with_positions(model, inputs)
    assert len(modes) == first <= 3
    assert not any(modes)
    assert model.training


class Columns(nn.Module):
    """Adds the number of its column to every token, whatever is said."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(60, 4)

    def forward(self, input_ids, attention_mask=None, **_):
        return self.table(input_ids) + torch.arange(input_ids.shape[1])[:, None]


def test_a_shift_that_cannot_be_helped_is_said():
    with pytest.warns(UserWarning, match="pad on the right"):
        found = activations(Columns(), padded_tokens(LENGTHS, "left"), Site("table.output"))
    assert found.shape == (3, 4)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_activations_are_those_of_each_example_alone(family):
    model, inputs = tiny(family), padded_tokens(LENGTHS, "left")
    got = activations(model, inputs, Site("block_output", 1))
    for example in range(len(LENGTHS)):
        wanted = activations(model, alone(inputs, example), Site("block_output", 1))
        torch.testing.assert_close(got[example], wanted[0], rtol=0, atol=1e-4)


def on_the(side, inputs):
    """Return a batch that is padded on the left, with its padding on that side."""
    shifts = [0 if side == "left" else length - 8 for length in LENGTHS]
    return {n: torch.stack([row.roll(by) for row, by in zip(x, shifts, strict=True)]) for n, x in inputs.items()}


def batch(side):
    base, source = (on_the(side, padded_tokens(LENGTHS, "left", seed=seed)) for seed in (0, 1))
    last = [7, 7, 7] if side == "left" else [length - 1 for length in LENGTHS]
    return {
        **base,
        **{f"source_{name}": value for name, value in source.items()},
        "source_0->base.0.pos": torch.tensor(last)[:, None],
        "source_0->base.1.pos": torch.tensor(last)[:, None],
        "labels": torch.tensor([3, 4, 5]),
        "base_labels": torch.tensor([6, 7, 8]),
    }


def logits_of_each(logits, labels):
    return {f"token {n}": logits[:, n] for n in (3, 4, 5)}


def test_fits_and_scores_do_not_depend_on_the_side_of_the_padding():
    found = {}
    for side in ("left", "right"):
        torch.manual_seed(0)
        model = new_model("gpt2")
        face = IntervenableModel(
            {"layer": 0, "intervention_type": RotatedSpaceIntervention, "low_rank_dimension": 2}, model
        )
        fitted = fit(face, [batch(side)] * 2, epochs=2, lr=0.01)
        scores = evaluate(face, [batch(side)], metrics=logits_of_each)
        kept = fit(face, [batch(side)], epochs=1, lr=0.01, memory=precompute(face, [batch(side)]))
        found[side] = (
            [r["loss"] for r in fitted.history],
            [r["loss"] for r in kept.history],
            [scores[f"token {n}"] for n in (3, 4, 5)],
        )
    torch.testing.assert_close(found["left"], found["right"], rtol=0, atol=1e-4)


def test_a_call_of_ones_own_gets_what_was_given_and_says_so():
    model, inputs = new_model("gpt2"), padded_tokens(LENGTHS, "left")
    swap = IntervenableModel({"layer": 0, "intervention_type": VanillaIntervention}, model)
    with torch.no_grad(), pytest.warns(UserWarning, match="no position_ids"):
        original, edited = swap(inputs, inputs, {"sources->base": -1}, output_original_output=True)
    with torch.no_grad():
        assert torch.equal(original.logits, model(**inputs).logits)
        torch.testing.assert_close(edited.logits, original.logits)
        said = {**inputs, "position_ids": (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)}
        swap(said, said, {"sources->base": -1})  # nothing to say
    assert left_padding(model, said) is None


@torch.no_grad()
def test_sources_of_a_generation_are_placed_as_its_prompts_are():
    model, base, source = new_model("gpt2"), padded_tokens(LENGTHS, "left"), padded_tokens(LENGTHS, "left", seed=1)
    model.generation_config.eos_token_id = None
    swap = IntervenableModel({"layer": 1, "intervention_type": VanillaIntervention}, model)
    options = {"max_new_tokens": 3, "do_sample": False, "intervene_on_prompt": True}
    got = swap.generate(base, source, {"sources->base": -1}, **options)[1]
    for example in range(len(LENGTHS)):
        one = swap.generate(alone(base, example), alone(source, example), {"sources->base": -1}, **options)[1]
        assert torch.equal(got[example, -3:], one[0, -3:])
