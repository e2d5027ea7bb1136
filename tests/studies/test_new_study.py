"""docs/new_study.md: the study on the page, in both ways to run it, against hooks written by hand."""

from __future__ import annotations

import re
from types import ModuleType
from typing import Any

import pytest
import torch
from tests.helpers import FAMILIES, LAYERS, locus, logits_with, tiny, tokens, writer
from tests.pages import BLOCK, ROOT, run_page

from align_transformers import one_by_one, planned

PAGE = ROOT / "docs" / "new_study.md"
BLOCKS = BLOCK.findall(PAGE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def study() -> dict[str, Any]:
    """What the page defines."""
    module = ModuleType("new_study")
    exec(compile(BLOCKS[0], str(PAGE), "exec"), module.__dict__)
    return module.__dict__


@pytest.mark.parametrize("planner", [one_by_one, planned], ids=["one_by_one", "planned"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_each_head_is_as_by_hand(study, family, planner):
    model, prompts = tiny(family), tokens(3, 5)
    table = study["ablate_heads"](model, prompts["input_ids"], planner=planner)
    places = [locus(model, "attention_value_output", layer) for layer in range(LAYERS)]
    assert len(table) == 3 * sum(place.heads for place in places)
    clean = model(**prompts).logits[:, -1]
    assert table.meta["answers"] == clean.argmax(-1).tolist()
    for row in table.rows():
        place, prompt = places[row["layer"]], row["prompt"]
        low = row["head"] * place.head_dim
        norms = []

        def zero(old, _example, low=low, place=place, norms=norms):
            new = old.clone()
            new[:, low : low + place.head_dim] = 0
            norms.append((old - new).norm().item())
            return new

        one = {name: value[prompt : prompt + 1] for name, value in prompts.items()}
        answer = clean[prompt].argmax()
        expected = logits_with(model, one, writer(place, None, zero))[0, -1, answer] - clean[prompt, answer]
        assert row["effect"] == pytest.approx(expected.item(), abs=1e-4)
        assert row["change"] == pytest.approx(norms[0], rel=1e-4)


def test_it_is_stored(study, tmp_path):
    model, ids = tiny("llama"), tokens(3, 5)["input_ids"]
    first = study["ablate_heads"](model, ids, store=tmp_path)
    assert study["ablate_heads"](model, ids, store=tmp_path) == first
    assert len(list(tmp_path.iterdir())) == 1


def test_the_page_says_what_comes_out():
    said = re.findall(r"print\(.*\)  # (\(.*?\)|\{.*?\}): ", BLOCKS[1])
    assert run_page(PAGE).said.splitlines() == said
    assert len(said) == 2


def test_it_is_short():
    assert sum(bool(line.strip()) for line in BLOCKS[0].splitlines()) <= 42
