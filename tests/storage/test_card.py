"""The model card says what it is, on which model, with which scores; and its three lines load it."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.storage.kit import WIDTH, Scale, assert_same, contents, intervene, mlp
from tests.storage.test_identity import gpt2

from align_transformers import IntervenableModel
from align_transformers.interventions import LowRankRotatedSpaceIntervention, VanillaIntervention
from align_transformers.storage import load, save

METRICS = {"iia": 0.97612, "n": 120, "held out": {"iia": 0.5, "interval": [0.25, 0.75]}, "note": "a | b"}


def card(tmp_path: Any, intervenable: IntervenableModel, **more: Any) -> str:
    save(contents(intervenable, **more), tmp_path / "das")
    return (tmp_path / "das/README.md").read_text()


def das(model: Any) -> IntervenableModel:
    low_rank = {"intervention_type": LowRankRotatedSpaceIntervention, "low_rank_dimension": 2}
    return IntervenableModel({"layer": 1, "component": "mlp_output", "max_number_of_units": 2, **low_rank}, model)


def test_what_on_which_model_with_which_scores(tmp_path):
    text = card(tmp_path, das(gpt2()), metrics=METRICS)
    assert "# das" in text.splitlines()
    assert "1 intervention on the activations of a `GPT2LMHeadModel`" in text
    assert "| `layer 1 mlp_output` | `2 x pos` | `LowRankRotatedSpaceIntervention` |" in text
    assert "low_rank_dimension=2" in text
    for line in (
        "| name | `me/tiny` |", "| revision | `abc` |", "| dtypes | `float32` |", "| iia | 0.9761 |", "| n | 120 |",
        "| held out.iia | 0.5 |", "| held out.interval | [0.25, 0.75] |", '| note | "a b" |',
    ):  # fmt: skip
        assert line in text.splitlines(), line
    assert 'base_model: "me/tiny"' in text.splitlines()


def test_without_scores_it_says_so(tmp_path):
    assert "None were saved." in card(tmp_path, das(gpt2()))


def code(text: str) -> list[str]:
    return re.search(r"```python\n(.*?)\n```", text, re.DOTALL)[1].splitlines()


def run(lines: list[str], monkeypatch: pytest.MonkeyPatch, **names: Any) -> dict[str, Any]:
    """Run the lines with a stand-in for the library's `load_model` and for `IntervenableModel.load`."""
    import align_transformers

    class Face:
        @classmethod
        def load(cls, name, *, model, **options):
            return IntervenableModel(load(name, model=model, **options).config, model)

    monkeypatch.setattr(align_transformers, "IntervenableModel", Face)
    monkeypatch.setattr(align_transformers, "load_model", names.pop("load_model", None))
    exec("\n".join(lines), names)
    return names


def test_the_three_lines_load_it(tmp_path, monkeypatch):
    before = das(gpt2())
    lines = code(card(tmp_path, before))
    assert len(lines) == 3
    asked = []

    def load_model(name: str, **options: Any) -> Any:
        asked.append((name, options))
        return gpt2(), None

    monkeypatch.chdir(tmp_path)
    names = run(lines, monkeypatch, load_model=load_model)
    assert asked == [("me/tiny", {"revision": "abc", "dtype": "float32"})]
    for one, other in zip(before.interventions.values(), names["intervenable"].interventions.values(), strict=True):
        assert_same(one, other)


def test_a_model_without_a_name(tmp_path, monkeypatch):
    before = intervene([VanillaIntervention()], mlp())
    lines = code(card(tmp_path, before))
    assert lines[1].startswith("model = ...  # the Sequential")
    monkeypatch.chdir(tmp_path)
    names = run([lines[0], lines[2]], monkeypatch, model=before.model)
    assert isinstance(names["intervenable"], IntervenableModel)


def test_classes_of_the_users_own_are_named(tmp_path, monkeypatch):
    before = intervene([Scale(embed_dim=WIDTH)], mlp())
    lines = code(card(tmp_path, before))
    assert lines[1] == "from ... import Scale  # classes of your own"
    monkeypatch.chdir(tmp_path)
    names = run([lines[0], lines[3]], monkeypatch, model=before.model, Scale=Scale)
    assert isinstance(names["intervenable"], IntervenableModel)


def test_what_is_written_opens_no_block_and_no_html(tmp_path):
    model = mlp()
    model.name_or_path = 'x"\n---\n# <script>alert(1)</script> | `rm`'
    text = card(tmp_path, intervene([VanillaIntervention()], model), metrics={"<b>\n# iia |": 1})
    fence = text.index("```python")
    prose = text[:fence] + text[text.index("```", fence + 3) :]  # in the code it is a Python string, on one line
    assert "<script>" not in prose
    assert "<b>" not in prose
    assert len(code(text)) == 3
    assert [line for line in text.splitlines() if line.startswith("# ")] == ["# das"]
    assert text.splitlines().count("---") == 2


def test_a_mixed_model_and_serial_interventions(tmp_path):
    model = mlp()
    model[0].to(torch.float64)
    text = card(tmp_path, intervene([VanillaIntervention(), VanillaIntervention()], model, mode="serial"))
    assert "2 interventions (serial)" in text
    assert "| dtypes | `float32, float64` |" in text


def test_the_tokenizer_is_named(tmp_path):
    tokenizer = SimpleNamespace(get_vocab=lambda: {"a": 0}, name_or_path="me/tiny")
    assert "| tokenizer | `SimpleNamespace me/tiny (" in card(tmp_path, das(gpt2()), tokenizer=tokenizer)
