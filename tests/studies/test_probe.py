"""Probes against hooks and closed forms: what is read, what control labels allow, what swapped directions do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.fast.families import blocks, shared
from tests.helpers import hooked, padded_tokens, placed, tokens
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from align_transformers import Metric, PositionError, SpecError, UnknownNameError, last_token, one_by_one, probe
from align_transformers.studies._probe_draws import LabelledPrompts, ProbeDraw, mean_over_groups
from align_transformers.studies._probe_fits import NearestMean, estimator_of, fit_place

linear = pytest.importorskip("sklearn.linear_model")
ANSWERS = {"a": 7, "b": 9, "c": 4}


def labelled(side: str, position: int, classes: str = "ab", count: int = 8) -> tuple[dict[str, Any], list[str], Any]:
    """Return prompts of 5 and 3 tokens with a word of the class at a position, their labels, and its columns."""
    inputs = placed(padded_tokens((5, 3) * (count // 2), side, seed=5))
    labels = [classes[(n // 2) % len(classes)] for n in range(count)]
    mask = inputs["attention_mask"].int()
    columns = mask.argmax(1) if position == 0 else mask.shape[1] - 1 - mask.flip(1).argmax(1)
    inputs["input_ids"][torch.arange(count), columns] = torch.tensor([20 + classes.index(label) for label in labels])
    return inputs, labels, columns


@torch.no_grad()
def run(model: Any, module: Any, side: str, inputs: dict[str, Any], columns: Any, new: Any) -> tuple[Any, Any]:
    """Return the states at a column of each prompt, and the last token's logits with others put in their place."""
    rows, seen = torch.arange(len(columns)), []

    def touch(states: torch.Tensor) -> torch.Tensor:
        seen.append(states[rows, columns].clone())
        states = states.clone()
        if new is not None:
            states[rows, columns] = new
        return states

    with hooked((module, side, touch)):
        logits = model(**inputs).logits
    mask = inputs["attention_mask"].int()
    ends = mask.shape[1] - 1 - mask.flip(1).argmax(1)
    return seen[0], logits[rows, -1 if "decoder_input_ids" in inputs else ends]


def contrast(logits: torch.Tensor, labels: list[str]) -> torch.Tensor:
    """Return the logit of the other label's answer less that of the own."""
    other = {"a": "b", "b": "a"}
    return torch.stack([row[ANSWERS[other[of]]] - row[ANSWERS[of]] for row, of in zip(logits, labels, strict=True)])


