"""Several variables, each at a place of its own, interchanged at once: against hooks, and on networks made by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.helpers import grab, hooked, locus, new_model, writer
from tests.studies.abstraction.test_containers import logits_of
from torch import Tensor, nn

from align_transformers import CausalModel, CounterfactualDataset, IntervenableModel, Site, align
from align_transformers._errors import SpecError, UnknownNameError

LETTERS = 6


def two_words() -> CausalModel:
    """Return a model of two words, each with a variable of its own."""
    return CausalModel(
        ["one", "other", "first", "second", "answer"],
        dict.fromkeys(["one", "other", "first", "second"], range(LETTERS)),
        {"first": ["one"], "second": ["other"], "answer": ["first", "second"]},
        {"first": lambda one: one, "second": lambda other: other, "answer": lambda first, second: first + second},
    )


def text(one: dict[str, Any]) -> list[int]:
    """Return a text of one of two lengths."""
    return [1, 10 + one["one"], 3, 20 + one["other"], 4] + [5] * (one["one"] % 2)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def language(request):
    model, causal = new_model(request.param), two_words()
    data = CounterfactualDataset.sample(causal, 1500, variables=["first", "second", {"first", "second"}], seed=0)
    asked = {
        "first": {"layer": 0, "place": "word"},
        "second": {"layer": 1, "place": "later", "component": "mlp_output", "method": "swap"},
    }
    result = align(
        model, causal, data, encode=text, positions={"word": 1, "later": [3, 4]}, hypotheses=asked, ranks=2,
        label=lambda value: value, only_solved=False, max_steps=2, draws=2, controls=("random", "full"),
    )  # fmt: skip
    return model, result


def test_interchanges_are_those_of_hooks(language):
    """The second variable's place is behind the first's: what is not interchanged there is what the first edit made."""
    model, result = language
    early, late = locus(model, "block_output", 0), locus(model, "mlp_output", 1)
    assert [row["method"] for row in result.table.rows()] == ["swap", "das + swap"]
    for finding in result.findings:
        task, pairs, rows, found = logits_of(result, finding)
        seen = set()
        for row, got in zip(rows, found, strict=True):
            if pairs.sets[row] in seen:
                continue
            seen.add(pairs.sets[row])
            base = {"input_ids": torch.tensor([text(task.settings[pairs.base[row]])])}
            edits = []
            for name, place, at, one in (
                ("first", early, [1], finding.candidate.parts[0]),
                ("second", late, [3, 4], finding.candidate.parts[1]),
            ):
                if name in pairs.sets[row]:
                    source = {"input_ids": torch.tensor([text(task.settings[pairs.sources[name][row]])])}
                    (value,) = grab(model, source, place)
                    rotation = getattr(one.intervention, "rotation", torch.eye(32)).detach()

                    def new(old, _example, value=value[0, at], rotation=rotation):
                        return old + (value - old) @ rotation @ rotation.T

                    edits.append(writer(place, [at], new))
            with torch.no_grad(), hooked(*edits):
                torch.testing.assert_close(got, model(**base).logits[0, -1], atol=2e-5, rtol=1e-4)
        assert len(seen) == 3


class Two(nn.Module):
    """|a - b| is made in the first layer, c d in the second, each along a column of the layer's own rotation."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.second = (torch.linalg.qr(torch.randn(n, n, generator=generator)).Q for n in (4, 3))
        self.early, self.late = nn.Identity(), nn.Identity()

    def forward(self, given: Tensor) -> Tensor:
        """Return logits of sums 0 to 12."""
        a, b, c, d = given.unbind(-1)
        x, c, d, _ = (self.early(torch.stack([(a - b).abs(), c, d, a + b], -1) @ self.first.T) @ self.first).unbind(-1)
        late = self.late(torch.stack([c * d, x, c - d], -1) @ self.second.T) @ self.second
        total = late[..., :2].sum(-1, keepdim=True)
        k = torch.arange(13.0)
        return 2 * k * total - k**2


