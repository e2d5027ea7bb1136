"""What a pass sets up acts in its own context: threads, inner runs of the same model, and others' hooks."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from tests.helpers import new_model, tokens
from torch import Tensor, nn

from align_transformers import AdditionIntervention, IntervenableModel
from align_transformers.models import evaluating

SECONDS = 60


def logits(face: Any, base: dict[str, Tensor], **more: Any) -> Tensor:
    """Return the logits of a run with edits, or of a plain one."""
    with torch.no_grad():
        return face(**base).logits if not isinstance(face, IntervenableModel) else face(base, **more)[1].logits


@pytest.mark.parametrize("component", ["mlp_output", "query_output", "query_rotary"])
def test_threads_that_overlap_get_what_each_gets_alone(component: str) -> None:
    model, base = new_model("llama"), tokens(2, 5)
    faces: list[Any] = [
        IntervenableModel({"layer": 1, "component": component, "intervention": lambda old, by=by: old * by}, model)
        for by in (0.0, 2.0)
    ]
    faces.append(model)  # not intervened on at all
    alone = [logits(face, base) for face in faces]
    assert not torch.equal(alone[0], alone[1])
    before, switch = set(map(id, vars(model.model.layers[1].mlp).values())), sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(3) as threads:
            jobs = [(k, threads.submit(logits, faces[k], base)) for _ in range(6) for k in range(3)]
            wrong = [k for k, job in jobs if not torch.equal(job.result(SECONDS), alone[k])]
    finally:
        sys.setswitchinterval(switch)
    assert wrong == []
    assert set(map(id, vars(model.model.layers[1].mlp).values())) == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_an_intervention_that_runs_the_same_model_sees_it_without_the_edit() -> None:
    model, base = new_model("llama"), tokens(2, 5)
    plain, inner = logits(model, base), []

    def function(old: Tensor) -> Tensor:
        inner.append(logits(model, base))
        return old * 0

    face = IntervenableModel({"layer": 1, "component": "mlp_output", "intervention": function}, model)
    edited = logits(face, base)
    assert inner
    assert all(torch.equal(one, plain) for one in inner)
    assert not torch.equal(edited, plain)


def test_resolving_and_trials_call_no_hooks_of_the_user() -> None:
    model, base, seen = new_model("llama"), tokens(2, 5), []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda *_: seen.append("after"))
        layer.register_forward_pre_hook(lambda *_: seen.append("before"))
    face = IntervenableModel({"layer": 1, "component": "mlp_output", "intervention_type": AdditionIntervention}, model)
    assert seen == []
    with torch.no_grad():
        face(base, source_representations=torch.zeros(model.config.hidden_size))
    assert seen == ["before", "after"] * len(model.model.layers)


def test_modes_are_put_back_by_the_last_that_held_them() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Linear(2, 2).eval())
    first, second = evaluating(model), evaluating(model)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not any(module.training for module in model.modules())
    second.__exit__(None, None, None)
    assert [module.training for module in model.modules()] == [True, True, False]
