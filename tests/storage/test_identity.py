"""Which model an artifact is for: another one is refused, and both values are shown."""

from __future__ import annotations

import copy
import json
import re
import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tests.helpers import new_model
from tests.storage.kit import contents, intervene, mlp
from tests.test_many_architectures import model_of
from tests.untyped import untyped
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

from align_transformers import IntervenableModel, SpecError, create_mlp_classifier
from align_transformers._errors import ArtifactError
from align_transformers.interventions import LowRankRotatedSpaceIntervention, VanillaIntervention
from align_transformers.storage import load, save
from align_transformers.storage.doubts import CHECKS, differences
from align_transformers.storage.identity import identify_model, identify_tokenizer


def gpt2(name: str | None = "me/tiny", revision: str | None = "abc", **changes: Any) -> GPT2LMHeadModel:
    sizes = {"vocab_size": 11, "n_positions": 8, "n_embd": 8, "n_layer": 2, "n_head": 2}
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**{**sizes, "bos_token_id": 0, "eos_token_id": 0, **changes}))
    model.config._commit_hash = revision
    if name is not None:
        model.name_or_path = model.config._name_or_path = name
    return model.eval()


def keep(model: nn.Module, folder: Any, **more: Any) -> None:
    das = {"layer": 1, "component": "mlp_output", "intervention_type": LowRankRotatedSpaceIntervention}
    save(contents(IntervenableModel({**das, "low_rank_dimension": 2}, model), **more), folder)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("identity") / "kept"
    keep(gpt2(), folder)
    return folder


def wider() -> GPT2LMHeadModel:
    return gpt2(n_embd=12)


CHANGES = {
    "config": (lambda: gpt2(activation_function="relu"), r"config_hash: saved \w{16}, found \w{16}"),
    "weights": (lambda: fitted(gpt2()), r"weights_hash: saved \w{16}, found \w{16}"),
    "shapes": (wider, r"shapes: transformer\.wpe\.weight saved 1 x \(8, 8\), found 1 x \(8, 12\)"),
    "layers": (lambda: gpt2(n_layer=3), r"shapes: transformer\.h\.\*\.ln_1\.weight saved 2 x \(8,\), found 3 x \(8,\)"),
    "dtypes": (lambda: gpt2().to(torch.bfloat16), r"dtypes: saved float32, found bfloat16"),
    "class": (lambda: named(GPT2Model(gpt2().config)), r"class: saved GPT2LMHeadModel, found GPT2Model"),
}


def named(model: Any) -> Any:
    model.name_or_path = "me/tiny"
    return model


def fitted(model: Any) -> Any:
    """The same model, of which a fine-tune has changed one number."""
    with torch.no_grad():
        model.transformer.h[1].mlp.c_proj.weight[5, 3] += 1e-3
    return model


@pytest.mark.parametrize("change", CHANGES)
def test_another_model_is_refused_and_both_values_are_shown(change, kept):
    make, match = CHANGES[change]
    with pytest.raises(ArtifactError, match=rf"(?s)another model:.*{match}.*waive=\["):
        load(kept, model=make())


@pytest.mark.parametrize("change", CHANGES)
def test_not_strict_says_so_and_goes_on(change, kept):
    make, match = CHANGES[change]
    with pytest.warns(UserWarning, match=rf"(?s){match}.*going on") as warned:
        artifact = load(kept, model=make(), strict=False)
    assert len(warned) == 1
    assert isinstance(artifact.config.representations[0].intervention, LowRankRotatedSpaceIntervention)


def test_the_same_model_is_not_warned_of(kept):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(kept, model=gpt2(), strict=False)


@pytest.mark.parametrize(
    "alter",
    [
        lambda model: setattr(model.config, "use_cache", False),
        lambda model: setattr(model.config, "pad_token_id", 3),
        lambda model: setattr(model.config, "output_hidden_states", True),
        lambda model: model.set_attn_implementation("eager"),
        lambda model: model.train(),
        lambda model: model.requires_grad_(False),
        lambda model: setattr(model.config, "transformers_version", "4.0"),
    ],
)
def test_what_does_not_change_the_network_does_not_matter(alter, kept):
    model = gpt2()
    alter(model)
    load(kept, model=model)


@pytest.mark.parametrize("check", ["config", "weights", "class"])
def test_what_is_waived_is_named_and_nothing_else_is(check, kept):
    make, match = CHANGES[check]
    with pytest.raises(ArtifactError) as error:
        load(kept, model=make(), waive=[name for name in CHECKS if name != check])
    assert f"waive=['{check}']" in str(error.value)
    checks = [check, "weights", "shapes"] if check == "class" else [check]
    with pytest.warns(UserWarning, match=rf"(?s){match}.*waived: .*{check}"):
        load(kept, model=make(), waive=checks)


def test_a_check_that_is_none_is_refused(kept):
    for wrong in (["dtype"], "dtypes", None):
        with untyped(), pytest.raises(SpecError, match=r"waive= .*dtypes"):
            load(kept, model=gpt2(), waive=wrong)


@pytest.mark.parametrize(
    ("name", "revision"), [("/somewhere/tiny-copy", None), ("you/renamed", "abc"), (None, None), ("me/tiny", "def")]
)
def test_the_same_weights_are_the_same_model_whatever_it_is_called(name, revision, kept):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(kept, model=gpt2(name=name, revision=revision))


