"""prompt_scores: means with intervals, and the lowest prompts of many."""

from __future__ import annotations

import pytest
import torch
from tests.helpers import tiny
from tests.report import studies

from align_transformers import accuracy, score
from align_transformers._errors import SpecError
from align_transformers.report import picture
from align_transformers.table import Table


def test_means_have_intervals_and_each_prompt_a_bar():
    (means,), (right, margin) = picture(studies.score()).panels
    assert [(bar.label, bar.value) for bar in means.bars] == [("right", pytest.approx(2 / 3)), ("margin", 1.0)]
    assert (means.bars[1].low, means.bars[1].high) == (-1.0, 3.0)
    assert [bar.value for bar in right.bars] == [0.0, 1.0, 1.0]
    assert margin.bars[2].label == "2: The capital of country number 2 is"
    assert margin.bars[2].details == ("The capital of country number 2 is: margin 3",)
    assert picture(studies.score()).findings[1] == "margin 1 [-1, 3], n = 3"


def test_of_many_prompts_the_lowest_are_drawn_and_that_is_said():
    (_,), (panel,) = picture(studies.score(prompts=30), "margin").panels
    assert panel.title == "the 20 lowest of 30 prompts"
    assert [bar.value for bar in panel.bars] == [2.0 * n - 1 for n in range(20)]


def test_one_prompt_has_no_mean():
    [[panel, _]] = picture(studies.score(prompts=1)).panels
    assert [bar.value for bar in panel.bars] == [0.0]


def test_a_table_without_numbers_is_refused():
    table = Table.from_rows([{"prompt": 0, "text": "a"}], meta={"study": "score"})
    with pytest.raises(SpecError, match="no column of numbers: prompt, text"):
        picture(table)
    with pytest.raises(SpecError, match="'text' holds 'The capital"):
        picture(studies.score(), "text")


def test_what_score_gives_draws_itself():
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    table = score(tiny("gpt2"), {"input_ids": ids}, accuracy(7))
    assert "accuracy" in table.plot().axes[0].get_yticklabels()[0].get_text()
    assert "<img" in table._repr_html_()
