"""summary: the planted findings, in words and as data."""

from __future__ import annotations

import pytest

from align_transformers.report import facts, summary
from align_transformers.report.pair_summary import ranges


def test_the_planted_findings_are_stated(make_table):
    text = summary(make_table())
    assert "answers the base with “Madrid”, the source with “Rome”." in text
    assert "compared" not in text
    assert "30 of 150 swaps turn the answer into “Rome”:" in text
    assert "token 3, ·Spain→·Italy: layers 0-22" in text
    assert "token 4, ·is: layers 23-29" in text
    assert "largest effect is at layer 0, token 3 (·Spain): logit difference moves by +12.00, 1.00 of the way" in text


def test_the_facts_are_data(make_table):
    found = facts(make_table(layers=24))
    assert found["base_answer"] == " Madrid"
    assert found["cells"] == 120
    assert found["flips"][0] == {"layer": 0, "position": 3, "token": " Spain"}
    assert found["flips"][-1] == {"layer": 23, "position": 4, "token": " is"}
    assert found["largest"] == {"layer": 0, "position": 3, "token": " Spain", "effect": 12.0, "recovered": 1.0}


def test_nothing_found_is_said(make_table):
    assert "None of the 10 swaps turns the answer into “Rome”." in summary(make_table(lambda *_: 0.1, layers=2))
    unknown = make_table(lambda *_: None, layers=2)
    assert facts(unknown)["largest"] is None
    assert "largest" not in summary(unknown)


def test_answers_that_the_user_named_are_not_put_in_the_models_mouth(make_table):
    text = summary(make_table(base_says=" Lisbon", source_says=" Milan"))
    assert "answers the base with “Lisbon”, the source with “Milan”." in text
    assert "The answers compared are “Madrid” and “Rome”." in text


def test_all_layers_are_called_so(make_table):
    assert "token 0, The: all layers" in summary(make_table(lambda layer, p: float(p == 0), layers=4))


@pytest.mark.parametrize(
    ("numbers", "known", "words"),
    [([3], range(9), "3"), ([1, 2, 4, 6, 7, 8], range(9), "1-2, 4, 6-8"), ([0, 10], [0, 5, 10], "0, 10")],
)
def test_ranges(numbers, known, words):
    assert ranges(numbers, known) == words
