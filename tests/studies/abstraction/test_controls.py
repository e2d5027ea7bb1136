"""Each control catches a planted alignment that is none, and lets the truth beside it pass: through `align`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.studies.abstraction.kit import add, adder, vector
from torch import Tensor, nn

from align_transformers import CausalModel, CounterfactualDataset, TrainableIntervention, align
from align_transformers._errors import SpecError
from align_transformers.studies.abstraction.controls import reinitialised

WORDS, ANSWERS = 24, 4


def words(answer) -> CausalModel:
    """Return a model in which a variable has a word's number, and the answer is made of it."""
    return CausalModel(
        ["word", "number", "answer"],
        {"word": range(WORDS), "number": range(WORDS)},
        {"number": ["word"], "answer": ["number"]},
        {"number": lambda word: word, "answer": answer},
    )


def raised(result) -> set[str]:
    return set(filter(None, (result.best()["flags"] or "").split(", ")))


class Line(nn.Module):
    """The number lies along one direction of a state, and the answer is the nearest one."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Identity()
        self.direction = nn.functional.normalize(torch.randn(6, generator=torch.Generator().manual_seed(0)), dim=0)

    def forward(self, given: Tensor) -> Tensor:
        """Return a logit for each number."""
        k = torch.arange(float(WORDS))
        return 2 * k * (self.hidden(given * self.direction) @ self.direction)[:, None] - k**2


@pytest.mark.parametrize(("rank", "carried"), [(1, True), (5, False)])
def test_a_random_subspace_that_does_as_well_is_noticed(rank, carried):
    """Five of six dimensions have most of the direction in them, whichever they are."""
    data = CounterfactualDataset.sample(words(lambda number: number), 1200, variables="number", seed=0)
    result = align(
        Line(), data.causal_model, data, encode=lambda one: [float(one["word"])], sites="hidden.output",
        methods="das", ranks=rank, max_steps=60, lr=0.05, controls=("random",),
    )  # fmt: skip
    row = result.best()
    assert row["iia"] > 0.95
    assert (row["p"] <= 0.05) == carried
    assert ("not shown" in result.verdict[0]) != carried
    assert carried or "the interval overlaps the random control's" in result.verdict[0]


class Learned(TrainableIntervention):
    """Put what a map makes of the source in the place of the base: with a vector for each word it knows these alone."""

    def __init__(self, width: int) -> None:
        super().__init__(embed_dim=width)
        self.map = nn.Parameter(torch.zeros(width, width))

    def forward(self, base: Tensor, source: Tensor, subspaces: Any = None) -> Tensor:
        """Return it."""
        return source @ self.map


def one_hot(one: dict[str, Any]) -> Tensor:
    return torch.eye(WORDS)[one["word"]]


def test_what_is_learned_by_heart_is_caught_by_labels_by_new_words_and_by_a_random_network():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(WORDS, WORDS, bias=False), nn.Linear(WORDS, ANSWERS, bias=False))
    with torch.no_grad():
        says = network(torch.eye(WORDS)).argmax(-1).tolist()
    data = CounterfactualDataset.sample(words(says.__getitem__), 800, variables="number", seed=0)
    result = align(
        network, data.causal_model, data.split((0.5, 0.1, 0.4)), encode=one_hot, sites="0.output", max_steps=60, lr=0.2,
        methods={"learned": lambda width, rank: Learned(width)}, controls=("permuted", "reinitialised", "full"),
    )  # fmt: skip
    row = result.best()
    assert row["train"] > 0.95
    assert row["permuted"] > 0.95
    assert row["reinitialised_train"] > 0.95
    assert row["iia"] < 0.7
    assert row["full"] == 1.0
    assert raised(result) >= {"memorised", "by heart", "random network", "self-swap"}
    assert "not shown" in result.verdict[0]
    assert result.table.meta["self_swap"] < 0.9


@pytest.fixture(scope="module")
def truth():
    data = CounterfactualDataset.sample(add, 1200, variables="x", seed=0)
    asked = {"encode": vector, "sites": "0.output", "methods": "das", "max_steps": 60, "lr": 0.1, "draws": 3}
    return align(adder()[0], add, data, networks=3, **asked)


def test_the_truth_passes_them_all(truth):
    assert truth.best()["iia"] == 1.0
    assert "exceeds container" in raised(truth)  # which also carries c
    checks = {"trivial", "base alone", "self-swap", "memorised", "by heart", "random network"}
    assert not raised(truth) & checks
    assert truth.table.meta["self_swap"] == 1.0
    assert {check["flag"] for check in truth.table.meta["checks"]} >= checks


def test_of_several_networks_the_highest_is_told(truth):
    several = truth.findings[0].again["test"]
    assert len({tuple(one.tolist()) for one in several}) == 3
    assert truth.best()["reinitialised"] == max(one.mean() for one in several)
    given = [adder(seed)[0] for seed in (1, 2)]
    data = CounterfactualDataset.sample(add, 400, variables="x", seed=0)
    result = align(
        adder()[0], add, data, encode=vector, sites="0.output", methods="swap", controls=["reinitialised"],
        random_model=given,
    )  # fmt: skip
    assert len(result.findings[0].again["test"]) == 2


def test_a_network_without_weights_has_no_random_one():
    with pytest.raises(SpecError, match=r"no parameters.*random_model="):
        reinitialised(Line(), 0)


class Turned(TrainableIntervention):
    """Turn the base round, whatever the source is."""

    def forward(self, base: Tensor, source: Tensor, subspaces: Any = None) -> Tensor:
        """Return it."""
        return -base


@pytest.mark.parametrize("trivial", [False, True])
def test_of_two_answers_the_other_one_needs_no_source(trivial):
    """Without trivial pairs nobody can tell; with them what ignores the source has half, and the swap all."""
    network = nn.Sequential(nn.Linear(1, 3), nn.Linear(3, 2))
    with torch.no_grad():
        network[0].weight.fill_(2.0)
        network[0].bias.fill_(-1.0)
        network[1].weight.copy_(torch.tensor([[-1.0], [1.0]]).expand(2, 3))
        network[1].bias.zero_()
    parity = words(lambda number: number % 2)
    data = CounterfactualDataset.sample(parity, 1500, variables="number", trivial=trivial, balanced="label", seed=0)
    result = align(
        network, parity, data, encode=lambda one: [float(one["word"] % 2)], sites="0.output",
        methods={"turned": lambda width, rank: Turned(embed_dim=width), "swap": None}, controls=(),
    )  # fmt: skip
    turned, swap = result.table.rows()
    assert swap["iia"] == 1.0
    assert ("base alone" in turned["flags"].split(", ")) or trivial
    assert ("base alone" in swap["flags"].split(", ")) == (not trivial)
    assert turned["iia"] < 0.7 if trivial else turned["iia"] == 1.0


# --- what cannot be measured is refused -------------------------------------------------------------------------------


def test_labels_without_a_logit_are_refused_before_anything_is_fitted(monkeypatch):
    network, _ = adder()
    data = CounterfactualDataset.sample(add, 400, variables="x", seed=0)
    asked: dict[str, Any] = {"encode": vector, "sites": "0.output", "methods": "das", "only_solved": False}
    monkeypatch.setattr("align_transformers.studies.abstraction.search.advance", lambda *_, **__: pytest.fail("a fit"))
    with pytest.raises(SpecError, match=r"a value of 'output' is the class \d+, and the model has 13 outputs"):
        align(network, add, data, **asked, label=lambda total: total + 5)
    with pytest.raises(SpecError, match=r"token id -\d+ is negative"):
        align(network, add, data, **asked, label=lambda total: total - 5)


def test_a_file_is_no_store(tmp_path, truth):
    (tmp_path / "file").write_text("")
    data = CounterfactualDataset.sample(add, 400, variables="x", seed=0)
    with pytest.raises(SpecError, match=r"store='.*file' is a file"):
        align(adder()[0], add, data, encode=vector, sites="0.output", store=tmp_path / "file")
    with pytest.raises(Exception, match=r"folder='.*file' is a file"):
        truth.save(tmp_path / "file")
