"""verdicts: one sentence a set of variables, never stronger than its numbers; each rule turns it by itself."""

from __future__ import annotations

import re

import pytest
from tests.report import studies

from align_transformers.report import verdict
from align_transformers.report.verdicts import rate

META = {"data": {"chance": 0.1, "test": {"pairs": 412, "entities": 30}}}
GOOD = {
    "train": 0.99, "validation": 0.98, "iia": 0.97, "low": 0.95, "high": 0.99, "n": 412, "full": 0.98, "random": 0.12,
    "random_high": 0.2, "p": 0.001, "p_corrected": 0.004, "permuted": 0.31, "reinitialised": 0.15, "chosen": True,
}  # fmt: skip


def row(variables="var_x", layer=3, **changes):
    return studies.hypothesis(variables, layer, **{**GOOD, **changes})


def said(*rows, meta=META):
    [sentence] = verdict(rows, meta)
    assert sentence.endswith(".")
    assert "implement" not in sentence
    return sentence


def test_what_is_shown_is_said_with_all_its_numbers():
    assert said(row()) == (
        "var_x: block_output of layer 3 at 'last' (das, rank 4) carries it: IIA .97 [.95, .99] on 412 pairs of unseen "
        "entities; the full vector .98, random subspaces .12, permuted labels .31, new weights .15, chance .10; "
        "no flag."
    )


REFUSALS = {
    "no interval": ({"low": None, "high": None}, "the IIA has no interval"),
    "no control": (dict.fromkeys(("random", "permuted", "reinitialised", "p_corrected")), "no control was measured"),
    "chance": ({"low": 0.1, "random": 0.01, "random_high": 0.02, "permuted": 0.0, "reinitialised": 0.0},
               r"the interval reaches chance \(\.10\)"),
    "upper end of random": ({"low": 0.35, "random_high": 0.35}, r"overlaps the random control's \(\.12, up to \.35\)"),
    "random without an end": ({"low": 0.4, "random": 0.4, "random_high": None}, r"random control's \(\.40\)"),
    "p": ({"p_corrected": 0.06}, r"p = \.06 against random subspaces, corrected over the grid"),
    "p that is not corrected": ({"p": 0.06, "p_corrected": None}, r"p = \.06 against random subspaces(?!, corr)"),
    "new weights": ({"reinitialised": 0.96}, r"not separable from what a network with new weights gives \(\.96\)"),
}  # fmt: skip


@pytest.mark.parametrize("rule", REFUSALS)
def test_each_rule_refuses_by_itself_and_says_why(rule):
    changes, why = REFUSALS[rule]
    sentence = said(row(**changes))
    assert sentence.startswith("var_x: not shown that block_output of layer 3 at 'last' (das, rank 4) carries it: ")
    assert re.search(why, sentence)
    reasons = sentence.split("carries it: ")[1].split("; IIA")[0]
    assert reasons.count(";") == 0, "no other rule may have refused, too"


@pytest.mark.parametrize(
    "changes",
    [{"low": 0.2001}, {"p_corrected": 0.05}, {"permuted": 0.949}, {"reinitialised": 0.949}, {"p": 0.5}],
)
def test_just_within_a_rule_it_is_shown(changes):
    assert " carries it" in said(row(**{"permuted": 0.1, **changes}))


def test_part_of_it_is_said_to_be_a_part():
    assert "carries it in part: IIA .60 [.50, .70]" in said(row(iia=0.6, low=0.5, high=0.7))
    assert "carries it in part" in said(row(low=0.899))
    assert "carries it: " in said(row(low=0.9))


def test_a_flag_takes_the_word_carries_away():
    sentence = said(row(flags="exceeds its container, off the manifold"))
    assert "carries" not in sentence
    assert "stands out from random subspaces, new weights and chance, with a flag: IIA .97" in sentence
    assert sentence.endswith("flagged: exceeds its container, off the manifold.")


def test_labels_that_are_learned_by_heart_take_it_away_too():
    sentence = said(row(permuted=0.95))
    assert "carries" not in sentence
    assert (
        "stands out from random subspaces, new weights and chance, but labels permuted by entity are learned as "
        in sentence
    )
    assert "well (.95): IIA .97" in sentence
    only = said(row(permuted=0.95, random=None, random_high=None, p_corrected=None), meta={})
    assert "stands out from new weights, but labels" in only


