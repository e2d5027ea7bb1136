"""repr and _repr_html_: what people look at first fits a small block, says what matters, and is no HTML of others."""

from __future__ import annotations

import html
from typing import Any

import pytest
import torch
from tests.helpers import new_model, tokens

import align_transformers as at
from align_transformers._summarised import Summarised
from align_transformers.learning.scores import Scores
from align_transformers.storage import load

SITE = at.Site("mlp_output", 0)


def face() -> at.IntervenableModel:
    chosen = {"layer": 2, "component": "block_output", "low_rank_dimension": 2}
    return at.IntervenableModel({**chosen, "intervention_type": at.LowRankRotatedSpaceIntervention}, new_model("gpt2"))


def plan(runs: int = 1) -> at.Plan:
    swaps = tuple(
        at.Run(f"b{n}", "x", (at.Edit(f"swap {n}", SITE, "vanilla", source=at.Read("a", SITE)),)) for n in range(runs)
    )
    return at.Plan((at.Run("a", "y"), *swaps), ("b0",))


def scores() -> Scores:
    return Scores({"soft": {"iia": torch.tensor([1.0, 1.0, 0.0, 1.0]), "loss": torch.tensor([2.0])}},
                  frozenset({"loss"}), changed=torch.tensor([True, True, True, False]))  # fmt: skip


def fitted() -> at.Fitted:
    where = torch.tensor([[3], [3]])
    batch = {
        "input_ids": tokens(2, 4, 1)["input_ids"],
        "source_input_ids": tokens(2, 4, 2)["input_ids"],
        "labels": torch.tensor([5, 6]),
        "source_0->base.0.pos": where,
        "source_0->base.1.pos": where,
    }
    return face().train(train_dataloader=[batch], epochs=2)


def test_an_intervenable_model_says_where_and_what() -> None:
    assert repr(face()).splitlines() == [
        "IntervenableModel of GPT2LMHeadModel, parallel, 64 trainable weights",
        "  layer 2 block_output: LowRankRotatedSpaceIntervention",
    ]


def test_a_plan_says_what_each_run_is() -> None:
    assert repr(plan()).splitlines() == [
        "Plan of 2 runs, wanted: outputs b0",
        "  a: y, unedited",
        "  b0: x, vanilla at layer 0 mlp_output from a",
    ]
    many = repr(plan(100)).splitlines()
    assert (len(many), many[-1]) == (14, "  ...: and 89 more")


def test_scores_say_means_with_intervals() -> None:
    lines = repr(scores()).splitlines()
    assert lines[0] == "Scores of 4 examples"
    found = scores().interval("iia")
    assert lines[1] == f"  iia: 0.75 [{found.low:.3g}, {found.high:.3g}]"
    assert lines[2] == "  loss: 2"  # one number a batch has no interval
    assert lines[3].startswith("  trivial: 0.25 ")
    both = Scores({mask: {"iia": torch.ones(3)} for mask in ("soft", "hard")})
    assert [line.split(":")[0].strip() for line in repr(both).splitlines()[1:]] == ["iia, soft", "iia, hard"]


def test_a_fit_says_how_it_went_and_not_its_weights() -> None:
    made = fitted()
    lines = repr(made).splitlines()
    assert lines[0] == "Fitted in 2 steps"
    assert f"  loss: {made.history[0]['loss']:.3g} at first, {made.history[-1]['loss']:.3g} at last" in lines
    assert "tensor" not in repr(made)


def test_a_table_says_what_each_column_holds() -> None:
    rows = [{"layer": n, "effect": n / 4 if n else None, "token": f"t{n}", "best": ("a", "b")} for n in range(5)]
    table = at.Table.from_rows(rows, meta={"study": "grid", "model": "toy"})
    assert repr(table).splitlines() == [
        "Table of grid on toy: 5 rows",
        "  layer: 0 to 4",
        "  effect: 0.25 to 1, 1 missing",
        "  token: 't0', 't1', 't2', ... (5)",
        "  best: ('a', 'b')",
    ]
    assert repr(at.Table.from_rows([], meta={}, columns=["layer"])).splitlines() == [
        "Table: 0 rows",
        "  layer: nothing",
    ]


def test_a_description_fits_a_line() -> None:
    line = repr(at.describe(new_model("gpt2")))
    assert line.startswith("Description of GPT2LMHeadModel: 3 x GPT2Block, ")
    assert "\n" not in line


def test_outputs_say_what_edits_did() -> None:
    out = face()(tokens(1, 4, 1), tokens(1, 4, 2), {"sources->base": 2}, return_dict=True)
    [effect] = out.effects
    title, line = repr(out).splitlines()
    assert title == "IntervenableOutput: intervened"
    assert line.endswith(f"layer 2 block_output: fired 1, changed 1 rows by {effect.change:.3g}")


def test_an_artifact_says_what_was_saved(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a long path would be cut
    face().save("kept", metrics={"iia": 0.875, "more": {"loss": 1.0}})
    lines = repr(load("kept", model=new_model("gpt2"))).splitlines()
    assert lines[0].endswith("kept, made on GPT2LMHeadModel")
    assert lines[1:] == ["  layer 2 block_output: LowRankRotatedSpaceIntervention", "  scores: iia 0.875"]


def test_a_comparison_says_each_candidates_numbers() -> None:
    shown = repr(at.Comparison({"das": scores(), "random": scores()}, "random"))
    assert shown.splitlines() == [
        "Comparison of 2, against random",
        "  das: iia 0.75, loss 2",
        "  random: iia 0.75, loss 2",
    ]


@pytest.mark.parametrize("make", [face, plan, scores, fitted], ids=lambda make: make.__name__)
def test_a_notebook_shows_the_same(make: Any) -> None:
    one = make()
    shown = one._repr_html_()
    title, *facts = repr(one).splitlines()
    assert html.escape(title) in shown
    for fact in facts:
        assert all(html.escape(part) in shown for part in fact.strip().split(": ", 1))


def test_names_of_others_are_no_html() -> None:
    evil = "<script>alert(1)</script>"
    shown = at.Plan((at.Run(evil, "x"),), (evil,))._repr_html_()
    assert evil not in shown
    assert html.escape(evil) in shown


def test_lines_are_short() -> None:
    class Long(Summarised):
        def _summary(self) -> Any:
            return "x" * 500, [("name", "y\n" * 300)]

    assert max(map(len, repr(Long()).splitlines())) <= 110
    assert len(repr(Long()).splitlines()) == 2
