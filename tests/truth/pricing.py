"""Price tagging (Wu et al. 2023, arXiv:2305.08809): is what it costs between the lowest and the highest price wanted?

The network was trained on answers alone. Two algorithms give these: comparing with both ends, or comparing the distance
from the middle with half of the range. The first has its variable `enough` at the last token, after the first block;
for the middle there is no such spot. Pairs whose answer is the base's are kept: of two answers the other one is what
any disturbance gives.
"""

from __future__ import annotations

from functools import cache

from align_transformers import AlignmentResult, CounterfactualDataset, align, causal_model

from .fact import Fact
from .make_pricing import SIZES, WEIGHTS, accuracy
from .searches import found, loaded, most, overview


@causal_model
def both_ends(low: range(16), high: range(16), cost: range(16)):
    """The cost is compared with either end."""
    enough = cost >= low
    little = cost <= high
    return enough and little


@causal_model
def the_middle(low: range(16), high: range(16), cost: range(16)):
    """The distance from the middle is compared with half of the range."""
    middle = low + high
    return abs(2 * cost - middle) <= high - low


@cache
def searched(causal: str) -> AlignmentResult:
    """Search the last token for a variable."""
    model = the_middle if causal == "middle" else both_ends
    data = CounterfactualDataset.sample(
        model, 8000, variables=causal, trivial=True, where=lambda one: one["low"] <= one["high"], seed=0
    )
    return align(
        loaded(WEIGHTS, SIZES),
        model,
        data,
        encode=lambda setting: [setting[name] for name in ("low", "high", "cost")],
        sites=["attention_output", "block_output"],
        layers=[0],
        ranks=4,
        batch_size=64,
        max_steps=150,
    )


def _chosen(causal: str, column: str) -> float:
    (row,) = found(searched(causal), chosen=True)
    return float(row[column])


def table() -> str:
    """Return what was found as text."""
    return overview("price tagging", {name: searched(name) for name in ("enough", "middle")})


def _trivial() -> float:
    return float(searched("middle").table.meta["data"]["trivial"])


FACTS = [
    Fact("pricing: accuracy, all prices", lambda: accuracy(loaded(WEIGHTS, SIZES)), 1.0, 1.0),
    Fact("pricing, align: IIA of cost >= low, 4 dimensions", lambda: _chosen("enough", "iia"), 0.97, 1.0),
    Fact("pricing, align: the same, the whole vector", lambda: _chosen("enough", "full"), 0.6, 0.9),
    Fact("pricing, align: the same fit to permuted labels", lambda: _chosen("enough", "permuted"), 0.5, 0.8),
    Fact("pricing, align: the same fit in a random network", lambda: _chosen("enough", "reinitialised"), 0.4, 0.8),
    Fact("pricing, align: IIA of the middle (wrong)", lambda: _chosen("middle", "iia"), 0.5, 0.8),
    Fact("pricing, align: the same, minus trivial share", lambda: _chosen("middle", "iia") - _trivial(), -0.1, 0.05),
    Fact(
        "pricing, align: low end of cost >= low minus any high end of the middle",
        lambda: _chosen("enough", "low") - most(list(searched("middle").table.rows()), "high"),
        0.1,
        1.0,
    ),
]
