"""The factories: what they load, and that nothing stands in for a model in silence."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest

from align_transformers import zoo
from align_transformers._errors import ModelNotFoundError
from align_transformers.zoo import language_models


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    """Replaces `load_model` by one that has the embedded model and `"mine"` only; returns what it was asked for."""
    asked: list[tuple[Any, Any]] = []

    def load_model(name: Any, *, cache_dir: Any = None) -> tuple[Any, str]:
        asked.append((name, cache_dir))
        if name not in ("smollm2-135m", "mine"):
            raise ModelNotFoundError(f"no {name}: no hub here")
        return SimpleNamespace(config=f"config of {name}"), f"tokenizer of {name}"

    monkeypatch.setattr(language_models, "load_model", load_model)
    return asked


def test_without_a_hub_create_gpt2_says_what_stands_in(asked: list[tuple[Any, Any]]) -> None:
    with pytest.warns(
        UserWarning, match=r"create_gpt2\(\) gives the embedded 'smollm2-135m'.*'gpt2': .*no hub"
    ) as said:
        config, tokenizer, model = zoo.create_gpt2(cache_dir="there")
    assert len(said) == 1
    assert (config, tokenizer, model.config) == ("config of smollm2-135m", "tokenizer of smollm2-135m", config)
    assert asked == [("gpt2", "there"), ("smollm2-135m", "there")]


@pytest.mark.parametrize("create", [zoo.create_gpt2, zoo.create_llama, zoo.create_smollm2])
def test_a_given_name_is_never_replaced(create: Any, asked: list[tuple[Any, Any]]) -> None:
    for name in ("gpt2", "gpt2-medium"):
        with pytest.raises(ModelNotFoundError, match="no hub"):
            create(name)
    assert [name for name, _ in asked] == ["gpt2", "gpt2-medium"]
    assert create("mine")[0] == "config of mine"


@pytest.mark.parametrize("create", [zoo.create_llama, zoo.create_smollm2])
def test_the_embedded_model_is_the_default_of_its_kind(create: Any, asked: list[tuple[Any, Any]]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert create()[0] == "config of smollm2-135m"
    assert asked == [("smollm2-135m", None)]


def test_nothing_at_all_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_model(name: Any, *, cache_dir: Any = None) -> None:
        raise ModelNotFoundError(f"no {name}")

    monkeypatch.setattr(language_models, "load_model", load_model)
    with pytest.raises(ModelNotFoundError, match="no smollm2-135m"):
        zoo.create_gpt2()
