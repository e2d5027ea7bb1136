"""Alignments that are none, and what raises a doubt about them; beside each one that is what it seems.

A direction of a disconnected and a dormant neuron (Makelov et al. 2023, arXiv:2311.17030); a reversible network on one
with random weights (Sutter et al. 2025, arXiv:2507.08802); and countries that are learned by heart.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from tests.studies.abstraction.revnet import RevNetIntervention
from torch import Tensor, nn

from align_transformers import AlignmentResult, CausalModel, CounterfactualDataset, Site, align
from align_transformers.zoo import MLPConfig, MLPForClassification

from . import addition, equality
from .capitals import CAPITALS, world
from .fact import Fact
from .searches import found, one, overview

NUMBERS = range(-6, 7)
FLAGS = ("exceeds container", "off manifold", "memorised", "by heart", "random network", "trivial")
SEEDS = (1, 4)  # of the random network, and of that which it is compared with


class Toy(nn.Module):
    """h = (x, 0, x), and the output is 2 h_2 + h_3: h_1 is disconnected, h_2 dormant. A logit for each number."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.pair, self.third = nn.Identity(), nn.Identity(), nn.Identity()

    def forward(self, x: Tensor) -> SimpleNamespace:
        """Return logits `(batch, 13)` of numbers `(batch, 1)`: 2 k out - k^2, largest for the nearest k."""
        pair = self.pair(torch.cat([x, torch.zeros_like(x)], 1))
        out = self.hidden(torch.cat([pair, self.third(x)], 1)) @ torch.tensor([[0.0], [2.0], [1.0]])
        each = torch.tensor(NUMBERS, dtype=x.dtype)
        return SimpleNamespace(logits=2 * each * out - each**2)


@cache
def toy(where: str) -> AlignmentResult:
    """Look for the number in both neurons of the pair, or in the third: only what is chosen is checked."""
    told = CausalModel(
        ["x", "number", "out"],
        values={"x": NUMBERS},
        parents={"number": ["x"], "out": ["number"]},
        functions={"number": lambda x: x, "out": lambda number: number},
    )
    return align(
        Toy(),
        told,
        CounterfactualDataset.sample(told, 2000, variables="number", seed=0),
        encode=lambda setting: torch.tensor([float(setting["x"])]),
        label=lambda number: number - NUMBERS[0],
        sites=[Site(f"{where}.output")],
        methods="das",
        max_steps=200,
        lr=0.05,
        controls=("full",),
    )


def random_network(seed: int) -> MLPForClassification:
    """Return a network of three layers of 16 neurons without biases, as it would begin its training."""
    generator = torch.Generator().manual_seed(seed)
    model = MLPForClassification(MLPConfig(h_dim=16, n_layer=3, activation="relu", include_bias=False)).eval()
    for parameter in model.requires_grad_(False).parameters():
        parameter.copy_((torch.rand(*parameter.T.shape, generator=generator).T * 2 - 1) / 4)
    return model


@cache
def reversible() -> AlignmentResult:
    """Look for WX in layer 1 of a random network, by 8 features of a reversible one. The test has new things."""
    same, vectors = equality.same(16), torch.randn(16, 4, generator=torch.Generator().manual_seed(42))
    how: dict[str, Any] = {"variables": "wx", "trivial": True, "balanced": "o"}

    def of(size: int, things: range) -> CounterfactualDataset:
        def few(setting: Mapping[str, Any]) -> bool:
            return all(setting[name] in things for name in "wxyz")

        return CounterfactualDataset.sample(same, size, where=few, seed=0, **how)

    return align(
        random_network(SEEDS[0]),
        same,
        {**of(20_000, range(8)).split(seed=0), "test": of(1000, range(8, 16))},
        encode=lambda setting: vectors[[setting[name] for name in "wxyz"]].view(1, -1),
        sites=[Site("h[0].output")],
        methods={"reversible": lambda width, rank: RevNetIntervention(embed_dim=width, low_rank_dimension=rank)},
        ranks=8,
        batch_size=512,
        max_steps=600,
        lr=7e-3,
        schedule="constant",
        warmup=0,
        only_solved=False,
        random_model=random_network(SEEDS[1]),
        controls=("reinitialised", "permuted", "full"),
    )


