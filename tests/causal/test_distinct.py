"""Rows that are the same, against dictionaries."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from align_transformers.causal.distinct import chosen, count_distinct, distinct_rows, stable_numbers


def columns(kind: str, size: int = 300) -> list[np.ndarray]:
    drawn = np.random.default_rng(0)
    few = drawn.integers(-3, 3, size=size)
    texts = np.array(["a", "longer", "b"])[drawn.integers(3, size=size)]
    tuples = np.empty(size, object)
    tuples[:] = [(int(one), "x") for one in few]
    wide = np.array([-(2**62), 0, 2**62])[drawn.integers(3, size=size)]
    kinds: dict[str, Any] = {
        "small": [few, few > 0], "texts": [texts, few], "tuples": [tuples, texts], "wide": [wide, few],
        "many": [drawn.integers(2, size=size) * 1000 for _ in range(9)], "real": [few / 3, few],
        "vectors": [np.stack([few, few > 0], axis=1), texts], "none": [few[:0], texts[:0]],
    }  # fmt: skip
    return kinds[kind]


def rows(of: list[np.ndarray]) -> list[Any]:
    return [
        tuple(tuple(one) if isinstance(one, list) else one for one in row)
        for row in zip(*(c.tolist() for c in of), strict=True)
    ]


@pytest.mark.parametrize("kind", ["small", "texts", "tuples", "wide", "many", "real", "vectors", "none"])
def test_each_row_is_there_once(kind: str) -> None:
    of = columns(kind)
    firsts, places = distinct_rows(of)
    listed = rows(of)
    kept = [listed[first] for first in firsts]
    assert len(kept) == len(set(kept)) == len(set(listed)) == count_distinct(of)
    assert [kept[place] for place in places] == listed
    assert all(listed.index(row) == first for row, first in zip(kept, firsts, strict=True))
    numbers = stable_numbers({f"column {n}": one for n, one in enumerate(of)}).tolist()
    assert len(set(zip(numbers, listed, strict=True))) == len(set(numbers)) == len(set(listed))


def test_numbers_are_stable_over_time() -> None:
    assert stable_numbers({"a": np.array([3, 4]), "b": np.array(["x", "y"])}).tolist() == [
        2705019446839866169, 4490299396157181337
    ]  # fmt: skip


def test_columns_of_two_kinds_keep_their_values() -> None:
    mask = np.array([True, False, True])
    assert chosen(mask, np.array([1, 2, 3]), np.array(["a", "b", "c"])).tolist() == [1, "b", 3]
    assert chosen(mask, np.array([1, 2, 3]), np.array([4, 5, 6])).tolist() == [1, 5, 3]
    assert chosen(mask, np.ones((3, 2)), np.zeros((3, 2))).tolist() == [[1, 1], [0, 0], [1, 1]]
