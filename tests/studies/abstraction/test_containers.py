"""Containers of all kinds against hooks by hand: several tokens, steps of a GRU, joint ones; what stays as it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.helpers import grab, hooked, locus, new_model, writer
from tests.studies.abstraction.kit import add, adder, tokens_of, vector, words
from torch import nn

from align_transformers import CounterfactualDataset, IntervenableModel, LowRankRotatedSpaceIntervention, align
from align_transformers._errors import PositionError, SpecError
from align_transformers.studies.abstraction.runner import Runner, measured
from align_transformers.studies.abstraction.statistics import entity_bootstrap
from align_transformers.zoo import GRUConfig, GRUForClassification

QUICK = {"only_solved": False, "max_steps": 2, "draws": 2, "controls": ("random", "full")}


def own(width, rank):
    return LowRankRotatedSpaceIntervention(embed_dim=width, low_rank_dimension=rank)


def logits_of(result, finding):
    """Return the test pairs of a finding with the logits that the search scores."""
    task, hypothesis = result.search.task, finding.hypothesis
    pairs = task.parts["test"]
    rows = pairs.of(hypothesis.variables)
    (found,) = measured(Runner(task, 2**28), [finding.candidate], pairs, lambda _: rows, lambda logits: logits)
    return task, pairs, rows, found


def test_a_place_of_several_tokens_is_one_vector():
    model, data = new_model("llama"), CounterfactualDataset.sample(words(), 120, variables="middle", seed=0)
    result = align(
        model, data.causal_model, data, encode=tokens_of, layers=[1], positions={"both": [1, -1]}, ranks=3,
        methods={"swap": None, "das": None, "pca": None, "own": own}, **QUICK,
    )  # fmt: skip
    place = locus(model, "block_output", 1)
    assert len(result.findings) == 4
    for finding in result.findings:
        task, pairs, rows, found = logits_of(result, finding)
        for row, got in zip(rows[:4], found, strict=False):
            base, source = (
                torch.tensor([tokens_of(task.settings[of[row]])]) for of in (pairs.base, pairs.sources["middle"])
            )
            (old,), (other,) = (grab(model, {"input_ids": ids}, place) for ids in (base, source))
            old, other = old[0, [1, -1]].reshape(-1), other[0, [1, -1]].reshape(-1)
            rotation = getattr(finding.candidate.intervention, "rotation", torch.eye(64)).detach()
            new = (old + (other - old) @ rotation @ rotation.T).view(2, -1)
            columns = [[1, base.shape[1] - 1]]
            with torch.no_grad(), hooked(writer(place, columns, lambda _old, _example, new=new: new)):
                torch.testing.assert_close(got, model(base).logits[0, -1], atol=1e-4, rtol=1e-4)


def steps_of(one):
    """Return three vectors, one a digit."""
    return torch.stack([torch.full((4,), one[name] / 4) * torch.arange(1.0, 5) for name in "abc"])


def test_steps_of_a_recurrent_network():
    torch.manual_seed(0)
    model = GRUForClassification(GRUConfig(h_dim=4, n_layer=2)).eval()
    data = CounterfactualDataset.sample(add, 200, variables=["x", "c"], seed=0)
    asked = {"encode": steps_of, "label": lambda total: total % 2, "sites": "cell_output", "ranks": 2, **QUICK}
    result = align(model, add, data, positions=[0, -1], **asked)
    assert set(result.table.columns["place"]) == {"0", "-1"}
    for finding in result.findings:
        task, pairs, rows, found = logits_of(result, finding)
        (variable,), step = finding.hypothesis.variables, int(finding.hypothesis.container.place) % 3
        cell = model.gru.cells[finding.hypothesis.container.site.layer]
        for row, got in zip(rows[:3], found, strict=False):
            base, source = (steps_of(task.settings[of[row]])[None] for of in (pairs.base, pairs.sources[variable]))
            states = []
            with torch.no_grad():
                handle = cell.register_forward_hook(lambda _module, _given, state, states=states: states.append(state))
                for one in (base, source):
                    model(one)
                handle.remove()
                old, other = states[step], states[3 + step]
                rotation = getattr(finding.candidate.intervention, "rotation", torch.eye(4))
                new, calls = old + (other - old) @ rotation @ rotation.T, []

                def put(_module, _given, state, calls=calls, new=new, step=step):
                    calls.append(1)
                    return new if len(calls) == step + 1 else state

                handle = cell.register_forward_hook(put)
                torch.testing.assert_close(got, model(base).logits.view(-1), atol=1e-5, rtol=1e-5)
                handle.remove()
    assert set(align(model, add, data, **asked).table.columns["place"]) == {"last"}
    with pytest.raises(PositionError, match="an input has 3 vectors"):
        align(model, add, data, positions=[3], **asked)
    with pytest.raises(SpecError, match="are numbers"):
        align(model, add, data, positions={"c": "last"}, **asked)


@pytest.fixture(scope="module")
def joint():
    """A search with two variables at once, and a dropout that must not be on."""
    network, _ = adder()
    network[1] = nn.Dropout(0.5)
    data = CounterfactualDataset.sample(add, 1500, variables=["x", "c", {"x", "c"}], seed=0)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    other = nn.Sequential(nn.Linear(3, 6), nn.Dropout(0.5), nn.Linear(6, 13)).train()
    results = [
        align(network, add, data, encode=vector, sites=["0.output"], methods=("das", "mask"), max_steps=6, draws=2,
              only_solved=False, controls=("random", "reinitialised"), random_model=other)
        for _ in range(2)
    ]  # fmt: skip
    return network, before, results, other


def test_intervals_of_joint_pairs_draw_all_entities(joint):
    (finding,) = [one for one in joint[2][0].findings if len(one.hypothesis.variables) == 2]
    result, test = joint[2][0], joint[2][0].search.task.parts["test"]
    rows = test.of(finding.hypothesis.variables)
    sources = [
        [test.entities[1][name][row] if name in test.sets[row] else -1 for name in finding.hypothesis.variables]
        for row in rows
    ]
    assert min(map(min, sources)) == -1 < max(map(min, sources))  # some have one source, and some have two
    interval = entity_bootstrap(finding.hits["test"], test.entities[0][rows], np.array(sources))
    (row,) = [row for row in result.table.rows() if row["variables"] == "c, x" or row["variables"] == "x, c"]
    assert (row["low"], row["high"]) == (interval.low, interval.high)
    assert row["random"] is not None


def test_networks_are_as_before(joint):
    network, weights, _, other = joint
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    assert network.training
    assert other.training


def test_a_given_random_network_is_not_in_training_mode(joint):
    first, second = joint[2]
    assert first.table.columns["reinitialised"] == second.table.columns["reinitialised"]


def test_what_is_saved_is_what_was_scored(tmp_path):
    network, _ = adder()
    data = CounterfactualDataset.sample(add, 1500, variables="x", seed=0)
    result = align(network, add, data, encode=vector, sites="0.output", methods="mask", max_steps=3, controls=())
    (finding,), task = result.findings, result.search.task
    pairs, model = task.parts["test"], result.intervenable("x")
    base, source = (
        torch.tensor([vector(task.settings[number]) for number in of]) for of in (pairs.base, pairs.sources["x"])
    )
    model.save(tmp_path / "one")
    for one in (model, IntervenableModel.load(tmp_path / "one", model=network)):
        _, logits = one(base, [source], {"sources->base": 0})
        assert (logits.argmax(-1) == pairs.labels).double().tolist() == finding.hits["test"].tolist()
    assert finding.soft.tolist() != finding.hits["test"].tolist()


def test_no_numbers_are_drawn_from_the_callers_generator():
    network, _ = adder()
    data = CounterfactualDataset.sample(add, 800, variables="x", seed=0)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    align(network, add, data, encode=vector, sites="0.output", **QUICK)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_learns_where_no_gradients_are_wanted(mode):
    network, _ = adder()
    data = CounterfactualDataset.sample(add, 800, variables="x", seed=0)
    asked = {"encode": vector, "sites": "0.output", "methods": "das", "max_steps": 5, "controls": ()}
    outside = align(network, add, data, **asked)
    with mode():
        inside = align(network, add, data, **asked)
    first, second = (one.findings[0].candidate.intervention.rotation for one in (outside, inside))
    assert torch.equal(first, second)


def test_vectors_are_of_the_networks_own_type():
    network, _ = adder()
    data = CounterfactualDataset.sample(add, 800, variables="x", seed=0)
    asked = {"encode": vector, "sites": "0.output", "methods": "swap", "controls": (), "only_solved": False}
    found = [
        align(network.to(dtype), add, data, **asked).table.columns["iia"] for dtype in (torch.float32, torch.double)
    ]
    assert found[0] == found[1]


def test_parts_that_share_entities_are_refused():
    network, _ = adder()
    data = CounterfactualDataset.sample(add, 800, variables="x", seed=0)
    with pytest.raises(SpecError, match=r"\d+ entities are in 'train' and in 'validation', such as \(0, 0, 0\)"):
        align(network, add, dict.fromkeys(("train", "validation", "test"), data), encode=vector, sites="0.output")


def test_a_place_that_moved_is_another_search(tmp_path):
    data = CounterfactualDataset.sample(words(), 120, variables="middle", seed=0)
    asked = {"encode": tokens_of, "layers": [1], "methods": "das", "store": tmp_path, **QUICK}
    align(new_model("gpt2"), data.causal_model, data, positions={"here": -1}, **asked)
    with pytest.raises(SpecError, match="with another places"):
        align(new_model("gpt2"), data.causal_model, data, positions={"here": 1}, **asked)


@pytest.mark.parametrize(
    ("encode", "text"),
    [
        (lambda one: torch.ones(1 + one["a"], 4), "sequences of 1 to 5 vectors, and this model takes no padding"),
        (lambda one: [[1.0], [2.0, 3.0]], "no numbers"),
        (lambda one: {"inputs_embeds": torch.ones(4)}, r"the column 'inputs_embeds' of shape \(4,\).*; it is \(n, d\)"),
        (lambda one: {"input_ids": torch.tensor(one["a"])}, r"the column 'input_ids' of shape \(\).*; it is \(n,\)"),
    ],
)
def test_what_is_no_batch_of_vectors_is_refused(encode, text):
    model = GRUForClassification(GRUConfig(h_dim=4, n_layer=2)).eval()
    data = CounterfactualDataset.sample(add, 400, variables="x", seed=0)
    with pytest.raises(SpecError, match=text):
        align(model, add, data, encode=encode, label=lambda total: total % 2, sites="cell_output", **QUICK)