@pytest.mark.parametrize("estimator", ["difference_of_means", linear.LogisticRegression(tol=1e-9)])
@pytest.mark.parametrize(
    ("family", "component", "layer", "position", "side"),
    [
        ("gpt2", "block_output", 1, 0, "right"), ("llama", "block_output", 1, 0, "right"),
        ("neox", "mlp_output", 0, 0, "right"), ("llama", "block_input", 0, -1, "left"),
        ("gemma2", "block_input", 0, -1, "left"), ("bert", "block_input", 0, 0, "right"),
    ],
)  # fmt: skip
def test_swaps_and_erasures_are_those_of_hooks(
    family: str, component: str, layer: int, position: int, side: str, estimator: Any
) -> None:
    # The first token of a causal model sees itself alone, and an embedding does: there are two states. Any linear
    # probe's direction is their difference, a swap makes one the other, an erasure puts the point between them there.
    model = shared(family)
    inputs, labels, columns = labelled(side, position)
    table = probe(
        model, inputs, labels, components=[component], layers=[layer], positions=position,
        answers={"a": 7, "b": 9}, folds=2, draws=2, estimator=estimator,
    )  # fmt: skip
    module = blocks(model)[layer].mlp if component == "mlp_output" else blocks(model)[layer]
    where = model, module, component.rpartition("_")[2], inputs, columns
    states, logits = run(*where, None)
    before = contrast(logits, labels)
    other = torch.stack([states[labels.index("b" if of == "a" else "a")] for of in labels])
    swapped = contrast(run(*where, other)[1], labels) - before
    erased = contrast(run(*where, states.mean(0).expand_as(states))[1], labels) - before
    (row,) = table.rows()
    assert swapped.abs().max() > 0.05
    for name in ("swap_effect", "means_swap_effect", "whole_swap_effect"):
        assert row[name] == pytest.approx(float(swapped.mean()), abs=2e-4), name
    assert row["erase_effect"] == pytest.approx(float(erased.mean()), abs=2e-4)
    assert abs(row["random_swap_effect"] - float(swapped.mean())) > 1e-3
    assert (row["accuracy"], row["n"], row["layer"], row["position"]) == (1.0, 8, layer, position)
    assert row["cosine"] == pytest.approx(1.0, abs=1e-3)
    own = logits[:, [7, 9]].argmax(-1) == torch.tensor([of == "b" for of in labels])
    assert table.meta["solved"] == pytest.approx(float(own.double().mean()))
    assert (table.meta["labels"], table.meta["majority"]) == ({"a": 4, "b": 4}, 0.5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_each_prompt_is_edited_along_what_others_were_fitted_to(side: str) -> None:
    # Folds and partners are taken as they were drawn; probes, edits and effects are made by hand.
    model, inputs = shared("llama"), placed(padded_tokens((5, 3, 4) * 4, side, seed=2))
    labels, groups = [n // 2 % 2 for n in range(12)], [n // 4 * 2 + n // 2 % 2 for n in range(12)]
    asked: dict[str, Any] = {"layers": [1], "answers": {0: 7, 1: 9}, "folds": 3, "estimator": "difference_of_means"}
    table = probe(model, inputs, labels, groups=groups, draws=2, seed=4, **asked)
    mask = inputs["attention_mask"].int()
    where = model, blocks(model)[1], "output", inputs, mask.shape[1] - 1 - mask.flip(1).argmax(1)
    states, logits = run(*where, None)
    names = ["ab"[of] for of in labels]
    found: dict[str, list[Any]] = {"accuracy": [], "control_accuracy": [], "swap_effect": [], "erase_effect": []}
    of = torch.tensor(labels)
    for number in range(2):
        draw = ProbeDraw.of(LabelledPrompts.of(labels, groups, None, list(range(12))), 3, 4, number)
        swapped, erased = states.clone(), states.clone()
        for train, test in draw.folds:
            low, high = (states[train][of[train] == one].mean(0) for one in (0, 1))
            axis = (high - low) / (high - low).norm()
            near = (states[test] - high).norm(dim=1) < (states[test] - low).norm(dim=1)
            found["accuracy"] += (near.int() == of[test]).tolist()
            for n in test:
                swapped[n] += axis * (axis @ (states[draw.partners[n]] - states[n]))
                erased[n] -= axis * (axis @ (states[n] - states.mean(0)))
        control = torch.tensor(draw.control)
        for train, test in draw.seen:
            low, high = (states[train][control[train] == one].mean(0) for one in (0, 1))
            near = (states[test] - high).norm(dim=1) < (states[test] - low).norm(dim=1)
            found["control_accuracy"] += (near.int() == control[test]).tolist()
        before = contrast(logits, names)
        found["swap_effect"] += (contrast(run(*where, swapped)[1], names) - before).tolist()
        found["erase_effect"] += (contrast(run(*where, erased)[1], names) - before).tolist()
    (row,) = table.rows()
    for name, values in found.items():
        assert row[name] == pytest.approx(float(np.mean(values)), abs=1e-4), name
    assert row["n"] == table.meta["groups"] == 6


def test_of_three_classes_the_plane_of_their_means_is_swapped_and_erased() -> None:
    model = shared("gpt2")
    inputs, labels, columns = labelled("right", 0, "abc", 12)
    metric = Metric("logit of 7", lambda logits: logits[:, 0], tokens=(7,))
    table = probe(model, inputs, labels, layers=[1], positions=0, metric=metric, folds=2, draws=1)
    where = model, blocks(model)[1], "output", inputs, columns
    states, logits = run(*where, None)
    erased = run(*where, states.mean(0).expand_as(states))[1][:, 7] - logits[:, 7]
    (row,) = table.rows()
    assert row["erase_effect"] == pytest.approx(float(erased.mean()), abs=2e-4)
    assert row["swap_effect"] == pytest.approx(row["whole_swap_effect"], abs=2e-4)
    assert abs(row["swap_effect"]) > 0.005
    assert table.meta["metric"] == "logit of 7"


@pytest.mark.parametrize("erasure", ["direction", "leace"])
def test_without_answers_it_is_told_how_much_of_the_models_own_is_lost(erasure: Any) -> None:
    model = shared("llama")
    inputs, labels, columns = labelled("right", 0)
    table = probe(model, inputs, labels, layers=[1], positions=[0], folds=2, draws=1, erasure=erasure)
    where = model, blocks(model)[1], "output", inputs, columns
    states, logits = run(*where, None)
    says = logits.argmax(-1, keepdim=True)
    after = run(*where, states.mean(0).expand_as(states))[1]
    lost = logits.softmax(-1).gather(1, says) - after.softmax(-1).gather(1, says)
    assert abs(float(lost.mean())) > 1e-3
    assert table.columns["erase_effect"][0] == pytest.approx(float(lost.mean()), abs=1e-5)
    assert "own answer" in table.meta["metric"]


def test_an_encoder_is_probed_for_what_the_decoder_says() -> None:
    model = shared("t5")
    inputs, labels, columns = labelled("right", -1)
    del inputs["position_ids"]
    inputs["decoder_input_ids"] = torch.zeros(8, 1, dtype=torch.long)
    table = probe(
        model, inputs, labels, components=["encoder.block_input"], layers=[0], positions=-1,
        answers={"a": 7, "b": 9}, folds=2, draws=1,
    )  # fmt: skip
    where = model, model.encoder.block[0], "input", inputs, columns
    states, logits = run(*where, None)
    other = torch.stack([states[labels.index("b" if of == "a" else "a")] for of in labels])
    effect = float((contrast(run(*where, other)[1], labels) - contrast(logits, labels)).mean())
    assert abs(effect) > 0.02
    assert table.columns["swap_effect"][0] == pytest.approx(effect, abs=2e-4)


@torch.no_grad()
def test_places_are_found_by_text_and_labels_by_column() -> None:
    model = shared("llama")
    spoken = ["?", "the", "capital", "of", "Spain", "Italy", "is", "my", "friend", "says", "well", "Madrid", "Rome"]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(spoken)}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    begins = ["the capital of {}", "my friend says the capital of {}", "well {}", "says my friend of {}"]
    rows = [
        {"base": begin.format(country) + " is", "base_answer": answer, "country": country, "begin": begin}
        for begin in begins
        for country, answer in (("Spain", "Madrid"), ("Italy", "Rome"))
    ]
    places = {"country": last_token("{country}"), "last": -1}
    table = probe(
        model, rows, "country", tokenizer=PreTrainedTokenizerFast(tokenizer_object=made), groups="begin",
        components=["block_input"], layers=[0], positions=places, folds=2, draws=1,
    )  # fmt: skip
    effects = []
    for row in rows:
        ids = torch.tensor([[spoken.index(word) for word in row["base"].split()]])
        own, other = ("Spain", "Madrid"), ("Italy", "Rome")
        if row["country"] == "Italy":
            own, other = other, own
        swapped = ids.clone()  # an embedding that becomes the other's is the other word
        swapped[ids == spoken.index(own[0])] = spoken.index(other[0])
        tokens_of = spoken.index(other[1]), spoken.index(own[1])
        before, after = (model(input_ids=one).logits[0, -1] for one in (ids, swapped))
        effects.append(float((after - before)[tokens_of[0]] - (after - before)[tokens_of[1]]))
    first, last = table.rows()
    assert (first["place"], first["position"], last["place"], last["position"]) == ("country", None, "last", -1)
    assert first["swap_effect"] == pytest.approx(np.mean(effects), abs=2e-4)
    assert (first["accuracy"], first["n"], last["cosine"]) == (1.0, 4, None)
    assert abs(last["swap_effect"]) < 1e-5
    assert table.meta["labels"] == {"Italy": 4, "Spain": 4}


# --- planted: what is readable, and what is used ----------------------------------------------------------------------


def planted() -> Any:
    """Return a model whose stream is its embedding, and whose norm only centres: token 10 + 2 a + c has a and c in it.

    Coordinates 0 and 1 have +-a, of which the logits of tokens 1 and 2 are read; 2 and 3 have +-c, which nothing reads;
    the others have what tells the words of a kind apart, eight of each.
    """
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_head=1, n_layer=2, n_positions=8)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        model.transformer.ln_f.eps = 1e12
        model.transformer.ln_f.weight.fill_(1e6)
        words = torch.arange(10, 42)
        a, c = (words - 10) // 2 % 2 * 2.0 - 1, (words - 10) % 2 * 2.0 - 1
        noise = torch.randn(32, 12, generator=torch.Generator().manual_seed(1))
        noise = noise - noise.mean(1, keepdim=True)
        model.lm_head.weight = torch.nn.Parameter(torch.zeros(50, 16))
        model.transformer.wte.weight[10:42] = torch.cat([torch.stack([a, -a, c, -c], 1), noise], 1)
        model.lm_head.weight[1, :2], model.lm_head.weight[2, :2] = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    return model


