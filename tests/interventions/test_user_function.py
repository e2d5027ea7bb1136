"""Functions and modules as interventions."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from align_transformers import FunctionIntervention, SpecError, VanillaIntervention

BASE, SOURCE = torch.ones(2, 1, 3), torch.full((2, 1, 3), 5.0)


class Scale:
    def __call__(self, base, source):
        return base * source


@pytest.mark.parametrize(
    ("function", "arity"),
    [
        (lambda base: base, 1),
        (lambda base, source: source, 2),
        (lambda base, source, subspaces: source, 3),
        (lambda base, source=None: base, 2),
        (lambda base, source=None, subspaces=None: base, 3),
        (lambda base, scale=3.0: base, 1),
        (lambda b, s, layer=4: b, 2),
        (lambda base, *, scale=3.0: base, 1),
        (lambda *args: args[0], 3),
        (Scale(), 2),
        (partial(torch.mul, other=2), None),
        (nn.Linear(3, 3), 1),
        (nn.Bilinear(3, 3, 3), 2),
    ],
)
def test_the_arguments_that_a_function_gets(function, arity):
    if arity is None:
        with pytest.raises(SpecError, match=r"does not tell its arguments: write lambda base"):
            FunctionIntervention(function)
    else:
        one = FunctionIntervention(function)
        assert one.arity == arity
        assert one.source_kind == ("none" if arity == 1 else "optional")
        assert one(BASE, SOURCE, None).shape == BASE.shape


@pytest.mark.parametrize("function", [lambda: None, lambda a, b, c, d: a, lambda *, base: base])
def test_functions_of_other_arguments_are_refused(function):
    with pytest.raises(
        SpecError, match=r"takes \(base\), \(base, source\) or \(base, source, subspaces\); .* takes [04]"
    ):
        FunctionIntervention(function)


def test_defaults_of_the_users_own_are_left_alone():
    edits = [FunctionIntervention(lambda base, scale=scale: base * scale) for scale in (2.0, 3.0)]
    assert [float(edit(BASE, SOURCE)[0, 0, 0]) for edit in edits] == [2.0, 3.0]


def test_none_leaves_the_base_as_it_is_even_after_writing():
    def write(base):
        base.zero_()

    assert FunctionIntervention(write)(BASE) is BASE
    assert torch.equal(BASE, torch.ones(2, 1, 3))
    assert FunctionIntervention(lambda base, source: None)(BASE, SOURCE) is BASE


def test_a_function_may_write_into_what_it_gets():
    def write(base, source):
        source += 1
        base[..., :1] = source[..., :1]
        return base

    base, source = BASE.clone(), SOURCE.clone()
    assert FunctionIntervention(write)(base, source)[0, 0].tolist() == [6.0, 1.0, 1.0]
    assert torch.equal(base, BASE)
    assert torch.equal(source, SOURCE)


def test_the_source_is_the_runs_or_else_the_constant_or_else_none():
    seen = []
    one = FunctionIntervention(lambda base, source: seen.append(source))
    one(BASE, SOURCE)
    one(BASE)
    one.set_source_representation(torch.ones(3))
    one(BASE)
    assert torch.equal(seen[0], SOURCE)
    assert seen[1] is None
    assert torch.equal(seen[2], torch.ones(3))


def test_subspaces_limit_a_function_that_does_not_take_them():
    one = FunctionIntervention(lambda base: base * 3, subspace_partition=[[0, 1], [1, 3]])
    assert one(BASE, None, ((0,), (1,))).tolist() == [[[3.0, 1.0, 1.0]], [[1.0, 3.0, 3.0]]]


def test_a_function_that_takes_subspaces_applies_them_itself():
    seen = []
    one = FunctionIntervention(lambda base, source, subspaces: seen.append(subspaces) or base * 3)
    assert torch.equal(one(BASE, None, ((0,), (1,))), BASE * 3)
    assert seen == [((0,), (1,))]


def test_a_module_brings_its_parameters():
    linear = nn.Linear(3, 3)
    one = FunctionIntervention(linear)
    assert torch.equal(one(BASE), linear(BASE))
    assert len(list(one.parameters())) == 2


def test_what_need_not_be_made_twice():
    assert VanillaIntervention.repeatable
    assert not FunctionIntervention.repeatable
