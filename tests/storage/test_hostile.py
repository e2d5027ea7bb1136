"""Files that were made to do harm do nothing but raise an error of ours."""

from __future__ import annotations

import json
import os
import pickle
import struct
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.storage.kit import WIDTH, Scale, contents, intervene, mlp

from align_transformers import AlignError
from align_transformers._errors import ArtifactError
from align_transformers.interventions import (
    LowRankRotatedSpaceIntervention,
    SubspaceIntervention,
    VanillaIntervention,
)
from align_transformers.operations import Mean
from align_transformers.storage import load, save
from align_transformers.subspaces import Mask, Rotation

MODEL = mlp()
HUGE = 10**15


class Harm:
    """A pickle of it makes a file when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.mark}'",)


@pytest.fixture
def kept(tmp_path) -> Path:
    made = [LowRankRotatedSpaceIntervention(embed_dim=WIDTH, low_rank_dimension=2), VanillaIntervention()]
    return save(contents(intervene(made, MODEL)), tmp_path / "kept")


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "intervention.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "weights.safetensors")
    change(tensors)
    save_file(tensors, folder / "weights.safetensors")


def refused(folder: Path, match: str, **options: Any) -> None:
    with pytest.raises(AlignError, match=match):
        load(folder, model=MODEL, **options)


# --- Names of classes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "os.system", "builtins.exec", "<class 'os.system'>", "subprocess.Popen", "torch.nn.Linear", "Scale",
        "tests.storage.kit.Scale", "align_transformers.interventions.VanillaIntervention", "FunctionIntervention",
        "Intervention", "TrainableIntervention", "DictionaryIntervention", "__import__", "", "vanillaintervention",
    ],
)  # fmt: skip
def test_an_unknown_class_is_refused_and_both_lists_are_shown(name, kept):
    edit(kept, lambda record: record["interventions"][0].update({"class": name}))
    with pytest.raises(ArtifactError) as error:
        load(kept, model=MODEL, classes=[Scale] if name != "Scale" else [])
    text = str(error.value)
    assert repr(name) in text
    assert "the library's own: " in text
    assert "VanillaIntervention" in text or "AutoencoderIntervention" in text or "did you mean" in text
    assert ("Scale" if name != "Scale" else "classes=: none") in text


def test_nothing_is_imported(kept, monkeypatch):
    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("imported by name")

    edit(kept, lambda record: record["interventions"][0].update({"class": "os.system"}))
    monkeypatch.setattr("importlib.import_module", never)
    refused(kept, "os.system")


# --- Pickles ---------------------------------------------------------------------------------------------------------


PAIR = {
    "operation": {"class": "Swap", "arguments": {}},
    "subspace": {"class": "Rotation", "arguments": {"width": WIDTH, "k": 2, "stack": None}},
}


def nested(depth: int) -> Any:
    inner: Any = {"class": "Whole", "arguments": {"width": WIDTH}}
    for _ in range(depth):
        inner = {"class": "Mask", "arguments": {"over": inner}}
    return inner


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"operation": {"class": "os.system", "arguments": {}}}, "unknown class 'os.system'"),
        ({"operation": {"class": "Function", "arguments": {"function": "os.system"}}}, "unknown class 'Function'"),
        ({"operation": {"class": "Rotation", "arguments": {"width": 2, "k": 1}}}, "unknown class 'Rotation'"),
        ({"operation": {"class": "Swap", "arguments": {"evil": 1}}}, "cannot be constructed"),
        ({"operation": {"class": "Swap"}}, "has 'class' and 'arguments'"),
        ({"operation": {"class": ["Swap"], "arguments": {}}}, "'class' is a name"),
        ({"operation": "Swap"}, "operation is .*Operation.*; found 'Swap'"),
        ({"operation": {"class": "Mean", "arguments": {"size": HUGE}}}, f"size is {HUGE}"),
        ({"subspace": {"class": "Subspace", "arguments": {"width": 2}}}, "unknown class 'Subspace'"),
        ({"subspace": {"class": "Basis", "arguments": {"width": 2}}}, "unknown class 'Basis'"),
        ({"subspace": {"class": "Rotation", "arguments": {"width": HUGE, "k": 1}}}, f"width is {HUGE}"),
        ({"subspace": {"class": "Rotation", "arguments": {"width": WIDTH, "k": 2, "stack": HUGE}}}, f"stack is {HUGE}"),
        ({"subspace": {"class": "Rotation", "arguments": {"width": WIDTH, "k": 3}}}, r"\(6, 2\).*\(6, 3\)"),
        ({"subspace": {"class": "Dictionary", "arguments": {"width": WIDTH, "latents": 2**24}}}, "latents is"),
        ({"subspace": nested(2)}, "is a mask already"),
        ({"subspace": nested(10)}, "is a mask already"),
        ({"subspace": nested(200)}, "more than 32 deep"),
        ({"subspace": {"class": "Mask", "arguments": {"over": 3}}}, "Mask: over is .*; found 3"),
        ({"subspace": {"class": "Rotation", "arguments": {"width": 6.0, "k": 2}}}, "Rotation: width is int; found 6.0"),
        ({"operation": {"class": "Mean", "arguments": {"size": True}}}, "Mean: size is int; found True"),
    ],
)
def test_a_pair_names_what_the_tables_have_and_nothing_else(change, match, kept, monkeypatch):
    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("imported by name")

    weights = load_file(kept / "weights.safetensors")
    save_file({"0.subspace.free": weights["0.rotate_layer.free"]}, kept / "weights.safetensors")
    given = {"class": "SubspaceIntervention", "arguments": dict(PAIR), "frozen": [], "orders": {}}
    edit(kept, lambda record: record["interventions"][0].update(given))
    assert load(kept, model=MODEL).config.representations[0].intervention.subspace.size == 2
    monkeypatch.setattr("importlib.import_module", never)
    edit(kept, lambda record: record["interventions"][0]["arguments"].update(change))
    refused(kept, match)


@pytest.mark.parametrize("write", [pickle.dumps, lambda harm: b"\x80\x04" + pickle.dumps(harm)])
def test_a_pickle_in_the_place_of_the_weights(write, kept, tmp_path):
    mark = tmp_path / "harm"
    (kept / "weights.safetensors").write_bytes(write(Harm(mark)))
    refused(kept, "not a safetensors file")
    torch.save({"0.rotate_layer.free": Harm(mark)}, kept / "weights.safetensors")
    refused(kept, "not a safetensors file")
    assert not mark.exists()


def test_a_pickle_beside_the_weights_is_not_looked_at(kept, tmp_path):
    mark = tmp_path / "harm"
    for name in ("pytorch_model.bin", "intkey_layer_0.bin", "weights.bin", "intervention.pkl"):
        (kept / name).write_bytes(pickle.dumps(Harm(mark)))
    load(kept, model=MODEL)
    (kept / "weights.safetensors").unlink()
    refused(kept, r"no file 'weights\.safetensors'")
    assert not mark.exists()


def test_a_pickle_in_the_place_of_the_record(kept, tmp_path):
    (kept / "intervention.json").write_bytes(pickle.dumps(Harm(tmp_path / "harm")))
    refused(kept, "not JSON")
    assert not (tmp_path / "harm").exists()


# --- Links and paths -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["intervention.json", "weights.safetensors"])
def test_links_out_of_the_folder_are_not_followed(name, kept, tmp_path):
    (kept / name).rename(tmp_path / "outside")
    (kept / name).symlink_to(tmp_path / "outside")
    refused(kept, "leads out of the folder")
    (kept / name).unlink()
    (kept / name).symlink_to("../outside")
    refused(kept, "leads out of the folder")
    (kept / name).unlink()
    (kept / name).symlink_to(name)  # to itself
    refused(kept, "no file")
    (kept / name).unlink()
    (kept / name).mkdir()
    refused(kept, "no ordinary file")


def test_a_link_to_the_folder_is_a_folder(kept, tmp_path):
    (tmp_path / "latest").symlink_to(kept)
    assert load(tmp_path / "latest", model=MODEL).config.mode == "parallel"


@pytest.mark.parametrize(
    "name", ["../../evil", "0", ".x", "0.", "-1.x", "9.x", "99999999999999999999.x", "0x.y", "٣.x"]
)
def test_names_of_tensors_are_numbers_and_names(name, kept):
    edit_weights(kept, lambda tensors: tensors.update({name: torch.zeros(1)}))
    refused(kept, "names are 'number.name'")
    assert sorted(path.name for path in kept.parent.iterdir()) == ["kept"]


# --- Sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"embed_dim": HUGE, "low_rank_dimension": 2}, "embed_dim"),
        ({"embed_dim": 2**20, "low_rank_dimension": 2**16}, "weights"),
        ({"embed_dim": WIDTH, "low_rank_dimension": HUGE}, "low_rank_dimension"),
        ({"embed_dim": -5, "low_rank_dimension": 2}, "constructed"),
        ({"embed_dim": "6"}, r"embed_dim is int; found '6'"),
        ({"low_rank_dimension": True}, "low_rank_dimension is int; found True"),
        ({"keep_last_dim": "no"}, "keep_last_dim is bool; found 'no'"),
        ({"source_representation": [1.0]}, "source_representation is .*Tensor"),
        ({"subspace_partition": [[0, HUGE]]}, "coordinates"),
        ({"subspace_partition": [[0, 2**23], [0, 2**23], [0, 2**23]]}, "coordinate 8388607"),
        ({"subspace_partition": [[[0, 2**20], [2**21, 2**21 + 9]]]}, "over 1048576 coordinates"),
        ({"subspace_partition": [[-1, 3]]}, "coordinates"),
        ({"subspace_partition": [[[0, HUGE], [1, 2]]]}, "coordinates"),
        ({"interchange_dim": HUGE}, "interchange_dim"),
    ],
)
def test_absurd_sizes(arguments, match, kept):
    edit(kept, lambda record: record["interventions"][0]["arguments"].update(arguments))
    refused(kept, match)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("AutoencoderIntervention", {"embed_dim": WIDTH, "latent_dim": HUGE}),
        ("AutoencoderIntervention", {"embed_dim": 2**20, "latent_dim": 2**16}),
        ("StackedLowRankRotatedSpaceIntervention", {"embed_dim": 2, "low_rank_dimension": 1, "members": HUGE}),
        ("RotatedSpaceIntervention", {"embed_dim": 2**22}),
        ("SigmoidMaskIntervention", {"embed_dim": 2**24 + 1}),
        ("LoreftIntervention", {"embed_dim": 2**23, "low_rank_dimension": 2**16}),
    ],
)
def test_absurd_sizes_of_other_classes(name, arguments, kept):
    edit(kept, lambda record: record["interventions"][0].update({"class": name, "arguments": arguments}))
    refused(kept, "interventions")


def peak(work: Callable[[], Any]) -> int:
    """Bytes that Python holds at most while something is done."""
    tracemalloc.start()
    work()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


def test_a_range_stays_a_range(kept):
    def widen(record: dict[str, Any]) -> None:
        made = {"class": "VanillaIntervention", "arguments": {"subspace_partition": [[0, 2**24]]}, "orders": {}}
        record["interventions"] = [{"training": True, "frozen": [], **made}] * 100
        record["config"]["representations"] = record["config"]["representations"][:1]

    edit(kept, widen)
    save_file({}, kept / "weights.safetensors")
    found = load(kept, model=MODEL).config.representations[0].intervention
    assert found.partition.parts == (range(2**24),)
    assert peak(lambda: load(kept, model=MODEL)) < 2**22


def test_coordinates_are_counted_over_the_whole_file(kept):
    """Each partition alone is small enough."""
    parts = [[[0, 2**17], [2**18, 2**18 + 9]]]

    def repeat(record: dict[str, Any]) -> None:
        made = {"class": "VanillaIntervention", "arguments": {"subspace_partition": parts}, "orders": {}}
        record["interventions"] = [{"training": True, "frozen": [], **made}] * 9

    edit(kept, repeat)
    save_file({}, kept / "weights.safetensors")
    refused(kept, "partitions of this file name over 1048576 coordinates")


@pytest.mark.parametrize("what", ["representations", "interventions"])
def test_too_many_entries_are_refused_before_they_are_made(what, kept):
    def repeat(record: dict[str, Any]) -> None:
        entries = record["config"] if what == "representations" else record
        entries[what] = entries[what][:1] * 50_000

    edit(kept, repeat)
    started = time.perf_counter()
    refused(kept, rf"{what} has 50000 entries; at most 8192")
    assert time.perf_counter() - started < 10


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('"metrics": {"a": 1e999}', "no JSON number"),
        ('"metrics": {"a": 1, "a": 2}', "'a' stands there twice"),
        ('"metrics": {}, "format": "other"', "'format' stands there twice"),
        ('"metrics": {"a": ' + "[" * 40 + "]" * 40 + "}", "32 deep"),
    ],
)
def test_json_that_may_be_read_in_two_ways(text, match, kept):
    path = kept / "intervention.json"
    path.write_text(path.read_text().replace('"metrics": {}', text))
    refused(kept, match)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_unless_that_is_waived(value, kept):
    edit_weights(kept, lambda tensors: tensors["0.rotate_layer.free"].view(-1)[3:4].fill_(value))
    refused(kept, r"'0\.rotate_layer\.free' hold NaN or infinite.*\n.*waive=\['finite'\]")
    with pytest.warns(UserWarning, match="waived: finite"):
        load(kept, model=MODEL, waive=["finite"])


LONG = "x" * 10**6


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record["model"].update(name=LONG, config_hash=LONG),
        lambda record: record["model"].update({"class": LONG}),
        lambda record: record["model"].update(dtypes=[LONG]),
        lambda record: record["model"].update(shapes={LONG: LONG}),
        lambda record: record.update(library_version=LONG, format_version=7),
        lambda record: record.update({LONG: 1}),
        lambda record: record["config"].update(mode=LONG),
        lambda record: record["config"]["representations"][0].update(component=LONG),
        lambda record: record["config"]["representations"][0].update(unit=LONG),
        lambda record: record["interventions"][0].update({"class": LONG}),
        lambda record: record["interventions"][0].update(frozen=[LONG]),
        lambda record: record["interventions"][0].update(orders={LONG: [LONG]}),
        lambda record: record["interventions"][0]["arguments"].update({LONG: 1}),
        lambda record: record["interventions"][0]["arguments"].update(subspace_partition=[LONG]),
        lambda record: record["interventions"][0]["arguments"].update(embed_dim=LONG),
    ],
)
def test_no_message_is_long_and_every_error_is_one(change, kept):
    edit(kept, change)
    with pytest.raises(ArtifactError) as error:
        load(kept, model=MODEL)
    assert len(str(error.value)) <= 600


def test_a_record_that_is_too_large_or_too_deep(kept, monkeypatch):
    (kept / "intervention.json").write_text("[" * 100_000)
    refused(kept, "not JSON")
    (kept / "intervention.json").write_text("[" * 900 + "]" * 900)
    refused(kept, "deep")
    monkeypatch.setattr("align_transformers.storage.plain.MOST_BYTES", 1000)
    refused(kept, "at most 1000")


def test_a_header_that_promises_too_much(kept):
    path = kept / "weights.safetensors"
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    refused(kept, "not a safetensors file")
    header = json.dumps({"0.x": {"dtype": "F32", "shape": [HUGE], "data_offsets": [0, 4 * HUGE]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    refused(kept, "not a safetensors file")
    path.write_bytes(b"")
    refused(kept, "not a safetensors file")


# --- Wrong kinds of values -------------------------------------------------------------------------------------------


def _paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(path for key, entry in entries for path in _paths(entry, (*at, key)))]


WRONG = st.sampled_from([None, True, -1, 1.5, "os.system", "../..", [], {}, [[]], {"a": 1}, [None], 2**70])


@given(data=st.data())
def test_any_value_replaced_by_another_is_an_error_of_ours_or_harmless(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wrong") / "kept"
    pair = SubspaceIntervention(Mean(torch.zeros(2)), Mask(Rotation(WIDTH, 2)), coordinates=[1])
    made = [LowRankRotatedSpaceIntervention(embed_dim=WIDTH, low_rank_dimension=2), VanillaIntervention(), pair]
    save(contents(intervene(made, MODEL), metrics={"iia": 0.5}), folder)
    record = json.loads((folder / "intervention.json").read_text())
    path = data.draw(st.sampled_from([path for path in _paths(record) if path]))
    inner = record
    for key in path[:-1]:
        inner = inner[key]
    if data.draw(st.booleans()):
        inner[path[-1]] = data.draw(WRONG)
    else:
        del inner[path[-1]]
    (folder / "intervention.json").write_text(json.dumps(record))
    with suppress(AlignError):
        artifact = load(folder, model=MODEL)  # where the change is a score, or another value that may stand there
        assert len(artifact.config.representations) >= 1


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", "3", '{"format": NaN}', b"\xff\xfe{}"])
def test_a_record_that_is_no_record(text, kept):
    (kept / "intervention.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(kept, r"intervention\.json")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda record: record.update(format_version=3, library_version="9.0"),
            r"format_version 3.*'9\.0'.*reads up to 2",
        ),
        (lambda record: record.update(format_version=True), "format_version True"),
        (lambda record: record.update(more=1), "unknown.*more"),
        (lambda record: record.pop("metrics"), "lacks.*metrics"),
        (lambda record: record["config"].update(mode="os.system"), "mode"),
        (lambda record: record["config"]["representations"][0].update(intervention=2), "no intervention 2"),
        (lambda record: record["config"]["representations"][0].update(intervention=-1), "no intervention -1"),
        (lambda record: record["config"]["representations"][0].update(layer=True), r"\[0\].layer is int or null"),
        (lambda record: record["config"].update(representations=[]), "representations"),
        (lambda record: record["interventions"][0]["arguments"].update(evil="os.system"), "constructed"),
        (lambda record: record["interventions"][0].update(frozen=["weight"]), "frozen names 'weight'"),
        (lambda record: record["interventions"][0].update(frozen=[["x"]]), "frozen"),
        (lambda record: record["interventions"][0].update(orders={"rotate_layer.free": [0, 0]}), "orders"),
        (lambda record: record["interventions"][0].update(orders={"no": [0]}), "orders"),
        (lambda record: record["interventions"][0]["arguments"].update(subspace_partition="ab"), "subspace_partition"),
        (lambda record: record["interventions"][0]["arguments"].update(subspace_partition=[[0, "x"]]), "partition"),
        (lambda record: record["interventions"][0]["arguments"].update(low_rank_dimension=3), r"\(6, 2\).*\(6, 3\)"),
    ],
)
def test_wrong_entries_are_named(change, match, kept):
    edit(kept, change)
    refused(kept, match)


def test_tensors_that_do_not_fit(kept):
    edit_weights(kept, lambda tensors: tensors.update({"0.rotate_layer.free": torch.zeros(WIDTH, 3)}))
    refused(kept, r"rotate_layer.free.*\(6, 3\).*\(6, 2\)")
    more = {"0.rotate_layer.free": torch.zeros(WIDTH, 2), "1.more": torch.ones(1)}
    edit_weights(kept, lambda tensors: tensors.update(more))
    refused(kept, "more")
    edit_weights(kept, lambda tensors: tensors.pop("0.rotate_layer.free"))
    refused(kept, r"lack.*rotate_layer.free")


@given(st.binary(max_size=300))
def test_any_bytes_as_weights(data):
    # A folder of its own for every example: hypothesis runs many in one test.
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        folder = save(contents(intervene([VanillaIntervention()], MODEL)), Path(scratch) / "kept")
        (folder / "weights.safetensors").write_bytes(data)
        with pytest.raises(AlignError):
            load(folder, model=MODEL)
