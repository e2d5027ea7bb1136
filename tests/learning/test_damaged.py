"""Checkpoints and parts of sweeps that are damaged: what is said, and that nothing is changed."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.helpers import new_model, tokens
from tests.learning.tasks import batches, face, free_matrix

from align_transformers import AlignError, ArtifactError, grid
from align_transformers.learning import fit
from align_transformers.learning.checkpoints import FILE

KEY = "align_transformers.fit"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("whole")
    fit(face(), batches((3, 3)), epochs=1, lr=0.01, checkpoints=folder)
    return (folder / FILE).read_bytes()


def head(data: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    return header, json.loads(header["__metadata__"][KEY]), data[8 + size :]


def damaged_data(data: bytes, change: Any) -> bytes:
    header, said, tensors = head(data)
    said = change(said) or said
    header["__metadata__"][KEY] = said if isinstance(said, str) else json.dumps(said)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + tensors


def refused(folder: Path, data: bytes | None, match: str) -> None:
    made = face()
    before, numbers = free_matrix(made).clone(), torch.get_rng_state()
    file = folder / FILE
    file.mkdir() if data is None else file.write_bytes(data)
    with pytest.raises(ArtifactError, match=match) as said:
        fit(made, batches((3, 3)), epochs=1, lr=0.01, checkpoints=folder, resume=True)
    assert str(file) in str(said.value)
    assert len(str(said.value)) < 500
    assert torch.equal(free_matrix(made), before)
    assert torch.equal(torch.get_rng_state(), numbers)


@pytest.mark.parametrize("kind", ["empty", "cut", "noise", "folder"])
def test_a_file_that_is_none(whole: bytes, tmp_path: Path, kind: str) -> None:
    data = {"empty": b"", "cut": whole[:-40], "noise": os.urandom(400), "folder": None}[kind]
    refused(tmp_path, data, "is damaged .*: delete it to fit from the beginning, or choose another folder")


CHANGES: dict[str, Any] = {
    "no JSON": lambda said: "{",
    "a list": lambda said: [1],
    "deep": lambda said: "[" * 900 + "]" * 900,
    **{f"no {name}": lambda said, name=name: {k: v for k, v in said.items() if k != name}
       for name in ("format", "fit", "state", "optimizer", "scheduler", "now", "start")},
    "an entry of its own": lambda said: said["state"].update(__class__="x"),
    "a step that is none": lambda said: said["state"].update(step="3"),
    "a step behind the last": lambda said: said["state"].update(step=99),
    "a method of the scheduler": lambda said: said["scheduler"].update(step=1),
    "another kind of rate": lambda said: said["optimizer"]["groups"][0].update(lr="fast"),
    "no groups": lambda said: said["optimizer"].update(groups=[]),
    "a parameter that is not there": lambda said: said["optimizer"]["state"].update({"7.step": 1}),
    "random numbers of nobody": lambda said: said.update(now=[1, 2]),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_a_checkpoint_sets_what_it_may_and_nothing_else(whole: bytes, tmp_path: Path, what: str) -> None:
    refused(tmp_path, damaged_data(whole, CHANGES[what]), "is damaged")


@pytest.mark.parametrize("what", ["shape", "missing", "random"])
def test_tensors_of_something_else(whole: bytes, tmp_path: Path, what: str) -> None:
    (tmp_path / "x").write_bytes(whole)
    tensors, (header, _, _) = load_file(tmp_path / "x"), head(whole)
    weight = next(name for name in tensors if name.startswith("weights/"))
    if what == "random":
        tensors["now/cpu"] = torch.zeros(3, dtype=torch.uint8)
    else:
        value = tensors.pop(weight)
        if what == "shape":
            tensors[weight] = value[:1]
    save_file(tensors, tmp_path / "y", metadata=header["__metadata__"])
    refused(tmp_path, (tmp_path / "y").read_bytes(), "is damaged")


def test_a_damaged_part_of_a_sweep_says_what_to_remove(tmp_path: Path) -> None:
    model, base, source = new_model("llama"), tokens(1, 4, seed=0), tokens(1, 4, seed=1)

    def swept() -> list[dict[str, Any]]:
        return list(grid(model, base, source, answers=(4, 5), store=tmp_path).rows())

    rows, part = swept(), tmp_path / "part-00000.parquet"
    good = part.read_bytes()
    for data in (b"", good[:-30], os.urandom(300)):
        part.write_bytes(data)
        with pytest.raises(AlignError, match=r"part-00000\.parquet is damaged.*: remove it, and its part of the sweep"):
            swept()
    part.unlink()
    dead = tmp_path / f".part-00000.parquet.{os.uname().nodename}-999999999-{'0' * 32}.new"
    dead.write_bytes(b"left by a process that was killed")
    assert swept() == rows
    assert not dead.exists()
