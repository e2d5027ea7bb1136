"""The ancestor's `add_three_numbers` on a transformer: where a + b is, and that b + c is nowhere.

The network reads three digits. `make_addition.py` trained it so that the third one learns of the first through the
second: the first sum must be carried by the second token, behind the first block. The search knows nothing of that. A
model that adds b and c first gives the same answers, and is refuted by its interchanges.
"""

from __future__ import annotations

from functools import cache

from align_transformers import AlignmentResult, CounterfactualDataset, align, causal_model

from .fact import Fact
from .make_addition import SIZES, WEIGHTS, accuracy
from .searches import found, loaded, most, one, overview

HERE = {"component": "block_output", "layer": 0, "place": "b"}
"""Where a + b is."""


@causal_model
def add_three_numbers(a: range(10), b: range(10), c: range(10)):
    """The first two digits are summed first."""
    var_x = a + b
    return var_x + c


@causal_model
def from_the_end(a: range(10), b: range(10), c: range(10)):
    """The last two are."""
    var_y = b + c
    return a + var_y


@cache
def searched(causal: str) -> AlignmentResult:
    """Search all tokens behind both blocks for the inner variable of a causal model."""
    model, variable = {"a + b": (add_three_numbers, "var_x"), "b + c": (from_the_end, "var_y")}[causal]
    data = CounterfactualDataset.sample(model, 6000, variables=variable, seed=0)
    return align(
        loaded(WEIGHTS, SIZES),
        model,
        data,
        encode=lambda setting: [setting[name] for name in "abc"],
        positions={"a": 0, "b": 1, "c": 2},
        ranks=8,
        batch_size=64,
        max_steps=150,
    )


def _chosen(causal: str, column: str) -> float:
    (row,) = found(searched(causal), chosen=True)
    return float(row[column])


def _right() -> float:
    (row,) = found(searched("a + b"), chosen=True)
    return float(HERE.items() <= row.items())


def _elsewhere() -> float:
    everything = searched("a + b").table.rows()
    return most([row for row in everything if any(row[name] != value for name, value in HERE.items())], "high")


def _here(method: str, column: str) -> float:
    return float(one(searched("a + b"), method=method, **HERE)[column])


def _apart() -> float:
    return _here("das", "low") - most(list(searched("b + c").table.rows()), "high")


def table() -> str:
    """Return what was found as text."""
    return overview("three digits", {name: searched(name) for name in ("a + b", "b + c")})


FACTS = [
    Fact("addition: accuracy, all triples of digits", lambda: accuracy(loaded(WEIGHTS, SIZES)), 1.0, 1.0),
    Fact("addition, align: whether b after block 0 is chosen for a + b", _right, 1, 1),
    Fact("addition, align: IIA of a + b there, whole vector", lambda: _here("swap", "iia"), 1.0, 1.0),
    Fact("addition, align: IIA of a + b there, 8 dimensions", lambda: _here("das", "iia"), 0.9, 1.0),
    Fact("addition, align: the same fit to permuted labels", lambda: _here("das", "permuted"), 0.0, 0.3),
    Fact("addition, align: the same fit in a random network", lambda: _here("das", "reinitialised"), 0.0, 0.3),
    Fact("addition, align: high end of a + b, any other spot", _elsewhere, 0.0, 0.35),
    Fact("addition, align: IIA of b + c (wrong), best spot", lambda: _chosen("b + c", "iia"), 0.0, 0.2),
    Fact("addition, align: low end of a + b minus any high end of b + c", _apart, 0.4, 1.0),
]