@pytest.fixture(scope="module")
def sums():
    digits = range(4)
    return CausalModel(
        ["a", "b", "c", "d", "x", "y", "sum"],
        dict.fromkeys("abcd", digits),
        {"x": ["a", "b"], "y": ["c", "d"], "sum": ["x", "y"]},
        {"x": lambda a, b: abs(a - b), "y": lambda c, d: c * d, "sum": lambda x, y: x + y},
    )


COMPARED = ("random", "full", "permuted")
FIT: dict[str, Any] = {"methods": "das", "max_steps": 100, "lr": 0.1, "draws": 9}


def numbers(one):
    return [float(one[name]) for name in "abcd"]


def test_variables_are_found_where_they_live_and_nowhere_else(sums, tmp_path):
    data = CounterfactualDataset.sample(sums, 4000, variables=["x", "y", {"x", "y"}], seed=0)
    early, late = Site("early.output"), Site("late.output")
    right, wrong = {"x": early, "y": late}, {"x": late, "y": early}
    network = Two().eval()
    result = align(network, sums, data, encode=numbers, hypotheses=[right, wrong], controls=COMPARED, **FIT)
    true, false = result.table.rows()
    assert true["component"] == "x in early.output; y in late.output"
    assert (true["variables"], true["method"], true["rank"], true["layer"]) == ("x, y", "das", 1, None)
    assert true["chosen"]
    assert (true["iia"], true["low"], true["n"]) == (1.0, 1.0, len(result.search.task.parts["test"]))
    assert false["high"] < 0.9  # c d is not there yet
    assert true["random"] < 0.5 > true["permuted"]
    assert true["p"] == 0.1
    assert true["full"] < true["iia"]  # whole vectors carry what else there is
    bases, sources = (
        [{name: number % m for name, m in zip("abcd", (4, 3, 2, 4), strict=True)} for number in range(k, k + 9)]
        for k in (0, 7)
    )
    face = result.intervenable()
    face.save(tmp_path / "both")
    for one in (face, IntervenableModel.load(tmp_path / "both", model=network)):
        base, source = (torch.tensor([numbers(given) for given in side]) for side in (bases, sources))
        said = one(base, [source, source])[1].argmax(-1)
        true_labels = [abs(s["a"] - s["b"]) + s["c"] * s["d"] for s in sources]
        assert said.tolist() == true_labels
    assert "x in early.output; y in late.output" in result.report(tmp_path / "page.html").read_text()
    assert result.plot().axes


def test_a_row_of_a_result_says_where(sums):
    data = CounterfactualDataset.sample(sums, 4000, variables=["x", "y", {"x", "y"}], seed=0)
    network, sites = Two().eval(), ["early.output", "late.output"]
    alone = align(network, sums, data, encode=numbers, sites=sites, variables=["x", "y"], controls=(), **FIT)
    where = {name: alone.best(name) for name in ("x", "y")}
    both = align(network, sums, data, encode=numbers, hypotheses=where, controls=(), **FIT)
    (row,) = both.table.rows()
    assert row["iia"] == 1.0
    assert where["y"]["component"] == "late.output"


def test_variables_of_one_place_share_a_rotation(sums):
    data = CounterfactualDataset.sample(sums, 4000, variables=["x", "y", {"x", "y"}], seed=0)
    where = dict.fromkeys(("x", "y"), Site("late.output"))
    asked = {"encode": numbers, "controls": ("random",), **FIT, "max_steps": 5}
    both = align(Two().eval(), sums, data, hypotheses=where, **asked)
    grid = align(Two().eval(), sums, data, sites="late.output", variables=[("x", "y")], **asked)
    assert list(both.table.rows()) == list(grid.table.rows())
    with pytest.raises(SpecError, match=r"x and y are both in late\.output, where they can only be blocks of one"):
        align(Two().eval(), sums, data, hypotheses=where, **{**asked, "methods": "swap"})


