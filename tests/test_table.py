"""table: what goes in comes out, whichever way it travels."""

from __future__ import annotations

import copy
import json
import os
import pickle
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.untyped import untyped

from align_transformers._errors import SpecError, UnknownNameError
from align_transformers._files import write_atomically
from align_transformers._optional import MissingExtraError
from align_transformers.table import Table


def row(layer: int, position: int, **changes: object) -> dict[str, object]:
    cell: dict[str, object] = {
        "component": "block_output",
        "layer": layer,
        "position": position,
        "token": " Spain",
        "source_token": " Italy",
        "metric": 1.5,
        "effect": layer + position / 10,
        "recovered": layer * 10.0 + position,
        "change": 2.0,
        "fired": 1,
        "top_tokens": [" Rome", "\n", "é"],
        "top_probabilities": [0.5, 0.25, 0.125],
    }
    return {**cell, **changes}


@pytest.fixture
def table() -> Table:
    rows = [row(layer, position) for layer in (2, 0, 1) for position in (3, 1)]
    return Table.from_rows(rows, meta={"model": "toy", "base_tokens": ["The", " Spain"], "base_value": -1.5})


numbers = st.floats(allow_infinity=False, width=64)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
rows_of_tables = st.lists(
    st.builds(
        row,
        layer=st.integers(0, 200),
        position=st.integers(0, 2**40),
        token=texts,
        source_token=texts,
        effect=numbers | st.none(),
        recovered=numbers | st.none(),
        top_tokens=st.lists(texts, max_size=3),
        top_probabilities=st.lists(st.floats(0, 1), max_size=3),
    ),
    max_size=6,
)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**50), 2**50) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
metas = st.dictionaries(texts, plain, max_size=3)


@given(rows_of_tables, metas)
def test_from_dict_inverts_to_dict_through_strict_json(rows, meta):
    table = Table.from_rows(rows, meta=meta)
    assert Table.from_dict(json.loads(json.dumps(table.to_dict(), allow_nan=False))) == table


@settings(deadline=None)  # the disk
@given(rows_of_tables, metas)
def test_load_inverts_save(tmp_path_factory, rows, meta):
    table = Table.from_rows(rows, meta=meta)
    path = tmp_path_factory.mktemp("table") / "trace.parquet"
    assert table.save(path) == path
    loaded = Table.load(path)
    assert loaded == table


def test_unknown_columns_travel_too(tmp_path):
    rows = [{"head": i, "name": f"h{i}", "fine": i == 1, "weights": [0.5, i]} for i in range(3)]
    table = Table.from_rows(rows, meta={})
    table.save(tmp_path / "heads.parquet")
    assert Table.load(tmp_path / "heads.parquet") == table


def test_pandas_reads_the_file_without_us(table, tmp_path):
    import pandas

    frame = pandas.read_parquet(table.save(tmp_path / "trace.parquet"))
    assert frame["recovered"].tolist() == list(table.columns["recovered"])
    assert list(frame["top_tokens"][0]) == [" Rome", "\n", "é"]


def test_numpy_numbers_become_plain_and_nan_becomes_none():
    cell = row(np.int64(3), 0, effect=np.float32(0.5), recovered=float("nan"), metric=2)
    [back] = Table.from_rows([cell], meta={}).rows()
    assert (type(back["layer"]), type(back["effect"]), type(back["metric"])) == (int, float, float)
    assert back["recovered"] is None
    assert Table.from_rows([cell], meta={}).to_frame()["recovered"].isna().all()


def test_a_column_with_a_missing_number_stays_numeric():
    frame = Table.from_rows([row(0, 0, recovered=None), row(1, 0)], meta={}).to_frame()
    assert frame["recovered"].dtype == "float64"
    assert frame["recovered"].tolist()[1] == 10.0


def test_pivot_has_layers_down_and_positions_across_in_order(table):
    matrix = table.pivot()
    assert list(matrix.index) == [0, 1, 2]
    assert list(matrix.columns) == [1, 3]
    assert matrix.loc[2, 3] == 23.0
    assert matrix.loc[0, 1] == 1.0
    assert table.pivot("effect").loc[2, 3] == pytest.approx(2.3)


def test_pivot_keeps_words_in_the_order_of_their_first_row():
    pairs = [(1, "subject"), (1, "last"), (0, "subject"), (0, "last")]
    rows = [{"layer": layer, "place": place, "recovered": layer + len(place)} for layer, place in pairs]
    matrix = Table.from_rows(rows, meta={}).pivot(columns="place")
    assert (list(matrix.index), list(matrix.columns)) == ([0, 1], ["subject", "last"])
    assert matrix.to_numpy().tolist() == [[7, 4], [8, 5]]
    assert Table.from_rows(rows, meta={}).pivot(index="place", columns="layer").index.tolist() == ["subject", "last"]


