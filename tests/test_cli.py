"""cli: what is printed where, which files are written, and how mistakes end."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tests.helpers import LAYERS, VOCAB, new_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from align_transformers import Scan, cli
from align_transformers._errors import SpecError
from align_transformers.cli import doctor_command, running
from align_transformers.cli.options import numbers, texts
from align_transformers.table import Table

BASE, SOURCE = "w1 w2 w3 w4", "w1 w2 w9 w4"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model and its tokenizer (a word is a token), as a checkpoint."""
    path = tmp_path_factory.mktemp("tiny")
    inner = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    new_model("llama").save_pretrained(path)
    PreTrainedTokenizerFast(tokenizer_object=inner).save_pretrained(path)
    return str(path)


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Call the command line; returns (status, stdout, stderr)."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["align-transformers", *arguments])
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("COLUMNS", "100")
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


def test_trace_prints_the_map_and_a_summary_and_writes_the_files(run, folder, tmp_path):
    status, out, err = run("trace", BASE, SOURCE, "--model", folder, "--answers", "w4,w5", "--out", "results")
    assert (status, err) == (0, "")
    table = Table.load(tmp_path / "results" / "trace.parquet")
    assert len(table) == LAYERS * 4
    assert (table.meta["base_answer"], table.meta["source_answer"]) == ("w4", "w5")
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line[:5].strip().isdigit()}
    for layer in range(LAYERS):
        shown = [float(cell.rstrip("*")) for cell in rows[str(layer)]]
        assert shown == pytest.approx(table.pivot().loc[layer].tolist(), abs=0.0051)
    says = [table.meta[name] for name in ("base_says", "source_says")]
    assert "Without a swap the model answers the base with “{}”, the source with “{}”.".format(*says) in out
    assert "The answers compared are “w4” and “w5”." in out
    assert "The largest effect is at layer" in out
    assert (tmp_path / "results" / "trace.png").read_bytes().startswith(b"\x89PNG")
    assert "<!DOCTYPE html>" in (tmp_path / "results" / "trace.html").read_text()[:20]
    for name in ("trace.parquet", "trace.png", "trace.html"):
        assert f"results/{name}" in out


def test_json_prints_one_object_and_nothing_else(run, folder, tmp_path):
    status, out, err = run("trace", BASE, SOURCE, "--model", folder, "--answers", "w4,w5", "--json")
    assert (status, err) == (0, "")
    data = json.loads(out)
    assert set(data) == {"meta", "rows", "summary", "files"}
    assert Table.from_dict({"meta": data["meta"], "rows": data["rows"]}) == Table.load(tmp_path / "trace.parquet")
    best = max(data["rows"], key=lambda row: row["recovered"])
    assert data["summary"]["largest"]["layer"] == best["layer"]
    assert data["summary"]["cells"] == len(data["rows"])