def test_what_comes_of_an_interchanged_variable_is_not_set_back():
    """The sum is made of x, and lives behind it: where x alone is interchanged, the sum is that of the new x."""
    causal = CausalModel(
        ["a", "b", "c", "x", "sum", "said"],
        dict.fromkeys("abc", range(4)),
        {"x": ["a", "b"], "sum": ["x", "c"], "said": ["sum"]},
        {"x": lambda a, b: a + b, "sum": lambda x, c: x + c, "said": lambda sum: sum},
    )
    data = CounterfactualDataset.sample(causal, 3000, variables=["x", "sum", {"x", "sum"}], seed=0)
    k = torch.arange(10.0)
    network = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 1, bias=False), nn.Linear(1, 10))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[1.0, 1, 0], [0, 0, 1], [1, -1, 0]]))
        network[1].weight.copy_(torch.tensor([[1.0, 1, 0]]))
        network[2].weight.copy_(2 * k[:, None])
        network[2].bias.copy_(-(k**2))
    where = {"x": {"component": "0.output", "method": "pca", "rank": 3}, "sum": Site("1.output")}
    result = align(
        network, causal, data, encode=lambda one: [float(one[name]) for name in "abc"], hypotheses=where,
        methods=["swap", "pca"], ranks=1, controls=(),
    )  # fmt: skip
    by_set: dict[Any, list[float]] = {}
    finding, pairs = result.findings[0], result.search.task.parts["test"]
    for one, hit in zip(pairs.sets, finding.hits["test"], strict=True):
        by_set.setdefault(one, []).append(hit)
    shares = {", ".join(sorted(one)): sum(hits) / len(hits) for one, hits in by_set.items()}
    assert shares["sum"] == shares["sum, x"] == 1.0
    assert 0.1 < shares["x"] < 1.0  # all of the first layer has c, too, and is right where that is the same
    assert finding.hypothesis.parts[0].rank == 3


@pytest.mark.parametrize(
    ("asked", "error", "text"),
    [
        (
            {"hypotheses": {"x": Site("early.output"), "z": Site("late.output")}},
            UnknownNameError,
            "interchanges no 'z'",
        ),
        ({"hypotheses": []}, SpecError, "say by variable where it is"),
        ({"hypotheses": [{}]}, SpecError, "a hypothesis says by variable where it is"),
        ({"hypotheses": {"x": Site("early.output"), "y": 3}}, SpecError, "hypotheses"),
        ({"hypotheses": {"x": {"laeyr": 3}}}, UnknownNameError, "'x' has the key 'laeyr'; did you mean 'layer'"),
        ({"hypotheses": {"x": {"component": "early.output", "place": "end"}}}, UnknownNameError, "at the place 'end'"),
        ({"hypotheses": {"x": {"component": "early.output", "place": [1]}}}, UnknownNameError, "at the place"),
        (
            {"hypotheses": {"x": {"component": "early.output", "method": "das", "rank": 0}}},
            SpecError,
            "'x' has the rank 0; it is a number from 1",
        ),
        ({"hypotheses": {3: Site("early.output")}}, SpecError, "hypotheses is a dict"),
        ({"hypotheses": {"x": {"component": "early.output", "head": 1}}}, SpecError, "in head 1 of .*, which has none"),
        ({"hypotheses": {"x": {"component": "early.output", "method": "pca"}}}, UnknownNameError, "the method 'pca'"),
        ({"hypotheses": {"x": Site("early.output")}, "sites": "late.output"}, SpecError, "leave out variables, sites"),
    ],
)
def test_what_makes_no_sense_is_refused_before_any_pass(sums, asked, error, text):
    data = CounterfactualDataset.sample(sums, 300, variables=["x", "y", {"x", "y"}], seed=0)
    network, passes = Two().eval(), []
    network.register_forward_hook(lambda *_: passes.append(1))
    with pytest.raises(error, match=text):
        align(network, sums, data, encode=numbers, **{**FIT, **asked})
    assert not passes


def test_pairs_that_interchange_all_at_once_are_needed(sums):
    data = CounterfactualDataset.sample(sums, 300, variables=["x", "y"], seed=0)
    with pytest.raises(SpecError, match=r"no pair in which x, y are interchanged at once: .*variables=\[\{x, y\}"):
        align(Two(), sums, data, encode=numbers, hypotheses={"x": Site("early.output"), "y": Site("late.output")})
