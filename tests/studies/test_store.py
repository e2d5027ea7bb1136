"""A stored sweep: killed anywhere, it goes on, does nothing twice, and gives the same table."""

from __future__ import annotations

import os
import subprocess
import sys

import pandas
import pytest
import torch
from tests.helpers import LAYERS, counted, new_model, tokens

from align_transformers._errors import SpecError
from align_transformers.metrics import Metric, logit_difference, probability
from align_transformers.models.fingerprint import fingerprint
from align_transformers.studies import grid

OPTIONS = {"metric": logit_difference(5, 4), "directions": ("denoise", "noise")}


@pytest.fixture
def prompts(monkeypatch):
    """Two pairs; parts are so short that each layer in each direction is one."""
    monkeypatch.setattr(sys.modules["align_transformers.studies._sweep"], "_STORED", 2 * 4)
    monkeypatch.setattr(sys.modules["align_transformers.studies._sweep"], "_CLEAN", 0)
    return tokens(2, 4, seed=1), tokens(2, 4, seed=2)


class Killed(BaseException):
    """Nothing catches this."""


@pytest.mark.parametrize("after", [0, 1, 4, 5, 6])
def test_a_killed_sweep_goes_on_where_it_was(tmp_path, prompts, after):
    model = new_model("llama")
    whole = grid(model, *prompts, **OPTIONS)
    full = grid(model, *prompts, **OPTIONS, store=tmp_path / "other")
    parts = 2 * LAYERS
    assert len(os.listdir(tmp_path / "other")) == parts
    assert full.columns.keys() == whole.columns.keys()
    for name in ("metric", "effect", "change"):
        assert full.columns[name] == pytest.approx(whole.columns[name], abs=1e-5)

    def kill(done, total):
        if done > after * total // parts:
            raise Killed

    store = tmp_path / "sweep"
    if after < parts:
        with pytest.raises(Killed):
            grid(model, *prompts, **OPTIONS, store=store, progress=kill)
    else:
        grid(model, *prompts, **OPTIONS, store=store)
    kept = {path.name: path.read_bytes() for path in store.glob("*")}
    assert len(kept) == after
    seen = []
    with counted(model) as calls:
        resumed = grid(model, *prompts, **OPTIONS, store=store, progress=lambda *at: seen.append(at))
    assert resumed == full  # bit for bit, the counts of passes with it
    assert len(calls) == 3 * (parts - after)  # both prompts and one packed pass for each part that was missing
    assert seen[-1] == (len(full), len(full))
    assert all((store / name).read_bytes() == data for name, data in kept.items())
    with counted(model) as calls:
        assert grid(model, *prompts, **OPTIONS, store=store) == full
    assert calls == []
    frame = pandas.read_parquet(store)
    assert frame["metric"].tolist() == list(full.columns["metric"])


def test_the_models_own_answers_and_top_tokens_are_the_same_after_a_stop(tmp_path, prompts):
    model = new_model("gpt2")
    for number, options in enumerate(({}, {"top": 2})):
        full = grid(model, *prompts, **options, store=tmp_path / f"full {number}")
        store = tmp_path / f"sweep {number}"
        grid(model, *prompts, **options, store=store)
        for path in sorted(store.glob("*"))[::2]:
            path.unlink()
        assert grid(model, *prompts, **options, store=store) == full


def test_another_sweep_is_refused(tmp_path, prompts):
    model, store = new_model("llama"), tmp_path / "sweep"
    grid(model, *prompts, **OPTIONS, store=store)
    other = new_model("llama")
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight[3, 2] += 0.0
        other.model.layers[1].mlp.up_proj.weight *= 1.01
    turned = prompts[::-1]
    for given, changes, said in (
        ((other, *prompts), {}, "another model"),
        ((model, *turned), {}, "another prompts"),
        ((model, *prompts), {"metric": probability(3)}, "another metric"),
        ((model, *prompts), {"metric": logit_difference(5, 3)}, "another metric"),
        ((model, *prompts), {"metric": Metric(OPTIONS["metric"].name, lambda x: x[:, 0], (5, 4))}, "another metric"),
        ((model, *prompts), {"layers": [0]}, "components, layers or directions"),
        ((model, *prompts), {"directions": ["noise"]}, "components, layers or directions"),
        ((model, *prompts), {"components": ["mlp_output"]}, "components, layers or directions"),
        ((model, *prompts), {"positions": [1]}, "positions, heads or neurons"),
        ((model, *prompts), {"neurons": 8}, "positions, heads or neurons"),
        ((model, *prompts), {"neurons": 32}, "positions, heads or neurons"),
        ((model, *prompts), {"at": -2}, "another columns"),
        ((model, *prompts), {"top": 1}, "another .*top"),
    ):
        with pytest.raises(SpecError, match=rf"part-00000.parquet belongs to another sweep.*{said}"):
            grid(*given, **{**OPTIONS, **changes}, store=store)
    (tmp_path / "file").write_text("x")
    with pytest.raises(SpecError, match="is a file; a sweep is stored as a folder"):
        grid(model, *prompts, **OPTIONS, store=tmp_path / "file")


def test_a_store_of_other_parts_is_refused(tmp_path, prompts, monkeypatch):
    model, store = new_model("llama"), tmp_path / "sweep"
    grid(model, *prompts, **OPTIONS, store=store)
    monkeypatch.setattr(sys.modules["align_transformers.studies._sweep"], "_STORED", 20)
    with pytest.raises(SpecError, match="parts of other sizes"):
        grid(model, *prompts, **OPTIONS, store=store)


def test_the_process_itself_may_be_killed(tmp_path):
    code = (
        "import os, sys\n"
        "from tests.helpers import new_model, tokens\n"
        "from align_transformers.metrics import logit_difference\n"
        "from align_transformers.studies import grid\n"
        "sweep = sys.modules['align_transformers.studies._sweep']\n"
        "sweep._STORED, sweep._CLEAN = 4, 0\n"
        "def kill(done, total):\n    if kills and done > 8: os.kill(os.getpid(), 9)\n"
        "kills = sys.argv[2] == 'kill'\n"
        "options = dict(metric=logit_difference(5, 4), store=sys.argv[1], progress=kill)\n"
        "table = grid(new_model('gpt2'), tokens(1, 4, seed=1), tokens(1, 4, seed=2), **options)\n"
        "table.save(sys.argv[1] + '.parquet')\n"
    )

    def run(folder, what):
        root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
        paths = os.pathsep.join([root, os.path.join(root, "src")])
        command = [sys.executable, "-c", code, str(tmp_path / folder), what]
        return subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, check=False).returncode

    assert run("killed", "kill") == -9
    assert sorted(os.listdir(tmp_path / "killed")) == ["part-00000.parquet", "part-00001.parquet"]
    assert run("killed", "go on") == run("whole", "go on") == 0
    from align_transformers.table import Table

    assert Table.load(tmp_path / "killed.parquet") == Table.load(tmp_path / "whole.parquet")


def test_the_fingerprint_tells_weights_apart():
    first, second = new_model("llama"), new_model("llama", seed=1)
    assert fingerprint(first) == fingerprint(new_model("llama"))
    assert fingerprint(first) != fingerprint(second)
    assert fingerprint(first) != fingerprint(new_model("llama", dtype=torch.bfloat16))
