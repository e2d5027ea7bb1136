"""grid: equal to the one-cell-at-a-time loop with hand-written hooks, in a handful of passes."""

from __future__ import annotations

import sys

import pytest
import torch
from accelerate import cpu_offload
from jaxtyping import TypeCheckError
from tests.helpers import (
    FAMILIES,
    LAYERS,
    VOCAB,
    counted,
    grab,
    hook_counts,
    locus,
    logits_with,
    new_model,
    padded_tokens,
    tiny,
    tokens,
    writer,
)
from transformers import GPT2Config, GPT2LMHeadModel

from align_transformers import one_by_one
from align_transformers._errors import PositionError, SiteError, SpecError, UnknownNameError
from align_transformers.metrics import Metric, logit_difference, probability
from align_transformers.studies import grid

NAMES = ["block_output", "mlp_output", "attention_value_output", "key_output", "block_input"]


def one_cell(model, component, layer, base, source, place):
    """The last token's logits with one swap, and the norm of the change, by hand."""
    at = locus(model, component, layer)
    [wanted], [before] = grab(model, source, at), grab(model, base, at)
    new = wanted[0, place[1]]
    touch = writer(at, [[place[0]]], lambda old, example: new.expand_as(old))
    return logits_with(model, base, touch)[0, -1], (new - before[0, place[0]]).norm().item()


@pytest.mark.parametrize("component", NAMES)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_each_cell_equals_the_loop(family, component):
    model, base, source = tiny(family), tokens(1, 5, seed=1), tokens(1, 5, seed=2)
    table = grid(model, base, source, components=[component], top=5)
    answers = [int(model(**x).logits[0, -1].argmax()) for x in (base, source)]
    clean = [(lambda out: (out[answers[1]] - out[answers[0]]).item())(model(**x).logits[0, -1]) for x in (base, source)]
    assert [(row["layer"], row["position"]) for row in table.rows()] == [
        (n, p) for n in range(LAYERS) for p in range(5)
    ]
    for row in table.rows():
        place = (row["position"], row["position"])
        logits, change = one_cell(model, component, row["layer"], base, source, place)
        value = (logits[answers[1]] - logits[answers[0]]).item()
        assert row["metric"] == pytest.approx(value, abs=1e-4)
        assert row["effect"] == pytest.approx(value - clean[0], abs=1e-4)
        assert row["recovered"] == pytest.approx((value - clean[0]) / (clean[1] - clean[0]), abs=1e-4)
        assert row["change"] == pytest.approx(change, rel=1e-4)
        assert row["fired"] == 1
        best = logits.softmax(-1).topk(5)
        assert row["top_tokens"] == tuple(str(i) for i in best.indices.tolist())
        assert row["top_probabilities"] == pytest.approx(best.values.tolist(), abs=1e-5)
        assert row["token"] == str(base["input_ids"][0, row["position"]].item())
        assert row["source_token"] == str(source["input_ids"][0, row["position"]].item())
    assert (table.meta["base_value"], table.meta["source_value"]) == pytest.approx(clean, abs=1e-4)
    assert (table.meta["base_answer"], table.meta["source_answer"]) == tuple(map(str, answers))
    named = grid(model, base, source, layers=[0], answers=(4, 5), top=1).meta
    assert (named["base_says"], named["source_says"]) == tuple(map(str, answers))
    assert (named["base_answer"], named["source_answer"]) == ("4", "5")


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_last_aligns_unequal_prompts_from_the_end(family):
    model, base, source = tiny(family), tokens(1, 4, seed=1), tokens(1, 7, seed=2)
    table = grid(model, base, source, last=3, answers=(4, 5))
    assert [row["position"] for row in table.rows()] == [1, 2, 3] * LAYERS
    for row in table.rows():
        assert row["source_position"] == row["position"] + 3
        assert row["source_token"] == str(source["input_ids"][0, row["source_position"]].item())
        place = (row["position"], row["source_position"])
        logits, _ = one_cell(model, "block_output", row["layer"], base, source, place)
        assert row["metric"] == pytest.approx((logits[5] - logits[4]).item(), abs=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_is_not_a_token(side):
    model, base, source = tiny("llama"), tokens(1, 4, seed=1), tokens(1, 4, seed=2)
    gap = torch.zeros(1, 2, dtype=torch.long)
    join = (lambda x: torch.cat([gap, x], 1)) if side == "left" else (lambda x: torch.cat([x, gap], 1))
    wide = {name: join(value) for name, value in base.items()}
    if side == "left":
        wide["position_ids"] = torch.tensor([[0, 0, 0, 1, 2, 3]])
    plain, padded = (grid(model, x, source, answers=(4, 5)) for x in (base, wide))
    assert padded.columns["position"] == plain.columns["position"]
    assert padded.columns["metric"] == pytest.approx(plain.columns["metric"], abs=1e-3)


@torch.no_grad()
def test_prompts_of_tokens_that_are_padded_on_the_left_are_as_each_alone():
    model, lengths = new_model("gpt2"), (3, 6)
    base, source = (padded_tokens(lengths, "left", seed=seed) for seed in (1, 2))
    both = grid(model, base, source, answers=(4, 5))
    assert "position_ids" not in base
    for number, length in enumerate(lengths):
        one, other = ({"input_ids": x["input_ids"][[number], -length:]} for x in (base, source))
        alone = grid(model, one, other, answers=(4, 5))
        part = both.select(where={"pair": number})
        assert part.columns["metric"] == pytest.approx(alone.columns["metric"], abs=1e-4)


def test_nothing_is_dropped_of_a_model_in_training_mode():
    sizes = {"vocab_size": VOCAB, "n_embd": 16, "n_head": 2, "n_layer": 2, "n_positions": 8}
    model = GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)).eval()
    base, source = tokens(1, 4, seed=1), tokens(1, 4, seed=2)
    wanted = grid(model, base, source, answers=(4, 5))
    model.train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    assert grid(model, base, source, answers=(4, 5)) == wanted
    assert [module.training for module in model.modules()] == modes


