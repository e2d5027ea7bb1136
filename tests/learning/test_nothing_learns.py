"""A fit in which nothing can learn says so, with the likely cause; an optimiser of a face never trains the model."""

from __future__ import annotations

import warnings

import pytest
import torch
from tests.helpers import new_model, tiny
from tests.learning.tasks import LENGTH, batches, face, free_matrix
from torch import nn

from align_transformers import IntervenableModel, SpecError
from align_transformers.interventions import LowRankRotatedSpaceIntervention, SigmoidMaskIntervention
from align_transformers.learning import FitError, fit

RANK = {"component": "block_output", "intervention_type": LowRankRotatedSpaceIntervention, "low_rank_dimension": 3}


def moved(data, position):
    """Return batches whose first intervention is at another position."""
    at = {f"source_0->base.{side}.pos": position for side in (0, 1)}
    return [{**one, **{name: torch.full((len(one["labels"]), 1), place) for name, place in at.items()}} for one in data]


@pytest.mark.parametrize("memory", [True, False])
def test_a_position_that_is_not_read(memory):
    """A fit of one step has to have had its gradient by then, and moves nothing."""
    made = IntervenableModel({"layer": 2, **RANK}, tiny("llama"))
    before = free_matrix(made)
    with pytest.raises(FitError, match=r"exactly 0 .* first 1 steps.*do not change the logits.*'last'"):
        fit(made, moved(batches((3,)), 1), epochs=1, memory=memory, weight_decay=0.5)
    assert torch.equal(free_matrix(made), before)


def test_three_steps_are_waited_for_and_one_of_them_is_enough():
    model = tiny("llama")
    with pytest.raises(FitError, match="first 3 steps"):
        fit(IntervenableModel({"layer": 2, **RANK}, model), moved(batches((3, 3)), 1), epochs=4)
    data = [*moved(batches((3, 3)), 1), batches((3,))[0]]
    fitted = fit(IntervenableModel({"layer": 2, **RANK}, model), data, epochs=2)
    assert [row["gradient"] > 0 for row in fitted.history] == [False, False, True] * 2


def test_sources_that_equal_their_bases():
    data = [{**one, "source_input_ids": one["input_ids"]} for one in batches((3, 3, 3))]
    with pytest.raises(FitError, match="source equals its base"):
        fit(face(), data, epochs=2)


class Cut(nn.Module):
    """A kernel without a gradient."""

    def forward(self, x):
        return x.detach()


def test_a_kernel_without_a_gradient():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 6), Cut(), nn.Linear(6, 3))
    made = IntervenableModel({"component": "0.output", "intervention": LowRankRotatedSpaceIntervention(
        embed_dim=6, low_rank_dimension=2)}, model)  # fmt: skip
    base, source = torch.randn(2, 8, 4)
    with pytest.raises(FitError, match=r"does not depend on what learns.*gradient is lost"):
        fit(made, [{"base": base, "sources": source, "labels": model(source).argmax(-1)}] * 4)


def test_a_hard_mask_is_told_although_its_penalty_has_a_gradient():
    made = face(kind=SigmoidMaskIntervention)
    (mask,) = made.interventions.values()
    with torch.no_grad():
        mask.mask.copy_(torch.linspace(-1, 1, 32))
    mask.hard = True
    with pytest.raises(FitError, match="hard or saturated"):
        fit(made, batches(), epochs=2)
    mask.hard, mask.temperature_schedule = False, (1e-4, 1e-5)  # so cold that sigmoids are 0 and 1
    with torch.no_grad():
        mask.mask.copy_(torch.tensor([-1.0, 1.0]).repeat(16))
    with pytest.raises(FitError, match="hard or saturated"):
        fit(made, batches(), epochs=2)


def test_one_of_several_that_learns_nothing_is_named():
    made = IntervenableModel([{"layer": 1, **RANK}, {"layer": 2, **RANK}], tiny("llama"))
    first, second = made.interventions
    data = [
        {**one, **{f"source_1->base.{side}.pos": torch.ones(3, 1, dtype=torch.long) for side in (0, 1)}}
        for one in batches((3, 3, 3))
    ]
    with pytest.warns(UserWarning, match="learns nothing so far") as said:
        fit(made, data, epochs=2)
    assert len(said) == 1
    assert second in str(said[0].message)
    assert first not in str(said[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(face(), batches(), epochs=2)


@pytest.mark.parametrize("how", ["object", "function"])
def test_an_optimiser_of_something_else_is_refused(how):
    model, other = new_model("llama"), face(seed=1)
    made = face(model)
    adam = torch.optim.Adam(model.parameters()) if how == "object" else None
    with pytest.raises(SpecError, match="none of those that learn"):
        fit(made, batches(), optimizer=adam or (lambda _groups: torch.optim.Adam(other.parameters())))


def test_an_optimiser_of_the_face_trains_the_interventions_and_never_the_model():
    """A loop as people write it, with the loss of the whole face."""
    model = new_model("gpt2").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    made = face(model)
    start = free_matrix(made)
    optimizer = torch.optim.Adam(made.parameters(), lr=0.1)
    (data,) = batches((4,), model=tiny("gpt2"))
    at = {"sources->base": ([[[LENGTH - 1]] * 4], [[[LENGTH - 1]] * 4])}
    _, output = made({"input_ids": data["input_ids"]}, {"input_ids": data["source_input_ids"]}, at)
    nn.functional.cross_entropy(output.logits[:, -1], data["labels"]).backward()
    optimizer.step()
    assert not torch.equal(free_matrix(made), start)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters()), "whoever wants to train it still can"


def test_parameters_are_the_interventions_and_state_dict_names_them_alike():
    model = new_model("llama")
    linked = [{"layer": layer, **RANK, "intervention_link_key": 0} for layer in (0, 1)]
    made = IntervenableModel([*linked, {"layer": 2, **RANK}], model)
    named = dict(made.named_parameters())
    assert list(named.values()) == made.get_trainable_parameters()
    assert len(named) == 2
    assert all(made.state_dict()[name].data_ptr() == p.data_ptr() for name, p in named.items())
    assert [name for name, _ in made.named_parameters(prefix="face")] == [f"face.{name}" for name in named]
    assert list(made.named_parameters(recurse=False)) == []
    assert len(list(made.model.parameters())) == len(list(model.parameters())) > 2
    made.requires_grad_(False)
    assert all(p.requires_grad for p in model.parameters())