def test_pivot_takes_one_component_of_several():
    rows = [row(0, 0), row(0, 0, component="mlp_output", recovered=0.5)]
    table = Table.from_rows(rows, meta={})
    assert table.components() == ["block_output", "mlp_output"]
    assert table.pivot(component="mlp_output").loc[0, 0] == 0.5
    with pytest.raises(SpecError, match=r"several rows.*'block_output', 'mlp_output'"):
        table.pivot()
    with pytest.raises(UnknownNameError, match="did you mean 'mlp_output'"):
        table.pivot(component="mlp_outptu")


def test_pivot_takes_other_columns_and_some_rows():
    rows = [row(layer, 0, head=head, pair=pair, recovered=100 * pair + 10 * layer + head)
            for pair in (0, 1) for layer in (1, 0) for head in (2, 0)]  # fmt: skip
    table = Table.from_rows(rows, meta={})
    matrix = table.pivot(columns="head", where={"pair": 1})
    assert list(matrix.index) == [0, 1]
    assert matrix.loc[1].tolist() == [110, 112]
    assert table.pivot(index="head", columns="pair", where={"layer": 0}).loc[2].tolist() == [2, 102]
    with pytest.raises(SpecError, match=r"at one layer and head.*several of pair: choose with where="):
        table.pivot(columns="head")
    with pytest.raises(UnknownNameError, match="did you mean 'pair'"):
        table.select(where={"pairs": 1})


def test_select_keeps_rows_with_those_values(table):
    assert len(table.select(where={"layer": 1})) == 2
    assert list(table.select("block_output", {"layer": 1, "position": 3}).columns["layer"]) == [1]
    assert table.select() is table
    assert len(table.select(where={"layer": 9})) == 0


@given(st.lists(st.integers(-10, 10), min_size=2, max_size=5), st.sampled_from([0.5, 0.95]))
@settings(deadline=None, max_examples=30)
def test_the_mean_has_the_bootstraps_interval(values, level):
    rows = [row(0, 0, pair=n, recovered=value) for n, value in enumerate(values)]
    mean = Table.from_rows(rows, meta={"model": "toy"}).mean(["layer", "position"], level=level, draws=20000)
    [found] = mean.rows()
    assert (found["layer"], found["position"], found["count"]) == (0, 0, len(values))
    assert found["recovered"] == pytest.approx(sum(values) / len(values))
    # All resamples there are; the drawn quantile may miss by the error of 20,000 draws.
    every = np.array([np.mean(drawn) for drawn in product(values, repeat=len(values))])
    for name, share in (("low", (1 - level) / 2), ("high", (1 + level) / 2)):
        assert (every < found[name] - 1e-9).mean() <= share + 0.015
        assert (every <= found[name] + 1e-9).mean() >= share - 0.015
    again = Table.from_rows(rows, meta={"model": "toy"}).mean(["layer", "position"], level=level, draws=20000)
    assert mean == again  # the seed is the same
    assert mean.meta == {"model": "toy", "mean_of": "recovered", "level": level}


def test_the_mean_is_taken_group_by_group_without_missing_numbers():
    rows = [row(layer, 0, pair=n, effect=value, direction="noise")
            for n, value in enumerate([1.0, 3.0, None]) for layer in (1, 0)]  # fmt: skip
    table = Table.from_rows([*rows, row(7, 0, pair=0, effect=None, direction="noise")], meta={})
    mean = table.mean(value="effect")
    assert list(mean.columns) == ["direction", "component", "layer", "position", "count", "effect", "low", "high"]
    assert mean.columns["layer"] == (1, 0, 7)
    assert mean.columns["effect"] == (2.0, 2.0, None)
    assert mean.columns["count"] == (2, 2, 0)
    assert (mean.columns["low"][0], mean.columns["high"][0]) == (1.0, 3.0)
    assert mean.pivot("effect").loc[1, 0] == 2.0
    one = table.select(where={"pair": 0}).mean(["layer"], value="effect")
    assert (one.columns["low"], one.columns["effect"]) == ((None,) * 3, (1.0, 1.0, None))
    for wrong, said in (({"level": 1.0}, "level"), ({"draws": 0}, "draws"), ({"value": "token"}, "no mean")):
        with pytest.raises(SpecError, match=said):
            table.mean(["layer"], **wrong)
    with pytest.raises(UnknownNameError, match="head"):
        table.mean(["head"])


def test_missing_places_travel(tmp_path):
    rows = [
        {**row(0, 0), "position": None, "layer": None}
        | {"token": None, "source_token": None, "head": 1, "neuron": None}
    ]
    table = Table.from_rows(rows, meta={})
    assert Table.load(table.save(tmp_path / "a.parquet")) == table
    assert table.to_frame()["position"].isna().all()


