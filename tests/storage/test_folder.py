"""Where a folder is written and looked for: all of it or nothing, and never on the hub by mistake."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.storage.kit import Scale, contents, intervene, mlp

from align_transformers import IntervenableModel, _files
from align_transformers._errors import AlignError, ArtifactError
from align_transformers.hub import is_hub_name
from align_transformers.interventions import VanillaIntervention, ZeroIntervention
from align_transformers.storage import load, save, write

MODEL = mlp()
FILES = ["README.md", "intervention.json", "weights.safetensors"]


def one(kind: Any = VanillaIntervention) -> Any:
    return contents(intervene([kind()], MODEL))


def kind_in(folder: Path) -> str:
    return type(load(folder, model=MODEL).config.representations[0].intervention).__name__


def held(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@pytest.fixture(autouse=True)
def never_the_hub(monkeypatch):
    monkeypatch.setattr("align_transformers.storage.read.download", lambda *_, **__: pytest.fail("asked the hub"))


def test_a_folder_holds_three_files_and_nothing_is_left_beside_it(tmp_path):
    assert save(one(), tmp_path / "a/b/kept") == tmp_path / "a/b/kept"
    assert held(tmp_path / "a/b/kept") == FILES
    assert held(tmp_path / "a/b") == ["kept"]


def test_an_empty_folder_is_filled(tmp_path):
    save(one(), tmp_path)
    assert held(tmp_path) == FILES


def test_a_saved_folder_is_replaced_only_when_asked(tmp_path):
    save(one(), tmp_path / "kept")
    with pytest.raises(ArtifactError, match="overwrite=True replaces it"):
        save(one(ZeroIntervention), tmp_path / "kept")
    assert kind_in(tmp_path / "kept") == "VanillaIntervention"
    save(one(ZeroIntervention), tmp_path / "kept", overwrite=True)
    assert kind_in(tmp_path / "kept") == "ZeroIntervention"
    assert held(tmp_path) == ["kept"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_nothing_else_is_ever_replaced(overwrite, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/results.csv").write_text("1")
    with pytest.raises(ArtifactError, match=r"holds other files \(results.csv\)"):
        save(one(), tmp_path / "data", overwrite=overwrite)
    save(one(), tmp_path / "kept")
    (tmp_path / "kept/notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"holds other files \(notes.txt\)"):
        save(one(), tmp_path / "kept", overwrite=overwrite)
    (tmp_path / "file").write_text("1")
    with pytest.raises(ArtifactError, match="that is a file"):
        save(one(), tmp_path / "file", overwrite=overwrite)
    assert held(tmp_path / "data") == ["results.csv"]
    assert held(tmp_path / "kept") == sorted([*FILES, "notes.txt"])


def test_the_very_same_is_saved_again_without_a_word(tmp_path):
    made = one()
    save(made, tmp_path / "kept")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "kept").iterdir()}
    save(made, tmp_path / "kept")
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "kept").iterdir()} == before


FAILING = {"write_card": write, "new_folder": write, "put_folder": write, "flush": _files}


@pytest.mark.parametrize("step", FAILING)
def test_a_write_that_fails_leaves_what_was_there(step, tmp_path, monkeypatch):
    save(one(), tmp_path / "kept")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(FAILING[step], step, fail)
    with pytest.raises(OSError, match="disk is full"):
        save(one(ZeroIntervention), tmp_path / "kept", overwrite=True)
    with pytest.raises(OSError, match="disk is full"):
        save(one(), tmp_path / "new")
    assert held(tmp_path) == ["kept"]
    assert kind_in(tmp_path / "kept") == "VanillaIntervention"


@pytest.mark.parametrize("failing", [1, 2])
def test_a_move_that_fails_leaves_what_was_there(failing, tmp_path, monkeypatch):
    save(one(), tmp_path / "kept")
    moves, rename = [], os.rename

    def sometimes(*where: Any) -> None:
        moves.append(where)
        if len(moves) == failing:
            raise OSError("no")
        rename(*where)

    monkeypatch.setattr(os, "rename", sometimes)
    monkeypatch.setattr(_files, "exchange", lambda *_: False)
    with pytest.raises(OSError, match="no"):
        save(one(ZeroIntervention), tmp_path / "kept", overwrite=True)
    assert held(tmp_path) == ["kept"]
    assert kind_in(tmp_path / "kept") == "VanillaIntervention"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="two folders are exchanged in one step on Linux")
def test_at_no_moment_is_there_no_folder(tmp_path, monkeypatch):
    """Between any two steps of a save that replaces a folder somebody may read it, or the process may be killed."""
    folder, missing, rename = tmp_path / "kept", [], os.rename
    save(one(), folder)

    def seen(*where: Any) -> None:
        rename(*where)
        missing.append(not (folder / "weights.safetensors").exists())

    monkeypatch.setattr(os, "rename", seen)
    for kind in (ZeroIntervention, VanillaIntervention):
        save(one(kind), folder, overwrite=True)
        assert kind_in(folder) == kind.__name__
    assert not any(missing)
    assert held(tmp_path) == ["kept"]


@pytest.fixture(scope="module")
def dead() -> str:
    """How the files of a process begin that is no more."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return f".kept.{_files._host()}-{process.pid}-{'0' * 32}"