def test_quiet_prints_nothing(run, folder, tmp_path):
    assert run("trace", BASE, SOURCE, "--model", folder, "--answers", "w4,w5", "--quiet") == (0, "", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trace.html", "trace.parquet", "trace.png"]


def test_layers_positions_and_component_are_chosen(run, folder):
    options = ["--layers", "1-2", "--positions", "2,-1", "--component", "mlp_output", "--answers", "w4,w5", "--json"]
    _, out, _ = run("trace", BASE, SOURCE, "--model", folder, *options)
    rows = json.loads(out)["rows"]
    assert [(row["component"], row["layer"], row["position"]) for row in rows] == [
        ("mlp_output", layer, position) for layer in (1, 2) for position in (2, 3)
    ]


def test_last_compares_unequal_prompts(run, folder):
    _, out, _ = run("trace", BASE, "w7 " + SOURCE, "--model", folder, "--last", "2", "--answers", "w4,w5", "--json")
    assert [(row["position"], row["source_position"]) for row in json.loads(out)["rows"]][:2] == [(2, 3), (3, 4)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([BASE, SOURCE, "--component", "blok_output"], "unknown component 'blok_output'; did you mean 'block_output'"),
        ([BASE, "w1 w2"], "the base has 4 tokens, the source 2"),
        ([BASE, "w1 w2"], "or compare the last N tokens, aligned from the end"),
        ([BASE, SOURCE, "--positions", "7"], "position 7 does not exist: the base has 4 tokens"),
        ([BASE, SOURCE, "--layers", "0-3"], "layer 3 does not exist: LlamaForCausalLM has 3 layers (0 to 2)"),
        ([BASE, SOURCE, "--layers", "0..3"], "--layers '0..3': give numbers and ranges"),
        ([BASE, BASE], "both prompts have the same answer"),
        ([BASE, SOURCE, "--answers", "w4"], "--answers 'w4': give two tokens"),
        ([BASE, SOURCE, "--answers", "w4,w5 w6"], "'w5 w6' is not one token but 2"),
        ([BASE, SOURCE, "--model", "./nowhere", "--component", "x"], "unknown component 'x'"),  # before loading
        ([BASE, SOURCE, "--model", "./nowhere"], "cannot load a model from './nowhere'"),
        ([BASE, SOURCE, "--model", "smollm-135m"], "did you mean 'smollm2-135m'"),
        (["", SOURCE], "a prompt has no token"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_status_2(run, folder, tmp_path, arguments, said):
    given = arguments if "--model" in arguments else [*arguments, "--model", folder]
    given = given if "--answers" in given or arguments == [BASE, BASE] else [*given, "--answers", "w4,w5"]
    status, out, err = run("trace", *given)
    assert status == 2
    assert out == ""
    assert said in err
    assert err.count("\n") == 1
    assert err.startswith("align-transformers: error: ")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_said_before_the_work(run, folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    monkeypatch.setattr(running, "_load", None)
    status, _, err = run("trace", BASE, SOURCE, "--model", folder, "--out", "file")
    assert status == 2
    assert "file" in err
    assert err.count("\n") == 1


def test_wrong_usage_is_status_2(run):
    for arguments in (["trace", BASE], ["trace", BASE, SOURCE, "--lairs", "3"], ["tracee"]):
        status, out, err = run(*arguments)
        assert (status, out) == (2, "")
        assert err


def test_version(run):
    status, out, _ = run("--version")
    assert status == 0
    assert out.startswith("align-transformers ")
    assert out.count("\n") == 1


def test_help_has_examples(run):
    status, out, _ = run("trace", "--help")
    assert status == 0
    for stated in (
        "Examples",
        "The capital of Spain is",
        "--component",
        "--last",
        "trace.html",
        "--answers",
        "block_output",
    ):
        assert stated in out
    assert "trace" in run("--help")[1]


def test_the_command_line_itself_imports_nothing_heavy():
    # The package's own __init__ is left out: this is about cli.py.
    code = (
        "import importlib.util, sys, types\n"
        "spec = importlib.util.find_spec('align_transformers')\n"
        "package = types.ModuleType('align_transformers')\n"
        "package.__path__ = list(spec.submodule_search_locations)\n"
        "sys.modules['align_transformers'] = package\n"
        "import align_transformers.cli as cli\n"
        "sys.argv = ['align-transformers', 'trace', '--help']\n"
        "try:\n    cli.main()\nexcept SystemExit as ended:\n    assert not ended.code\n"
        "heavy = {'torch', 'transformers', 'pandas', 'numpy', 'matplotlib', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_help_takes_less_than_half_a_second():
    asked = "import sys; sys.argv = ['align-transformers', '--help']; from align_transformers.cli import main; main()"

    def seconds() -> float:  # of the processor: it may be busy with other things
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", asked], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.5


def test_a_progress_bar_is_shown_on_stderr_while_it_runs(run, folder, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes stderr for a terminal
    monkeypatch.setenv("TERM", "xterm")
    status, out, err = run("trace", BASE, SOURCE, "--model", folder, "--answers", "w4,w5", "--json")
    json.loads(out)
    assert (status, err) == (0, "")  # not with --json
    status, out, err = run("trace", BASE, SOURCE, "--model", folder, "--answers", "w4,w5")
    assert status == 0
    assert "12/12" in err
    assert "12/12" not in out


@pytest.mark.parametrize("text", ["", "a", "1-", "5-2", "1,,2", "-3-4", "--2"])
def test_senseless_numbers_are_refused(text):
    with pytest.raises(SpecError, match="--layers"):
        numbers(text, "--layers")


def test_describe_prints_the_tree(run, folder):
    status, out, err = run("describe", folder)
    assert (status, err) == (0, "")
    lines = [line.strip("│├└─ ") for line in out.splitlines()]
    assert lines[:3] == ["LlamaForCausalLM", "blocks: 3", "layers 0-2: LlamaDecoderLayer  model.layers.{n}"]
    assert ["key_output", "self_attn.k_proj.output", "12", "=", "2", "x", "6"] in [line.split()[:7] for line in lines]
    assert "query head h uses" in out
    assert "additive: block_output = block_input + attention_output + mlp_output" in lines


def test_describe_as_json_prints_one_object(run, folder):
    status, out, err = run("describe", folder, "--json")
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert found["model"] == "LlamaForCausalLM"
    assert found["stacks"][""][0]["layers"] == [0, 1, 2]
    places = {place["name"]: place for place in found["stacks"][""][0]["places"]}
    assert (places["mlp_output"]["module"], places["mlp_output"]["side"]) == ("mlp", "output")


@pytest.mark.parametrize(
    ("model", "said"),
    [("./nowhere", "cannot load a model from './nowhere'"), ("smollm-135m", "did you mean 'smollm2-135m'")],
)
def test_describe_of_an_unknown_model_is_one_line_and_status_2(run, model, said):
    status, out, err = run("describe", model)
    assert (status, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


PROMPT = "w1 w2 w3 w4"
COMMANDS = {
    "trace --noise": ["trace", PROMPT, "--noise", "3", "--subject", "w2 w3", "--draws", "3"],
    "attribute": ["attribute", BASE, SOURCE, "--answers", "w4,w5", "--verify", "4"],
    "attribute --edges": ["attribute", BASE, SOURCE, "--answers", "w4,w5", "--edges"],
    "paths": ["paths", BASE, SOURCE, "--answers", "w4,w5"],
    "lens": ["lens", PROMPT],
    "lens --parts": ["lens", PROMPT, "w3 w4 w5", "--parts", "--answer", "w5", "--against", "w6"],
    "attend": ["attend", PROMPT, "--layers", "0"],
    "steer": ["steer", PROMPT, "w5 w6", "--toward", "w1 w7", "--away", "w1 w8", "--answers", "w4,w5", "--layers", "1",
              "--tokens", "2"],
    "probe": ["probe", "data.csv", "--layers", "1", "--folds", "2", "--draws", "1"],
}  # fmt: skip


@pytest.fixture
def data(tmp_path):
    """Labelled prompts for `probe`, beside which results are written."""
    lines = [f"w{n % 3 + 1} w{n + 4},{'ab'[n % 2]}" for n in range(12)]
    (tmp_path / "data.csv").write_text("\n".join(["prompt,label", *lines]))
    return tmp_path


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_prints_a_picture_and_writes_three_files(run, folder, data, name):
    command = COMMANDS[name][0]
    status, out, err = run(*COMMANDS[name], "--model", folder, "--out", "results")
    assert (status, err) == (0, "")
    table = Table.load(data / "results" / f"{command}.parquet")
    assert len(table)
    assert (data / "results" / f"{command}.png").read_bytes().startswith(b"\x89PNG")
    assert "<!DOCTYPE html>" in (data / "results" / f"{command}.html").read_text()[:20]
    assert sorted(path.suffix for path in (data / "results").iterdir()) == [".html", ".parquet", ".png"]
    from align_transformers.report import picture

    drawn = picture(table)
    assert out.startswith(drawn.title[:60])
    assert drawn.findings[0][:60] in out
    assert f"results/{command}.png" in out


def test_commands_ask_studies_what_was_said(run, folder):
    status, out, _ = run(
        "lens", PROMPT, "--model", folder, "--answer", "w5", "--value", "rank", "--layers", "1", "--json"
    )
    found = json.loads(out)
    assert status == 0
    assert found["meta"]["answers"] == ["w5"]
    assert {row["layer"] for row in found["rows"]} == {1}
    assert found["summary"]["findings"]
    assert set(found["files"]) == {"table", "figure", "page"}
    _, out, _ = run(
        "paths", BASE, SOURCE, "--model", folder, "--to", "m2", "--freeze", "all", "--answers", "w4,w5", "--json"
    )
    assert (json.loads(out)["meta"]["receivers"], json.loads(out)["meta"]["freeze"]) == (["m2"], "all")
    _, out, _ = run("lens", PROMPT, "--model", folder, "--parts", "--answer", "w5", "--positions", "1", "--json")
    logit = new_model("llama")(torch.tensor([[1, 2]])).logits[0, 1, 5].item()
    assert sum(row["contribution"] for row in json.loads(out)["rows"]) == pytest.approx(logit, abs=1e-5)
    swaps = ["--component", "attention_value_output", "--heads", "0-1", "--layers", "1", "--verify", "2"]
    asked = [*swaps, "--method", "ig", "--rule", "norm,half"]
    _, out, err = run("attribute", BASE, SOURCE, "--model", folder, "--answers", "w4,w5", "--json", *asked)
    assert not err
    meta = json.loads(out)["meta"]
    assert (meta["method"], meta["rule"], meta["check"]["n"]) == ("ig", ["norm", "half"], 2)
    assert {(row["layer"], row["head"]) for row in json.loads(out)["rows"]} == {(1, 0), (1, 1)}
    _, out, _ = run("attribute", BASE, SOURCE, "--model", folder, "--answers", "w4,w5", "--edges", "--json")
    assert json.loads(out)["meta"]["study"] == "edge_attribution"
    _, out, _ = run("attend", PROMPT, "--model", folder, "--layers", "1", "--heads", "0,2", "--json")
    assert {(row["layer"], row["head"]) for row in json.loads(out)["rows"]} == {(1, 0), (1, 2)}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trace", PROMPT], "trace takes BASE and SOURCE; with one prompt, --noise and --subject are needed"),
        (["trace", PROMPT, "--noise", "3"], "--noise corrupts --subject in one prompt"),
        (["trace", PROMPT, "w1", "--noise", "3", "--subject", "w2"], "and no SOURCE, --answers or --last"),
        (["trace", BASE, SOURCE, "--subject", "w2"], "--subject is what --noise corrupts: give --noise"),
        (["trace", PROMPT, "--noise", "3", "--subject", "w9"], "w9"),
        (["trace", PROMPT, "--noise", "3", "--subject", "w2", "--draws", "1"], "one draw of the noise has no interval"),
        (["paths", BASE, SOURCE, "--freeze", "some", "--answers", "w4,w5"], "freeze"),
        (["paths", BASE, SOURCE, "--to", "m9", "--answers", "w4,w5"], "m9"),
        (["paths", BASE, SOURCE, "--answers", "w4"], "--answers 'w4': give two tokens"),
        (["attribute", BASE, SOURCE, "--edges", "--layers", "1"], "leave out --layers"),
        (["attribute", BASE, SOURCE, "--rule", "some", "--answers", "w4,w5"], "found 'some'; did you mean 'norm'"),
        (["lens", PROMPT, "--value", "rnk"], "--value 'rnk': did you mean 'rank'"),
        (["lens", "@none.txt"], "none.txt"),
        (["lens", PROMPT, "--against", "w5"], "--against is a token that --parts takes off: give --parts"),
        (["lens", PROMPT, "--parts", "--layers", "1"], "give no --component, --layers or --value"),
        (["lens", PROMPT, "--parts", "--positions", "1,2"], "give one of --positions; found '1,2'"),
        (["lens", PROMPT, "--parts", "--answer", "w5 w6"], "w5 w6"),
        (["attend", PROMPT, "--heads", "x"], "--heads 'x': give numbers and ranges"),
        (["steer", PROMPT, "--toward", "w1", "--away", "w2", "--answers", "w3,w4", "--layers", "1", "--doses", "a"],
         "--doses 'a': give numbers with commas between them"),
        (["steer", PROMPT, "--toward", "w1", "--away", "w2", "--answers", "w3,w4", "--layers", "all"],
         "--layers names the layers that are steered"),
        (["probe", "none.csv"], "none.csv"),
    ],
)  # fmt: skip
def test_mistakes_with_other_commands_are_one_line_and_status_2(run, folder, arguments, said):
    status, out, err = run(*arguments, "--model", folder)
    assert (status, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_a_table_without_a_picture_is_kept(run, folder, tmp_path):
    status, _, _ = run("trace", PROMPT, "--noise", "3", "--subject", "w2", "--draws", "1", "--model", folder)
    assert status == 2
    assert [path.name for path in tmp_path.iterdir()] == ["trace.parquet"]


def test_a_csv_without_labels_is_refused(run, folder, tmp_path):
    (tmp_path / "data.csv").write_text("text,label\nw1,a")
    status, _, err = run("probe", "data.csv", "--model", folder)
    assert status == 2
    assert "has the columns ['text', 'label']; it needs a first line with prompt, label (and group)" in err


@pytest.mark.parametrize("stage", ["the study", "the files"])
def test_an_interrupt_is_status_130_and_leaves_no_half_of_a_file(run, folder, tmp_path, monkeypatch, stage):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    if stage == "the study":
        monkeypatch.setattr(running, "_load", interrupt)
    else:
        monkeypatch.setattr("os.replace", interrupt)
    status, out, err = run("lens", PROMPT, "--model", folder)
    assert (status, out, err) == (130, "", "align-transformers: interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_scan_shows_every_section_with_its_line_and_writes_page_and_data(run, folder, tmp_path):
    asked = ("scan", folder, BASE, "--against", SOURCE, "--answers", "w4,w5", "--verify", "2", "--out", "results")
    status, out, err = run(*asked)
    assert (status, err) == (0, "")
    found = Scan.load(tmp_path / "results" / "scan.json")
    assert list(found.tables) == ["says", "lens", "parts", "swaps", "route", "carriers", "attention"]
    flat = " ".join(out.split())
    for number, one in enumerate(found.report.chapters, 1):
        assert f"{number}. {one.title}" in flat
        assert f">>> {one.code}"[:60] in flat
        assert all(line[:50] in flat for line in one.findings)
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["scan.html", "scan.json"]
    assert "Written: results/scan.json, results/scan.html" in out
    status, out, err = run(*asked, "--json")
    data = json.loads(out)
    assert (status, err, data.pop("files")) == (0, "", {"scan": "results/scan.json", "page": "results/scan.html"})
    assert Scan.from_dict(data).to_dict() == found.to_dict()


def test_scan_refuses_answers_that_are_not_one_for_each_prompt(run, folder):
    status, out, err = run("scan", folder, PROMPT, "--answers", "w4,w5")
    assert (status, out) == (2, "")
    assert (
        err
        == "align-transformers: error: --answers 'w4,w5': give one token for each prompt, with a comma between two\n"
    )


def test_doctor_tells_versions_devices_and_what_is_not_there(run, monkeypatch):
    real = doctor_command.find_spec
    monkeypatch.setattr(doctor_command, "find_spec", lambda name: None if name == "matplotlib" else real(name))
    status, out, err = run("doctor", "--json")
    data = json.loads(out)
    assert (status, err, set(data)) == (0, "", {"versions", "optional", "machine"})
    assert data["versions"]["torch"] == torch.__version__
    assert data["machine"]["devices"][0] == "cpu"
    assert data["machine"]["threads"] == torch.get_num_threads()
    assert data["optional"]["matplotlib"]["version"] is None
    assert data["optional"]["pandas"]["version"]
    status, out, err = run("doctor")
    assert (status, err) == (0, "")
    assert "matplotlib          not there; figures: pip install 'align-transformers[report]'" in out


def test_doctor_names_every_optional_package_with_its_extra():
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    for package, (_, extra, _) in doctor_command.OPTIONAL.items():
        found = re.search(rf'^{extra} = \[.*"{package}>', text, re.M) if extra else f"{package}==" in text
        assert found, package
    needed = re.search(r"^dependencies = \[(.*?)\]", text, re.M | re.S)[1]
    assert set(re.findall(r'"([a-z-]+)[><]', needed)) == set(doctor_command.NEEDED)


def test_doctor_says_which_passes_of_a_model_are_fast_and_why_others_are_not(run, folder, monkeypatch):
    status, out, err = run("doctor", folder, "--json")
    found = json.loads(out)["model"]
    assert (status, err, found["class"], found["fast"]) == (0, "", "LlamaForCausalLM", True)
    assert found["passes"] == ["full", "packed"]
    assert (found["why"], found["difference"] < 1e-4 * found["largest"]) == ([], True)
    hooked = new_model("llama")
    hooked.model.layers[1].register_forward_hook(lambda *_: None)
    monkeypatch.setattr("align_transformers.models.load.load_model", lambda name: (hooked, None))
    monkeypatch.setattr("align_transformers.models.load_model", lambda name: (hooked, None))
    found = json.loads(run("doctor", "mine", "--json")[1])["model"]
    assert (found["fast"], set(found["passes"])) == (False, {"full"})
    assert any("somebody else's hooks stand in it" in why for why in found["why"])
    assert "somebody else's hooks stand in it" in run("doctor", "mine")[1]


def test_doctor_says_of_a_model_without_blocks_that_it_is_not_known(run, monkeypatch):
    monkeypatch.setattr("align_transformers.models.load_model", lambda name: (torch.nn.Linear(2, 2), None))
    found = json.loads(run("doctor", "mine", "--json")[1])["model"]
    assert (found["class"], found["fast"], found["passes"]) == ("Linear", False, [])
    assert found["why"]


COMPLETE = """
eval "$(_ALIGN_TRANSFORMERS_COMPLETE=source_bash align-transformers)"
COMP_WORDS=(align-transformers {words}) COMP_CWORD={number} COMPREPLY=()
_align_transformers_completion align-transformers
echo "${{COMPREPLY[@]}}"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_commands_and_options(tmp_path):
    program = tmp_path / "align-transformers"
    program.write_text(f"#!{sys.executable}\nfrom align_transformers.cli import main\nmain()\n")
    program.chmod(0o755)
    paths = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(Path(__file__).parents[1] / "src")}

    def completed(words: str, number: int) -> list[str]:
        script = COMPLETE.format(words=words, number=number)
        return subprocess.run(
            ["bash", "-c", script], env={**os.environ, **paths}, check=True, capture_output=True, text=True
        ).stdout.split()

    assert completed("tr", 1) == ["trace"]
    assert "--against" in completed("scan --a", 2)


def test_texts_of_a_file_are_its_lines(tmp_path):
    (tmp_path / "some.txt").write_text("one\n\ntwo \n")
    assert texts(["zero", f"@{tmp_path / 'some.txt'}"], "PROMPT") == ["zero", "one", "two "]


@pytest.mark.parametrize(
    "name", ["scan", "trace", "attribute", "paths", "lens", "attend", "steer", "probe", "describe", "doctor", "report"]
)
def test_help_of_every_command_has_examples(run, name):
    status, out, _ = run(name, "--help")
    assert status == 0
    assert "Examples" in out
    assert f"align-transformers {name}" in " ".join(out.split())


@pytest.mark.slow
def test_madrid_becomes_rome(run, tmp_path):
    started = time.monotonic()
    status, out, err = run(
        "trace", "The capital of Spain is", "The capital of Italy is", "--layers", "0,12,29", "--json"
    )
    assert (status, err) == (0, "")
    data = json.loads(out)
    assert (data["meta"]["base_answer"], data["meta"]["source_answer"]) == (" Madrid", " Rome")
    assert [(f["layer"], f["position"]) for f in data["summary"]["flips"]] == [(0, 3), (12, 3), (29, 4)]
    assert time.monotonic() - started < 120


def test_circuit_finds_on_one_half_and_measures_on_the_other(run, folder, tmp_path):
    generator = torch.Generator().manual_seed(0)
    lines = ["base,source"]
    for _ in range(6):
        a, b = (" ".join(f"w{n}" for n in torch.randint(1, VOCAB, (4,), generator=generator).tolist()) for _ in "ab")
        lines.append(f"{a},{b}")
    (tmp_path / "pairs.csv").write_text("\n".join(lines) + "\n")
    options = ["--answers", "w4,w5", "--edges", "40", "--signed", "--json"]
    status, out, err = run("circuit", "@pairs.csv", "--model", folder, *options)
    assert (status, err) == (0, "")
    data = json.loads(out)
    assert set(data) == {"meta", "rows", "summary", "files", "circuit"}
    edges = json.loads((tmp_path / "circuit.json").read_text())
    assert len(data["circuit"]) == next(row["edges"] for row in data["rows"] if row["circuit"] == "circuit") <= 40
    assert edges["facts"]["pairs"] == data["meta"]["pairs"] == 3
    assert data["meta"]["held_out"]["held_out"] is True
    assert sorted(data["files"]) == ["circuit", "figure", "page", "table"]
    assert len(Table.load(tmp_path / "circuit.parquet")) == len(data["rows"])
    assert (tmp_path / "circuit.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "circuit.html").read_text()
    assert "faithfulness" in page
    assert "3 of 6 pairs, on which the circuit was found, are left out" in page


def test_circuit_of_one_pair_says_that_it_is_not_held_out(run, folder):
    status, out, _ = run(
        "circuit", BASE, SOURCE, "--model", folder, "--answers", "w4,w5", "--edges", "60", "--minimality"
    )
    assert status == 0
    assert "not held out: the circuit was found on 1 of the 1 pairs" in " ".join(out.split())
    assert re.search(r"CPR .* CMD .* f from", " ".join(out.split()))  # never the one without the other
    assert "circuit.html" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((BASE,), "BASE and SOURCE, or @pairs.csv"),
        (("@pairs.csv", SOURCE), "leave out SOURCE"),
        (("@labels.csv",), "needs a first line with base, source"),
        (("@empty.csv",), "no lines below the first"),
        (("@answers.csv", "--answers", "w4,w5"), "leave out --answers"),
    ],
)
def test_circuit_refuses_what_makes_no_sense_before_the_model_is_loaded(run, tmp_path, arguments, says):
    (tmp_path / "labels.csv").write_text("prompt,label\nw1,a\n")
    (tmp_path / "empty.csv").write_text("base,source\n")
    (tmp_path / "answers.csv").write_text("base,source,base_answer,source_answer\nw1,w2,w4,w5\n")
    status, _, err = run("circuit", *arguments, "--model", "./nothing")
    assert status == 2
    assert says in err
