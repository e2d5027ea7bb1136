"""Counterfactual data sets against a loop through dictionaries, and by what they promise of frequencies and splits."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from align_transformers import CausalModel, CounterfactualDataset, SpecError, UnknownNameError
from align_transformers.causal.splitting import check_disjoint

DIGITS = range(10)


def adder() -> CausalModel:
    values = {"a": DIGITS, "b": DIGITS, "c": DIGITS, "x": range(19), "sum": range(28)}
    functions = {"x": lambda a, b: a + b, "sum": lambda x, c: x + c}
    return CausalModel(list(values), values, {"x": ["a", "b"], "sum": ["x", "c"]}, functions)


def equality() -> CausalModel:
    """Hierarchical equality over three symbols."""
    values = {**dict.fromkeys("pqrs", range(3)), **dict.fromkeys(["left", "right", "same"], (False, True))}
    functions = {name: lambda one, two: one == two for name in ("left", "right", "same")}
    parents = {"left": ["p", "q"], "right": ["r", "s"], "same": ["left", "right"]}
    return CausalModel(list(values), values, parents, functions)


def said(one: dict[str, Any]) -> int:
    """Return what the adder says of a pair, worked out by hand."""
    base, sources = one["base"], one["sources"]
    c = sources["c"]["c"] if "c" in sources else base["c"]
    x = sources.get("x", base)
    return x["a"] + x["b"] + c


def test_labels_are_those_of_a_loop() -> None:
    data = CounterfactualDataset.sample(adder(), 300, variables=["x", "c", {"c", "x"}], seed=0, trivial=True)
    for one in data:
        assert one["label"] == said(one)
        assert one["base_label"] == said({**one, "sources": {}})
    counts = {kind: data.sets().count(kind) for kind in map(frozenset, ("x", "c", "cx"))}
    assert set(counts.values()) == {100}
    assert data.variables == ("c", "x")
    for name in data.variables:
        rest = ~data.where[name]
        assert all((data.sources[name][one][rest] == data.base[one][rest]).all() for one in "abc")


def test_sets_of_variables_are_mixed_over_the_examples() -> None:
    data = CounterfactualDataset.sample(adder(), 1000, variables=["x", "c"], seed=0)
    assert 80 < data.where["x"][:200].sum() < 120


def test_trivial_pairs_are_left_out_and_counted() -> None:
    every = CounterfactualDataset.sample(adder(), 40_000, variables="x", seed=1, trivial=True)
    # The sums of two pairs of digits are the same in 670 of 10,000 cases.
    assert abs((every.labels == every.base_labels).mean() - 0.067) < 0.005
    data = CounterfactualDataset.sample(adder(), 40_000, variables="x", seed=1)
    assert (data.labels != data.base_labels).all()
    assert abs(data.facts["trivial"] - 0.067) < 0.005
    assert data.facts["trivial_left_out"] == round(data.facts["trivial"] * data.facts["drawn"])
    assert every.facts["trivial_left_out"] == 0
    assert [data.facts["seed"], data.facts["asked"], data.facts["made"]] == [1, 40_000, "sample"]
    constant = CausalModel(["a", "b"], {"a": DIGITS}, {"b": ["a"]}, {"b": lambda a: 1})
    with pytest.raises(SpecError, match="pairs 0 have another label than their base"):
        CounterfactualDataset.sample(constant, 3, variables="a", seed=0)


def chi_square(counts: Any, expected: float) -> float:
    return float(((np.asarray(counts) - expected) ** 2 / expected).sum())


def test_labels_are_balanced_for_each_set_of_variables() -> None:
    data = CounterfactualDataset.sample(adder(), 5605, variables=["x", "c"], seed=2, balanced="label")
    for name in ("x", "c"):
        counts = np.bincount(data.labels[data.where[name]], minlength=28)
        assert counts.max() - counts.min() <= 1
        # All else is as it comes: of the pairs with the label 14 each c of the base is as likely as a + b of 14 - c.
    of_x = data.take(data.where["x"] & (data.labels == 9))
    c = np.bincount(of_x.base["c"], minlength=10)
    expected = np.arange(10, 0, -1) / 55 * len(of_x)
    assert float(((c - expected) ** 2 / expected).sum()) < 27.9  # 9 degrees of freedom, p = .001
    plain = CounterfactualDataset.sample(adder(), 5605, variables=["x", "c"], seed=2)
    assert chi_square(np.bincount(plain.labels, minlength=28), 5605 / 28) > 1000


def test_variables_are_balanced_in_bases_and_sources() -> None:
    size = 4000
    options: dict[str, Any] = {"variables": ["left", "right", {"left", "right"}], "seed": 3}
    balanced = CounterfactualDataset.sample(equality(), size, balanced="same", **options, trivial=True)
    plain = CounterfactualDataset.sample(equality(), size, **options, trivial=True)
    for columns in (balanced.base, *(balanced.sources.values())):
        same = (columns["p"] == columns["q"]) == (columns["r"] == columns["s"])
        assert chi_square(np.bincount(same), size / 2) < 10.8  # 1 degree of freedom, p = .001
        left = columns["p"] == columns["q"]
        assert (
            chi_square(np.bincount(left), size / 2) < 10.8
        )  # each setting of left and right that gives it is as likely
    left = plain.base["p"] == plain.base["q"]
    assert chi_square(np.bincount(left), size / 2) > 100  # a third


def test_an_entity_has_one_number_everywhere() -> None:
    data = CounterfactualDataset.sample(adder(), 400, variables=["x", "c"], seed=4, entity=["a", "c"])
    seen: dict[int, tuple[int, int]] = {}
    for part in (data, data.take(np.arange(399, 350, -1))):
        for side in ("base", "x", "c"):
            columns = part.base if side == "base" else part.sources[side]
            for number, a, c in zip(part.entities(side).tolist(), columns["a"], columns["c"], strict=True):
                assert seen.setdefault(number, (a, c)) == (a, c)
    assert len(set(seen.values())) == len(seen) == 100
    assert set(data.entities(by="a").tolist()) == set(data.entities("x", by="a").tolist())
    assert len(set(data.entities(by="a").tolist())) == 10


@pytest.mark.parametrize("by", [None, "a", ["a", "b"]])
def test_parts_share_no_entity(by: Any) -> None:
    data = CounterfactualDataset.sample(adder(), 6000, variables=["x", {"x", "c"}], seed=5)
    parts = data.split(by=by, seed=1)
    names = ("a", "b", "c") if by is None else tuple(by)
    seen = {}
    for name, part in parts.items():
        sides = [{"base": part.base, **part.sources}[side] for side in ("base", "x", "c")]
        seen[name] = {row for side in sides for row in zip(*(side[one].tolist() for one in names), strict=True)}
        assert part.facts["split"]["entities"] >= len(seen[name])
        assert part.facts["split"]["left_out"] == 6000 - sum(map(len, parts.values()))
    assert not any(one & two for one, two in itertools.combinations(seen.values(), 2))
    assert [len(part) > 0 for part in parts.values()] == [True] * 3
    again = data.split(by=by, seed=1)
    assert all((again[name].labels == part.labels).all() for name, part in parts.items())
    assert len(data.split(by=by, seed=2)["test"]) != len(parts["test"]) or by == "a"


def test_shares_are_of_entities() -> None:
    parts = CounterfactualDataset.sample(adder(), 500, variables="x", seed=0).split({"one": 0.7, "two": 0.3}, by="a")
    assert {name: part.facts["split"]["entities"] for name, part in parts.items()} == {"one": 7, "two": 3}
    data = CounterfactualDataset.sample(adder(), 5, variables="x", seed=0)
    for shares, message in (
        ((0.5, 0.5), "shares are those of"),
        ((0.6, 0.6, 0.2), "1 together"),
        ((1.0, 0.0, 0.0), "above"),
    ):
        with pytest.raises(SpecError, match=message):
            data.split(shares)
    with pytest.raises(SpecError, match=r"entities .* and no pair"):
        data.split()


def test_parts_that_share_an_entity_are_found() -> None:
    parts = CounterfactualDataset.sample(adder(), 300, variables="x", seed=0).split(by="a")
    check_disjoint(parts, ["a"])
    with pytest.raises(SpecError, match=r"'train' and 'test' share \d+ entities, such as \{'a': \d\}"):
        check_disjoint({**parts, "test": parts["train"].take([0, 1])}, ["a"])
    sources_only = (
        CounterfactualDataset.of(adder(), [dict.fromkeys("abc", 1)], [dict.fromkeys("abc", 2)], "x"),
        CounterfactualDataset.of(adder(), [dict.fromkeys("abc", 3)], [dict.fromkeys("abc", 2)], "x"),
    )
    with pytest.raises(SpecError, match=r"'one' and 'two' share 1 entities, such as \{'a': 2, 'b': 2, 'c': 2\}"):
        check_disjoint(dict(zip(("one", "two"), sources_only, strict=True)))


def test_what_is_kept_is_told() -> None:
    data = CounterfactualDataset.sample(adder(), 500, variables=["x", "c"], seed=6)
    asked: list[tuple[int, ...]] = []

    def solved(one: dict[str, int]) -> bool:
        asked.append(tuple(one.values()))
        return one["a"] < 8

    kept = data.filter(solved, why="the network solves them")
    assert len(asked) == len(set(asked))
    assert {a for one in kept for side in (one["base"], *one["sources"].values()) for a in [side["a"]]} == set(range(8))
    assert kept.facts["kept"] == [
        {"why": "the network solves them", "pairs": len(kept), "of": 500, "share": len(kept) / 500}
    ]
    none = kept.filter(np.zeros(len(kept), bool), why="none")
    assert [len(none), none.facts["kept"][1]["share"]] == [0, 0.0]
    assert len(data.facts.get("kept", [])) == 0
    with pytest.raises(SpecError, match="keep is 500 booleans"):
        data.filter([True], why="?")


def test_distinct_inputs_stand_for_all() -> None:
    data = CounterfactualDataset.sample(adder(), 3000, variables=["x", "c"], seed=7)
    found = data.distinct_inputs()
    rows = list(zip(*(found.inputs[name].tolist() for name in "abc"), strict=True))
    assert len(rows) == len(set(rows)) == len(found)
    for side, places in (("base", found.base), *found.sources.items()):
        columns = data.base if side == "base" else data.sources[side]
        assert all((found.inputs[name][places] == columns[name]).all() for name in "abc")
    assert found.settings()[0] == dict(zip("abc", rows[0], strict=True))


def test_values_may_be_anything() -> None:
    model = CausalModel(
        ["word", "x", "pair", "out"],
        {"word": ["a", "the longest"], "x": lambda drawn, size: drawn.normal(size=size), "pair": [(0, 1), (1, 2)]},
        {"out": ["word", "x", "pair"]},
        {"out": lambda word, x, pair: (word[0], x > 0, pair[0])},
    )  # fmt: skip
    data = CounterfactualDataset.sample(model, 60, variables=["word", "x", {"pair", "x"}], seed=8)
    for one in data:
        inside = {**one["base"], **{name: source[name] for name, source in one["sources"].items()}}
        assert one["label"] == (inside["word"][0], inside["x"] > 0, inside["pair"][0])
        assert one["label"] != one["base_label"]
    assert len(set(data.entities(by=["word", "pair"]).tolist())) == 4


def test_examples_are_taken_by_number_or_mask() -> None:
    data = CounterfactualDataset.sample(adder(), 10, variables="x", seed=9)
    assert list(data.take([3, -1])) == [data[3], data[9]]
    assert list(data.take(data.labels > 9)) == [one for one in data if one["label"] > 9]
    assert len(data.take([])) == 0
    for wrong in ([10], [-11], [0.5], [True], "all"):
        with pytest.raises(SpecError, match="take: numbers below 10, or 10 booleans"):
            data.take(wrong)


def test_nothing_can_be_changed() -> None:
    data = CounterfactualDataset.sample(adder(), 10, variables="x", seed=9)
    with pytest.raises(ValueError, match="read-only"):
        data.labels[0] = 3
    with pytest.raises(TypeError):
        data.base["a"] = data.base["b"]  # type: ignore[index]
    own = np.arange(3)
    made = CounterfactualDataset(adder(), dict.fromkeys("abc", own), {}, {}, "x", own, own, ("a",))
    own[0] = 5
    assert made.facts == {}


def test_the_same_seed_gives_the_same() -> None:
    one, two, three = (CounterfactualDataset.sample(adder(), 50, variables="x", seed=seed) for seed in (1, 1, 2))
    assert list(one) == list(two) != list(three)


def test_what_makes_no_sense_is_refused() -> None:
    right: dict[str, Any] = {"causal_model": adder(), "size": 5, "variables": "x", "seed": 0}
    two = CausalModel(["a", "b", "c"], {"a": [0, 1]}, {"b": ["a"], "c": ["a"]}, {"b": int, "c": int})
    named = CausalModel(["a", "label"], {"a": [0, 1]}, {"label": ["a"]}, {"label": int})
    for changed, kind, message in (
        ({"size": 0}, SpecError, "at least 1"),
        ({"variables": "y"}, UnknownNameError, "no variable 'y'"),
        ({"variables": []}, SpecError, "a list of names and of sets of names"),
        ({"variables": ["x", {"x"}]}, SpecError, "each once"),
        ({"balanced": "y"}, UnknownNameError, "no variable 'y'"),
        ({"entity": "x"}, UnknownNameError, "told by inputs; 'x' is none"),
        ({"entity": []}, SpecError, "at least one input"),
        ({"output": "y"}, UnknownNameError, "no variable 'y'"),
        ({"causal_model": two, "variables": "a"}, SpecError, "has the outputs b, c: name one"),
        ({"causal_model": named, "variables": "a", "balanced": "label"}, SpecError, "rename it"),
    ):
        with pytest.raises(kind, match=message):
            CounterfactualDataset.sample(**{**right, **changed})
    with pytest.raises(UnknownNameError, match="there is no side 'y'"):
        CounterfactualDataset.sample(**right).entities("y")


BASES = [{"a": 1, "b": 2, "c": 3}, {"a": 9, "b": 9, "c": 9}, {"a": 0, "b": 5, "c": 1}]
SOURCES = [{"a": 2, "b": 1, "c": 3}, {"a": 0, "b": 0, "c": 4}, {"a": 1, "b": 5, "c": 2}]


def test_pairs_that_somebody_has() -> None:
    each = ["x", {"x", "c"}, "c"]
    data = CounterfactualDataset.of(adder(), BASES, SOURCES, each, trivial=True)
    assert data.labels.tolist() == [3 + 3, 0 + 4, 5 + 2]
    assert data.base_labels.tolist() == [6, 27, 6]
    assert data.sets() == [frozenset(["x"]), frozenset(["x", "c"]), frozenset(["c"])]
    assert data.sources["x"]["a"].tolist() == [2, 0, 0]  # the last is the base's
    changed = CounterfactualDataset.of(adder(), BASES, SOURCES, each)
    assert [len(changed), changed.facts["trivial_left_out"], changed.facts["trivial"]] == [2, 1, 1 / 3]
    columns = {name: [one[name] for one in BASES] for name in "abc"}
    own = CounterfactualDataset.of(adder(), columns, {"x": SOURCES, "c": BASES[::-1]}, {"x", "c"}, trivial=True)
    assert own.labels.tolist() == [3 + 1, 0 + 9, 6 + 3]


def test_a_default_need_not_be_given() -> None:
    model = CausalModel(["a", "b", "x"], {"a": DIGITS}, {"x": ["a", "b"]}, {"b": lambda: 4, "x": lambda a, b: a + b})
    data = CounterfactualDataset.of(model, [{"a": 1}], [{"a": 2}], "a")
    assert data[0] == {"base": {"a": 1, "b": 4}, "sources": {"a": {"a": 2, "b": 4}}, "label": 6, "base_label": 5}


def test_all_ordered_pairs() -> None:
    data = CounterfactualDataset.pairs(adder(), BASES, ["x", {"x", "c"}], trivial=True)
    assert len(data) == 3 * 2 * 2
    expected = {(n, m, kind) for n in range(3) for m in range(3) if n != m for kind in ("x", "cx")}
    found = {
        (BASES.index(one["base"]), BASES.index(one["sources"]["x"]), "".join(sorted(one["sources"]))) for one in data
    }
    assert found == expected
    assert [one["label"] for one in data] == [said(one) for one in data]
    assert all(len({tuple(source.values()) for source in one["sources"].values()}) == 1 for one in data)


def test_pairs_that_make_no_sense_are_refused() -> None:
    for base, source, variables, message in (
        (BASES, SOURCES[:2], "x", "3 bases and 2 sources of 'x'"),
        (BASES, SOURCES, ["x", "c"], "variables is a name or a set of names for all 3 pairs"),
        (BASES, {"x": SOURCES}, ["x", "c", "x"], "source tells of"),
        ([{"a": 1, "b": 2}], SOURCES[:1], "x", "the input 'c' is not given"),
        ([{**BASES[0], "a": 10}], SOURCES[:1], "x", "10, which is not among the values of 'a'"),
        ([{**BASES[0], "x": 10}], SOURCES[:1], "x", "base has 'x', no input"),
        ([BASES[0], {"a": 1, "b": 2}], SOURCES[:2], "x", "base: number 1 lacks 'c'"),
        ("abc", SOURCES, "x", "base is a list of inputs"),
        ([], [], "x", "base is a list of inputs"),
        ({"a": "12", "b": [1, 2], "c": [1, 2]}, SOURCES[:2], "x", "is a list of values"),
    ):
        with pytest.raises(SpecError, match=message):
            CounterfactualDataset.of(adder(), base, source, variables)
    with pytest.raises(SpecError, match="a pair is of two inputs"):
        CounterfactualDataset.pairs(adder(), BASES[:1], "x")


def test_a_causal_model_generates_data() -> None:
    model = adder()
    facts = model.generate_factual_dataset(2800, np.random.default_rng(0), balanced="sum")
    assert (facts["sum"] == facts["a"] + facts["b"] + facts["c"]).all()
    assert chi_square(np.bincount(facts["sum"], minlength=28), 100) < 55.5  # 27 degrees of freedom, p = .001
    state = np.random.get_state()[1].copy()
    data = model.generate_counterfactual_dataset(50, np.random.default_rng(1), balanced="label", entity="a")
    assert (np.random.get_state()[1] == state).all()
    assert data.sets() == [frozenset(["x"])] * 50
    assert [one["label"] for one in data] == [said(one) for one in data]
    sampled = CounterfactualDataset.sample(model, 50, variables="x", seed=1, balanced="label")
    assert list(data) == list(sampled)

    def small(generator: np.random.Generator, size: int) -> dict[str, Any]:
        return {name: generator.integers(2, size=size) for name in "abc"}

    assert model.generate_factual_dataset(99, np.random.default_rng(0), sampler=small)["sum"].max() == 3
    drawn = model.generate_counterfactual_dataset(
        99, np.random.default_rng(0), variables=["c"], sampler=small, balanced="label"
    )
    assert max(columns["a"].max() for columns in (drawn.base, drawn.sources["c"])) == 1
    with pytest.raises(SpecError, match="leave out where= and balanced="):
        model.generate_factual_dataset(9, np.random.default_rng(0), sampler=small, balanced="x")
    with pytest.raises(SpecError, match="leave out where= and balanced="):
        model.generate_counterfactual_dataset(
            9, np.random.default_rng(0), variables="x", sampler=small, where=lambda one: True
        )
    with pytest.raises(SpecError, match=r"sampler\(generator, 9\) gives by name 9 values"):
        model.generate_factual_dataset(9, np.random.default_rng(0), sampler=lambda generator, size: {"a": [1]})
    with pytest.raises(SpecError, match="no variable between them"):
        CausalModel(["a", "b"], {"a": [0, 1]}, {"b": ["a"]}, {"b": int}).generate_counterfactual_dataset(
            9, np.random.default_rng(0)
        )


def test_what_a_sampler_draws_is_as_the_model_has_it() -> None:
    model = CausalModel(
        ["a", "b", "x"], {"a": DIGITS}, {"x": ["a", "b"]}, {"b": lambda: 4, "x": lambda a, b: a + b}
    )  # fmt: skip
    data = model.generate_counterfactual_dataset(
        5,
        np.random.default_rng(0),
        variables="a",
        sampler=lambda drawn, size: {"a": 1.0 * drawn.integers(10, size=size)},
    )
    assert {type(one["base"]["a"]) for one in data} == {int}
    assert data.base["b"].tolist() == [4] * 5
    assert set(data.entities()) <= set(CounterfactualDataset.pairs(model, {"a": list(DIGITS)}, "a").entities())
