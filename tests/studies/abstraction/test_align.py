"""`align`: the table, its controls, what is chosen and saved, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.helpers import new_model
from tests.studies.abstraction.kit import add, adder, task_of, tokens_of, vector, words
from torch import nn

from align_transformers import (
    CausalModel,
    CounterfactualDataset,
    IntervenableModel,
    LowRankRotatedSpaceIntervention,
    Site,
    Table,
    align,
    causal_model,
)
from align_transformers._errors import SpecError, UnknownNameError
from align_transformers.studies.abstraction.controls import permuted_labels, reinitialised
from align_transformers.studies.abstraction.finding import Finding, best_of_each
from align_transformers.studies.abstraction.hypothesis import Hypothesis
from align_transformers.studies.abstraction.methods import probed
from align_transformers.studies.abstraction.task import Container

FIT = {"max_steps": 150, "lr": 0.05, "draws": 19}


@causal_model
def other(a: range(5), b: range(5), c: range(5)):
    """Add three digits in another way, one that the network cannot tell from `add`, and a variable it lacks."""
    y = a * c
    return a + b + c + 0 * y


@pytest.fixture(scope="module")
def network():
    return adder()[0]


@pytest.fixture(scope="module")
def found(network):
    data = CounterfactualDataset.sample(add, 1500, variables=["x", "c"], seed=0)
    return align(network, add, data, encode=vector, sites=["0.output", "2.output"], **FIT)


def test_a_row_a_hypothesis_with_controls(found):
    rows = list(found.table.rows())
    assert len(rows) == 2 * 2 * 2  # variables, sites, methods
    assert found.table.meta["study"] == "align"
    for name in ("x", "c"):
        best = found.best(name)
        assert (best["component"], best["method"], best["rank"]) == ("0.output", "das", 1)
        assert best["iia"] == best["train"] == best["validation"] == 1.0
        assert best["low"] == best["high"] == 1.0
        assert best["random"] < best["random_high"] < 0.6
        assert best["p"] == best["p_corrected"] == pytest.approx(1 / 20)
        assert best["permuted"] < 0.4
        assert best["reinitialised"] < 0.3
        assert best["full"] < 0.5
        (swap,) = found.table.select(where={"variables": name, "method": "swap", "component": "0.output"}).rows()
        assert swap["iia"] == best["full"]
        assert swap["random"] is None
    assert sum(row["chosen"] for row in rows) == 2


def test_what_it_says_of_itself(found):
    meta = found.table.meta
    assert meta["data"]["base_accuracy"] == 1.0 == meta["data"]["kept"]
    assert meta["data"]["trivial"] == 0.0
    parts = [meta["data"][name]["entities"] for name in ("train", "validation", "test")]
    assert parts[0] == 75  # of 125, as many as are in some pair
    assert max(parts[1:]) <= 25
    assert meta["causal_model"]["inputs"] == ["a", "b", "c"]
    assert meta["self_swap"] == 1.0
    assert [one["drop"] for one in meta["selection"]] == [0.0, 0.0]
    assert len(found.verdict) == 2
    raised = {(one["variables"], one["flag"]) for one in meta["flags"]}
    assert ("x", "exceeds container") in raised  # all of the layer carries c, too
    assert not {flag for _, flag in raised} & {"memorised", "by heart", "random network", "trivial"}


def test_unseen_entities_are_unseen(found):
    search = found.search
    seen = [{int(n) for numbers in (p.base, *p.sources.values()) for n in numbers} for p in search.task.parts.values()]
    assert all(not one & two for n, one in enumerate(seen) for two in seen[n + 1 :])


def test_the_chosen_interchange_is_an_ordinary_model(found, network, tmp_path):
    face = found.intervenable("x")
    base, source = torch.tensor([vector({"a": 4, "b": 0, "c": 2})]), torch.tensor([vector({"a": 1, "b": 2, "c": 0})])
    assert face(base, source)[1].argmax().item() == 1 + 2 + 2
    folder = found.save(tmp_path / "search")
    again = IntervenableModel.load(folder / "x", model=network)
    assert torch.equal(again(base, source)[1], face(base, source)[1])
    assert list(Table.load(folder / "table.parquet").rows()) == list(found.table.rows())
    page = found.report(tmp_path / "page.html").read_text()
    assert "0.output" in page
    assert found.verdict[0].split(";")[0][:20] in page
    assert found.plot().axes


def test_regions_name_what_works(network):
    """An answer that the network computes for small numbers only, by way of the variable that is claimed."""
    data = CounterfactualDataset.sample(add, 3000, variables="x", entity=["a", "b"], seed=0)
    result = align(network, add, data, encode=vector, sites="0.output", methods="das", controls=[], **FIT)
    regions = result.buckets()
    assert not regions.buckets.found  # it works everywhere
    assert set(regions.entities[0]) == {"a", "b"}
    assert regions.summary()["well"]["n"] + regions.summary()["badly"]["n"] > 0


def test_a_false_hypothesis_stays_at_the_controls(network):
    data = CounterfactualDataset.sample(other, 1500, variables="y", trivial=True, seed=0)
    result = align(network, other, data, encode=vector, sites="0.output", methods=["das"], **FIT)
    row = result.best("y")
    assert "trivial" in row["flags"]  # y changes nothing: what does nothing scores as well


@pytest.mark.parametrize("method", ["boundless", "mask", "pca", "probe"])
def test_each_method_has_a_row(network, method):
    data = CounterfactualDataset.sample(add, 800, variables="x", seed=0)
    result = align(network, add, data, encode=vector, sites="0.output", methods=[method], ranks=[2], **FIT)
    row = result.best()
    assert row["iia"] > row["random"]
    assert (row["dimensions"] is not None) == (method in ("boundless", "mask")) == (row["soft"] is not None)
    assert (row["permuted"] is not None) == (method in ("boundless", "mask"))


def test_a_method_of_ones_own(network):
    asked: list[Any] = []

    def make(width, rank):
        asked.append((width, rank))
        return LowRankRotatedSpaceIntervention(embed_dim=width, low_rank_dimension=rank)

    data = CounterfactualDataset.sample(add, 800, variables="x", seed=0)
    result = align(network, add, data, encode=vector, sites="0.output", methods={"mine": make}, ranks=1, **FIT)
    assert result.best()["iia"] == 1.0
    assert set(asked) == {(6, 1)}


@pytest.mark.parametrize("search", ["halving", "signatures"])
def test_a_search_that_drops(network, search):
    data = CounterfactualDataset.sample(add, 1500, variables="x", seed=0)
    sites = ["0.input", "0.output", "2.output"]
    whole = align(network, add, data, encode=vector, sites=sites, methods="das", controls=[], **FIT)
    part = align(network, add, data, encode=vector, sites=sites, methods="das", controls=[], search=search, **FIT)
    assert part.best()["component"] == whole.best()["component"]
    assert part.best()["iia"] == whole.best()["iia"]
    steps = [result.table.meta["search"]["steps"] for result in (whole, part)]
    assert sum(steps[1].values()) <= sum(steps[0].values())
    if search == "halving":
        assert [row["status"] for row in part.table.rows()].count("dropped") == 2
        assert all(row["iia"] is None for row in part.table.rows() if row["status"] == "dropped")


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def language(request):
    return new_model(request.param)


def test_on_a_language_model_every_place_and_layer(language):
    """The model says something of each word; the causal model says just that, so a swap of the word is the truth."""
    inputs = [torch.tensor([tokens_of({"word": n})]) for n in range(12)]
    with torch.no_grad():
        says = [int(language(one).logits[0, -1].argmax()) for one in inputs]
    causal = CausalModel(
        ["word", "middle", "answer"],
        {"word": range(12), "middle": range(12), "answer": sorted(set(says))},
        {"middle": ["word"], "answer": ["middle"]},
        {"middle": lambda word: word, "answer": lambda middle: says[middle]},
    )
    data = CounterfactualDataset.sample(causal, 300, variables="middle", seed=0)
    result = align(
        language, causal, data, encode=tokens_of, positions={"first": 0, "word": 1}, label=lambda value: value,
        methods=["swap"], controls=["full"],
    )  # fmt: skip
    assert result.table.meta["data"]["base_accuracy"] == 1.0
    status = {(row["layer"], row["place"]): row["status"] for row in result.table.rows()}
    assert {at for at, said in status.items() if said == "skipped"} == {(layer, "first") for layer in range(3)}
    assert result.best()["layer"] == 0  # before the first block has moved anything, all of it is at the word
    assert result.best()["place"] == "word"


def test_heads_are_tried_one_by_one(language):
    data = CounterfactualDataset.sample(words(), 200, variables="middle", seed=0)
    result = align(
        language, data.causal_model, data, encode=tokens_of, sites="head_output", layers=[1], heads=[0, 3],
        only_solved=False, label=lambda value: value, methods=["swap", "das"], controls=[], max_steps=2,
    )  # fmt: skip
    assert [(row["head"], row["method"]) for row in result.table.rows()] == [
        (0, "swap"),
        (3, "swap"),
        (0, "das"),
        (3, "das"),
    ]
    assert result.intervenable().representations[0].addressed.unit == "h.pos"


def test_killed_and_taken_up_again(network, tmp_path):
    data = CounterfactualDataset.sample(add, 800, variables="x", seed=0)
    asked: dict[str, Any] = {
        "encode": vector,
        "sites": ["0.output", "2.output"],
        "methods": "das",
        **FIT,
        "max_steps": 20,
    }
    whole = align(network, add, data, **asked)
    calls = 0

    def kill(done, total):
        nonlocal calls
        calls += 1
        if calls == 31:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        align(network, add, data, **asked, store=tmp_path / "store", progress=kill)
    again = align(network, add, data, **asked, store=tmp_path / "store")
    assert list(again.table.rows()) == list(whole.table.rows())
    with pytest.raises(SpecError, match="another search"):
        align(network, add, data, **{**asked, "lr": 0.01}, store=tmp_path / "store")


def test_the_model_is_as_before(network):
    network.train()
    weight = network[0].weight.requires_grad
    data = CounterfactualDataset.sample(add, 400, variables="x", seed=0)
    align(network, add, data, encode=vector, sites="0.output", methods="das", max_steps=3, draws=2)
    assert network.training
    assert network[0].weight.requires_grad == weight
    assert network[0].weight.grad is None
    assert not any(module._forward_hooks for module in network.modules())
    network.eval()


# --- controls ---------------------------------------------------------------------------------------------------------


def test_permuted_labels_are_those_of_another_entity_always_the_same_one():
    data = CounterfactualDataset.sample(words(), 400, variables="middle", seed=0)
    task = task_of(new_model("gpt2"), data.causal_model, data, encode=tokens_of, label=lambda value: value)
    pairs, other_pairs = task.parts["train"], permuted_labels(task, "train", seed=0)
    instead: dict[int, set[int]] = {}
    for number, label in zip(pairs.sources["middle"], other_pairs.labels.tolist(), strict=True):
        instead.setdefault(int(number), set()).add(label)
    assert all(len(labels) == 1 for labels in instead.values())
    true = {int(n): int(label) for n, label in zip(pairs.sources["middle"], pairs.labels, strict=True)}
    assert all(instead[number] != {true[number]} for number in true)
    assert len({next(iter(labels)) for labels in instead.values()}) == len(instead)


def test_a_new_network_has_other_weights_of_the_same_kind():
    for model in (new_model("llama"), adder()[0]):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        again, more = reinitialised(model, 0), reinitialised(model, 0)
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
        assert all(torch.equal(value, more.state_dict()[name]) for name, value in again.state_dict().items())
        assert any(not torch.equal(value, before[name]) for name, value in again.state_dict().items())

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

    with pytest.raises(SpecError, match=r"own does not say how its parameters begin.*random_model="):
        reinitialised(nn.ModuleDict({"own": Own()}), 0)


def test_a_probe_finds_the_direction_of_a_value():
    generator = torch.Generator().manual_seed(0)
    values = torch.arange(200) % 2
    states = torch.randn(200, 5, generator=generator)
    states[:, 3] += 8 * values
    assert probed(states, values, 1)[3].abs() > 0.99


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "error", "text"),
    [
        ({"methods": "dass"}, UnknownNameError, "there is no method 'dass'; did you mean 'das'"),
        ({"ranks": 0}, SpecError, "ranks are numbers from 1"),
        ({"ranks": 7}, SpecError, "7 dimensions of 6 that there are"),
        ({"encode": None}, SpecError, "say how an input is written"),
        ({"template": "{a}"}, SpecError, "say how an input is written"),
        ({"patience": 3}, SpecError, "patience is no setting of a search"),
        ({"epoch": 3}, UnknownNameError, "no setting 'epoch'"),
        ({"controls": ["rando"]}, SpecError, "controls is 'random'"),
        ({"batch_size": 0}, SpecError, "batch_size"),
        ({"positions": {"last": -1}}, SpecError, "no sequences of tokens"),
        ({"heads": [0]}, SpecError, "has none"),
        ({"variables": [("x", "c")], "methods": "mask"}, SpecError, "several variables"),
        ({"variables": [("x", "d")]}, UnknownNameError, "interchanges no 'd'"),
        ({"variables": [()]}, SpecError, "variables are names"),
    ],
)
def test_what_makes_no_sense_is_refused_before_any_pass(network, asked, error, text):
    data = CounterfactualDataset.sample(add, 800, variables=["x", "c"], seed=0)
    passes = []
    handle = network.register_forward_hook(lambda *_: passes.append(1))
    try:
        with pytest.raises(error, match=text):
            align(network, add, data, **{"encode": vector, "sites": "0.output", "draws": 2, "max_steps": 1, **asked})
    finally:
        handle.remove()
    assert "ranks" in asked or not passes


def test_data_of_another_model_and_missing_parts_are_refused(network):
    data = CounterfactualDataset.sample(add, 800, variables="x", seed=0)
    parts = data.split()
    with pytest.raises(SpecError, match="made with another causal model"):
        align(network, other, data, encode=vector, sites="0.output")
    with pytest.raises(SpecError, match="data has the parts train, validation, test; found train"):
        align(network, add, {"train": parts["train"]}, encode=vector, sites="0.output")
    with pytest.raises(SpecError, match=r"the network solves \d+% of the inputs, and both sides of none"):
        align(reinitialised(network, 0), add, data, encode=vector, sites="0.output", methods="swap")


def test_the_same_seed_gives_the_same_table(network):
    data = CounterfactualDataset.sample(add, 600, variables="x", seed=0)
    asked: dict[str, Any] = {"encode": vector, "sites": "0.output", "methods": "das", "max_steps": 10, "draws": 5}
    first, second = (align(network, add, data, **asked) for _ in range(2))
    assert list(first.table.rows()) == list(second.table.rows())
    assert list(align(network, add, data, **asked, seed=1).table.rows()) != list(first.table.rows())
    assert np.isfinite(first.table.meta["seconds"])


def test_of_equals_the_smaller_is_chosen():
    """A whole vector has as many dimensions as it has, whatever its rank is called."""
    site, hit = Container(Site("0.output")), {"validation": np.ones(4)}
    asked = [Hypothesis(("x",), site, "swap"), Hypothesis(("x",), site, "das", 2), Hypothesis(("x",), site, "das", 1)]
    found = [Finding(one, width=6, hits=hit) for one in asked]
    assert best_of_each(found, methods=False) == [found[2]]
    assert best_of_each(found[:2], methods=False) == [found[1]]
    assert best_of_each(found) == [found[0], found[2]]
