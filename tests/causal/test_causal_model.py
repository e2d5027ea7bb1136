"""Causal models against a loop over dictionaries, over random models; and what is refused."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align_transformers import AlignError, SpecError, UnknownNameError
from align_transformers.causal import CausalModel, OnArrays

DIGITS = range(10)


def adder(**more: Any) -> CausalModel:
    values = {"a": DIGITS, "b": DIGITS, "c": DIGITS, "x": range(19), "sum": range(28)}
    functions = {"x": lambda a, b: a + b, "sum": lambda x, c: x + c}
    return CausalModel(list(values), values, {"x": ["a", "b"], "sum": ["x", "c"]}, {**functions, **more})


def by_loop(parents: Mapping[str, Any], functions: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return all variables; the dictionaries name each variable after its parents."""
    found: dict[str, Any] = {}
    for name in parents:
        found[name] = given[name] if name in given else functions[name](*(found[one] for one in parents[name]))
    return found


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[str], dict[str, list[Any]], dict[str, list[str]], dict[str, Any]]:
    """What a model of random tables is made of."""
    kinds = ([0, 1, 2], [False, True], ["no", "yes", "perhaps"], [(0, 1), (1, 0)], [0.5, 2], [5])
    count = draw(st.integers(2, 6))
    names = [f"v{number}" for number in range(count)]
    parents, functions, values = {}, {}, {}
    for number, name in enumerate(names):
        values[name] = list(draw(st.sampled_from(kinds)))
        above = draw(st.lists(st.sampled_from(names[:number]), unique=True, max_size=3)) if number else []
        parents[name] = above
        if above:
            rows = itertools.product(*(values[one] for one in above))
            table = {row: draw(st.sampled_from(values[name])) for row in rows}
            functions[name] = lambda *row, table=table: table[row]
    shuffled = draw(st.permutations(names))
    return shuffled, values, parents, functions


