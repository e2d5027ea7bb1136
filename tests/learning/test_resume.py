"""A fit that was interrupted anywhere goes on to the same result, bit for bit; its checkpoints run nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tests.learning.tasks import batches, examples, face, free_matrix
from torch.utils.data import DataLoader, RandomSampler

from align_transformers import SpecError
from align_transformers.interventions import SigmoidMaskIntervention
from align_transformers.learning import fit
from align_transformers.learning.checkpoints import FILE

ROOT = Path(__file__).parents[2]


class _Killed(BaseException):
    pass


def data():
    return examples(batches((6, 6, 5)))


def drawn_from_torch():
    return DataLoader(data(), batch_size=3, shuffle=True)


def drawn_from_its_own():
    return DataLoader(data(), batch_size=3, shuffle=True, generator=torch.Generator().manual_seed(3))


def drawn_by_its_sampler():
    known = data()
    return DataLoader(known, 3, sampler=RandomSampler(known, generator=torch.Generator().manual_seed(4)))


def in_order():
    return batches((3, 3, 3, 3, 3, 2))


LOADERS = [drawn_from_torch, drawn_from_its_own, drawn_by_its_sampler, in_order]
HOW = {"epochs": 3, "lr": 0.02, "schedule": "cosine", "warmup": 2, "accumulate": 2, "clip": 1.0, "checkpoint_every": 2}


def carried_out(loader, folder, stop=None, **more):
    """Fit from scratch or from a checkpoint; be killed by an exception where `stop` says."""
    torch.manual_seed(1234 if stop is None else stop)  # must not matter
    made, calls = face(kind=SigmoidMaskIntervention), [0]

    def progress(row, _total):
        if row["step"] == stop:
            raise _Killed

    def loss(logits, labels):
        calls[0] += 1
        if stop is not None and stop < 0 and calls[0] == -stop:
            raise _Killed
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none")

    fitted = fit(made, loader(), loss=loss, progress=progress, checkpoints=folder, validation=in_order()[:1],
                 **HOW | more)  # fmt: skip
    return made, fitted


def told(fitted):
    """Return the history without what the clock says."""
    return [{k: v for k, v in row.items() if k != "examples_per_second"} for row in fitted.history]


@cache
def uninterrupted(loader):
    """Return the intervenable model and what came of a fit that was never killed."""
    return carried_out(loader, None)


@pytest.mark.parametrize(
    ("loader", "stop"), [(drawn_from_torch, stop) for stop in range(1, 9)] + [(one, 5) for one in LOADERS[1:]]
)
def test_killed_after_any_step(tmp_path, loader, stop):
    whole, expected = uninterrupted(loader)
    with pytest.raises(_Killed):
        carried_out(loader, tmp_path, stop)
    resumed, fitted = carried_out(loader, tmp_path, resume=True)
    assert torch.equal(free_matrix(resumed), free_matrix(whole))
    assert told(fitted) == told(expected)
    assert (fitted.best_step, fitted.validation, fitted.steps) == (expected.best_step, expected.validation, 9)
    assert (
        next(iter(resumed.interventions.values())).temperature == next(iter(whole.interventions.values())).temperature
    )


@pytest.mark.parametrize("call", [2, 7, 12])
def test_killed_inside_a_step(tmp_path, call):
    whole, expected = uninterrupted(drawn_from_torch)
    with pytest.raises(_Killed):
        carried_out(drawn_from_torch, tmp_path, -call)
    resumed, fitted = carried_out(drawn_from_torch, tmp_path, resume=True)
    assert torch.equal(free_matrix(resumed), free_matrix(whole))
    assert told(fitted) == told(expected)


def test_killed_again_and_again(tmp_path):
    whole, expected = uninterrupted(drawn_from_torch)
    for stop in (3, 5, 6, 7):
        with pytest.raises(_Killed):
            carried_out(drawn_from_torch, tmp_path, stop, resume=True)
    resumed, fitted = carried_out(drawn_from_torch, tmp_path, resume=True)
    assert torch.equal(free_matrix(resumed), free_matrix(whole))
    assert told(fitted) == told(expected)


def test_a_fit_that_is_done_is_done(tmp_path):
    made, fitted = carried_out(in_order, tmp_path)
    again, same = carried_out(in_order, tmp_path, 1, resume=True)  # would be killed at its first step
    assert torch.equal(free_matrix(made), free_matrix(again))
    assert [dict(row) for row in same.history] == [dict(row) for row in fitted.history]


def test_patience_outlives_a_kill(tmp_path):
    more = {"patience": 2, "metric": lambda _l, y: torch.zeros(len(y)), "validate_every": 1}
    whole, expected = carried_out(in_order, None, **more)
    assert expected.stopped_early
    with pytest.raises(_Killed):
        carried_out(in_order, tmp_path, 2, **more)
    resumed, fitted = carried_out(in_order, tmp_path, resume=True, **more)
    assert (fitted.stopped_early, told(fitted)) == (True, told(expected))
    assert (fitted.best_step, expected.best_step) == (1, 1), "the best weights are of before the kill"
    assert torch.equal(free_matrix(resumed), free_matrix(whole))


SCRIPT = """
import os, sys, random, time, traceback
import numpy, torch
from tests.learning import test_resume as task
from tests.learning.tasks import face
from align_transformers.interventions import SigmoidMaskIntervention
from align_transformers.learning import fit
from safetensors.torch import save_file

