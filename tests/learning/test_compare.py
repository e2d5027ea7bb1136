"""`compare`: each candidate's scores are those of `evaluate`, in shared passes, with paired differences."""

from __future__ import annotations

import pytest
import torch
from tests.helpers import new_model, tiny
from tests.learning.tasks import batches, face
from torch import nn

from align_transformers import (
    IntervenableModel,
    Intervention,
    LowRankRotatedSpaceIntervention,
    SigmoidMaskIntervention,
    SpecError,
    UnknownNameError,
    VanillaIntervention,
    ZeroIntervention,
    bootstrap,
    compare,
    evaluate,
    iia,
    one_by_one,
)
from align_transformers.learning import cross_entropy
from align_transformers.learning.compare import InRandomBasis

SPEC = {"component": "block_output", "intervention_type": VanillaIntervention}


def candidates(model):
    mask = face(model, SigmoidMaskIntervention)
    with torch.no_grad():
        next(iter(mask.interventions.values())).mask.copy_(torch.linspace(-1, 1, 32))
    return {
        "rotation": face(model),
        "mask": mask,
        "swap": IntervenableModel({"layer": 2, **SPEC}, model),
        "two": IntervenableModel([{"layer": 0, **SPEC}, {"layer": 1, **SPEC}], model),
    }


@pytest.mark.parametrize("planner", [None, one_by_one])
@pytest.mark.parametrize("positions", ["last", "all"])
def test_each_has_the_scores_that_it_has_alone(positions, planner):
    model, data = tiny("llama"), batches((3, 2))
    for one in data:
        one["base_labels"] = model(input_ids=one["input_ids"]).logits[:, -1].argmax(-1)
    last = {"iia": iia, "loss": cross_entropy}
    whole = {name: lambda logits, labels, of=of: of(logits[:, -1], labels) for name, of in last.items()}
    metrics = last if positions == "last" else whole
    made = candidates(model)
    found = compare(made, data, metrics=metrics, positions=positions, planner=planner)
    assert list(found) == [*made, "random"]
    for name, one in made.items():
        alone = evaluate(one, data, metrics=metrics, positions=positions)
        assert found[name].numbers.keys() == alone.numbers.keys()
        for mask, numbers in alone.numbers.items():
            for metric, values in numbers.items():
                torch.testing.assert_close(found[name].numbers[mask][metric], values, rtol=0, atol=1e-4)
        assert torch.equal(found[name].changed, alone.changed)
        assert torch.equal(found[name].solved, alone.solved)
        assert found[name].dimensions == alone.dimensions


class Scaled(Intervention):
    """A user's own, which reads anything as its subspaces."""

    source_kind = "none"

    def forward(self, base, source=None, subspaces=None):
        return base if subspaces is None else base * subspaces["by"]


def test_what_a_batch_hands_to_an_intervention_of_the_users_reaches_it():
    model, data = tiny("llama"), batches((3, 2))
    for one in data:
        one["subspaces"] = {"by": 40.0}
    scaled = IntervenableModel({"layer": 1, "component": "block_output", "intervention_type": Scaled}, model)
    options = {"metrics": {"loss": cross_entropy}}
    found = compare({"scaled": scaled}, data, random=False, **options)["scaled"].numbers["soft"]["loss"]
    alone = evaluate(scaled, data, **options).numbers["soft"]["loss"]
    torch.testing.assert_close(found, alone, rtol=0, atol=1e-4)
    plain = [{name: value for name, value in one.items() if name != "subspaces"} for one in data]
    assert float((evaluate(scaled, plain, **options).numbers["soft"]["loss"] - alone).abs().min()) > 1e-2


def test_bases_and_sources_are_run_once_for_all():
    """Counted at the lowest block: no candidate edits it, so one pass over bases and sources is enough for all."""
    model, (data,), rows = new_model("llama"), batches((3,)), []
    made = {str(n): IntervenableModel({"layer": n, **SPEC}, model) for n in (1, 2)}
    made |= {f"rank {n}": face(model, seed=n) for n in range(3)}
    compare(made, [data])  # the library tries its ways once, on a dummy input
    mlp = model.model.layers[0].mlp
    original = mlp.forward
    mlp.forward = lambda x: (rows.append(len(x)), original(x))[1]
    compare(made, [data])
    assert sum(rows) == 2 * 3