def test_memorising_is_named_where_unseen_entities_are_not_told_apart():
    sentence = said(row(train=1.0, iia=0.05, low=0.02, high=0.1))
    assert "not shown" in sentence
    assert "not separable from memorising (on the entities of the fit 1.00)" in sentence
    assert "memorising" not in said(row(train=1.0, iia=0.6, low=0.5, high=0.7))  # it stands on unseen entities
    assert "memorising" not in said(row(train=0.15, iia=0.1, low=0.05, high=0.12))  # random subspaces have .20
    assert "memorising" not in said(row(train=0.08, iia=0.05, low=0.02, high=0.1))  # nor was it fitted


def test_what_was_not_measured_is_named():
    assert "chance .10; not measured" not in said(row())
    sentence = said(row(permuted=None, reinitialised=None))
    assert "not measured: permuted labels, new weights" in sentence
    swap = said(row(method="swap", rank=None, dimensions=None, random=None, random_high=None, p=None, p_corrected=None))
    assert "random" not in swap  # the whole vector has no random subspace
    assert "the full vector" not in swap  # that is what it is
    assert "(swap) carries it" in swap
    assert "unseen" not in said(row(), meta={})
    assert "chance" not in said(row(), meta={})


def test_places_that_are_not_told_apart_are_counted():
    others = [row(layer=layer, high=0.96, iia=0.9, low=0.8, chosen=False) for layer in (4, 5)]
    far = row(layer=6, iia=0.5, high=0.6, low=0.4, chosen=False)
    again = row(layer=3, iia=0.99, high=1.0, low=0.9, chosen=False, rank=8)  # of the same place
    dropped = row(layer=7, iia=None, high=None, low=None, chosen=False, status="dropped")
    assert "2 of 3 other places are not told apart from it" in said(row(), *others, far, again, dropped)
    assert "other places" not in said(row(), far)


def test_the_best_is_that_of_validation_pairs_and_never_of_test_pairs():
    lucky = row(layer=9, validation=0.5, iia=1.0, low=0.99, high=1.0, chosen=False)
    assert "layer 3 " in said(row(chosen=False), lucky)
    assert "layer 9 " in said(row(chosen=False), {**lucky, "chosen": True, "validation": 0.1})


def test_the_best_that_has_controls_is_judged_where_the_chosen_one_has_none():
    swap = row(method="swap", rank=None, dimensions=None, iia=1.0, low=1.0, high=1.0, validation=1.0)
    swap |= dict.fromkeys(("random", "random_high", "p", "p_corrected", "permuted", "reinitialised"))
    fitted, worse = row(chosen=False), row(chosen=False, validation=0.4, iia=0.99, low=0.98, layer=4)
    sentence = said(swap, worse, fitted)
    assert sentence.startswith("var_x: block_output of layer 3 at 'last' (das, rank 4) carries it: IIA .97")
    assert "chosen was swap there, IIA 1.00 [1.00, 1.00], without controls; no flag." in sentence
    assert "chosen was block_output of layer 5 at 'last' (swap), IIA" in said({**swap, "layer": 5}, fitted)
    assert "not shown" in said(swap)
    assert "no control was measured" in said(swap)


def test_each_set_of_variables_has_a_sentence_in_order():
    sentences = verdict([row(), row("var_x, c"), row("var_y", iia=None, low=None, high=None, status="dropped")], META)
    assert [one.split(":")[0] for one in sentences] == ["var_x", "var_x, c", "var_y"]
    assert "carries them: " in sentences[1]
    assert sentences[2] == "var_y: nothing was measured, so nothing is shown (hypotheses: 1 dropped)."
    assert verdict([], META) == ()


def test_places_and_methods_are_named():
    assert "head_output (head 2) of layer 3 at position -1 (mask, 37 dimensions)" in said(
        row(component="head_output", head=2, place=None, position=-1, method="mask", rank=None, dimensions=37)
    )
    assert "mlp of layer 3 (das" in said(row(component="mlp", place=None))


@pytest.mark.parametrize(
    ("value", "text"), [(0.9999, "> .99"), (0.995, "> .99"), (0.9949, ".99"), (1, "1.00"), (0, ".00"), (1e-4, "< .01")]
)
def test_a_share_is_not_rounded_to_all_or_nothing(value, text):
    assert rate(value) == text
