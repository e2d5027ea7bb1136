"""What a store tells apart: any weight, buffer or setting of a model, and whatever a function does."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.helpers import new_model, tokens
from tests.untyped import untyped
from torch import nn

from align_transformers import AdditionIntervention, Metric, SpecError, VanillaIntervention, grid, probability
from align_transformers.models.fingerprint import digest, fingerprint

ROOT = Path(__file__).parents[2]


def told(value) -> str:
    return digest(value, "it")


def test_every_weight_buffer_and_setting_of_a_model_counts():
    model = new_model("gpt2")
    model.register_buffer("extra", torch.zeros(3))
    model.half_of = nn.Linear(2, 2, dtype=torch.bfloat16)
    first = fingerprint(model)
    assert fingerprint(model) == first
    for weight in (*model.parameters(), *model.buffers()):
        flat, at = weight.data.view(-1), weight.numel() // 3
        before = flat[at].clone()
        flat[at] += 1
        assert fingerprint(model) != first
        flat[at] = before
    assert fingerprint(model) == first
    dropout = model.transformer.h[1].mlp.dropout
    before, dropout.p = dropout.p, 0.5
    assert fingerprint(model) != first
    dropout.p = before
    assert fingerprint(model) == first
    with model.register_forward_hook(lambda *_: None):
        assert fingerprint(model) == first  # who looks on changes nothing


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_adapters_that_are_off_make_another_model():
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    model = get_peft_model(new_model("llama"), config)
    model.add_adapter("other", config)
    on = fingerprint(model)
    with model.disable_adapter():
        assert fingerprint(model) != on
    assert fingerprint(model) == on
    model.set_adapter("other")
    assert fingerprint(model) != on


def test_half_a_gigabyte_takes_a_second_or_so():
    model = nn.Linear(1024, 32 * 1024, bias=False)  # 128 MiB
    start = time.perf_counter()
    fingerprint(model)
    assert time.perf_counter() - start < 3  # of a busy machine


def test_weights_that_are_not_at_hand_are_refused():
    with pytest.raises(SpecError, match=r"weights of the model are not at hand \(weight is on the meta device\)"):
        fingerprint(nn.Linear(2, 2, device="meta"))


LIMIT = 3


def helper(x):
    return x + 1


def other_helper(x):
    return x + 2


def with_default(x, by=1):
    return x * by


def with_global(x):
    return x * LIMIT


def with_helper(x):
    return helper(x)


def closed(value):
    return lambda x: x + value


@dataclass(frozen=True)
class Scaled:
    by: float

    def __call__(self, x):
        return x * self.by


class Loose:
    def __init__(self, by):
        self.by = by

    def __call__(self, x):
        return x * self.by


def test_functions_are_told_by_what_they_do():
    pairs = [
        (lambda x: x[0], lambda x: x[1]),
        (lambda x: x.sum(), lambda x: x.mean()),
        (lambda x: (lambda y: y + 1)(x), lambda x: (lambda y: y + 2)(x)),
        (lambda x, n=1: x * n, lambda x, n=2: x * n),
        (lambda x, *, n=1: x * n, lambda x, *, n=2: x * n),
        (closed(1), closed(2)),
        (closed(torch.zeros(3)), closed(torch.tensor([0.0, 0.0, 1e-9]))),
        (closed(np.arange(2000)), closed(np.r_[np.arange(1999), 0])),
        (closed({"a": 1}), closed({"a": 2})),
        (closed(helper), closed(other_helper)),
        (partial(with_default, by=2), partial(with_default, by=3)),
        (Scaled(1.0), Scaled(2.0)),
        (Loose(1.0), Loose(2.0)),
        (Scaled(1.0), Loose(1.0)),
        (Scaled(1.0).__call__, Scaled(2.0).__call__),
        (torch.sum, torch.mean),
        (torch.Tensor.sum, torch.Tensor.mean),
        (torch.ones(2).add, torch.zeros(2).add),
        (torch.nn.functional.relu, torch.nn.functional.gelu),
        (probability(1), probability(2)),
        (torch.func.vmap(helper), torch.func.vmap(other_helper)),
        (nn.Linear(2, 1), nn.Linear(2, 1)),
        (AdditionIntervention(), VanillaIntervention()),
        (VanillaIntervention(subspace_partition=[[0, 1]]), VanillaIntervention(subspace_partition=[[0, 2]])),
    ]
    for first, second in pairs:
        assert told(first) == told(first)
        assert told(first) != told(second), (first, second)
    assert told(closed({1, 2})) == told(closed({2, 1}))
    assert told(closed("x")) == told(closed("x"))


def test_functions_are_told_by_what_they_look_up(monkeypatch):
    before = told(with_global), told(with_helper)
    monkeypatch.setitem(globals(), "LIMIT", 4)
    monkeypatch.setitem(globals(), "helper", other_helper)
    assert told(with_global) != before[0]
    assert told(with_helper) != before[1]


def test_a_function_that_looks_itself_up_has_an_end():
    def again(x):
        return again(x)

    assert told(again) == told(again)


def test_what_cannot_be_told_is_refused():
    with pytest.raises(SpecError, match=r"the metric holds a lock, which cannot be told .* leave out store="):
        digest(Metric("m", closed(threading.Lock())), "the metric")


def test_another_process_tells_the_same():
    code = (
        "from tests.studies.test_fingerprint import *\n"
        "kept = [closed({'a', 'b', 'c', 'd'}), with_helper, Scaled(2.0), lambda x: x in {'a', 'b', 'c'}]\n"
        "print(fingerprint(new_model('llama')), *map(told, kept))\n"
    )
    paths = f"{ROOT}:{ROOT / 'src'}"
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            capture_output=True,
            env={**os.environ, "PYTHONPATH": paths, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1


def test_a_store_is_not_taken_for_that_of_another_function_or_model(tmp_path):
    model, prompts = new_model("llama"), (tokens(1, 4, seed=1), tokens(1, 4, seed=2))
    grid(model, *prompts, metric=Metric("m", lambda logits: logits[:, 0]), store=tmp_path / "a")
    with pytest.raises(SpecError, match="another metric"):
        grid(model, *prompts, metric=Metric("m", lambda logits: logits[:, 1]), store=tmp_path / "a")
    grid(model, *prompts, answers=(4, 5), store=tmp_path / "b")
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[:, 7] = 0
    with pytest.raises(SpecError, match="another model"):
        grid(model, *prompts, answers=(4, 5), store=tmp_path / "b")
    metric = Metric("m", closed(threading.Lock()))
    with pytest.raises(SpecError, match="leave out store="):
        grid(model, *prompts, metric=metric, store=tmp_path / "c")


def test_a_function_is_no_metric_yet():
    with untyped(), pytest.raises(SpecError, match=r"make one: Metric\('a name', function\)"):
        grid(new_model("llama"), tokens(1, 4), tokens(1, 4, seed=1), metric=lambda logits: logits[:, 5])
