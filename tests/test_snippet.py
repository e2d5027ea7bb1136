"""The snippet that users of earlier libraries know, word for word, on a tiny random GPT-2."""

from __future__ import annotations

import textwrap

import pytest
import torch
from tests.helpers import grab, locus, logits_with, new_model, writer

import align_transformers

OLD_NAMES = """
    config, tokenizer, gpt = create_gpt2()

    intervenable_config = IntervenableConfig(
        intervenable_model_type="gpt2",
        intervenable_representations=[
            IntervenableRepresentationConfig(
                0,            # intervening layer 0
                "mlp_output", # intervening mlp output
                "pos",        # intervening based on positional indices of tokens
                1             # maximally intervening one token
            ),
        ],
    )
    intervenable_gpt = IntervenableModel(intervenable_config, gpt)

    base = tokenizer("The capital of Spain is", return_tensors="pt")
    sources = [tokenizer("The capital of Italy is", return_tensors="pt")]

    _, counterfactual_outputs = intervenable_gpt(
        base,
        sources,
        {"sources->base": ([[[4]]], [[[4]]])} # intervene base with sources
    )
"""

NEW_NAMES = (
    OLD_NAMES.replace("intervenable_model_type", "model_type")
    .replace("intervenable_representations", "representations")
    .replace("IntervenableRepresentationConfig", "RepresentationConfig")
)
SNIPPETS = {"old names": OLD_NAMES, "current names": NEW_NAMES}


def run_snippet(code, create):
    """Run the snippet with the package's names and `create` for `create_gpt2`; return its variables."""
    names = {name: getattr(align_transformers, name) for name in align_transformers.__all__}
    names["create_gpt2"] = create
    exec(textwrap.dedent(code), names)
    return names


def check_snippet(names):
    """Compare the snippet's result with a hand-written hook at layer 0, token 4."""
    gpt, base, (source,) = names["gpt"], names["base"], names["sources"]
    place = locus(gpt, "mlp_output", 0)
    (value,) = grab(gpt, source, place)
    expected = logits_with(gpt, base, writer(place, [[4]], lambda old, n: value[n, [4]]))
    assert torch.equal(names["counterfactual_outputs"].logits, expected)
    assert not torch.equal(expected, gpt(**base).logits)


class Words:
    """A tokenizer of words."""

    def __init__(self):
        self.known: dict[str, int] = {}

    def __call__(self, text, return_tensors):
        assert return_tensors == "pt"
        ids = torch.tensor([[self.known.setdefault(word, len(self.known) + 1) for word in text.split()]])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("names", SNIPPETS)
def test_the_snippet(names):
    model = new_model("gpt2")
    check_snippet(run_snippet(SNIPPETS[names], lambda: (model.config, Words(), model)))
