"""Up to the hub and down from it again, against a fake of its interface on this machine."""

from __future__ import annotations

import socket
import time
import traceback
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants
from tests.storage.fake_hub import FakeHub
from tests.storage.kit import WIDTH, assert_same, contents, intervene, mlp, shaken
from tests.storage.test_legacy import FOLDER, LOW_RANK, copy_folder, tiny_model

from align_transformers import IntervenableModel
from align_transformers._errors import AlignError, ArtifactError
from align_transformers.hub import download, is_hub_name, upload
from align_transformers.interventions import LowRankRotatedSpaceIntervention
from align_transformers.storage import load, push, save

MODEL = mlp()
FILES = ["README.md", "intervention.json", "weights.safetensors"]


@pytest.fixture
def hub(monkeypatch):
    with FakeHub().running() as running:
        point_at(running.url, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        # Its client waits longer and longer between its tries; here nobody gains from that.
        patient = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
        monkeypatch.setattr("huggingface_hub.utils._http.time", patient)
        yield running


def point_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do what HF_ENDPOINT does, which is read when huggingface_hub is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


def das(seed: int = 0) -> IntervenableModel:
    torch.manual_seed(seed)
    return intervene([shaken(LowRankRotatedSpaceIntervention(embed_dim=WIDTH, low_rank_dimension=2))], MODEL)


def only(intervenable_or_config) -> LowRankRotatedSpaceIntervention:
    (one,) = intervenable_or_config.representations
    return one.intervention


def test_up_and_down_again(hub, tmp_path):
    before = das()
    commit = push(contents(before, metrics={"iia": 0.9}), "me/das", token=hub.token)
    assert sorted(hub.repositories["me/das"][-1][1]) == FILES
    assert hub.repositories["me/das"][-1][0] == commit
    artifact = load("me/das", model=MODEL, cache_dir=tmp_path)
    assert_same(only(before), only(artifact.config))
    assert artifact.metrics == {"iia": 0.9}
    assert artifact.origin == f"me/das at {commit}"


def test_one_commit_each_and_the_card_names_the_hub(hub):
    push(contents(das()), "hf://me/das", token=hub.token)
    assert len(hub.repositories["me/das"]) == 2  # the empty repository, and ours
    assert b"IntervenableModel.load('me/das', model=model)" in hub.repositories["me/das"][-1][1]["README.md"]
    push(contents(das(1)), "me/das", token=hub.token)
    assert len(hub.repositories["me/das"]) == 3


def test_a_revision_is_pinned(hub, tmp_path):
    first, second = das(0), das(1)
    old = push(contents(first), "me/das", token=hub.token)
    push(contents(second), "me/das", token=hub.token)
    assert_same(only(first), only(load("me/das", model=MODEL, revision=old, cache_dir=tmp_path).config))
    assert_same(only(second), only(load("me/das", model=MODEL, cache_dir=tmp_path).config))
    with pytest.raises(ArtifactError, match=r"cannot get 'me/das' at revision 'nope'.*Revision"):
        load("me/das", model=MODEL, revision="nope", cache_dir=tmp_path)


def test_only_our_files_are_fetched(hub, tmp_path):
    folder = save(contents(das()), tmp_path / "kept")
    files = {name: (folder / name).read_bytes() for name in FILES}
    hub.add("me/das", {**files, "pytorch_model.bin": b"x", "model.py": b"x", "sub/intervention.json": b"x"})
    load("me/das", model=MODEL, cache_dir=tmp_path / "cache")
    fetched = {path.rpartition("/")[2] for command, path in hub.requests if "/resolve/" in path}
    assert fetched == set(FILES)


def test_only_our_files_are_sent(hub, tmp_path):
    folder = save(contents(das()), tmp_path / "kept")
    (folder / "secret.txt").write_text("x")
    upload(folder, "me/das", files=FILES, token=hub.token)
    assert sorted(hub.repositories["me/das"][-1][1]) == FILES


def test_private_repositories(hub, tmp_path):
    push(contents(das()), "me/das", token=hub.token, private=True)
    assert "me/das" in hub.private
    load("me/das", model=MODEL, token=hub.token, cache_dir=tmp_path / "one")
    with pytest.raises(ArtifactError, match="cannot get 'me/das'"):
        load("me/das", model=MODEL, token=False, cache_dir=tmp_path / "two")


def test_a_folder_of_pyvenes_on_the_hub(hub, tmp_path):
    copy_folder(tmp_path / "old", only=[LOW_RANK])
    hub.add("me/old", {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()})
    artifact = load("me/old", model=tiny_model(), cache_dir=tmp_path / "cache")
    assert isinstance(only(artifact.config), LowRankRotatedSpaceIntervention)
    assert FOLDER.is_dir()


@pytest.mark.parametrize("name", ["../../../evil", "intkey_/../../../evil.bin", "/etc/evil"])
def test_paths_on_the_hub_do_not_leave_the_cache(name, hub, tmp_path):
    hub.add("me/evil", {"config.json": b"{}", name: b"x"})
    with pytest.raises(AlignError):
        load("me/evil", model=MODEL, cache_dir=tmp_path / "a/b/c/cache")
    assert not [path for path in tmp_path.rglob("*evil*") if path.is_file()]


# --- Tokens ----------------------------------------------------------------------------------------------------------

SECRET = "hf_abcdefSECRET0123456789"


@pytest.mark.parametrize("token", [SECRET, SECRET + "\n", "not-hf-shaped-SECRET", "hf_with spaceSECRET"])
def test_tokens_are_not_in_errors(token, hub, tmp_path, caplog, capsys):
    hub.echo = f"you sent {token.strip()} as Bearer"
    for act in (
        lambda: load("me/none", model=MODEL, token=token, cache_dir=tmp_path),
        lambda: push(contents(das()), "me/none", token=token),
        lambda: download("me/none", files=FILES, token=token, cache_dir=tmp_path),
    ):
        with pytest.raises(ArtifactError, match="me/none") as error:
            act()
        shown = "".join(traceback.format_exception(error.value)) + caplog.text + "".join(capsys.readouterr())
        assert "SECRET" not in shown
        assert error.value.__cause__ is None


def test_the_token_of_the_machine_is_not_in_errors(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "machine-SECRET")
    hub.echo = "machine-SECRET"
    with pytest.raises(ArtifactError) as error:
        load("me/none", model=MODEL, cache_dir=tmp_path)
    assert "SECRET" not in "".join(traceback.format_exception(error.value))


# --- No hub ----------------------------------------------------------------------------------------------------------


def test_a_hub_that_is_not_there(hub, tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        point_at(f"http://127.0.0.1:{free.getsockname()[1]}", monkeypatch)
    with pytest.raises(ArtifactError, match="cannot get 'me/das' from the hub"):
        load("me/das", model=MODEL, cache_dir=tmp_path)


def test_offline_the_cache_is_used(hub, tmp_path, monkeypatch):
    push(contents(das()), "me/das", token=hub.token)
    load("me/das", model=MODEL, cache_dir=tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert_same(only(das()), only(load("me/das", model=MODEL, cache_dir=tmp_path).config))
    assert hub.requests == []
    with pytest.raises(ArtifactError, match="cannot get 'me/other' from the hub"):
        load("me/other", model=MODEL, cache_dir=tmp_path)


@pytest.mark.parametrize("name", ["das", "./das", "/me/das", "me/das/x", "me/../das", "me\\das", ""])
def test_names_that_are_no_hub_names_are_not_sent(name, hub):
    assert not is_hub_name(name)
    with pytest.raises(ArtifactError, match="user/name"):
        push(contents(das()), name, token=hub.token)
    assert hub.requests == []


def test_a_function_is_refused_before_anything_is_sent(hub):
    with pytest.raises(AlignError, match="function is code"):
        push(contents(intervene([lambda base: base], MODEL)), "me/das", token=hub.token)
    assert hub.requests == []
