"""Only the logits that are read are computed, and they are those of all."""

from __future__ import annotations

import pytest
import torch
from tests.fast.families import FAMILIES, build, prompts, real_columns
from torch import nn

from align_transformers import Plan, PlanError, PositionError, Run, UnknownNameError, bind, execute
from align_transformers.engine.logits import logits_of, pick_logits
from align_transformers.fast.unembedding import FewerLogits
from align_transformers.models import resolve
from align_transformers.models.scope import scope
from align_transformers.plan import Logits


def unembedding(model):
    return model.get_output_embeddings()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("tokens", [None, (3, 1, 3)])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_plan_that_wants_logits_gets_those_of_the_last_real_token(family, tokens, side):
    model, inputs = build(family), prompts(family, (5, 2, 4), side, 1)
    resolve(model)  # else it is not known where the logits come from
    with torch.no_grad():
        whole = model(**inputs).logits
        shapes, kind, plain = [], type(unembedding(model)), type(unembedding(model)).forward

        def forward(self, hidden):
            if self is unembedding(model):
                shapes.append(tuple(hidden.shape))
            return plain(self, hidden)

        bound = bind(model, Plan((Run("clean", "x"),), ("clean",), Logits(tokens)), {"x": inputs}, {})
        execute(bound)
        kind.forward = forward
        try:
            got = execute(bound).outputs["clean"]
        finally:
            kind.forward = plain
    ends = [real_columns(inputs, example)[-1] for example in range(3)]
    expected = whole[torch.arange(3), ends]
    expected = expected if tokens is None else expected[:, list(tokens)]
    assert got.shape == expected.shape
    assert torch.allclose(got, expected, atol=1e-5 * float(whole.abs().max()))
    assert shapes == [(3, 1, 32)]  # one place an example


def test_an_input_of_another_form_is_left_alone():
    layer, x = nn.Linear(4, 6), torch.randn(2, 5, 4)
    row, column = torch.tensor([0, 1]), torch.tensor([4, 2])
    fewer = FewerLogits(layer, row, column, None, (2, 5))
    with scope(), fewer.context():
        assert torch.equal(layer(x), nn.functional.linear(x[row, column].unsqueeze(1), layer.weight, layer.bias))
        assert fewer.were_given()
    for other in (torch.randn(2, 3, 5, 4), torch.randn(2, 6, 4), torch.randn(10, 4)):
        fewer = FewerLogits(layer, row, column, None, (2, 5))
        with scope(), fewer.context():
            assert layer(other).shape == (*other.shape[:-1], 6)
            assert not fewer.were_given()
    assert "forward" not in vars(layer)


@pytest.mark.parametrize("bias", [True, False])
def test_some_tokens_are_computed_without_the_others(bias):
    layer, x = nn.Linear(4, 6, bias=bias), torch.randn(3, 5, 4)
    row, column = torch.tensor([2, 0]), torch.tensor([4, 1])
    with scope(), FewerLogits(layer, row, column, (5, 0, 5), (3, 5)).context():
        found = layer(x)
    expected = layer(x)[row, column][:, [5, 0, 5]].unsqueeze(1)
    assert torch.allclose(found, expected, atol=1e-6)


def test_logits_are_found_and_picked():
    logits = torch.randn(2, 3, 7)
    assert logits_of(logits) is logits
    assert logits_of({"loss": torch.ones(()), "logits": logits}) is logits
    assert logits_of((logits, logits + 1)) is logits
    at = torch.tensor([1, 0]), torch.tensor([0, 2])
    assert torch.equal(pick_logits(logits, at, None, False), logits[at])
    assert torch.equal(pick_logits(logits, None, (6, 2), False), logits[:, -1][:, [6, 2]])
    assert torch.equal(pick_logits(logits[:, :1], at, (6,), True), logits[:, 0][:, [6]])


@pytest.mark.parametrize(
    ("at", "error", "message"),
    [
        ((("x", (1,)),), PlanError, "logits of 1 examples of 'x' are to be read, but it has 2"),
        (
            (("x", (1, 0)),),
            PositionError,
            "logits of example 1 of 'x' are to be read at 0, but its real tokens are at 1",
        ),
        ((("z", (1, 1)),), UnknownNameError, "'z'"),
    ],
)
def test_columns_that_are_not_there_are_refused(at, error, message):
    inputs = {"x": prompts("llama", (5, 4), "left", 1)}
    plan = Plan((Run("clean", "x"),), ("clean",), Logits(None, at))
    with pytest.raises(error, match=message):
        bind(build("llama"), plan, inputs, {})