def test_weights_that_are_fetched_when_they_are_needed():
    base, source = tokens(1, 4, seed=1), tokens(1, 4, seed=2)
    wanted = grid(new_model("llama"), base, source, answers=(4, 5))
    away = cpu_offload(new_model("llama"), execution_device=torch.device("cpu"))
    found = grid(away, base, source, answers=(4, 5))
    assert found.columns["metric"] == pytest.approx(wanted.columns["metric"], abs=1e-5)


def test_progress_true_is_a_bar_on_stderr_of_a_terminal_and_nothing_elsewhere(capsys, monkeypatch):
    model, base, source = tiny("gpt2"), tokens(1, 4, seed=1), tokens(1, 4, seed=2)
    grid(model, base, source, answers=(4, 5), progress=True)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes stderr for a terminal
    monkeypatch.setenv("TERM", "xterm")
    grid(model, base, source, answers=(4, 5), progress=True)
    out, shown = capsys.readouterr()
    assert out == ""
    assert "grid" in shown
    assert f"{4 * LAYERS}/{4 * LAYERS}" in shown
    grid(model, base, source, answers=(4, 5), progress=False)
    assert capsys.readouterr() == ("", "")


def test_all_cells_are_tails_in_one_packed_pass_and_the_prompts_run_once():
    model = tiny("llama")
    grid(model, tokens(1, 6, seed=1), tokens(1, 6, seed=2), answers=(4, 5))  # what the model can do is found out once
    with counted(model) as calls:
        table = grid(model, tokens(1, 6, seed=1), tokens(1, 6, seed=2), answers=(4, 5))
    # tails of 6 + 5 + 4 + 3 + 2 + 1 tokens fill 3 rows of 7, in each layer
    assert sorted(calls) == [1, 1, 3 * LAYERS]
    assert table.meta["passes"] == {"full": 2, "packed": 1}


def test_the_models_own_answers_take_no_further_run():
    model = tiny("llama")
    table = grid(model, tokens(1, 6, seed=1), tokens(1, 6, seed=2))
    assert table.meta["passes"] == {"full": 2, "packed": 1}
    plain = grid(model, tokens(1, 6, seed=1), tokens(1, 6, seed=2), planner=one_by_one)
    assert plain.meta["passes"] == {"full": 2 + LAYERS}
    assert plain.columns["metric"] == pytest.approx(table.columns["metric"], abs=1e-4)
    assert {**plain.meta, "passes": 0, "base_value": 0, "source_value": 0} == {
        **table.meta, "passes": 0, "base_value": 0, "source_value": 0
    }  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"top": 1}], ids=str)
def test_prompts_with_the_same_answer_are_refused_before_any_swap(options):
    model, base = tiny("llama"), tokens(1, 6, seed=1)
    with counted(model) as calls, pytest.raises(SpecError, match="both prompts have the same answer"):
        grid(model, base, {name: value.clone() for name, value in base.items()}, **options)
    assert calls == [1] * len(calls)
    assert len(calls) <= 2