def test_what_is_readable_and_used_is_told_from_what_is_readable_alone() -> None:
    ids = torch.arange(10, 42)[:, None]
    used, idle = ((ids[:, 0] - 10) // 2 % 2).tolist(), ((ids[:, 0] - 10) % 2).tolist()
    answers = {1: 1, 0: 2}  # logits 1 and 2 are +-2 a: the contrast goes from -4 to 4
    tables = [probe(planted(), {"input_ids": ids}, of, answers=answers, layers=[1], draws=2) for of in (used, idle)]
    (first,), (second,) = (table.rows() for table in tables)
    assert (first["accuracy"], second["accuracy"]) == (1.0, 1.0)
    assert first["whole_swap_effect"] == pytest.approx(8.0, abs=1e-4)
    assert first["swap_effect"] > 6.5
    assert first["erase_effect"] > 3.2
    assert abs(second["swap_effect"]) < 0.3
    assert abs(second["erase_effect"]) < 0.15
    for row in (first, second):
        assert abs(row["random_swap_effect"]) < 1.5
        assert row["swap_effect_low"] <= row["swap_effect"] <= row["swap_effect_high"]
    assert first["swap_effect_low"] > 6 > 0.5 > second["swap_effect_high"]
    assert (tables[0].meta["solved"], tables[1].meta["solved"]) == (1.0, 0.5)


def test_nothing_is_read_where_nothing_differs() -> None:
    ids = torch.tensor([[10 + n, 10] for n in range(12)])
    (row,) = probe(planted(), {"input_ids": ids}, [n % 2 for n in range(12)], layers=[0], folds=3).rows()
    assert row["accuracy"] < 0.7
    assert (row["swap_effect"], row["erase_effect"], row["random_swap_effect"], row["cosine"]) == (0, 0, 0, None)


# --- folds, control labels, intervals ---------------------------------------------------------------------------------


def known(labels: list[int], groups: list[Any] | None = None, types: list[Any] | None = None) -> LabelledPrompts:
    return LabelledPrompts.of(labels, groups, types, list(range(len(labels))))


def test_folds_keep_groups_together_and_partners_are_of_another_label_in_the_same_fold() -> None:
    labels, groups = [n % 3 for n in range(36)], [n // 2 for n in range(36)]
    draw = ProbeDraw.of(known(labels, groups), 4, seed=0, number=0)
    tested = [0] * 36
    for number, (train, test) in enumerate(draw.folds):
        assert not {groups[n] for n in train} & {groups[n] for n in test}
        assert {labels[n] for n in test} == {labels[n] for n in train} == {0, 1, 2}
        for n in test:
            tested[n] += 1
            partner = draw.partners[n]
            assert labels[partner] != labels[n]
            assert partner in test
            assert draw.tested_in[n] == draw.tested_in[partner] == number
    assert tested == [1] * 36
    for train, test in draw.seen:
        assert {groups[n] for n in test} <= {groups[n] for n in train}
    again = ProbeDraw.of(known(labels, groups), 4, seed=0, number=0)
    assert (draw.partners == again.partners).all()
    assert (draw.partners != ProbeDraw.of(known(labels, groups), 4, seed=0, number=1).partners).any()


def test_every_probe_learns_every_class_where_types_are_on_both_sides() -> None:
    labels, types = [n % 2 for n in range(8)], [n // 2 for n in range(8)]  # dealt by type, a fold may get one class
    for number in range(20):
        for train, _ in ProbeDraw.of(known(labels, types), 2, 0, number).seen:
            assert set(np.array(labels)[train]) == {0, 1}


def test_a_type_has_one_control_label_and_they_are_as_frequent_as_the_labels() -> None:
    labels, types = [0] * 30 + [1] * 10, [n % 10 for n in range(40)]
    draws = [ProbeDraw.of(known(labels, types=types), 5, seed=0, number=n) for n in range(60)]
    for draw in draws:
        assert all(len(set(draw.control[[n for n in range(40) if types[n] == one]])) == 1 for one in range(10))
    assert np.mean([draw.control for draw in draws]) == pytest.approx(0.25, abs=0.06)


def test_a_probe_that_knows_types_is_not_selective() -> None:
    # Every type is a vector of its own, every label one of the type: held-out types are told by nothing.
    random = np.random.default_rng(0)
    types = np.repeat(np.arange(24), 4)
    x = np.eye(24)[types] + 0.01 * random.standard_normal((96, 24))
    labels = random.permutation(np.arange(24) % 2)[types]
    prompts = known(labels.tolist(), types.tolist())
    fit = fit_place(x, prompts, ProbeDraw.of(prompts, 4, 0, 0), estimator_of("logistic_regression", 0), "direction")
    assert (fit.seen.mean(), fit.control.mean()) == (1.0, 1.0)
    assert fit.correct.mean() < 0.75
    # And one that reads a direction that all types share is right of held-out ones, and cannot learn types.
    x = labels[:, None] * np.ones((96, 1)) + 0.01 * random.standard_normal((96, 1))
    fit = fit_place(x, prompts, ProbeDraw.of(prompts, 4, 0, 0), estimator_of("logistic_regression", 0), "direction")
    assert (fit.correct.mean(), fit.seen.mean()) == (1.0, 1.0)
    assert fit.control.mean() < 0.8


def test_a_random_direction_moves_a_state_as_far_as_the_probes() -> None:
    random = np.random.default_rng(0)
    labels = np.arange(30) % 3
    x = random.standard_normal((30, 8)) + 3 * np.eye(8)[labels]
    prompts = known(labels.tolist())
    draw = ProbeDraw.of(prompts, 3, 0, 0)
    exact = linear.LogisticRegression(tol=1e-10, max_iter=10_000)
    fit = fit_place(x, prompts, draw, exact, "direction")
    for fold, (train, test) in enumerate(draw.folds):
        change = x[draw.partners[test]] - x[test]
        moves = {kind: change @ fit.into[kind][fold] @ fit.back[kind][fold] for kind in fit.into}
        np.testing.assert_allclose(np.linalg.norm(moves["random_swap"], axis=1), np.linalg.norm(moves["swap"], axis=1))
        assert abs(moves["random_swap"] - moves["swap"]).max() > 0.1
        # The probe's plane by hand: that of the weights, each less their mean.
        weights = exact.fit(x[train], labels[train]).coef_
        plane = np.linalg.qr((weights - weights.mean(0))[:2].T)[0]
        np.testing.assert_allclose(moves["swap"], change @ plane @ plane.T, atol=1e-5)
    draws = [ProbeDraw.of(prompts, 3, 0, number) for number in range(40)]
    anywhere = [
        back for one in draws for back in fit_place(x, prompts, one, NearestMean(), "direction").back["random_swap"]
    ]
    assert abs(np.mean(anywhere, 0)).max() < 5 / (8 * len(anywhere)) ** 0.5  # no side is preferred


def test_an_interval_is_over_groups() -> None:
    random = np.random.default_rng(0)
    of_groups = random.standard_normal(100)
    middle, low, high = mean_over_groups(np.repeat(of_groups, 5), np.repeat(np.arange(100), 5), 0)
    assert middle == pytest.approx(of_groups.mean())
    assert high - low == pytest.approx(2 * 1.96 * of_groups.std() / 10, rel=0.1)
    uneven = np.concatenate([np.ones(30), np.zeros(10)]), np.array([0] * 30 + list(range(1, 11)))
    assert mean_over_groups(*uneven, 0)[0] == 0.75


def test_the_table_is_the_same_by_every_planner_and_from_a_store(tmp_path: Any) -> None:
    ids = torch.arange(10, 42)[:, None]
    asked: dict[str, Any] = {"layers": [0, 1], "answers": {1: 1, 0: 2}, "draws": 1, "folds": 2}
    of = (planted(), {"input_ids": ids}, ((ids[:, 0] - 10) % 2).tolist())
    told: list[tuple[int, int]] = []
    table = probe(*of, **asked, store=tmp_path, progress=lambda done, total: told.append((done, total)))
    total = 2 * (1 + 32 * 5)
    assert told[:2] == [(1, total), (2, total)]
    assert told[-1] == (total, total)
    again = probe(*of, **asked, store=tmp_path)
    plain = probe(*of, **asked, planner=one_by_one)
    assert again.columns == table.columns
    for name in table.columns:
        if name != "component":
            assert plain.columns[name] == pytest.approx(table.columns[name], abs=1e-4), name
    other = probe(*of, **asked, seed=1)
    assert other.columns["random_swap_effect"] != table.columns["random_swap_effect"]


def test_an_estimator_of_the_users_is_left_as_it_is_and_seeded() -> None:
    ids = torch.arange(10, 42)[:, None]
    own = linear.SGDClassifier(max_iter=5, tol=None)
    of = (planted(), {"input_ids": ids}, ((ids[:, 0] - 10) % 2).tolist())
    first, second = (probe(*of, layers=[0], draws=1, folds=2, estimator=own) for _ in range(2))
    assert first.columns == second.columns
    assert own.random_state is None
    assert not hasattr(own, "coef_")
    assert "SGDClassifier" in first.meta["estimator"]


def test_the_nearest_mean_is_told_apart_by_the_difference_of_means() -> None:
    x, labels = np.array([[0.0, 0.0], [2.0, 0.0], [5.0, 1.0]]), np.array([0, 0, 1])
    fitted = NearestMean().fit(x, labels)
    points = np.array([[2.9, 0.0], [3.1, 0.6], [100.0, -300.0]])
    distances = ((points[:, None] - np.array([[1.0, 0.0], [5.0, 1.0]])) ** 2).sum(-1)
    assert fitted.predict(points).tolist() == distances.argmin(1).tolist()


def test_what_makes_no_sense_is_refused_before_any_pass() -> None:
    svm = pytest.importorskip("sklearn.svm")
    model, inputs = shared("gpt2"), tokens(6, 3)
    labels = [0, 1, 0, 1, 0, 1]

    def refused(error: type[Exception], match: str, **asked: Any) -> None:
        with pytest.raises(error, match=match):
            probe(model, inputs, **{"labels": labels, "folds": 2, "layers": [0], **asked})

    refused(SpecError, "5 entries, but there are 6 prompts", labels=[0, 1, 0, 1, 0])
    refused(SpecError, "two classes", labels=[1] * 6)
    refused(SpecError, "labels are texts", labels=[[0], [1]] * 3)
    refused(SpecError, "label 1 is in 1 groups", groups=[0, 1, 2, 1, 3, 1])
    refused(SpecError, "label 1 is in 2 groups", labels=[0, 1, 0, 1, 0, 0], folds=3)
    refused(SpecError, "all prompts are of one", types=["x"] * 6)
    refused(SpecError, "folds >= 2", folds=1)
    refused(SpecError, "draws >= 1", draws=0)
    refused(SpecError, "no linear function", estimator=svm.SVC())
    refused(SpecError, "decision_function", estimator=3)
    refused(UnknownNameError, "logistic_regression", estimator="logistic")
    refused(SpecError, "not both", answers={0: 1, 1: 2}, metric=Metric("m", lambda logits: logits[:, 0]))
    refused(SpecError, "none for label 1", answers={0: 1})
    refused(SpecError, "same answer", answers={0: 1, 1: 1})
    refused(SpecError, "4 answers for 6 prompts", answers=[1, 2, 3, 4])
    refused(PositionError, "3 tokens", positions=[3])
    refused(SpecError, "components names nothing", components=[])
    refused(SpecError, "labels='kind' is no column", labels="kind")
    refused(SpecError, "position is chosen", positions=[])
    refused(SpecError, "unequal lengths", positions=[[0], [0], [1], [1], [0, 1], [0]])
    refused(SpecError, "name each", positions={"one": [0, 1]})
    refused(SpecError, "name each", positions=[[0, 1], [1, 0], [0, 1], [0, 1], [0, 1], [0, 1]])
    twice = {name: torch.cat([value, value]) for name, value in tokens(3, 3).items()}
    with pytest.raises(SpecError, match="prompts 0 and 3 are equal"):
        probe(model, twice, labels, groups=list(range(6)), folds=2)
    with pytest.raises(PositionError, match="3 to 5 tokens"):
        probe(model, padded_tokens((5, 3, 5, 3), "right"), [0, 1, 1, 0], positions="all", folds=2)