def test_a_selection_without_rows_keeps_its_columns(table, tmp_path):
    nothing = table.select(where={"layer": 99})
    assert len(nothing) == 0
    assert list(nothing.columns) == list(table.columns)
    assert list(nothing.select(where={"layer": 0}).columns) == list(table.columns)
    mean = nothing.mean(by=["layer"])
    assert (len(mean), list(mean.columns)) == (0, ["layer", "count", "recovered", "low", "high"])
    with pytest.raises(UnknownNameError, match="'layre'; did you mean 'layer'"):
        nothing.mean(by=["layre"])
    ways = (
        Table.from_dict(json.loads(json.dumps(nothing.to_dict()))),
        pickle.loads(pickle.dumps(nothing)),
        Table.load(nothing.save(tmp_path / "t.parquet")),
    )
    assert all(one == nothing for one in ways)
    assert list(nothing.to_frame()) == list(table.columns)
    assert nothing.pivot().shape == (0, 0)


def test_columns_can_be_said_beforehand():
    assert list(Table.from_rows([{"b": 1, "a": 2}], meta={}, columns=["a", "b"]).columns) == ["a", "b"]
    with pytest.raises(SpecError, match=r"row 0 has the columns \['a'\], the table has \['a', 'b'\]"):
        Table.from_rows([{"a": 2}], meta={}, columns=["a", "b"])


def test_an_unknown_column_names_near_misses(table):
    with pytest.raises(UnknownNameError, match="did you mean 'recovered'"):
        table.pivot("recoverd")


def test_nothing_handed_out_changes_the_table(table):
    before = copy.deepcopy(table.to_dict())
    frame = table.to_frame()
    frame.loc[0, "effect"] = 99.0
    frame["top_tokens"][0].append("x")
    next(table.rows())["layer"] = 77
    table.to_dict()["meta"]["base_tokens"].append("x")
    assert table.to_dict() == before
    with pytest.raises(TypeError):
        table.meta["model"] = "other"
    with pytest.raises(TypeError):
        table.columns["layer"] = ()
    with pytest.raises(AttributeError):
        table.meta = {}


def test_the_callers_rows_and_meta_are_not_kept():
    tokens, meta = [" Rome"], {"list": [1]}
    table = Table.from_rows([row(0, 0, top_tokens=tokens, top_probabilities=[1.0])], meta=meta)
    tokens.append("x")
    meta["list"].append(2)
    assert table.columns["top_tokens"] == ((" Rome",),)
    assert table.meta == {"list": [1]}


def test_tables_can_be_sent_to_a_worker(table):
    assert pickle.loads(pickle.dumps(table)) == table


@pytest.mark.parametrize(
    ("rows", "meta", "said"),
    [
        ([row(0, 0), {"layer": 1}], {}, "row 1 has the columns"),
        ([row(0, 0, change=object())], {}, "'change' holds object"),
        ([{"layer": "0"}], {}, "'layer' holds int values, got '0'"),
        ([{"layer": True}], {}, "'layer' holds int values, got True"),
        ([row(0, 0)], {"model": object()}, "must be JSON-able"),
    ],
)
def test_what_a_table_cannot_hold_is_refused(rows, meta, said):
    with pytest.raises(SpecError, match=said):
        Table.from_rows(rows, meta=meta)