class Shuffled:
    "An order drawn from Python's and NumPy's generators."
    def __len__(self): return 6
    def __iter__(self):
        known = task.in_order()
        random.shuffle(known)
        for batch in known:
            yield known[numpy.random.randint(6)]

def carry_out(folder, out, end):
    def progress(row, _total):
        print(row["step"], flush=True)
        if end == "stuck" and row["step"] == 5: time.sleep(600)  # until it is killed

    random.seed(); numpy.random.seed()
    before = random.getstate(), numpy.random.get_state()[1].tolist()
    made = face(kind=SigmoidMaskIntervention)
    fit(made, Shuffled(), checkpoints=folder, resume=True, progress=progress, **task.HOW)
    assert (random.getstate(), numpy.random.get_state()[1].tolist()) == before, "not set back"
    (learned,) = made.get_trainable_parameters()
    save_file({"learned": learned.detach()}, out)

for line in sys.stdin:  # each fit in a process of its own, which has done nothing but import
    child = os.fork()
    if not child:
        try:
            print(os.getpid(), flush=True)
            carry_out(*line.rstrip().split("|"))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(0)
    os.waitpid(child, 0)
    print("over", flush=True)
"""


def test_a_process_that_is_killed(tmp_path):
    threads = {"OMP_NUM_THREADS": "1"}  # none before a fork
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "HF_HUB_OFFLINE": "1", **threads}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # Two interpreters, since hashes differ between them: what the one leaves the other goes on from.
    one, other = (
        subprocess.Popen([sys.executable, "-c", SCRIPT], env=environment, cwd=ROOT, text=True, **pipes) for _ in "ab"
    )

    def ask(process, name, end="reached"):
        process.stdin.write(f"{tmp_path / name}|{tmp_path / name}.safetensors|{end}\n")
        process.stdin.flush()

    ask(one, "a")
    ask(other, "b", "stuck")
    victim = int(other.stdout.readline() or "0")
    while (line := other.stdout.readline().strip()) != "5":
        assert line.isdigit(), other.communicate()
    os.kill(victim, signal.SIGKILL)
    assert other.communicate() == ("over\n", "")
    assert not (tmp_path / "b.safetensors").exists()
    ask(one, "b")
    printed, errors = one.communicate()
    assert errors == ""
    (_, *whole), (_, *resumed) = (part.split() for part in printed.split("over")[:2])
    assert whole == [str(step) for step in range(1, 10)]
    assert resumed == ["5", "6", "7", "8", "9"], "it goes on after the checkpoint of step 4"
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_checkpoint_is_tensors_and_json_and_replaced_in_one_step(tmp_path):
    carried_out(in_order, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    with safe_open(tmp_path / FILE, framework="pt") as stream:
        data = json.loads(stream.metadata()["align_transformers.fit"])
        parts = {key.split("/")[0] for key in stream.keys()}  # noqa: SIM118
    assert data["format"] == 1
    assert data["state"]["step"] == 9
    assert parts == {"weights", "best", "optimizer", "now", "start"}


def test_another_fits_checkpoint_is_refused(tmp_path):
    carried_out(in_order, tmp_path)
    with pytest.raises(SpecError, match="resume=True"):
        carried_out(in_order, tmp_path)
    with pytest.raises(SpecError, match=r"lr: 0.02 there, 0.5 here"):
        carried_out(in_order, tmp_path, resume=True, lr=0.5)
    with pytest.raises(SpecError, match="optimizer: 'AdamW' there, 'SGD' here"):
        carried_out(in_order, tmp_path, resume=True, optimizer=lambda groups: torch.optim.SGD(groups))
    with pytest.raises(SpecError, match="weights"):
        fit(face(), in_order(), checkpoints=tmp_path, resume=True, **HOW)
    (tmp_path / "c").mkdir()
    save_file({"a": torch.zeros(1)}, tmp_path / "c" / FILE)
    with pytest.raises(SpecError, match="not a checkpoint"):
        carried_out(in_order, tmp_path / "c", resume=True)


def test_state_that_only_pickle_could_keep_is_refused(tmp_path):
    def factory(groups):
        made = torch.optim.SGD(groups)
        made.param_groups[0]["odd"] = object()
        return made

    with pytest.raises(SpecError, match="pickle"):
        carried_out(in_order, tmp_path, optimizer=factory)