def test_what_a_killed_save_moved_away_is_named_and_comes_back(dead, tmp_path):
    save(one(), tmp_path / "kept")
    (tmp_path / "kept").rename(tmp_path / f"{dead}.old")
    (tmp_path / f"{dead}.new").mkdir()
    with pytest.raises(ArtifactError, match=rf"interrupted: give {dead}.old, which is whole, that name"):
        load(tmp_path / "kept", model=MODEL)
    with pytest.raises(ArtifactError, match="an intervention is saved there; overwrite=True"):
        save(one(ZeroIntervention), tmp_path / "kept")
    assert kind_in(tmp_path / "kept") == "VanillaIntervention"
    assert held(tmp_path) == ["kept"]


def test_leftovers_of_dead_processes_are_cleared_away_and_no_others(dead, tmp_path):
    host, hexes = _files._host(), "0" * 32
    alive = f".kept.{host}-{os.getppid()}-{hexes}.new"
    away, forgotten = f".kept.elsewhere-1-{hexes}.new", f".kept.elsewhere-2-{hexes}.new"
    for name in (f"{dead}.new", f"{dead}.old", alive, away, forgotten, ".kept.notes", f".other{dead[5:]}.new"):
        (tmp_path / name).mkdir()
    os.utime(tmp_path / forgotten, (0, 0))
    save(one(), tmp_path / "kept")
    assert held(tmp_path) == sorted([".kept.notes", f".other{dead[5:]}.new", alive, away, "kept"])


def test_a_first_save_that_was_killed_leaves_nothing_to_load(dead, tmp_path):
    (tmp_path / f"{dead}.new").mkdir()
    with pytest.raises(ArtifactError, match="interrupted: save again"):
        load(tmp_path / "kept", model=MODEL)


def test_what_is_refused_is_refused_before_anything_is_written(tmp_path):
    class Forgetful(Scale):
        def arguments(self):
            raise ValueError("not ours")

    with pytest.raises(ValueError, match="not ours"):
        save(contents(intervene([Forgetful(embed_dim=6)], MODEL)), tmp_path / "a/kept")
    assert held(tmp_path) == []


def test_the_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save(one(), "~/kept")
    assert held(tmp_path / "kept") == FILES
    assert load("~/kept", model=MODEL).origin == str(tmp_path / "kept")


# --- Folder or hub ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "./me/das", "../me/das", "/me/das", "~/das", "das", "a/b/c", "me/das/", "me//das", ".", "", "me\\das", ".\\das",
        "runs/", "me/das.pt/x", Path("me/das"), "hf://das", "hf://a/b/c", "https://huggingface.co/me/das",
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_hub_name_is_a_folder_that_is_missing(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = re.escape(os.fspath(name).replace("\\", "\\\\")) if name not in (".", "") else "has no file"
    with pytest.raises(ArtifactError, match=shown) as error:
        load(name, model=MODEL)
    assert "The hub was not asked" in str(error.value) or name in (".", "")


def test_a_folder_beside_it_is_no_hub(tmp_path, monkeypatch):
    """`runs/das`, with `runs` there and `das` misspelt, would be somebody's repository."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(
        ArtifactError, match=r"no folder 'runs/das'.*not asked.*there is a folder 'runs'.*hf://runs/das"
    ):
        load("runs/das", model=MODEL)


@pytest.mark.parametrize("name", ["me/das", "hf://me/das"])
def test_a_hub_name_asks_the_hub(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = []

    def download(name: str, **_: Any) -> Any:
        asked.append(name)
        raise ArtifactError("no such repository")

    monkeypatch.setattr("align_transformers.storage.read.download", download)
    with pytest.raises(ArtifactError, match="no such repository") as error:
        load(name, model=MODEL)
    assert ("asked because there is no folder 'me/das' here" in str(error.value)) == (name == "me/das")
    assert asked == ["me/das"]


def test_a_folder_that_is_there_is_taken_before_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(one(), "me/das")
    assert kind_in("me/das") == "VanillaIntervention"


def test_a_file_or_a_strange_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match="is a file; the folder with"):
        load(tmp_path / "file", model=MODEL)
    with pytest.raises(ArtifactError, match=r"no file 'intervention\.json'; it holds: file"):
        load(tmp_path, model=MODEL)


def test_a_revision_is_none_of_a_folders(tmp_path):
    save(one(), tmp_path / "kept")
    with pytest.raises(ValueError, match=r"revision='x' is for the hub"):
        load(tmp_path / "kept", model=MODEL, revision="x")


@given(st.text(max_size=20))
def test_no_text_that_looks_like_a_path_is_a_hub_name(text):
    if is_hub_name(text):
        assert text.count("/") == 1
        assert not text.startswith((".", "/", "~", "\\"))
        assert "\\" not in text


@given(st.text(alphabet="ab./~\\-_ \n", max_size=8))
def test_any_name_that_is_not_there_is_an_error_of_ours(text):
    if not is_hub_name(text):
        with pytest.raises(AlignError):  # a folder that is there holds nothing of ours
            load(text, model=MODEL)


def test_loading_gives_a_configuration_for_a_model(tmp_path):
    save(one(), tmp_path / "kept")
    assert isinstance(IntervenableModel(load(tmp_path / "kept", model=MODEL).config, MODEL), IntervenableModel)
