"""`score`, and a grid with several metrics by name: against plain logits, and against grids of one metric each."""

from __future__ import annotations

import pytest
import torch
from tests.helpers import counted, new_model, padded_tokens, tiny, tokens
from tests.untyped import untyped

from align_transformers import SpecError, accuracy, grid, kl_to_clean, logit_difference, one_by_one, resolve, score
from align_transformers.metrics import Metric, probability


@torch.no_grad()
def test_a_score_is_what_the_model_says_of_each_prompt():
    model, prompts = tiny("llama"), padded_tokens([3, 6, 4], "right")
    logits = model(**prompts).logits[torch.arange(3), [2, 5, 3]]
    answers = logits.argmax(-1).tolist()
    answers[1] += 1
    table = score(model, prompts, [accuracy(answer) for answer in answers])
    assert table.columns["metric"] == (1.0, 0.0, 1.0)
    assert table.columns["prompt"] == (0, 1, 2)
    assert table.mean([], value="metric").columns["metric"] == (pytest.approx(2 / 3),)
    several = score(
        model, prompts, metrics={"said": probability(answers[0]), "gap": logit_difference(4, 5)}, at=[0, 1, 2]
    )
    there = model(**prompts).logits[torch.arange(3), [0, 1, 2]]
    assert several.columns["said"] == pytest.approx(there.softmax(-1)[:, answers[0]].tolist(), abs=1e-5)
    assert several.columns["gap"] == pytest.approx((there[:, 4] - there[:, 5]).tolist(), abs=1e-4)
    assert several.meta["metrics"] == {"said": f"probability({answers[0]})", "gap": "logit(4) - logit(5)"}


def test_a_score_is_stored_and_one_pass(tmp_path):
    model, prompts = new_model("gpt2"), tokens(4, 5)
    resolve(model)
    with counted(model) as passes:
        first = score(model, prompts, logit_difference(4, 5), store=tmp_path, planner=one_by_one)
        assert passes == [4]
        assert score(model, prompts, logit_difference(4, 5), store=tmp_path) == first
        assert passes == [4]


def test_what_cannot_be_scored_is_refused():
    model, prompts = tiny("gpt2"), tokens(3, 5)
    with pytest.raises(SpecError, match="needs a metric"):
        score(model, prompts)
    with pytest.raises(SpecError, match="2 metrics, but 3 prompts"):
        score(model, prompts, [accuracy(1), accuracy(2)])
    with pytest.raises(SpecError, match="no edit here"):
        score(model, prompts, kl_to_clean())
    with pytest.raises(SpecError, match="one metric="):
        score(model, prompts, accuracy(1), metrics={"a": accuracy(1)})


@torch.no_grad()
@pytest.mark.parametrize("directions", [("denoise",), ("denoise", "noise")])
def test_several_metrics_of_one_sweep_are_those_of_several_sweeps(directions):
    model, base, source = new_model("llama"), tokens(2, 5, 1), tokens(2, 5, 2)
    targets = model(**source).logits[:, -1].argmax(-1).tolist()
    metrics = {
        "iia": [accuracy(target) for target in targets],
        "ld": [logit_difference(target, 3) for target in targets],
        "kl": kl_to_clean(),
    }
    resolve(model)
    with counted(model) as passes:
        table = grid(model, base, source, metrics=metrics, directions=directions, planner=one_by_one)
    once = len(passes)
    for name, metric in metrics.items():
        alone = grid(model, base, source, metric=metric, directions=directions)
        for mine, its in ((name, "metric"), (f"{name}_effect", "effect"), (f"{name}_recovered", "recovered")):
            assert table.columns[mine] == pytest.approx(alone.columns[its], abs=1e-3, nan_ok=True)
        for side in ("base", "source"):
            assert table.meta[f"{side}_{name}_value"] == pytest.approx(alone.meta[f"{side}_value"], abs=1e-4)
        assert table.meta["metrics"][name] == alone.meta["metric"]
        assert table.columns["change"] == pytest.approx(alone.columns["change"], rel=1e-4)
    with counted(model) as passes:
        grid(model, base, source, metric=kl_to_clean(), directions=directions, planner=one_by_one)
    assert len(passes) == once, "one sweep, whatever the number of metrics"
    assert not {"metric", "effect", "recovered"} & set(table.columns)
    assert table.pivot("ld_recovered", where={"pair": 0, "direction": "denoise"}).shape == (3, 5)