def test_from_dict_and_load_refuse_what_is_not_a_table(tmp_path):
    import pandas

    with pytest.raises(SpecError, match=r"has \['rows'\]"):
        Table.from_dict({"rows": []})
    pandas.DataFrame({"a": [1]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(SpecError, match=r"other\.parquet carries no description"):
        Table.load(tmp_path / "other.parquet")
    with pytest.raises(FileNotFoundError):
        Table.load(tmp_path / "none.parquet")


def test_a_killed_save_leaves_the_old_file_and_no_rubbish(table, tmp_path, monkeypatch):
    path = table.save(tmp_path / "deep" / "trace.parquet")
    before = path.read_bytes()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", killed)
        with pytest.raises(KeyboardInterrupt):
            Table.from_rows([row(9, 9)], meta={}).save(path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["trace.parquet"]


def test_an_atomic_write_never_opens_the_target(tmp_path, monkeypatch):
    target = tmp_path / "file"
    target.write_bytes(b"old")
    seen = []
    replace = os.replace

    def watched(temporary: object, final: object) -> None:
        seen.append((target.read_bytes(), Path(temporary).read_bytes(), os.path.dirname(temporary)))
        replace(temporary, final)

    monkeypatch.setattr(os, "replace", watched)
    assert write_atomically(target, b"new") == target
    assert seen == [(b"old", b"new", str(tmp_path))]  # whole before it is moved, and on the same file system
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize(
    ("module", "act"),
    [
        ("pandas", lambda table, path: table.to_frame()),
        ("pyarrow", lambda table, path: table.save(path)),
        ("pyarrow", lambda table, path: Table.load(path)),
    ],
)
def test_a_missing_extra_is_named(table, tmp_path, monkeypatch, module, act):
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"needs {module}: .*align-transformers\[tables\]"):
        act(table, tmp_path / "t.parquet")


def test_concat_is_one_table_below_the_other(table):
    other = Table.from_rows([row(7, 1, head=3)], meta={"model": "other", "base_value": -1.5})
    both = Table.concat([table, other])
    assert len(both) == len(table) + 1
    assert both.columns["layer"] == (*table.columns["layer"], 7)
    assert both.columns["head"] == (*[None] * len(table), 3)
    assert both.meta["base_value"] == -1.5
    assert "model" not in both.meta
    assert [one["model"] for one in both.meta["tables"]] == ["toy", "other"]
    named = Table.concat({"a": table, "b": table}, name="run")
    assert named.columns["run"] == ("a",) * len(table) + ("b",) * len(table)
    assert next(iter(named.columns)) == "run"
    assert named.mean(["run", "layer"]).columns["count"] == (2,) * 6
    assert Table.concat([table]).columns == table.columns
    nothing = table.select(where={"layer": 99})
    assert list(Table.concat([nothing, nothing]).columns) == list(table.columns)
    assert Table.from_dict(json.loads(json.dumps(both.to_dict()))) == both


@pytest.mark.parametrize("wrong", [[], [{"rows": []}], {}])
def test_concat_takes_tables(wrong):
    with untyped(), pytest.raises(SpecError, match=r"takes tables|tables is a list of Table"):
        Table.concat(wrong)


def test_a_column_is_not_named_twice(table):
    with pytest.raises(SpecError, match="'layer' already"):
        Table.concat({"a": table}, name="layer")


def test_places_are_of_tables_that_know_their_pairs(table):
    with pytest.raises(UnknownNameError, match="pair"):
        table.relative_to("last")
    rows = [row(0, 1, pair=0), row(0, 2, pair=1)]
    with pytest.raises(SpecError, match="know their pairs"):
        Table.from_rows(rows, meta={}).relative_to("last")
    known = Table.from_rows(rows, meta={"pairs": 2})
    assert known.relative_to([1, 0]).columns["offset"] == (0, 2)
    with pytest.raises(SpecError, match="base_tokens"):
        known.relative_to("last")
    for wrong in ("first", [1], [1, "first"], [1, 2, 3]):
        with untyped(), pytest.raises(SpecError, match="anchor"):
            known.relative_to(wrong)


def test_a_mean_and_its_interval_are_over_units_where_these_have_several_rows():
    # Four prompts with ten equal tokens each know no more than four numbers; an uneven one weighs as much as others.
    effects = (0.0, 1.0, 0.5, 0.9)
    rows = [{"role": "further", "prompt": n, "effect": effects[n]} for n in range(4) for _ in range(10 if n else 30)]
    (row,) = Table.from_rows(rows, meta={}).mean(["role"], value="effect", unit="prompt").rows()
    alone = [{"role": "further", "prompt": n, "effect": effect} for n, effect in enumerate(effects)]
    (plain,) = Table.from_rows(alone, meta={}).mean(["role"], value="effect").rows()
    for name in ("count", "effect", "low", "high"):
        assert row[name] == pytest.approx(plain[name]), name
    (narrow,) = Table.from_rows(rows, meta={}).mean(["role"], value="effect").rows()
    assert narrow["high"] - narrow["low"] < 0.6 * (row["high"] - row["low"])
    with pytest.raises(UnknownNameError, match="pair"):
        Table.from_rows(rows, meta={}).mean(["role"], value="effect", unit="pair")


MIXED: list[object] = [None, True, 3, 2.5, float("nan"), np.float32(0.5), np.int64(4), "a", [1, 2.0], ("x",)]


@given(st.lists(st.sampled_from(MIXED), min_size=1, max_size=6), st.sampled_from(["other", "effect", "layer", "token"]))
def test_columns_and_rows_make_the_same_table(values, name):
    """Whatever they hold: columns of one kind are as if looked at value by value, and refused where those are."""

    def of_rows() -> Table:
        each = [Table.from_rows([{name: value}], meta={}) for value in values]
        return Table.concat(each)

    try:
        wanted = of_rows().columns[name]
    except SpecError:
        with pytest.raises(SpecError, match=name):
            Table.from_columns({name: values}, meta={})
        return
    found = Table.from_columns({name: values}, meta={}).columns[name]
    assert [(type(one), one) for one in found] == [(type(one), one) for one in wanted]


def test_columns_are_of_equal_length():
    with pytest.raises(SpecError, match="'layer': 2"):
        Table.from_columns({"layer": [0, 1], "effect": [0.5]}, meta={})
