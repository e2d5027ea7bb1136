"""Models whose weights accelerate has put away: inputs go to where these are fetched to."""

from __future__ import annotations

import pytest
import torch
from tests.helpers import new_model, tokens
from torch import nn

from align_transformers import (
    IntervenableModel,
    LowRankRotatedSpaceIntervention,
    Site,
    activations,
    evaluate,
    fit,
    grid,
)
from align_transformers.models.devices import input_device

accelerate = pytest.importorskip("accelerate")
CPU = torch.device("cpu")


def put_away(kind, model, folder):
    if kind == "cpu":
        return accelerate.cpu_offload(model, execution_device=CPU)
    if kind == "disk":
        return accelerate.disk_offload(model, str(folder), execution_device=CPU)
    names = [name for name, _ in model.named_children()]
    split = {name: "cpu" if number else "disk" for number, name in enumerate(names)}
    return accelerate.dispatch_model(model, split, main_device="cpu", offload_dir=str(folder), force_hooks=True)


@pytest.fixture(params=["cpu", "disk", "split"])
def offloaded(request, tmp_path):
    plain, away = new_model("llama"), new_model("llama")
    away.load_state_dict(plain.state_dict())
    away = put_away(request.param, away, tmp_path)
    assert any(weight.is_meta for weight in away.parameters())
    return plain, away


def face(model):
    torch.manual_seed(3)
    kind = LowRankRotatedSpaceIntervention
    return IntervenableModel(
        {"layer": 1, "component": "block_output", "intervention_type": kind, "low_rank_dimension": 2}, model
    )


def batches():
    at = torch.full((2, 1), 2)
    places = {"source_0->base.0.pos": at, "source_0->base.1.pos": at}
    ids = [tokens(2, 5, seed=seed)["input_ids"] for seed in (0, 1)]
    return [{"input_ids": ids[0], "source_input_ids": ids[1], "labels": torch.tensor([4, 5]), **places}]


def test_everything_that_measures_or_learns_works(offloaded):
    plain, away = offloaded
    base, source = ({"input_ids": tokens(1, 5, seed=seed)["input_ids"]} for seed in (2, 3))
    scored = [[row["effect"] for row in grid(one, base, source, answers=(4, 5)).rows()] for one in (plain, away)]
    assert scored[0] == pytest.approx(scored[1], abs=1e-5)
    losses = []
    for model in (plain, away):
        intervened = face(model)
        fitted = fit(intervened, batches(), epochs=2, lr=0.1, progress=False)
        losses.append([*(row["loss"] for row in fitted.history), evaluate(intervened, batches())["iia"]])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    torch.testing.assert_close(*(activations(model, base, Site("block_output", 1)) for model in (plain, away)))


def test_where_inputs_belong():
    class Hook:
        def __init__(self, device):
            self.execution_device = device

    class Chain:
        hooks = (object(), Hook("cuda:1"))

    first, second = nn.Linear(2, 2, device="meta"), nn.Linear(2, 2)
    model = nn.Sequential(first, second)
    first._hf_hook = Hook(torch.device("cuda", 0))
    assert input_device(model) == torch.device("cuda", 0)
    first._hf_hook = Chain()
    assert input_device(model) == torch.device("cuda", 1)
    del first._hf_hook
    assert input_device(model) == CPU  # the first weights that are somewhere
    assert input_device(nn.ReLU()) == CPU
    assert input_device(nn.Sequential(nn.Embedding(2, 2), first)) == CPU