def test_the_random_row_is_the_candidate_in_a_random_basis():
    """A projection on random directions, by hand, with the same seed twice and another for another."""
    model, data = tiny("llama"), batches((4,))
    made = {"swap": IntervenableModel({"layer": 1, **SPEC}, model), "rotation": face(model)}
    found = compare(made, data, metrics=cross_entropy, random="rotation")
    (intervention,) = made["rotation"].interventions.values()
    turned = InRandomBasis(intervention, seed=0)
    hand = IntervenableModel({"layer": 1, "component": "block_output", "intervention": turned}, model)
    assert found["random"]["cross_entropy"] == pytest.approx(
        evaluate(hand, data, metrics=cross_entropy)["cross_entropy"]
    )
    base, source = torch.randn(2, 5, 2, 32)
    q = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(0)))[0]
    directions = q @ intervention.rotate_layer.weight
    torch.testing.assert_close(
        turned(base, source), base + (source - base) @ directions @ directions.T, rtol=0, atol=1e-4
    )
    again = compare(made, data, metrics=cross_entropy, random="rotation")
    assert again["random"]["cross_entropy"] == found["random"]["cross_entropy"]
    other = compare(made, data, metrics=cross_entropy, random="rotation", seed=1)
    assert other["random"]["cross_entropy"] != found["random"]["cross_entropy"]
    whole = compare(made, data, metrics=cross_entropy)
    assert whole["random"]["cross_entropy"] == pytest.approx(whole["swap"]["cross_entropy"], abs=1e-4)


@pytest.mark.parametrize(
    "inner",
    [ZeroIntervention(), VanillaIntervention(source_representation=torch.ones(6)), VanillaIntervention(),
     LowRankRotatedSpaceIntervention(embed_dim=12, low_rank_dimension=2, keep_last_dim=False)],
)  # fmt: skip
def test_any_intervention_can_be_turned(inner):
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    base, source = torch.randn(2, 5, 2, 4)
    spec = {"component": "0.output", "intervention": InRandomBasis(inner, 0), "max_number_of_units": 2}
    sources = source if inner.source_kind == "run" and inner.source_representation is None else None
    _, output = IntervenableModel(spec, model)(base, sources, {"sources->base": ([[[0, 1]] * 5], [[[0, 1]] * 5])})
    assert output.shape == (5, 2, 3)


def test_rows_have_paired_differences():
    model, data = tiny("llama"), batches((4, 4))
    made = {"rotation": face(model), "swap": IntervenableModel({"layer": 2, **SPEC}, model)}
    found = compare(made, data, metrics={"iia": iia, "whole": lambda logits, _labels: logits.mean()})
    rows = {(row["name"], row["metric"]): row for row in found.rows()}
    assert len(rows) == 3 * 2
    row = rows["swap", "iia"]
    by_hand = bootstrap(found["swap"].numbers["soft"]["iia"] - found["random"].numbers["soft"]["iia"])
    assert (row["mean"], row["n"]) == (1.0, 8)
    assert (row["difference"], row["difference_low"], row["difference_high"]) == (
        by_hand.mean,
        by_hand.low,
        by_hand.high,
    )
    assert rows["random", "iia"]["difference"] is None
    assert rows["swap", "whole"]["difference"] is None
    assert found.to_frame()["name"].tolist() == [row["name"] for row in found.rows()]
    without = compare(made, data, random=False)
    assert list(without) == ["rotation", "swap"]
    assert all(row["difference"] is None for row in without.rows())


def test_a_hard_mask_is_compared_with_a_candidate_that_has_none():
    model, data = tiny("llama"), batches((4,))
    made = {"rotation": face(model), "mask": face(model, SigmoidMaskIntervention)}
    rows = compare(made, data, metrics=cross_entropy).rows()
    assert [(row["name"], row["mask"]) for row in rows] == [
        ("rotation", "soft"), ("mask", "soft"), ("mask", "hard"), ("random", "soft"),
    ]  # fmt: skip
    assert all(row["difference"] is not None for row in rows[:3])


def test_mistakes_of_comparisons_are_told():
    model, data = tiny("llama"), batches((2,))
    one = face(model)
    with pytest.raises(SpecError, match="by name"):
        compare({}, data)
    with pytest.raises(SpecError, match="several models"):
        compare({"a": one, "b": face(new_model("llama"))}, data)
    with pytest.raises(UnknownNameError, match="known: a"):
        compare({"a": one}, data, random="b")
    with pytest.raises(SpecError, match="'random'"):
        compare({"random": one}, data)
    with pytest.raises(SpecError, match="empty"):
        compare({"a": one}, [])
    with pytest.raises(UnknownNameError, match="known: a"):
        compare({"a": one}, data, random=False)["b"]
