"""report DIR: what is found, linked and said; what cannot be read is named; nothing is run, and nothing is lost."""

from __future__ import annotations

import base64
import re
import sys

import pyarrow
import pytest
from pyarrow import parquet
from tests.helpers import new_model

from align_transformers import IntervenableModel, Table, VanillaIntervention, cli


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["align-transformers", "report", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


def swaps(**meta) -> Table:
    rows = [
        {"component": "block_output", "layer": layer, "position": position, "token": " a", "source_token": " b",
         "metric": 1.0, "effect": 2.0, "recovered": float(layer == position)}
        for layer in range(2) for position in range(2)
    ]  # fmt: skip
    told = {
        "study": "grid",
        "model": "tiny",
        "base": "a a",
        "source": "b b",
        "base_answer": " x",
        "source_answer": " y",
    }
    return Table.from_rows(rows, meta={**told, "metric": "m", "base_value": 0.0, "source_value": 2.0, **meta})


def test_each_result_has_a_link_a_sentence_and_a_picture_or_a_number(run, tmp_path):
    swaps().save(tmp_path / "one" / "swaps.parquet")
    (tmp_path / "one" / "swaps.html").write_text("mine")
    swaps(source_answer=" z").save(tmp_path / "two.parquet")
    model = IntervenableModel({"layer": 1, "component": "mlp_output", "intervention_type": VanillaIntervention},
                              new_model("gpt2"))  # fmt: skip
    model.save(tmp_path / "kept", metrics={"iia": 0.875})
    status, out, err = run(tmp_path)
    assert (status, err) == (0, "")
    assert out == f"3 results. Written: {tmp_path / 'index.html'}\n"
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    entries = re.findall(r"<li>(.*?)</li>", page, re.S)
    links = [re.search(r'<a href="([^"]*)">', one)[1] for one in entries]
    assert sorted(links) == ["kept/README.md", "one/swaps.html", "two.html"]
    assert all((tmp_path / link).is_file() for link in links)
    assert (tmp_path / "one" / "swaps.html").read_text() == "mine"  # a page that is there stays
    by_link = dict(zip(links, entries, strict=True))
    assert "turns “x” into “z”" in by_link["two.html"]
    assert "The largest effect is at layer 0, token 0" in by_link["two.html"]
    image = re.search(r'src="data:image/png;base64,([^"]+)"', by_link["two.html"])[1]
    assert base64.b64decode(image).startswith(b"\x89PNG")
    assert len(image) < 40_000
    assert "0.875" in by_link["kept/README.md"]
    assert "iia" in by_link["kept/README.md"]
    assert "VanillaIntervention" in by_link["kept/README.md"]
    assert not re.search(r"<script|https?://", page)


def test_it_is_made_again_where_it_made_the_last_one_and_nowhere_else(run, tmp_path):
    swaps().save(tmp_path / "a.parquet")
    assert run(tmp_path)[0] == 0
    swaps().save(tmp_path / "b.parquet")
    assert run(tmp_path)[1].startswith("2 results.")
    (tmp_path / "index.html").write_text("<html>a homepage</html>")
    status, out, err = run(tmp_path)
    assert (status, out) == (2, "")
    assert "is there, and no index of results" in err
    assert (tmp_path / "index.html").read_text() == "<html>a homepage</html>"


def test_what_cannot_be_read_is_named_with_the_reason(run, tmp_path):
    swaps().save(tmp_path / "good.parquet")
    parquet.write_table(pyarrow.table({"x": [1]}), tmp_path / "foreign.parquet")
    (tmp_path / "half.parquet").write_bytes((tmp_path / "good.parquet").read_bytes()[:100])
    Table.from_rows([{"layer": 0, "head": 0}], meta={"study": "attention_patterns"}).save(tmp_path / "odd.parquet")
    Table.from_rows([{"x": 1}], meta={"study": "mine"}).save(tmp_path / "plain.parquet")
    (tmp_path / "scan.json").write_text('{"study": "scan", "tables": 3}')
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "intervention.json").write_text("{}")
    (tmp_path / "settings.json").write_text('{"other": "program"}')  # no result, and none of ours
    status, out, _ = run(tmp_path)
    assert status == 0
    assert out.startswith("2 results, 5 not shown.")
    page = (tmp_path / "index.html").read_text()
    left = page[page.index("Not shown") :]
    for name in ("foreign.parquet: ", "half.parquet: ", "odd.parquet: ", "scan.json: ", "kept/intervention.json: "):
        assert name in left
    assert "settings.json" not in page
    assert "There is no picture of it: " in page  # plain.parquet


def test_texts_of_files_are_not_html(run, tmp_path):
    evil = '"><script>alert(1)</script>'
    swaps(base=evil, model=evil, source_answer=evil).save(tmp_path / "a%20b <i>.parquet")
    Table.from_rows([{"x": 1}], meta={"study": evil}).save(tmp_path / "plain.parquet")
    assert run(tmp_path)[0] == 0
    page = (tmp_path / "index.html").read_text()
    assert "<script" not in page
    assert "<i>" not in page
    assert 'href="a%2520b%20%3Ci%3E.html"' in page


@pytest.mark.parametrize(("name", "said"), [("none", "there is no folder"), ("", "holds no results")])
def test_a_folder_without_results_is_refused(run, tmp_path, name, said):
    status, out, err = run(tmp_path / name)
    assert (status, out) == (2, "")
    assert said in err
    assert list(tmp_path.iterdir()) == []