def older(folder: Any) -> None:
    """Write a record as it was before the weights' values were looked at."""
    record = json.loads((folder / "intervention.json").read_text())
    del record["model"]["weights_hash"]
    (folder / "intervention.json").write_text(json.dumps({**record, "format_version": 1}))


def test_where_the_weights_are_not_known_a_name_warns_and_a_revision_is_refused(tmp_path):
    keep(gpt2(), tmp_path / "kept")
    older(tmp_path / "kept")
    load(tmp_path / "kept", model=fitted(gpt2()))  # nothing is known of the values
    for name, revision in (("/somewhere/tiny-copy", None), ("me/tiny", None), ("you/tiny", "abc")):
        with pytest.warns(UserWarning, match=r"(?s)(name|revision): saved .*as far as is known"):
            load(tmp_path / "kept", model=gpt2(name=name, revision=revision))
    with pytest.raises(ArtifactError, match=r"(?s)revision: saved abc, found def.*waive=\['revision'\]"):
        load(tmp_path / "kept", model=gpt2(revision="def"))


def test_weights_that_are_not_at_hand_are_not_known():
    with torch.device("meta"):
        assert identify_model(mlp(), weights=True)["weights_hash"] is None
    assert identify_model(mlp(), weights=True) == identify_model(mlp(), weights=True)
    assert identify_model(mlp(), weights=True) != identify_model(mlp(seed=1), weights=True)


def test_a_compiled_model_is_the_model_inside():
    model = gpt2()
    assert identify_model(torch.compile(model, backend="eager")) == identify_model(model)


def test_looking_changes_nothing():
    model = gpt2()
    before = copy.deepcopy(model.config.to_dict())
    identify_model(model)
    assert model.config.to_dict() == before


@pytest.mark.parametrize(
    ("name", "kept_name"),
    [
        ("gpt2", "gpt2"), ("me/tiny", "me/tiny"), ("/home/somebody/models/tiny", "tiny"), ("./runs/tiny", "tiny"),
        ("~/tiny", "tiny"), (r"C:\Users\somebody\tiny", "tiny"), ("", None),
    ],
)  # fmt: skip
def test_paths_of_the_machine_stay_on_it(name, kept_name, tmp_path):
    model = gpt2(name=name)
    assert identify_model(model)["name"] == kept_name
    keep(model, tmp_path / "kept")
    for path in (tmp_path / "kept").iterdir():
        assert b"somebody" not in path.read_bytes()
        assert str(tmp_path).encode() not in path.read_bytes()


def test_models_without_a_configuration():
    identity = identify_model(mlp())
    assert (identity["name"], identity["revision"], identity["config_hash"]) == (None, None, None)
    assert differences(identity, identify_model(mlp(width=5))) != []


def test_configurations_of_other_kinds():
    @dataclass
    class Sizes:
        width: int = 3

    hashes = set()
    for config in (Sizes(), Sizes(4), {"width": 5}, object()):
        model = mlp()
        model.config = config
        hashes.add(identify_model(model)["config_hash"])
    assert len(hashes) == 4
    assert None not in hashes


def test_models_with_a_dataclass_for_a_configuration():
    """Those of the zoo."""
    _, _, model = create_mlp_classifier()
    assert identify_model(model)["config_hash"] is not None


def test_identity_is_plain_data():
    identity = identify_model(new_model("llama"))
    assert json.loads(json.dumps(identity)) == identity


@pytest.mark.parametrize("name", ["gemma4_unified", "dots3_note_text"])
def test_a_model_whose_layers_differ_has_an_identity(name):
    """Their configurations refuse to be read field by field."""
    found = identify_model(model_of(name))
    assert re.fullmatch(r"\w{16}", found["config_hash"])
    assert identify_model(copy.deepcopy(model_of(name))) == found


# --- Tokenizers ------------------------------------------------------------------------------------------------------


class Tokenizer:
    def __init__(self, *words: str, name: str = "me/tiny") -> None:
        self.words, self.name_or_path = words, name

    def get_vocab(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words)}


def test_another_tokenizer_is_refused(tmp_path):
    before = intervene([VanillaIntervention()], mlp())
    save(contents(before, tokenizer=Tokenizer("a", "b")), tmp_path / "kept")
    artifact = load(tmp_path / "kept", model=before.model, tokenizer=Tokenizer("a", "b"))
    assert artifact.tokenizer == identify_tokenizer(Tokenizer("a", "b"))
    load(tmp_path / "kept", model=before.model)  # not given: not compared
    with pytest.raises(ArtifactError, match=r"(?s)another tokenizer:.*vocabulary_size: saved 2, found 3"):
        load(tmp_path / "kept", model=before.model, tokenizer=Tokenizer("a", "b", "c"))
    with pytest.warns(UserWarning, match=r"vocabulary_hash: saved \w+, found \w+"):
        load(tmp_path / "kept", model=before.model, tokenizer=Tokenizer("b", "a"), strict=False)


def test_a_tokenizer_is_not_compared_with_nothing(tmp_path):
    before = intervene([VanillaIntervention()], mlp())
    save(contents(before), tmp_path / "kept")
    assert load(tmp_path / "kept", model=before.model, tokenizer=Tokenizer("a")).tokenizer is None