@pytest.mark.parametrize("options", [{"answers": (4, 5)}, {}, {"answers": (4, 5), "top": 2}], ids=str)
def test_plans_are_bounded(monkeypatch, options):
    model, base, source = tiny("llama"), tokens(1, 6, seed=1), tokens(1, 6, seed=2)
    whole = grid(model, base, source, **options)
    sweep = sys.modules["align_transformers.studies._sweep"]
    most = 5 if "top" in options else 8
    monkeypatch.setattr(sweep, "_HELD", 8)
    monkeypatch.setattr(sweep, "_CLEAN", 0)
    monkeypatch.setattr(sweep, "_BYTES", 4 * VOCAB * 5)  # the logits of five cells
    seen = []
    with counted(model) as calls:
        cut = grid(model, base, source, **options, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(min(done, 18), 18) for done in range(most, 18 + most, most)]
    assert len(calls) == 3 * len(seen)  # both prompts and one packed pass
    for name in ("metric", "effect", "recovered"):
        assert cut.columns[name] == pytest.approx(whole.columns[name], abs=1e-4)
    for name in set(whole.columns) - {"metric", "effect", "recovered", "top_probabilities", "change"}:
        assert cut.columns[name] == whole.columns[name]
    assert cut.columns["change"] == pytest.approx(whole.columns["change"], rel=1e-5)
    assert {**cut.meta, "passes": 0} == {**whole.meta, "passes": 0}


def test_layers_and_positions_are_chosen():
    model, base, source = tiny("gpt2"), tokens(1, 5, seed=1), tokens(1, 5, seed=2)
    full = {(r["layer"], r["position"]): r["metric"] for r in grid(model, base, source, answers=(4, 5)).rows()}
    part = grid(model, base, source, layers=[-1, 0], positions=[3, -1], answers=(4, 5))
    assert [(r["layer"], r["position"]) for r in part.rows()] == [(2, 3), (2, 4), (0, 3), (0, 4)]
    for row in part.rows():
        assert row["metric"] == pytest.approx(full[row["layer"], row["position"]], abs=1e-5)


def test_several_components_come_in_one_table():
    table = grid(tiny("gpt2"), tokens(1, 3, seed=1), tokens(1, 3, seed=2), components=NAMES, answers=(4, 5))
    assert table.components() == NAMES
    assert len(table) == len(NAMES) * LAYERS * 3


def test_theorems_of_the_residual_stream():
    model, base, source = tiny("llama"), tokens(1, 5, seed=1), tokens(1, 5, seed=2)
    rows = {(r["layer"], r["position"]): r for r in grid(model, base, source, answers=(4, 5)).rows()}
    assert rows[LAYERS - 1, 4]["recovered"] == pytest.approx(1.0, abs=1e-4)  # nothing after it but the unembedding
    assert all(rows[LAYERS - 1, p]["recovered"] == pytest.approx(0.0, abs=1e-4) for p in range(4))
    itself = grid(model, base, base, answers=(4, 5))
    assert itself.columns["change"] == (0.0,) * len(itself)
    assert itself.columns["effect"] == pytest.approx([0.0] * len(itself), abs=1e-4)
    assert set(itself.columns["recovered"]) == {None}  # of no way at all, no share can be told


def test_any_metric():
    model, base, source = tiny("gpt2"), tokens(1, 3, seed=1), tokens(1, 3, seed=2)
    table = grid(model, base, source, metric=probability(7))
    assert table.meta["metric"] == "probability(7)"
    assert all(0 <= value <= 1 for value in table.columns["metric"])
    largest = grid(model, base, base, metric=Metric("largest", lambda logits: logits.amax(-1)))  # no answers needed
    assert largest.columns["metric"] == pytest.approx([largest.meta["base_value"]] * len(largest), abs=1e-4)


