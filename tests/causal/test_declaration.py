"""Causal models that are written as functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from align_transformers import SpecError
from align_transformers.causal import causal_model

OFFSET = 3
values = {"a": range(4), "b": range(4)}


@causal_model(values={name: range(10) for name in "abc"})
def add_three_numbers(a, b, c):
    """Say a + b + c."""
    var_x = a + b
    return var_x + c


def test_the_one_of_the_readme() -> None:
    assert repr(add_three_numbers) == "CausalModel(a, b, c -> var_x -> output)"
    assert add_three_numbers.parents["output"] == ("var_x", "c")
    assert add_three_numbers.values["var_x"] == tuple(range(19))
    base, source = {"a": 1, "b": 2, "c": 3}, {"a": 5, "b": 5, "c": 5}
    assert add_three_numbers.run_interchange(base, {"var_x": source})["output"] == 13


def test_expressions_see_what_the_function_sees() -> None:
    inner = {0: "none", 1: "one"}

    @causal_model(values=values)
    def model(a, b):
        moved = a + OFFSET
        some: [False, True] = any(moved > number for number in (b, 3))
        word = inner.get(int(some), "many")
        return word

    assert model.run_forward({"a": 0, "b": 3})["word"] == "none"
    assert model.values["some"] == (False, True)
    assert model.outputs == ("word",)
    assert dict(model.parents)["some"] == ("moved", "b")


def test_annotations_and_defaults_say_what_inputs_may_be() -> None:
    @causal_model
    def model(a: range(3), b: int, c: [2, 5] = 5):
        both = a * c
        return both + b

    assert model.values["a"] == (0, 1, 2)
    assert model.values["b"] is None
    assert model.values["both"] is None  # not all inputs are listed
    assert model.run_forward({"a": 2, "b": 1})["output"] == 11


def test_a_model_is_read_and_not_run() -> None:
    ran: list[int] = []

    @causal_model(values=values)
    def model(a, b):
        x = ran.append(a) or a
        return x + b

    assert set(ran) == {0, 1, 2, 3}
    assert len(ran) == 12  # for what x comes to be, and for the look at two models: four times each, as b is not read
    assert model.run_forward({"a": 1, "b": 1})["output"] == 2


def loop(a, b):
    x = 0
    for n in (a, b):
        x += n
    return x


def branch(a, b):
    if a:
        return b
    return a


def again(a, b):
    x = a
    x = x + b
    return x


def grows(a, b):
    x = a
    x += b
    return x


def two(a, b):
    x, y = a, b
    return x + y


def nothing(a, b):
    x = a + b  # noqa: F841


def walrus(a, b):
    x = (y := a) + b  # noqa: F841
    return x


def shadowed(a, b):
    x = [a + 1 for a in range(b)]
    return len(x)


def open_ended(*a):
    return len(a)


def expression(a, b):
    repr(a)
    return b


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (loop, "line 3 .*is a loop"),
        (branch, "line 2 .*is a branch"),
        (again, "line 3 .*assigns 'x' again"),
        (grows, "line 3 .*changes a name"),
        (two, r"line 2 \(x, y = \(?a, b\)?\)"),
        (nothing, "is not a return of a value"),
        (walrus, "assigns or waits inside an expression"),
        (shadowed, "'a' as the name of a loop"),
        (open_ended, r"takes \* or"),
        (expression, r"line 2 \(repr\(a\)\)"),
        (len, "written with def"),
        (lambda a: a, "written with def"),
    ],
)
def test_what_cannot_be_read_is_refused(function: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        causal_model(values={})(function)


def test_ranges_may_be_missing() -> None:
    """As the words of the field have it: nothing but the function."""

    @causal_model
    def sum_of_three(a, b, c):
        var_x = a + b
        return var_x + c

    assert sum_of_three.values["var_x"] is None
    base, source = {"a": 1, "b": 2, "c": 3}, {"a": 50, "b": 0.5, "c": 0}
    assert sum_of_three.run_interchange(base, {"var_x": source})["output"] == 53.5
    with pytest.raises(SpecError, match="nothing can be drawn"):
        sum_of_three.sample_inputs(1, np.random.default_rng(0))


DIGITS = range(3)


def test_an_annotation_may_be_a_name_of_the_module():
    """Under `from __future__ import annotations` it comes as a text."""

    @causal_model
    def double(a: DIGITS, b: DIGITS):
        return a + b

    assert double.values["a"] == double.values["b"] == (0, 1, 2)