@given(tables(), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_many_examples_are_those_of_a_loop(made: Any, seed: int) -> None:
    (_, values, parents, functions), model = made, CausalModel(*made)
    generator = np.random.default_rng(seed)
    size = 7
    inputs, other = (model.sample_inputs(size, generator) for _ in range(2))
    chosen = [name for name in parents if generator.random() < 0.5]
    where = {name: generator.random(size) < 0.5 for name in chosen}
    found = model.run_many(inputs, dict.fromkeys(chosen, other), where)
    for number in range(size):
        base, source = ({name: of.tolist()[number] for name, of in one.items()} for one in (inputs, other))
        taken = {name: by_loop(parents, functions, source)[name] for name in chosen if where[name][number]}
        expected = by_loop(parents, functions, {**base, **taken})
        assert {name: found[name].tolist()[number] for name in parents} == expected
        forward = model.run_forward({**base, **taken})
        assert forward == expected
        assert [type(forward[name]) for name in parents] == [type(expected[name]) for name in parents]
        assert model.run_interchange(base, dict.fromkeys(taken, source)) == expected
    assert all(set(inputs[name].tolist()) <= set(values[name]) for name in model.inputs)


@given(tables(), st.data())
@settings(max_examples=40, deadline=None)
def test_without_a_variable_the_rest_is_the_same(made: Any, data: st.DataObject) -> None:
    (_, _, parents, functions), model = made, CausalModel(*made)
    within = [name for name in model.variables if parents[name]]
    if not within:
        return
    gone = data.draw(st.sampled_from(within))
    small = model.marginalize(gone)
    inputs = model.sample_input(np.random.default_rng(0))
    expected = by_loop(parents, functions, inputs)
    assert small.run_forward(inputs) == {name: expected[name] for name in parents if name != gone}
    assert gone not in small.variables


def test_values_may_be_anything_where_they_are_not_listed() -> None:
    model = CausalModel(
        ["x", "y", "near"],
        {"x": lambda generator, size: generator.normal(size=size), "y": lambda generator, size: generator.random(size)},
        {"near": ["x", "y"]},
        {"near": lambda x, y: abs(x - y) < 0.5},
    )
    inputs = model.sample_inputs(50, np.random.default_rng(0))
    near = model.run_many(inputs)["near"]
    assert near.tolist() == [abs(x - y) < 0.5 for x, y in zip(inputs["x"], inputs["y"], strict=True)]
    on_arrays = CausalModel(["x", "y"], {}, {"y": ["x"]}, {"y": OnArrays(lambda x: np.round(2 * x).astype(int))})
    assert on_arrays.run_many({"x": np.array([0.2, 1.4])})["y"].tolist() == [0, 3]
    assert on_arrays.run_forward({"x": 1.4}) == {"x": 1.4, "y": 3}


def test_vectors_and_values_of_several_kinds_are_interchanged_in_some_examples() -> None:
    model = CausalModel(["v", "k", "y"], {}, {"y": ["v", "k"]}, {"y": lambda v, k: (v[0], k)})
    inputs = {"v": np.array([[1.0, 2.0], [3.0, 4.0]]), "k": np.array([1, 2])}
    other = {"v": np.array([[5.0, 6.0], [7.0, 8.0]]), "k": np.array(["one", "two"])}
    found = model.run_many(inputs, {"v": other, "k": other}, {"v": [True, False], "k": [False, True]})
    assert found["y"].tolist() == [(5.0, 1), (3.0, "two")]
    assert found["v"].tolist() == [[5.0, 6.0], [3.0, 4.0]]


def test_a_function_is_called_once_for_each_setting() -> None:
    calls: list[tuple[int, ...]] = []

    def plus(*row: int) -> int:
        calls.append(row)
        return sum(row)

    model = adder(x=plus)
    calls.clear()
    again = CausalModel(model.variables, model.values, model.parents, model.functions)
    for _ in range(3):
        again.run_many(again.sample_inputs(5_000, np.random.default_rng(0)))
    assert len(calls) == len(set(calls)) == 100


@pytest.mark.parametrize("wrong", [4, 10, -1])
def test_arrays_with_a_value_outside_the_range_are_refused(wrong: int) -> None:
    model = CausalModel(["a", "b"], {"a": range(5, 10), "b": range(10)}, {"b": ["a"]}, {"b": lambda a: a - 5})
    assert model.run_many({"a": np.array([9, 5])})["b"].tolist() == [4, 0]
    with pytest.raises(SpecError, match=f"found {wrong}, which is not among the values of 'a'"):
        model.run_many({"a": np.array([9, wrong, 5])})


def test_what_a_source_does_not_need_is_not_run() -> None:
    calls: list[int] = []
    model = CausalModel(
        ["a", "b", "c"], {}, {"b": ["a"], "c": ["b"]}, {"b": lambda a: a + 1, "c": lambda b: calls.append(b) or -b}
    )
    assert model.run_many({"a": [1]}, {"b": {"a": [5]}})["c"].tolist() == [-6]
    assert calls == [6]


def test_many_parents_are_not_a_table() -> None:
    names = [f"v{number}" for number in range(70)]
    model = CausalModel(
        [*names, "odd"], dict.fromkeys(names, range(2)), {"odd": names}, {"odd": lambda *row: sum(row) % 2}
    )
    inputs = model.sample_inputs(200, np.random.default_rng(1))
    expected = sum(inputs[name] for name in names) % 2
    assert (model.run_many(inputs)["odd"] == expected).all()


def test_threads_see_the_same() -> None:
    model, found = adder(), []
    inputs = model.sample_inputs(20_000, np.random.default_rng(2))
    threads = [threading.Thread(target=lambda: found.append(model.run_many(inputs)["sum"])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(threads)
    assert all((one == inputs["a"] + inputs["b"] + inputs["c"]).all() for one in found)


def chi_square(counts: np.ndarray, expected: float) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


def test_balanced_samples_have_the_stated_frequencies() -> None:
    model = adder()
    size = 14_000
    inputs = model.sample_inputs(size, np.random.default_rng(3), balanced="sum")
    sums = np.bincount(inputs["a"] + inputs["b"] + inputs["c"], minlength=28)
    assert chi_square(sums, size / 28) < 55.5  # 27 degrees of freedom, p = .001
    # Of those whose sum is 5 each setting of x and c that gives it is as likely: x is 0 to 5, uniform.
    five = inputs["a"] + inputs["b"] + inputs["c"] == 5
    x = np.bincount((inputs["a"] + inputs["b"])[five], minlength=6)
    assert chi_square(x, five.sum() / 6) < 20.5  # 5 degrees of freedom
    plain = model.sample_inputs(size, np.random.default_rng(3))
    assert chi_square(np.bincount(plain["a"], minlength=10), size / 10) < 27.9  # 9 degrees of freedom
    assert chi_square(np.bincount(sum(plain.values()), minlength=28), size / 28) > 1000


def test_inputs_that_a_balanced_variable_does_not_come_of_are_drawn_as_ever() -> None:
    model, generator = adder(), np.random.default_rng(5)
    inputs = model.sample_inputs(9500, generator, balanced="x")
    assert sorted(inputs) == ["a", "b", "c"]
    assert chi_square(np.bincount(inputs["a"] + inputs["b"], minlength=19), 500) < 42.4  # 18 degrees, p = .001
    assert chi_square(np.bincount(inputs["c"], minlength=10), 950) < 27.9  # 9 degrees
    found = model.sample_input_tree_balanced(generator, output="x", value=18)
    assert (found["a"], found["b"]) == (9, 9)
    assert 0 <= found["c"] <= 9


def test_balanced_samples_can_be_of_one_value_and_of_given_classes() -> None:
    generator = np.random.default_rng(4)
    model = adder()
    for value in (0, 13, 27):
        assert sum(model.sample_input_tree_balanced(generator, value=value).values()) == value
    only = {"x": {number: [{"a": number, "b": 0}] for number in range(10)}}
    values = {"a": DIGITS, "b": DIGITS, "x": range(19)}
    given_classes = CausalModel(list(values), values, {"x": ["a", "b"]}, {"x": lambda a, b: a + b}, equiv_classes=only)
    assert (given_classes.sample_inputs(50, generator, balanced="x")["b"] == 0).all()


def test_given_classes_are_kept_by_models_that_are_made_of_a_model() -> None:
    only = {"x": {number: [{"a": number, "b": 0}] for number in range(10)}}
    values = {"a": DIGITS, "b": DIGITS, "x": range(19), "y": range(19), "z": range(19)}
    parents, functions = {"x": ["a", "b"], "y": ["x"], "z": ["y"]}, {"x": lambda a, b: a + b, "y": int, "z": int}
    model = CausalModel(list(values), values, parents, functions, equiv_classes=only)
    only["x"][3].append({"a": 0, "b": 3})  # is no business of the model
    for made in (model, model.add_variable("odd", [0, 1], ["x"], lambda x: x % 2), model.marginalize("y")):
        assert (made.sample_inputs(50, np.random.default_rng(0), balanced="x")["b"] == 0).all()
    for made in (model.add_variable("k", [0], [], None, {"x": lambda a, b, k: a + b}), model.marginalize("x")):
        assert made.sample_inputs(50, np.random.default_rng(0), balanced="y")["b"].any()


def test_what_is_no_tree_cannot_be_balanced() -> None:
    values = {"a": DIGITS, "x": range(1, 11), "y": range(11)}
    parents, functions = {"x": ["a"], "y": ["x", "a"]}, {"x": lambda a: a + 1, "y": lambda x, a: max(x, a)}
    model = CausalModel(list(values), values, parents, functions)
    with pytest.raises(SpecError, match="'y' comes of 'a' in two ways"):
        model.sample_input_tree_balanced(np.random.default_rng(0))


def test_samples_may_be_filtered() -> None:
    generator = np.random.default_rng(5)
    inputs = adder().sample_inputs(40, generator, where=lambda found: found["sum"] == 7)
    assert (inputs["a"] + inputs["b"] + inputs["c"] == 7).all()
    assert len(inputs["a"]) == 40
    with pytest.raises(SpecError, match="samples 0 are wanted by where="):
        adder().sample_input(generator, where=lambda found: found["sum"] > 27)
    found = adder().sample_intervention(generator, where=lambda chosen: chosen["x"] > 15)
    assert set(found) == {"x"}
    assert found["x"] > 15


def test_the_same_seed_gives_the_same_and_nothing_global_is_touched() -> None:
    state = np.random.get_state()[1].copy()
    first, second = (adder().sample_inputs(9, np.random.default_rng(6)) for _ in range(2))
    assert all((first[name] == second[name]).all() for name in first)
    assert (np.random.get_state()[1] == state).all()


def test_live_paths_are_those_along_which_something_changes() -> None:
    names = ["a", "b", "c", "and", "or"]
    model = CausalModel(
        names, dict.fromkeys(names, (False, True)), {"and": ["a", "b"], "or": ["and", "c"]},
        {"and": lambda a, b: a and b, "or": lambda one, c: one or c},
    )  # fmt: skip
    found = model.find_live_paths({"a": True, "b": False, "c": False})
    assert found == {2: [["b", "and"], ["c", "or"], ["and", "or"]], 3: [["b", "and", "or"]]}
    assert model.find_live_paths({"a": True, "b": False, "c": True}) == {2: [["b", "and"], ["c", "or"]]}
    held = model.find_live_paths({"a": True, "b": False, "c": False, "and": True})
    assert held == {2: [["and", "or"]]}


def test_a_variable_is_added_to_a_new_model() -> None:
    old = adder()
    new = old.add_variable("carry", [0, 1], ["x"], lambda x: int(x > 9), {"sum": lambda x, c, carry: x + c - carry})
    given_inputs = {"a": 9, "b": 3, "c": 1}
    assert new.run_forward(given_inputs) == {**given_inputs, "x": 12, "carry": 1, "sum": 12}
    assert old.run_forward(given_inputs)["sum"] == 13
    assert "carry" not in old.variables
    with pytest.raises(SpecError, match="there is a variable 'x' already"):
        old.add_variable("x", [0], [])


def test_what_is_handed_in_may_be_changed_afterwards() -> None:
    values: dict[str, Any] = {"a": [0, 1], "b": [0, 1]}
    parents = {"b": ["a"]}
    model = CausalModel(["a", "b"], values, parents, {"b": lambda a: a})
    values["a"].append(2)
    parents["b"].append("c")
    assert model.values["a"] == (0, 1)
    assert model.parents["b"] == ("a",)
    with pytest.raises(TypeError):
        model.values["a"] = (1,)  # type: ignore[index]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a circle": (
        {"parents": {"a": ["b"], "b": ["a"]}, "functions": {"a": lambda b: b, "b": lambda a: a}}, "circle: a -> b -> a"
    ),
    "an unknown parent": ({"parents": {"b": ["aa"]}}, "'aa', no variable; did you mean 'a'"),
    "no function": ({"functions": {}}, r"functions\['b'\] is missing"),
    "two arguments": ({"functions": {"b": lambda a, c: a}}, "called with the values of its parents"),
    "no argument": ({"functions": {"b": lambda: 1}}, "called with the values of its parents"),
    "a value that is not listed": ({"functions": {"b": lambda a: a + 1}}, r"functions\['b'\]\(a=1\) gave 2"),
    "a list that cannot be hashed": ({"functions": {"b": lambda a: [a]}}, r"gave \[0\], which is not among"),
    "an error": ({"functions": {"b": lambda a: 1 // a}}, r"functions\['b'\]\(a=0\) raised ZeroDivisionError"),
    "values that cannot be hashed": ({"values": {"a": [[0], [1]], "b": [0, 1]}}, "cannot be hashed"),
    "a value twice": ({"values": {"a": [0, 1, 1], "b": [0, 1]}}, "has 1 twice"),
    "no values": ({"values": {"a": [], "b": [0, 1]}}, "is empty"),
    "a text": ({"values": {"a": "01", "b": [0, 1]}}, "is a list, a range or a function"),
    "a name twice": ({"variables": ["a", "b", "a"]}, "found 'a' twice"),
    "values of no variable": ({"values": {"a": [0, 1], "b": [0, 1], "z": [0]}}, "values tells of 'z', no variable"),
    "a circle of one": ({"parents": {"b": ["b"]}}, "circle: b -> b"),
    "classes of no variable": ({"equiv_classes": {"z": {}}}, "equiv_classes tells of 'z', no variable"),
    "classes of an input": ({"equiv_classes": {"a": {0: [{}]}}}, "has for each value a list of settings of parents"),
    "a class of another value": ({"equiv_classes": {"b": {1: [{"a": 0}]}}}, "which functions.'b'. does not give"),
    "a class without a parent": ({"equiv_classes": {"b": {1: [{}]}}}, "a list of settings of a; found"),
    "a class of no value": ({"equiv_classes": {"b": {7: [{"a": 0}]}}}, "7, which is not among the values of 'b'"),
    "no function at all": ({"functions": {"b": 3}}, "is a function of the values of the parents; found 3"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_model_is_refused_when_it_is_made(what: str) -> None:
    changed, message = BAD[what]
    right: dict[str, Any] = {
        "variables": ["a", "b"], "values": {"a": [0, 1], "b": [0, 1]}, "parents": {"b": ["a"]},
        "functions": {"b": lambda a: a},
    }  # fmt: skip
    CausalModel(**right)
    with pytest.raises(AlignError, match=message):
        CausalModel(**{**right, **changed})


def test_what_cannot_be_run_is_refused() -> None:
    model = adder()
    for given_inputs, kind, message in (
        ({"a": 1, "b": 2}, SpecError, "the input 'c' is not given"),
        ({"a": 1, "b": 2, "c": 10}, SpecError, "10, which is not among the values of 'c'"),
        ({"a": 1, "b": 2, "c": 3, "d": 1}, UnknownNameError, "no variable 'd'"),
        ({"a": [1], "b": 2, "c": 3}, SpecError, r"\[1\], which is not among"),
    ):
        with pytest.raises(kind, match=message):
            model.run_forward(given_inputs)
    with pytest.raises(SpecError, match="'b' has 1 values, where there are 2"):
        model.run_many({"a": [1, 2], "b": [1], "c": [1, 2]})
    with pytest.raises(SpecError, match="the input 'c' is not given"):  # though x does not come of it
        model.run_many({name: [1] for name in "abc"}, {"x": {"a": [1], "b": [2]}})
    with pytest.raises(SpecError, match="need 2 entries"):
        model.run_many({name: [1, 2] for name in "abc"}, {"x": {name: [1] for name in "abc"}})
    with pytest.raises(SpecError, match="nothing can be drawn"):
        CausalModel(["a"], {}, {}, {}).sample_input(np.random.default_rng(0))
