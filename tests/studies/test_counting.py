"""A number from 0 is a column of what the caller gave; where that is not the number of a token, too, it is refused."""

from __future__ import annotations

import pytest
import torch
from tests.helpers import new_model, padded_tokens, tokens

from align_transformers import Site, SpecError, activations, causal_tracing, fit_pca, grid, score
from align_transformers.metrics import accuracy

LEFT, RIGHT = padded_tokens((6, 4), "left", 1), padded_tokens((6, 4), "right", 1)
OTHER = {"left": padded_tokens((6, 4), "left", 2), "right": padded_tokens((6, 4), "right", 2)}


@pytest.fixture(scope="module")
def model():
    return new_model("llama")


CALLS = {
    "positions of grid": lambda model, x, n: grid(
        model, x, OTHER["left" if x is LEFT else "right"], answers=(4, 5), layers=[1], positions=[n]
    ),
    "at of grid": lambda model, x, n: grid(
        model, x, OTHER["left" if x is LEFT else "right"], answers=(4, 5), layers=[1], positions=[-1], at=n
    ),
    "at of score": lambda model, x, n: score(model, x, accuracy(5), at=[-1, n]),
    "subject": lambda model, x, n: causal_tracing(model, x, [n], draws=1, layers=[1], positions=[-1]),
    "positions of causal tracing": lambda model, x, n: causal_tracing(
        model, x, [-2], draws=1, layers=[1], positions=[n]
    ),
    "activations": lambda model, x, n: activations(model, x, Site("mlp_output", 1), n),
    "fit_pca": lambda model, x, n: fit_pca(model, x, Site("mlp_output", 1), 1, positions=n, standardise=False),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_number_from_0_is_refused_where_it_may_be_a_column_or_a_token(model, name):
    call = CALLS[name]
    call(model, LEFT, -1)  # what padding does to this model is known from here on
    unseen = model.register_forward_pre_hook(lambda *_: pytest.fail("the model was called"))
    with unseen, pytest.raises(SpecError, match=r"padded on the left, so 3 may be column 3 .* or the real token 3"):
        call(model, LEFT, 3)
    call(model, RIGHT, 3)


def test_from_the_end_padding_on_either_side_is_the_same(model):
    site, alone = Site("mlp_output", 1), {"input_ids": RIGHT["input_ids"][1:, :4]}
    seen = activations(model, alone, site, 1)
    left = {name: torch.stack([value[0], value[1].roll(2)]) for name, value in RIGHT.items()}
    for x in (left, RIGHT):
        assert torch.allclose(activations(model, x, site, -3)[1:], seen, atol=1e-5)


def test_without_padding_in_front_numbers_are_both(model):
    x = tokens(2, 5, 1)
    ones = {**x, "attention_mask": torch.ones_like(x["input_ids"])}
    assert torch.equal(
        activations(model, x, Site("mlp_output", 1), 2), activations(model, ones, Site("mlp_output", 1), 2)
    )
