"""Folders of pyvene's, written by pyvene 0.1.8 itself (`write_pyvene_folder.py`), with the numbers that it computes."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import pytest
import torch
from tests.storage.kit import assert_same, contents, mlp
from tests.storage.test_hostile import Harm
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from align_transformers import IntervenableModel
from align_transformers._errors import ArtifactError
from align_transformers.storage import load, save
from align_transformers.storage.legacy_types import _MAKERS, _REFUSED

FOLDER = Path(__file__).parent / "pyvene_folder"
RECORDED = json.loads((FOLDER / "recorded.json").read_text())
_NAMES = "low_rank rotated boundless mask masked_rotation linked linked_too constant jumprelu sae two_units minus"
NAMES = _NAMES.split()
LOW_RANK, ROTATED, BOUNDLESS, MASK, _, LINKED, LINKED_TOO, CONSTANT, JUMPRELU, _, TWO_UNITS, MINUS = range(len(NAMES))


def tiny_model() -> GPT2LMHeadModel:
    sizes = {"vocab_size": 11, "n_positions": 8, "n_embd": 8, "n_layer": 2, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=None)).eval()


@pytest.fixture(scope="module")
def loaded() -> list[Any]:
    with pytest.warns(UserWarning, match=r"(?s)not quite what pyvene saved.*coordinate 0 half-swapped"):
        artifact = load(FOLDER, model=tiny_model(), strict=False)
    return list(artifact.config.representations)


def numbers(index: int) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.tensor(RECORDED[index][name]) for name in ("base", "source", "output"))


def call(intervention: Any, base: Tensor, source: Tensor | None, subspaces: Any = None) -> Tensor:
    """Call with one unit an example, or with the units of an example side by side."""
    if not intervention.keep_last_dim:
        return intervention(base, source, subspaces)
    return intervention(base.unsqueeze(1), None if source is None else source.unsqueeze(1), subspaces).squeeze(1)


@pytest.mark.parametrize(
    "index", [i for i in range(len(NAMES)) if i != BOUNDLESS], ids=lambda index: NAMES[index].lower()
)
def test_each_computes_what_it_computed_in_pyvene(index, loaded):
    base, source, output = numbers(index)
    found = call(loaded[index].intervention, base, source if index != CONSTANT else None)
    # float32: pyvene multiplies by matrix exponentials, we by their orthonormal factors
    torch.testing.assert_close(found, output, atol=3e-6, rtol=1e-5)
    assert not torch.allclose(found, base, atol=1e-2)


def test_parts_of_a_partition_are_those_of_pyvene(loaded):
    base, source, _ = numbers(ROTATED)
    expected = torch.tensor(RECORDED[ROTATED]["second_part"])
    found = call(loaded[ROTATED].intervention, base, source, ((1,),) * 3)
    torch.testing.assert_close(found, expected, atol=3e-6, rtol=1e-5)


def test_the_boundless_mask_is_pyvenes_without_its_left_factor(loaded):
    """Pyvene moves by left * right; what it moved by, divided by left in the rotated basis, is what we move by."""
    base, source, output = numbers(BOUNDLESS)
    state = torch.load(FOLDER / "intkey_layer_1_comp_block_output_unit_pos_nunit_1#0.bin", weights_only=True)
    free, start = (state[f"rotate_layer.parametrizations.weight.{name}"] for name in ("original", "0.base"))
    rotation = start @ torch.matrix_exp(free.tril() - free.tril().T)
    left = torch.sigmoid(torch.arange(8) / 1.5)
    expected = base + ((output - base) @ rotation / left) @ rotation.T
    found = call(loaded[BOUNDLESS].intervention, base, source)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert loaded[BOUNDLESS].intervention.temperature == 1.5


def test_strict_refuses_what_is_not_the_same():
    with pytest.raises(ArtifactError, match=r"(?s)left factor.*waive=\['pyvene'\]"):
        load(FOLDER, model=tiny_model())


def test_representations_are_those_of_pyvene(loaded):
    places = [(one.layer, one.component, one.max_number_of_units) for one in loaded]
    assert places[LOW_RANK] == (0, "block_output", 1)
    assert places[TWO_UNITS] == (0, "block_output", 2)
    assert places[CONSTANT] == (None, "transformer.h[1].mlp.output", 1)
    assert loaded[LINKED].intervention is loaded[LINKED_TOO].intervention
    assert loaded[LINKED].intervention_link_key == loaded[LINKED_TOO].intervention_link_key == 0
    assert loaded[LOW_RANK].intervention is not loaded[JUMPRELU].intervention
    assert torch.equal(loaded[CONSTANT].intervention.source_representation, torch.arange(8.0))


def test_what_was_pyvenes_runs_and_is_saved_as_ours(loaded, tmp_path):
    model = tiny_model()
    copy_folder(tmp_path / "old", only=[LOW_RANK, MASK])
    before = IntervenableModel(load(tmp_path / "old", model=model).config, model)
    save(contents(before), tmp_path / "new")
    after = IntervenableModel(load(tmp_path / "new", model=model).config, model)
    for one, other in zip(before.interventions.values(), after.interventions.values(), strict=True):
        assert_same(one, other)
    base, source = ({"input_ids": torch.randint(0, 11, (2, 4))} for _ in range(2))
    with torch.no_grad():
        pair = [one(base, source, {"sources->base": 2})[1].logits for one in (before, after)]
    assert torch.equal(*pair)


# --- Layouts of other times ------------------------------------------------------------------------------------------


def copy_folder(target: Path, only: list[int] | None = None) -> dict[str, Any]:
    """Copy the folder, with some of its interventions; return what its configuration says."""
    shutil.copytree(FOLDER, target)
    config = json.loads((target / "config.json").read_text())
    chosen = range(len(config["representations"])) if only is None else only
    for name in ("representations", "intervention_types", "intervention_dimensions", "intervention_constant_sources"):
        config[name] = [config[name][index] for index in chosen]
    config["sorted_keys"] = None
    (target / "config.json").write_text(json.dumps(config))
    return config


@pytest.mark.parametrize("prefix", ["intervenable_", "alignable_"])
def test_the_ancestors_layout(prefix, tmp_path):
    """Its representations have fewer fields in another order, its files other names, its types another module."""
    config = copy_folder(tmp_path / "old", only=[LOW_RANK, ROTATED])
    part, word = ("comp", "pyvene.models") if prefix == "intervenable_" else ("repr", "models")
    order = [0, 1, 2, 3, 4, 7, 8, 9]  # without intervention_type and intervention
    ancestor = {
        f"{prefix}model_type": "<class 'transformers.models.gpt2.modeling_gpt2.GPT2LMHeadModel'>",
        f"{prefix}representations": [[one[field] for field in order] for one in config["representations"]],
        f"{prefix}interventions_type": [name.replace("pyvene.models", word) for name in config["intervention_types"]],
        f"{prefix}interventions": [None],
        "intervention_dimensions": config["intervention_dimensions"],
        "mode": "serial",
    }
    (tmp_path / "old/config.json").write_text(json.dumps(ancestor))
    for layer, component in ((0, "block_output"), (1, "mlp_output")):
        (tmp_path / f"old/intkey_layer_{layer}_comp_{component}_unit_pos_nunit_1#0.bin").rename(
            tmp_path / f"old/intkey_layer.{layer}.{part}.{component}.unit.pos.nunit.1#0.bin"
        )
    config = load(tmp_path / "old", model=tiny_model()).config
    assert config.mode == "serial"
    for index, one in zip((LOW_RANK, ROTATED), config.representations, strict=True):
        base, source, output = numbers(index)
        torch.testing.assert_close(call(one.intervention, base, source), output, atol=3e-6, rtol=1e-5)


def test_two_interventions_at_one_place_have_files_of_their_own(loaded):
    """`#0` and `#1`: the low-rank rotation and the autoencoder at the first block's output."""
    assert type(loaded[LOW_RANK].intervention).__name__ == "LowRankRotatedSpaceIntervention"
    assert type(loaded[JUMPRELU].intervention).__name__ == "JumpReLUAutoencoderIntervention"


