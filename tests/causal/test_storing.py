"""Counterfactual data as a `datasets.Dataset` and in folders: what comes back is what was put there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from align_transformers import ArtifactError, CausalModel, CounterfactualDataset, SpecError

datasets = pytest.importorskip("datasets")


def adder(offset: int = 0) -> CausalModel:
    values = {"a": range(5), "b": range(5), "c": range(5), "x": range(9), "sum": range(20)}
    functions = {"x": lambda a, b: a + b, "sum": lambda x, c: x + c + offset}
    return CausalModel(list(values), values, {"x": ["a", "b"], "sum": ["x", "c"]}, functions)


def mixed() -> CausalModel:
    """Texts, tuples, truth values, and vectors that are not listed."""

    def drawn(generator: np.random.Generator, size: int) -> Any:
        return generator.normal(size=(size, 3))

    values: dict[str, Any] = {"word": ["no", "yes"], "pair": [(0, 1), (1, 1)], "vector": drawn}
    parents = {"out": ["word", "pair", "vector"]}
    functions = {"out": lambda word, pair, vector: (len(word), pair[0], int(sum(vector) > 0))}
    return CausalModel([*values, "out"], values, parents, functions)


def pairs(model: CausalModel | None = None, **options: Any) -> CounterfactualDataset:
    given = {"variables": ["x", {"x", "c"}], "seed": 0, "entity": "a", **options}
    return CounterfactualDataset.sample(model or adder(), 40, **given)


def same(one: CounterfactualDataset, two: CounterfactualDataset) -> bool:
    facts = [json.loads(json.dumps(dict(of.facts))) for of in (one, two)]
    told = [(of.output, of.entity, of.variables, of.sets(), of.entities("base").tolist()) for of in (one, two)]
    kinds = [[column.dtype for column in of.base.values()] for of in (one, two)]
    return list(one) == list(two) and facts[0] == facts[1] and told[0] == told[1] and kinds[0] == kinds[1]


@pytest.mark.parametrize("kind", ["numbers", "mixed"])
def test_what_is_saved_is_loaded(kind: str, tmp_path: Path) -> None:
    model = adder() if kind == "numbers" else mixed()
    data = (
        pairs() if kind == "numbers" else pairs(model, variables=["word", {"pair", "vector"}], entity=["word", "pair"])
    )
    data = data.filter(np.arange(40) < 30, why="a test")
    assert same(CounterfactualDataset.from_dataset(data.to_dataset(), model), data)
    folder = data.save(tmp_path / "pairs")
    assert same(CounterfactualDataset.load(folder, model), data)
    with pytest.raises(ArtifactError, match="there already"):
        data.save(folder)
    fewer = data.take([1, 2])
    fewer.save(folder, overwrite=True)
    assert same(CounterfactualDataset.load(folder, model), fewer)
    assert [path.name for path in tmp_path.iterdir()] == ["pairs"]
    assert {path.suffix for path in folder.iterdir()} == {".arrow", ".json"}  # nothing that could be executed


def test_rows_are_streamed_mapped_and_chosen(tmp_path: Path) -> None:
    data, model = pairs(), adder()
    made = data.to_dataset()
    assert made[3]["base"] == data[3]["base"]
    assert [made[3]["label"], made[3]["base_label"]] == [data[3]["label"], data[3]["base_label"]]
    chosen = made.filter(lambda row: row["base"]["a"] > 2).select(range(3))
    expected = data.take(np.flatnonzero(data.base["a"] > 2)[:3])
    assert list(CounterfactualDataset.from_dataset(chosen, model)) == list(expected)
    texts = made.map(lambda row: {"text": "{a}+{b}+{c}=".format(**row["base"])})
    assert texts[0]["text"] == "{a}+{b}+{c}=".format(**data[0]["base"])
    assert same(CounterfactualDataset.from_dataset(texts, model), data)
    data.save(tmp_path / "pairs")
    stream = datasets.load_from_disk(str(tmp_path / "pairs")).to_iterable_dataset()
    assert list(CounterfactualDataset.from_dataset(stream.take(7), model)) == list(data.take(range(7)))


def test_rows_that_somebody_wrote() -> None:
    row = {"base": {"a": 1, "b": 2, "c": 3}, "sources": {"x": {"a": 4, "b": 0, "c": 0}}, "where": {"x": True}}
    data = CounterfactualDataset.from_dataset([row, {**row, "where": {"x": False}}], adder())
    assert [data.labels.tolist(), data.base_labels.tolist()] == [[7, 6], [6, 6]]
    assert data.entity == ("a", "b", "c")


def test_labels_of_another_model_are_refused(tmp_path: Path) -> None:
    folder = pairs().save(tmp_path / "pairs")
    with pytest.raises(SpecError, match="row 0 has the label"):
        CounterfactualDataset.load(folder, adder(offset=1))
    with pytest.raises(SpecError, match="among the values of 'a'"):
        CounterfactualDataset.load(folder, CausalModel(["a", "b", "c", "x", "sum"], {"a": [0, 1]}, {
            "x": ["a", "b"], "sum": ["x", "c"]}, {"x": lambda a, b: a, "sum": lambda x, c: x}))  # fmt: skip


def test_what_is_no_data_is_refused(tmp_path: Path) -> None:
    right = {"base": {"a": 1, "b": 2, "c": 3}, "sources": {"x": {"a": 4, "b": 0, "c": 0}}, "where": {"x": True}}
    for rows, message in (
        ([], "rows are dicts"),
        ([{"base": {}}], "sources, where are missing"),
        ([{**right, "base": {"a": 1, "b": 2}}], r"base has \['a', 'b'\]"),
        ([right, {"base": 3}], "rows are dicts with the same names"),
        ([{**right, "where": {"c": True}}], "where tells of"),
        ([{**right, "base": {"a": 9, "b": 2, "c": 3}}], "9, which is not among"),
    ):
        with pytest.raises(SpecError, match=message):
            CounterfactualDataset.from_dataset(rows, adder())
    with pytest.raises(ArtifactError, match="has no data set"):
        CounterfactualDataset.load(tmp_path / "nothing", adder())
    other = tmp_path / "other"
    datasets.Dataset.from_dict({"a": [1]}).save_to_disk(str(other))
    with pytest.raises(ArtifactError, match="did not write"):
        CounterfactualDataset.load(other, adder())
    folder = pairs().save(tmp_path / "pairs")
    (arrow,) = folder.glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:100])
    with pytest.raises(ArtifactError, match="is damaged"):
        CounterfactualDataset.load(folder, adder())
    kinds = CausalModel(["k", "y"], {"k": [1, "one"]}, {"y": ["k"]}, {"y": lambda k: len(str(k))})
    with pytest.raises(SpecError, match="the values of 'k' are of kinds that one column cannot hold"):
        CounterfactualDataset.sample(kinds, 9, variables="k", seed=0).to_dataset()