def test_the_default_metric_is_the_difference_of_the_answers():
    model, base, source = tiny("gpt2"), tokens(1, 3, seed=1), tokens(1, 3, seed=2)
    table = grid(model, base, source)
    first, second = int(table.meta["base_answer"]), int(table.meta["source_answer"])
    assert (
        table.columns["metric"] == grid(model, base, source, metric=logit_difference(second, first)).columns["metric"]
    )
    assert table.meta["base_value"] <= 0 <= table.meta["source_value"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    model = new_model("llama", dtype=dtype)
    table = grid(model, tokens(1, 4, seed=1), tokens(1, 4, seed=2), answers=(4, 5))
    recovered = table.pivot().to_numpy()
    assert recovered[-1, -1] == pytest.approx(1.0, abs=0.1 if dtype == torch.bfloat16 else 1e-5)


def test_no_graph_is_kept():
    def checked(logits):
        assert not logits.requires_grad
        return logits[:, 0]

    grid(tiny("gpt2"), tokens(1, 3, seed=1), tokens(1, 3, seed=2), metric=Metric("checked", checked))


def test_nothing_of_the_callers_is_changed():
    model, base, source = new_model("llama"), tokens(1, 4, seed=1), tokens(1, 4, seed=2)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    hooks, ids = hook_counts(model), base["input_ids"].clone()
    keys = set(base)
    grid(model, base, source, answers=(4, 5))
    assert model.training
    assert hook_counts(model) == hooks
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert set(base) == keys
    assert torch.equal(base["input_ids"], ids)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"source": tokens(1, 6)}, PositionError, r"4 tokens, the source 6.*reword.*last=N, at most 4"),
        ({"last": 0}, SpecError, r"last=0"),
        ({"last": 5}, PositionError, r"last=5, but the prompts have 4 and 4"),
        (
            {"last": 2, "positions": [0]},
            PositionError,
            r"position 0 is not among the last 2 tokens of the base, 2 to 3",
        ),
        ({"positions": [4]}, PositionError, r"position 4 does not exist: the base has 4 tokens.*\(0 to 3\)"),
        ({"positions": [-5]}, PositionError, r"position -5 does not exist"),
        ({"positions": []}, SpecError, r"no position is chosen"),
        ({"layers": [LAYERS]}, PositionError, r"layer 3 does not exist: GPT2LMHeadModel has 3 layers \(0 to 2\)"),
        ({"layers": "some"}, (SpecError, TypeCheckError), r"(?s)layers.*some"),
        ({"components": ["block_outptu"]}, UnknownNameError, r"did you mean 'block_output'"),
        ({"components": ["transformer.h[7].mlp.output"]}, SiteError, r"no module 'transformer.h.7.mlp'"),
        ({"heads": [4], "components": ["head_output"]}, PositionError, r"head 4 does not exist.*has 4 heads"),
        ({"heads": "all"}, SiteError, r"layer 0 block_output has no heads; these components have some: .*head_output"),
        ({"heads": "all", "neurons": 4}, SpecError, r"goes without heads"),
        ({"neurons": 0}, SpecError, r"neurons=0"),
        ({"directions": []}, SpecError, r"'denoise' and 'noise'"),
        ({"top": -1}, SpecError, r"top=-1"),
        ({"at": 4}, PositionError, r"position 4 does not exist"),
        ({"at": [0, 1]}, SpecError, r"at names 2 positions, but there are 1 prompts"),
        ({"metric": [probability(1)] * 2}, SpecError, r"2 metrics, but 1 pairs"),
        ({"answers": [(1, 2), (3, 4)]}, SpecError, r"answers for 2 pairs, but 1 pairs"),
        ({"components": []}, SpecError, r"a list of names"),
        ({"base": "text"}, SpecError, r"'text' is a text: give tokenizer="),
        ({"base": tokens(2, 4)}, SpecError, r"2 bases, but 1 sources"),
        ({"base": []}, SpecError, r"no prompt"),
        ({"base": {"pixel_values": torch.zeros(1, 4)}}, SpecError, r"found the keys \['pixel_values'\]"),
        ({"answers": (4, 4)}, SpecError, r"with itself"),
        ({"answers": (4, VOCAB)}, SpecError, r"outside the vocabulary"),
        ({"source": tokens(1, 4, seed=1), "answers": None}, SpecError, r"both prompts have the same answer"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_mistakes_are_refused(changes, error, said):
    prompts = {"base": tokens(1, 4, seed=1), "source": tokens(1, 4, seed=2), "answers": (4, 5), **changes}
    with pytest.raises(error, match=said):
        grid(tiny("gpt2"), prompts.pop("base"), prompts.pop("source"), **prompts)


def test_a_model_without_known_components_is_refused():
    with pytest.raises(SiteError, match="has no meaning in Linear"):
        grid(torch.nn.Linear(2, 2), tokens(1, 4), tokens(1, 4))