# --- What is refused -------------------------------------------------------------------------------------------------


def change(folder: Path, **entries: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


@pytest.mark.parametrize(
    "name", ["<class 'os.system'>", "<class 'evil.VanillaIntervention'>", "os.system", "VanillaIntervention", 3, None]
)
def test_unknown_types_are_refused(name, tmp_path, monkeypatch):
    copy_folder(tmp_path / "old", only=[LOW_RANK])
    change(tmp_path / "old", intervention_types=[name])
    monkeypatch.setattr("importlib.import_module", lambda *_: pytest.fail("imported by name"))
    with pytest.raises(ArtifactError, match=r"(?s)unknown intervention.*LowRankRotated.*Nothing is imported"):
        load(tmp_path / "old", model=tiny_model())


@pytest.mark.parametrize("name", _REFUSED)
def test_types_without_a_counterpart_are_refused_with_the_reason(name, tmp_path):
    copy_folder(tmp_path / "old", only=[MINUS])
    change(tmp_path / "old", intervention_types=[f"<class 'pyvene.models.interventions.{name}'>"])
    with pytest.raises(ArtifactError, match=rf"{name} cannot be read: .*(saved|made)"):
        load(tmp_path / "old", model=tiny_model())


@pytest.mark.parametrize("name", sorted(_MAKERS))
def test_missing_weights_are_refused(name, tmp_path):
    copy_folder(tmp_path / "old", only=[MINUS])
    change(tmp_path / "old", intervention_types=[f"<class 'pyvene.models.interventions.{name}'>"])
    learned = "Rotated" in name or "Mask" in name or "Autoencoder" in name
    if not learned:
        (one,) = load(tmp_path / "old", model=tiny_model()).config.representations
        assert type(one.intervention).__name__ == name
        return
    with pytest.raises(ArtifactError, match=f"{name}: its file is missing, or lacks"):
        load(tmp_path / "old", model=tiny_model())


@pytest.mark.parametrize("how", ["pickle", "zip"])
def test_a_pickle_that_names_a_function_is_refused_and_not_run(how, tmp_path):
    copy_folder(tmp_path / "old", only=[LOW_RANK])
    path = tmp_path / "old/intkey_layer_0_comp_block_output_unit_pos_nunit_1#0.bin"
    harm = Harm(tmp_path / "harm")
    path.write_bytes(pickle.dumps(harm)) if how == "pickle" else torch.save({"x": harm}, path)
    with pytest.raises(ArtifactError, match="something else than tensors"):
        load(tmp_path / "old", model=tiny_model(), strict=False)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("content", [[1, 2], {"x": 1}, {"x": torch.ones(1)}, torch.ones(2)])
def test_files_with_something_else_are_refused(content, tmp_path):
    copy_folder(tmp_path / "old", only=[LOW_RANK])
    torch.save(content, tmp_path / "old/intkey_layer_0_comp_block_output_unit_pos_nunit_1#0.bin")
    with pytest.raises(ArtifactError, match=r"intkey|lacks"):
        load(tmp_path / "old", model=tiny_model())


def test_a_matrix_that_is_not_orthonormal_is_refused(tmp_path):
    """Pyvene's parametrisation of thin matrices is not orthonormal once the diagonal of the free one has changed."""
    copy_folder(tmp_path / "old", only=[LOW_RANK])
    path = tmp_path / "old/intkey_layer_0_comp_block_output_unit_pos_nunit_1#0.bin"
    state = torch.load(path, weights_only=True)
    state["rotate_layer.parametrizations.weight.original"].fill_diagonal_(0.5)
    torch.save(state, path)
    with pytest.raises(ArtifactError, match="not orthonormal"):
        load(tmp_path / "old", model=tiny_model())


@pytest.mark.parametrize("spoil", ["shape", "wide", "nan", "compressed"])
def test_small_files_cannot_ask_for_much(spoil, tmp_path):
    copy_folder(tmp_path / "old", only=[LOW_RANK])
    path = tmp_path / "old/intkey_layer_0_comp_block_output_unit_pos_nunit_1#0.bin"
    state = torch.load(path, weights_only=True)
    free = "rotate_layer.parametrizations.weight.original"
    if spoil == "shape":  # a view of one number
        state[free] = torch.zeros(1).expand(10**6, 10**6)
    elif spoil == "wide":  # its Gram matrix would have 10**12 numbers
        state = {free: torch.zeros(1, 10**6)}
    elif spoil == "nan":
        state = {"embed_dim": torch.tensor(8), "source_representation": torch.full((8,), float("nan"))}
        change(tmp_path / "old", intervention_types=["<class 'pyvene.models.interventions.VanillaIntervention'>"])
        change(tmp_path / "old", intervention_constant_sources=[True])
    torch.save(state, path)
    if spoil == "compressed":
        with ZipFile(path) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
        with ZipFile(path, "w", ZIP_DEFLATED) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    said = {"shape": "the file holds less", "wide": "cannot be orthogonal", "nan": "NaN", "compressed": "compressed"}
    with pytest.raises(ArtifactError, match=said[spoil]):
        load(tmp_path / "old", model=tiny_model())


@pytest.mark.parametrize("parts", [[[0, 2**40]], [[[0, 2**20], [2**20 + 1, 2**21]]], [[0, 1], 3], "ab"])
def test_partitions_are_looked_at_before_they_are_made(parts, tmp_path):
    copy_folder(tmp_path / "old", only=[MINUS])
    change(tmp_path / "old", representations=[[0, "mlp_output", "pos", 1, None, None, None, parts]])
    with pytest.raises(ArtifactError, match="subspace_partition"):
        load(tmp_path / "old", model=tiny_model())


def test_paths_in_the_configuration_lead_nowhere(tmp_path):
    copy_folder(tmp_path / "old", only=[LOW_RANK])
    torch.save({"x": torch.ones(1)}, tmp_path / "evil#0.bin")
    one = [0, "../../evil", "pos", 1] + [None] * 10
    change(tmp_path / "old", representations=[one], sorted_keys=["../../evil#0"])
    with pytest.raises(ArtifactError, match="missing"):
        load(tmp_path / "old", model=tiny_model())


def test_links_are_not_followed(tmp_path):
    copy_folder(tmp_path / "old", only=[LOW_RANK])
    path = tmp_path / "old/intkey_layer_0_comp_block_output_unit_pos_nunit_1#0.bin"
    path.rename(tmp_path / "outside.bin")
    path.symlink_to(tmp_path / "outside.bin")
    with pytest.raises(ArtifactError, match="leads out of the folder"):
        load(tmp_path / "old", model=tiny_model())


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ({"representations": None}, "representations"),
        ({"representations": [3]}, "representation 0"),
        ({"representations": [[True, "mlp_output", "pos", 1]]}, "layer"),
        ({"representations": [[0, "mlp_output", "pos", 1, None, None, None, None, None, None, 2]]}, "moe_key"),
        ({"intervention_types": []}, "1 entries"),
        ({"intervention_dimensions": [1, 2]}, "1 entries"),
        ({"intervention_constant_sources": [True]}, "constant source"),
        ({"mode": "os.system"}, "mode"),
        ({"model_type": "<class 'transformers.LlamaForCausalLM'>"}, "LlamaForCausalLM, found GPT2LMHeadModel"),
    ],
)
def test_wrong_entries(entries, match, tmp_path):
    copy_folder(tmp_path / "old", only=[LOW_RANK])
    change(tmp_path / "old", **entries)
    with pytest.raises(ValueError, match=match) as error:
        load(tmp_path / "old", model=tiny_model())
    assert type(error.value).__module__ == "align_transformers._errors"


def test_vectors_of_another_width_are_refused(tmp_path):
    """Pyvene does not tell which model it was; the widths do."""
    copy_folder(tmp_path / "old", only=[LOW_RANK, TWO_UNITS])
    sizes = {"vocab_size": 11, "n_positions": 8, "n_embd": 12, "n_layer": 2, "n_head": 2}
    wider = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=None)).eval()
    with pytest.raises(ArtifactError, match=r"width at layer 0 block_output: saved \d+, found (12|24)"):
        load(tmp_path / "old", model=wider)


def test_another_kind_of_config_is_none_of_ours(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    with pytest.raises(ArtifactError, match="not that of saved interventions"):
        load(tmp_path, model=mlp())