@cache
def by_heart() -> AlignmentResult:
    """Look for the capital behind block 25 of SmolLM2, at the last token, in 16 dimensions."""
    here = world()
    told = CausalModel(
        ["country", "capital", "said"],
        values={"country": list(CAPITALS)},
        parents={"capital": ["country"], "said": ["capital"]},
        functions={"capital": lambda country: CAPITALS[country], "said": lambda capital: capital},
    )
    data = CounterfactualDataset.sample(told, 3000, variables="capital", seed=0)
    return align(
        here.model,
        told,
        data,
        template="The capital of {country} is",
        tokenizer=here.tokenizer,
        label=lambda capital: here.tokenizer(f" {capital}")["input_ids"][0],
        layers=[25],
        methods="das",
        ranks=16,
        batch_size=48,
        max_steps=60,
        loss="answers",
        controls=("permuted", "full"),
    )


def _row(result: AlignmentResult) -> Mapping[str, Any]:
    (row,) = found(result, chosen=True)
    return row


def _toy(where: str) -> Mapping[str, Any]:
    return _row(toy(where))


def _flags(row: Mapping[str, Any], *flags: str) -> float:
    """Return how many of some flags were raised."""
    return float(len(set(flags) & set(row["flags"].split(", "))))


def _added() -> Mapping[str, Any]:
    return one(addition.searched("a + b"), method="das", **addition.HERE)


def table() -> str:
    """Return what was found as text."""
    return overview("what seems to be an alignment", {
        "toy, pair": toy("pair"), "toy, third": toy("third"),
        "a reversible network on a random one": reversible(), "capitals": by_heart(),
    })  # fmt: skip


FACTS = [
    Fact("illusions, toy: IIA, one direction of the pair (an illusion)", lambda: _toy("pair")["iia"], 1.0, 1.0),
    Fact("illusions, toy: IIA, all of the pair", lambda: _toy("pair")["full"], 0.0, 0.0),
    Fact("illusions, toy: it is flagged, exceeds container", lambda: _flags(_toy("pair"), "exceeds container"), 1, 1),
    Fact("illusions, toy: it is flagged, off manifold", lambda: _flags(_toy("pair"), "off manifold"), 1, 1),
    Fact("illusions, toy: IIA, the third neuron (true)", lambda: _toy("third")["iia"], 1.0, 1.0),
    Fact("illusions, toy: flags of that", lambda: _flags(_toy("third"), *FLAGS), 0, 0),
    Fact("illusions, reversible: IIA in training on a random network", lambda: _row(reversible())["train"], 0.75, 1.0),
    Fact("illusions, reversible: IIA on new things", lambda: _row(reversible())["iia"], 0.4, 0.62),
    Fact(
        "illusions, reversible: IIA in training on another random one",
        lambda: _row(reversible())["reinitialised_train"],
        0.7,
        1.0,
    ),
    Fact(
        "illusions, reversible: it is flagged, random network",
        lambda: _flags(_row(reversible()), "random network"),
        1,
        1,
    ),
    Fact("illusions, reversible: it is flagged, memorised", lambda: _flags(_row(reversible()), "memorised"), 1, 1),
    Fact(
        "illusions: of these flags, and by heart: equality's first layer (true)",
        lambda: _flags(_row(equality.rotations()), "random network", "memorised", "by heart"),
        0,
        0,
    ),
    Fact(
        "illusions, capitals: IIA in training, 16 dimensions", lambda: _row(by_heart())["train"], 0.95, 1, needs="gguf"
    ),
    Fact("illusions, capitals: IIA, other countries", lambda: _row(by_heart())["iia"], 0.0, 0.1, needs="gguf"),
    Fact(
        "illusions, capitals: the fit to permuted capitals", lambda: _row(by_heart())["permuted"], 0.5, 1, needs="gguf"
    ),
    Fact(
        "illusions, capitals: it is flagged, memorised",
        lambda: _flags(_row(by_heart()), "memorised"),
        1,
        1,
        needs="gguf",
    ),
    Fact(
        "illusions: of memorised, by heart: a + b in 8 dimensions (true)",
        lambda: _flags(_added(), "memorised", "by heart"),
        0,
        0,
    ),
]