def test_metrics_of_a_few_tokens_ask_for_no_others(tmp_path):
    """And a store tells sweeps of other metrics apart."""
    model, base, source = tiny("gpt2"), tokens(1, 4, 1), tokens(1, 4, 2)
    width = []
    seen = Metric("seen", lambda logits: (width.append(logits.shape[-1]), logits[:, 0])[1], (7,))
    grid(model, base, source, metrics={"seen": seen, "ld": logit_difference(4, 5)})
    assert set(width) == {1}
    grid(model, base, source, metrics={"ld": logit_difference(4, 5)}, store=tmp_path)
    with pytest.raises(SpecError, match="metric"):
        grid(model, base, source, metrics={"ld": logit_difference(4, 6)}, store=tmp_path)


@pytest.mark.parametrize(
    "metrics",
    [{}, [accuracy(1)], {"layer": accuracy(1)}, {"a b": accuracy(1)}, {"": accuracy(1)}, {1: accuracy(1)},
     {"x": accuracy(1), "x_effect": accuracy(2)}, {"count": accuracy(1)}, {"x": [accuracy(1)] * 3}, {"x": torch.sum}],
)  # fmt: skip
def test_metrics_are_by_names_that_can_be_columns(metrics):
    model, base, source = tiny("gpt2"), tokens(2, 4, 1), tokens(2, 4, 2)
    with untyped(), counted(model) as passes, pytest.raises(SpecError, match="metric"):
        grid(model, base, source, metrics=metrics)
    assert passes == []
    with pytest.raises(SpecError, match="one metric="):
        grid(model, base, source, metric=accuracy(1), metrics={"a": accuracy(1)})


def test_accuracy():
    logits = torch.tensor([[1.0, 3.0, 2.0], [4.0, 1.0, 0.0]])
    assert accuracy(1)(logits).tolist() == [1.0, 0.0]
    assert accuracy(1) == accuracy(1) != accuracy(2)
    with pytest.raises(SpecError, match="outside the vocabulary"):
        accuracy(3)(logits)


@torch.no_grad()
def test_means_over_pairs_by_place(tmp_path):
    """Of prompts of other lengths; the mean at the last token, and at an anchor of each pair, by hand."""
    model = tiny("llama")
    base, source = (padded_tokens([3, 5], "left", seed=seed) for seed in (1, 2))
    table = grid(model, base, source, answers=(4, 5))
    effects = {(row["pair"], row["layer"], row["position"]): row["effect"] for row in table.rows()}
    by_place = table.relative_to("last").mean(["layer", "offset"], value="effect")
    found = {(row["layer"], row["offset"]): (row["effect"], row["count"]) for row in by_place.rows()}
    for layer in range(3):
        both = (effects[0, layer, 2] + effects[1, layer, 4]) / 2
        assert found[layer, 0] == (pytest.approx(both), 2)
        assert found[layer, -4] == (pytest.approx(effects[1, layer, 0]), 1)
    anchored = table.relative_to([1, -2])  # position 1 of the first, 3 of the second
    assert [row["position"] for row in anchored.rows() if row["offset"] == 0 and row["layer"] == 0] == [1, 3]
    assert table.relative_to(-1).columns["offset"] == table.relative_to().columns["offset"]
    assert anchored.load(anchored.save(tmp_path / "t.parquet")) == anchored
    single = grid(model, tokens(1, 4), tokens(1, 4, 1), answers=(4, 5), positions=None).relative_to("last")
    assert set(single.columns["offset"]) == {None}


def test_places_in_an_encoder_decoder_are_of_the_components_sequence():
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"vocab_size": 40, "d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 4}
    model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0)).eval()
    sides = [{**tokens(1, 6, n), "decoder_input_ids": torch.tensor([[0, 3 + n, 5]])} for n in (1, 2)]
    sides = [{**one, "input_ids": one["input_ids"] % 40} for one in sides]
    names = ["encoder.block_output", "decoder.block_output", "decoder.cross_key_output"]
    table = grid(model, *sides, answers=(4, 5), components=names, layers=[0]).relative_to("last")
    for name, length in zip(names, (6, 3, 6), strict=True):
        assert table.select(name).columns["offset"] == tuple(range(1 - length, 1))
