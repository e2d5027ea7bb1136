"""A circuit's drawing: what is shown, where, and that nothing is cut unsaid; the page it becomes; its evaluation."""

from __future__ import annotations

import base64
import csv
import io
import os
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.studies.circuits.kit import model_of

from align_transformers import Circuit, SpecError, Table, graph
from align_transformers.report import picture, summary
from align_transformers.report.circuit_drawing import CircuitEdge, CircuitNode, drawing_of
from align_transformers.report.circuit_figure import sign_colour
from align_transformers.report.circuit_layout import HIGH, port_of, width_of_name
from align_transformers.report.circuit_page import page_of_circuit
from align_transformers.studies.circuits.circuit import drawing_of_circuit

EDGES = [("input", "a0.h1<q>"), ("a0.h1", "a1.h1<v>"), ("a0.h1", "m1"), ("a1.h3", "m1"), ("m1", "logits")]


@pytest.fixture(autouse=True)
def _no_dot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # whether graphviz is installed or not


def circuit_of(scores: dict[tuple[str, str], float] | None = None) -> Circuit:
    made = graph(model_of("llama"), experts=False)
    circuit = Circuit.of(made, EDGES, {"model": "a <tiny> model", "method": "eap"})
    values = torch.tensor([(scores or {}).get(edge, 0.0) for edge in made.edges()])
    return Circuit(made, circuit.kept, values if scores else None, circuit.facts)


SCORES = dict(zip(EDGES, (1.0, -4.0, 0.5, 2.0, -0.25), strict=True))


def many(count: int) -> Circuit:
    made = graph(model_of("llama"), experts=False)
    scores = torch.randn(len(made), generator=torch.Generator().manual_seed(0))
    kept = torch.zeros(len(made), dtype=torch.bool)
    kept[scores.abs().topk(count).indices] = True
    return Circuit(made, kept, scores)


# --- what is drawn ----------------------------------------------------------------------------------------------------


def test_layers_go_upwards_and_nothing_lies_on_anything():
    drawing = drawing_of_circuit(many(150), 300)
    spots = drawing.spots
    heights = {node.name: spots[node.name][1] for node in drawing.nodes}
    assert heights["input"] == max(heights.values())
    assert heights["logits"] == min(heights.values())
    for layer in range(3):
        heads = [y for name, y in heights.items() if name.startswith(f"a{layer}.")]
        assert len(set(heads)) == 1
        assert heights[f"m{layer}"] < heads[0]  # above the heads of its layer
        assert layer == 2 or all(y < heights[f"m{layer}"] for n, y in heights.items() if n.startswith(f"a{layer + 1}."))
    for y in set(heights.values()):
        row = sorted(name for name in heights if heights[name] == y)
        row.sort(key=lambda name: spots[name][0])
        widths = {name: width_of_name(name, ports=name.startswith("a")) for name in row}
        for one, other in pairwise(row):
            assert spots[other][0] - spots[one][0] > (widths[one] + widths[other]) / 2
    for x, y in [*spots.values(), *(dot for edge in drawing.edges for dot in edge.dots)]:
        assert 0 < x < drawing.wide
        assert 0 < y < drawing.tall
    assert [text for text, _ in drawing.rows] == ["0", "1", "2"]


def test_lines_begin_and_end_where_they_should():
    drawing = drawing_of_circuit(circuit_of(SCORES), 300)
    lines = {(one.edge.sender, one.owner): one for one in drawing.edges}
    query = lines["input", "a0.h1"]
    start, end = drawing.spots["input"], drawing.spots["a0.h1"]
    assert query.dots[0] == (start[0], start[1] - HIGH / 2)
    assert query.dots[-1] == port_of(end, width_of_name("a0.h1", ports=True), "q")
    value = lines["a0.h1", "a1.h3"].dots[-1]
    assert query.dots[-1][0] < end[0]  # q at the left, v at the right
    assert value[0] > drawing.spots["a1.h3"][0]
    assert ("a0.h1", "a1.h2") not in lines  # shares the value, but tells nobody of it
    assert len(drawing.edges) == drawing.shown == 5


def test_a_key_that_several_heads_read_is_drawn_to_those_that_pass_it_on():
    made = graph(model_of("llama"), experts=False)
    both = Circuit.of(made, [("input", "a1.h1<k>"), ("a1.h2", "logits"), ("a1.h3", "logits")])
    drawing = drawing_of_circuit(both, 300)
    assert {line.owner for line in drawing.edges if line.edge.letter == "k"} == {"a1.h2", "a1.h3"}
    assert drawing.shown == 3
    nobody = drawing_of_circuit(Circuit.of(made, [("input", "a1.h1<k>")]), 300)
    assert [line.owner for line in nobody.edges] == ["a1.h2"]


