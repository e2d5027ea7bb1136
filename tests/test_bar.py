"""Bars: of whoever can take long; silent off a terminal, plain HTML in a notebook, a function of the caller's told."""

from __future__ import annotations

import inspect
import sys
import types
from typing import Any

import pytest
import torch
from rich.console import Console
from tests.helpers import new_model, tiny, tokens

import align_transformers as at
from align_transformers import _bar
from align_transformers._bar import bar, each, telling

LONG = (
    *("align", "attribution", "causal_scrubbing", "causal_tracing", "edge_attribution", "grid", "logit_lens"),
    *("path_patching", "probe", "scan", "score", "steer", "activations", "compare", "evaluate", "fit", "fit_pca"),
    "precompute",
)
"""What may take more than two seconds in several passes. (What makes one pass has nothing to tell in between.)"""


@pytest.mark.parametrize("name", LONG)
def test_what_takes_long_takes_progress_and_is_silent_without_being_asked(name: str) -> None:
    parameter = inspect.signature(getattr(at, name)).parameters["progress"]
    assert parameter.default is None
    assert "bool" in str(parameter.annotation)


def face() -> at.IntervenableModel:
    return at.IntervenableModel({"layer": 1, "component": "block_output"}, tiny("gpt2"))


def batch(seed: int = 0) -> dict[str, Any]:
    where = torch.tensor([[3], [3]])
    sides = {"source_0->base.0.pos": where, "source_0->base.1.pos": where}
    both = {"input_ids": tokens(2, 4, 1)["input_ids"], "source_input_ids": tokens(2, 4, 2)["input_ids"]}
    return {**both, "labels": torch.tensor([5, 6]), **sides}


CALLS: dict[str, Any] = {
    "evaluate": lambda tell: at.evaluate(face(), [batch(), batch()], progress=tell),
    "compare": lambda tell: at.compare({"one": face()}, [batch(), batch()], progress=tell),
    "precompute": lambda tell: at.precompute(face(), [batch(), batch()], progress=tell),
    "activations": lambda tell: at.activations(
        tiny("gpt2"), [tokens(1, 3), tokens(1, 3)], at.Site("mlp_output", 0), progress=tell
    ),
    "fit_pca": lambda tell: at.fit_pca(
        tiny("gpt2"), [tokens(2, 3), tokens(2, 4)], at.Site("mlp_output", 0), 2, progress=tell
    ),
    "edge_attribution": lambda tell: at.edge_attribution(
        new_model("gpt2"), tokens(2, 3, 1), tokens(2, 3, 2), answers=(4, 5), at_once=1, progress=tell
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_each_batch_is_told(name: str, capsys: Any) -> None:
    told: list[tuple[int, int]] = []
    CALLS[name](lambda done, total: told.append((done, total)))
    assert told == [(1, 2), (2, 2)]
    CALLS[name](True)  # no terminal
    assert capsys.readouterr() == ("", "")


def test_of_what_has_no_length_as_many_are_told_as_are_done() -> None:
    told: list[tuple[int, int]] = []
    assert list(each(iter("abc"), "letters", lambda *both: told.append(both))) == ["a", "b", "c"]
    assert told == [(1, 1), (2, 2), (3, 3)]


def test_false_and_nothing_are_silent_and_need_no_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    for progress in (False, None):
        with telling("work", progress) as tell:
            tell(1, 2)


def test_a_notebook_has_one_bar_that_is_updated(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[str, str]] = []

    class Handle:
        def update(self, html: str) -> None:
            shown.append(("update", html))

    def display(html: str, display_id: bool) -> Handle:
        shown.append(("display", html))
        return Handle()

    fake: Any = types.ModuleType("IPython.display")
    fake.HTML, fake.display = str, display
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", fake)
    monkeypatch.setattr(_bar, "_PAUSE", 0.0)
    with bar("<work>", Console(force_jupyter=True)) as advance:
        advance(None, None, "loading")
        advance(1, 2, "loss < 1")
        advance(2, 2, "")
    assert [how for how, _ in shown] == ["display", "update", "update"]
    assert '<progress value="1" max="2"></progress> 1/2 loss &lt; 1' in shown[1][1]
    assert "&lt;work&gt;" in shown[1][1]
    monkeypatch.setattr(_bar, "_PAUSE", 60.0)
    shown.clear()
    with bar("work", Console(force_jupyter=True)) as advance:
        for done in range(1, 101):
            advance(done, 100, "")
    assert len(shown) == 2  # the first, and the end
    assert "100/100" in shown[-1][1]