def test_width_is_the_score_and_colour_its_sign():
    drawing = drawing_of_circuit(circuit_of(SCORES), 300)
    by_score = sorted(drawing.edges, key=lambda one: abs(one.edge.score or 0))
    assert [one.width for one in by_score] == sorted({one.width for one in drawing.edges})
    assert list(drawing.edges) == by_score  # the strongest on top
    assert by_score[-1].width == 5.0
    colours = {sign_colour(one.edge.score) for one in drawing.edges if (one.edge.score or 0) > 0}
    others = {sign_colour(one.edge.score) for one in drawing.edges if (one.edge.score or 0) < 0}
    assert len(colours) == len(others) == 1
    (_, _, blue), (red, _, _) = colours.pop(), others.pop()
    assert blue > 150
    assert red > 150
    plain = drawing_of_circuit(circuit_of(), 300)
    assert len({one.width for one in plain.edges}) == 1
    assert "blue" not in plain.caption


def test_what_is_not_shown_is_said():
    circuit = many(120)
    drawing = drawing_of_circuit(circuit, 40)
    assert drawing.shown == 40
    assert "Shown are the 40 strongest of 120 edges." in drawing.caption
    assert "120 edges; shown: 40" in drawing.summary[0]
    weakest = min(abs(one.edge.score or 0) for one in drawing.edges)
    rest = sorted(circuit.scores[circuit.kept].abs().tolist(), reverse=True)[40:]
    assert weakest > max(rest)
    rows = list(csv.DictReader(io.StringIO(drawing.csv())))
    assert len(rows) == 120
    assert {(row["sender"], row["receiver"]) for row in rows} == set(circuit.edges())
    assert float(rows[0]["score"]) == pytest.approx(max(circuit.scores[circuit.kept].tolist(), key=abs))
    texts = " ".join(text.get_text() for text in circuit.plot(most=40).texts)
    assert "40 strongest of 120" in texts.replace("\n", " ")
    with pytest.raises(SpecError, match="nothing to draw"):
        circuit.plot(most=0)
    with pytest.raises(SpecError, match="nothing to draw"):
        Circuit(circuit.graph, torch.zeros_like(circuit.kept)).plot()


def test_the_figure_has_each_node_and_edge():
    circuit = circuit_of(SCORES)
    figure = circuit.plot()
    [axes] = figure.axes
    texts = [text.get_text() for text in axes.texts]
    assert {"input", "a0.h1", "a1.h3", "m1", "logits", "layer", "0", "1"} <= set(texts)
    assert texts.count("q") == 2
    lines = [one for one in axes.patches if type(one).__name__ == "PathPatch"]
    assert len(lines) == 5
    assert len({one.get_edgecolor() for one in lines}) == 2
    dashed = {one.get_linestyle() if isinstance(one.get_linestyle(), str) else "own" for one in lines}
    assert len(dashed) == 2  # the query's line is broken


# --- graphviz ---------------------------------------------------------------------------------------------------------

PLAIN = """graph 1 2 3
node n0 1.0 0.25 0.7 0.4 x solid record black lightgrey
node n1 0.5 2.75 0.7 0.4 "{x}" solid record black lightgrey
edge n0 n1 4 1 0.5 1 1 0.5 2 0.5 2.5 solid black
stop
"""


def program(folder: Path, text: str) -> None:
    (folder / "dot").write_text(f"#!{os.path.realpath('/bin/sh')}\n{text}\n")
    (folder / "dot").chmod(0o755)


def test_graphviz_places_nodes_where_it_is_installed(tmp_path):
    program(tmp_path, 'while read line; do echo "$line"; done > ' + str(tmp_path / "asked") + f"\necho '{PLAIN}'")
    nodes = [CircuitNode("input", "input"), CircuitNode("logits", "logits")]
    drawing = drawing_of("two", nodes, [CircuitEdge("input", "logits", ("logits",), 1.0)])
    (x, y), (x2, y2) = drawing.spots["input"], drawing.spots["logits"]
    assert x - x2 == pytest.approx(0.5 * 72)
    assert y - y2 == pytest.approx(2.5 * 72)
    [line] = drawing.edges
    assert line.dots[0] == pytest.approx((x, y - 0.25 * 72))
    assert line.dots[-1] == pytest.approx((x2, y2 + 0.25 * 72))
    asked = (tmp_path / "asked").read_text()
    assert asked.startswith("digraph {")
    assert asked.count("rank=same") == 2
    assert "n0:n -> n1:s;" in asked


@pytest.mark.parametrize("text", ["exit 1", "echo nothing"])
def test_where_graphviz_fails_nodes_are_placed_all_the_same(tmp_path, text):
    program(tmp_path, text)
    assert len(drawing_of_circuit(circuit_of(SCORES), 300).spots) == 5


# --- the page ---------------------------------------------------------------------------------------------------------


class Seen(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "input", "br", "path", "rect", "td", "tr", "th"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("path", "rect"):
            assert self.open.pop() == tag


def read(page: str) -> Seen:
    seen = Seen()
    seen.feed(page)
    assert seen.open == []
    return seen


def test_the_page_is_whole_small_and_asks_nobody(tmp_path):
    circuit = many(180)
    text = circuit.page(tmp_path / "circuit.html", findings=["faithfulness <1>"]).read_text()
    assert len(text) < 300_000
    assert "http" not in text.replace("http-equiv", "")
    assert "faithfulness &lt;1&gt;" in text
    seen = read(text)
    edges = [a for tag, a in seen.tags if tag == "g" and a.get("class") == "e"]
    nodes = [a for tag, a in seen.tags if tag == "g" and a.get("class") == "node"]
    assert len({(a["data-a"], a["data-r"]) for a in edges}) == 180
    assert all(a["tabindex"] == "0" and a["aria-label"] and a["role"] == "button" for a in nodes)
    [slider] = [a for tag, a in seen.tags if tag == "input"]
    assert (slider["type"], slider["min"], slider["max"], slider["value"]) == ("range", "1", "180", "180")
    assert any(tag == "label" and a["for"] == slider["id"] for tag, a in seen.tags)
    [drawn] = [a for tag, a in seen.tags if tag == "svg"]
    assert "Heads: a0.h0" in (drawn["aria-label"] or "")
    [link] = [a for tag, a in seen.tags if tag == "a"]
    table = base64.b64decode((link["href"] or "").partition("base64,")[2]).decode()
    assert len(table.splitlines()) == 181
    assert "prefers-color-scheme: dark" in text
    assert text.count("<tr><td>") == 180


def test_ranks_are_those_of_the_scores():
    page = page_of_circuit(drawing_of_circuit(circuit_of(SCORES), 300))
    found = dict(re.findall(r'data-r="(\d)" data-s="([\d.]+)"', page))
    assert found == {"1": "4", "2": "2", "3": "1", "4": "0.5", "5": "0.25"}
    assert "<tiny>" not in page
    assert "a &lt;tiny&gt; model" in page


def test_a_circuit_without_scores_has_no_slider():
    circuit = circuit_of()
    page = page_of_circuit(drawing_of_circuit(circuit, 300))
    assert "<input" not in page
    assert 'class="z q"' in page
    shown = circuit._repr_html_()
    read(shown)
    assert f'id="circuit-{id(circuit):x}"' in shown


def test_names_that_are_long_fit():
    node = CircuitNode("m0.e127", "expert", 0)
    drawing = drawing_of(
        "one", [node, CircuitNode("logits", "logits")], [CircuitEdge("m0.e127", "logits", ("logits",))]
    )
    assert drawing.edges[0].says == "m0.e127 \N{RIGHTWARDS ARROW} logits"
    assert width_of_name("m0.e127", ports=False) > 60


# --- evaluations ------------------------------------------------------------------------------------------------------


def evaluation() -> Table:
    def row(circuit: str, value: float, **more: Any) -> dict[str, Any]:
        blank = dict.fromkeys(("size", "draw", "sender", "receiver", "effect", "effect_low", "effect_high"))
        numbers = {"edges": 3, "share": 0.1, "parameters": 0.2, "n": 8, "low": value - 0.1, "high": value + 0.1}
        return {"circuit": circuit, **blank, **numbers, "faithfulness": value, **more}

    rows = [row("full", 1.0), row("empty", 0.0), row("circuit", 0.8), row("complement", 0.3)]
    rows += [row("random", 0.1, draw=n) for n in range(2)]
    rows += [row(name, size, size=size) for name in ("top by score", "top by |score|") for size in (0.01, 0.1, 1.0)]
    rows += [row("random of a size", size / 2, size=size) for size in (0.01, 0.1, 1.0)]
    rows += [
        row("without an edge", 0.5, sender="m0", receiver="logits", effect=-0.3, effect_low=-0.4, effect_high=-0.2)
    ]
    area = {"value": 0.5, "low": 0.4, "high": 0.6, "random": 0.2, "full": 0.99}
    meta = {
        "study": "evaluate_circuit", "model": "toy", "kept": 3, "edges": 30, "ablation": "resample", "metric": "m",
        "pairs": 8, "held_out": {"note": "not held out: all"}, "cpr": area, "cmd": {**area, "full": 0.0},
        "f": [0.0, 1.1], "truth": {"edges": 4, "precision": 1.0, "recall": 0.75, "auroc_of_size": 0.9},
    }  # fmt: skip
    return Table.from_rows(rows, meta=meta)


def test_an_evaluation_is_drawn_and_cpr_never_stands_alone():
    table = evaluation()
    drawn = picture(table)
    bars, curve, left_out = (row[0] for row in drawn.panels)
    assert [bar.label for bar in bars.bars] == ["the circuit", "without the circuit", "random 0", "random 1"]
    assert bars.level == 1.0
    assert [line.control for line in curve.lines] == [False, False, True]
    assert [point.x for point in curve.lines[0].points] == [-2.0, -1.0, 0.0]
    assert [bar.label for bar in left_out.bars] == ["m0 \N{RIGHTWARDS ARROW} logits"]
    text = summary(table)
    [line] = [line for line in text.splitlines() if "CPR" in line]
    assert "CPR 0.5 [0.4, 0.6]" in line
    assert "CMD 0.5 [0.4, 0.6]" in line
    assert "f from 0 to 1.1" in line
    assert "precision 1, recall 0.75" in text
    assert "not held out: all" in text
    assert len(table.plot().axes) >= 3
