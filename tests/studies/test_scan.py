"""scan: its numbers by hand, its lines of Python run again, what is missing and refused, how it is shown and kept."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
from tests.helpers import LAYERS, VOCAB, counted, grab, locus, logits_with, new_model, writer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import MambaConfig, MambaForCausalLM, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

import align_transformers as at
from align_transformers import Scan, Table, scan
from align_transformers._errors import ArtifactError, SiteError, SpecError, UnknownNameError
from align_transformers.report import page_of_chapters
from align_transformers.report.scans import heads_that_matter

PROMPT, AGAINST = "w1 w2 w3 w4", "w1 w2 w9 w4"
ALL = ["says", "lens", "parts", "swaps", "route", "carriers", "attention"]


def words() -> PreTrainedTokenizerFast:
    """A word is a token, `w7` is token 7."""
    inner = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def ids(text: str) -> dict[str, torch.Tensor]:
    row = torch.tensor([[int(word[1:]) for word in text.split()]])
    return {"input_ids": row, "attention_mask": torch.ones_like(row)}


@pytest.fixture(scope="module")
def model() -> Any:
    return new_model("llama")


@pytest.fixture(scope="module")
def found(model: Any) -> Scan:
    return scan(model, PROMPT, AGAINST, tokenizer=words(), answers=("w4", "w5"), verify=6)


def test_what_it_says_is_the_softmax_of_the_logits(model: Any, found: Scan) -> None:
    for number, text in enumerate((PROMPT, AGAINST)):
        with torch.no_grad():
            shares = model(**ids(text)).logits[0, -1].softmax(-1)
        row = list(found["says"].rows())[number]
        best = shares.topk(8)
        assert row["top_tokens"] == tuple(f"w{token}" for token in best.indices.tolist())
        assert row["top_probabilities"] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_the_parts_sum_to_the_logit_and_the_sum_is_shown(model: Any, found: Scan) -> None:
    with torch.no_grad():
        logit = model(**ids(PROMPT)).logits[0, -1, 4].item()
    assert sum(found["parts"].columns["contribution"]) == pytest.approx(logit, abs=1e-4)
    [chapter] = [one for one in found.report.chapters if one.name == "parts"]
    said = re.match(
        r"All (\d+) parts add up to (-?[\d.]+); the model's own logit of “w4” is (-?[\d.]+)\.", chapter.findings[0]
    )
    assert said is not None
    assert int(said[1]) == len(found["parts"])
    assert float(said[2]) == pytest.approx(logit, abs=1e-3)
    assert float(said[3]) == pytest.approx(logit, abs=1e-3)
    assert chapter.picture is not None
    bars = chapter.picture.panels[0][0].bars
    assert sum(bar.value for bar in bars[:-1]) == pytest.approx(logit, abs=1e-4)  # nothing is left out
    assert bars[-1].value == pytest.approx(logit, abs=1e-4)


def test_each_line_repeats_its_section(model: Any, found: Scan) -> None:
    names = {name: getattr(at, name) for name in at.__all__} | {"model": model, "tokenizer": words()}
    assert list(found.code) == ALL
    for section, line in found.code.items():
        value = eval(line, names)
        if section == "route":
            rows = zip(found["route"].columns["layer"], found["route"].columns["position"], strict=True)
            assert list(rows) == list(value.items())
        else:
            assert list(value.rows()) == list(found[section].rows()), section
    imports, loads = found.report.before
    exec(imports, {})  # each name is there
    assert all(name in imports for name in re.findall(r"\b(\w+)\(model", " ".join(found.code.values())))
    assert "load_model(" in loads


def test_the_route_is_where_a_hook_moves_the_answer_most(model: Any, found: Scan) -> None:
    with torch.no_grad():
        for row in found["route"].rows():
            place = locus(model, "block_output", row["layer"])
            [theirs] = grab(model, ids(AGAINST), place)
            moved = []
            for position in range(4):
                swap = writer(place, [[position]], lambda _, example, p=position, of=theirs: of[example, p : p + 1])
                logits = logits_with(model, ids(PROMPT), swap)[0, -1]
                moved.append((logits[5] - logits[4]).item())
            ends = [model(**ids(text)).logits[0, -1] for text in (PROMPT, AGAINST)]
            base, source = ((end[5] - end[4]).item() for end in ends)
            shares = [(value - base) / (source - base) for value in moved]
            assert row["position"] == max(range(4), key=lambda position: shares[position])
            assert row["recovered"] == pytest.approx(max(shares), abs=1e-3)


def test_attention_is_of_the_heads_that_add_most_and_of_those_that_carry_most(found: Scan) -> None:
    heads = [row for row in found["parts"].rows() if row["head"] is not None]
    by_share = sorted(heads, key=lambda row: -abs(row["contribution"]))[:3]
    carriers = [row for row in found["carriers"].rows() if row["head"] is not None]
    by_swap = sorted(carriers, key=lambda row: -abs(row["effect"] if row["exact"] is None else row["exact"]))[:3]
    wanted = list(dict.fromkeys((row["layer"], row["head"]) for row in [*by_share, *by_swap]))
    assert heads_that_matter(found.tables) == wanted
    [chapter] = [one for one in found.report.chapters if one.name == "attention"]
    assert chapter.picture is not None
    assert [one.title for one in chapter.picture.maps] == [f"layer {layer}, head {head}" for layer, head in wanted]
    for (layer, head), line in zip(wanted, chapter.findings, strict=True):
        last = [
            row for row in found["attention"].rows() if (row["layer"], row["head"], row["query"]) == (layer, head, 3)
        ]
        best = max(last, key=lambda row: row["attention"])
        assert f"Layer {layer}, head {head}: at the last token it looks at “w{PROMPT.split()[best['key']][1:]}”" in line


def test_what_was_measured_and_what_was_estimated_wrongly_is_said(found: Scan) -> None:
    rows = [row for row in found["carriers"].rows() if row["exact"] is not None]
    assert len(rows) == 6 + LAYERS  # of the heads, and of all MLPs, as there are no six
    best = max(rows, key=lambda row: abs(row["exact"]))
    [chapter] = [one for one in found.report.chapters if one.name == "carriers"]
    assert f"measured {best['exact']:+.2f}, estimated {best['effect']:+.2f}" in chapter.findings[0]
    wrong = {(row["layer"], row["head"]) for row in rows if row["exact"] * row["effect"] < 0}
    assert bool(wrong) == any("wrong sign" in line for line in chapter.findings)
    alone = scan(new_model("llama"), PROMPT, AGAINST, tokenizer=words(), answers=("w4", "w5"), verify=0)
    [chapter] = [one for one in alone.report.chapters if one.name == "carriers"]
    assert "measured" not in chapter.findings[0]


def test_one_prompt_has_four_sections_and_no_other_answer(model: Any) -> None:
    alone = scan(model, PROMPT, tokenizer=words())
    assert list(alone.tables) == ["says", "lens", "parts", "attention"]
    with torch.no_grad():
        answer = int(model(**ids(PROMPT)).logits[0, -1].argmax())
    assert alone["parts"].meta["answers"] == [f"w{answer}"]


def test_unequal_prompts_are_compared_from_the_end(model: Any) -> None:
    uneven = scan(model, "w7 w1 w2 w3 w4", "w2 w9 w4", tokenizer=words(), answers=("w4", "w5"), verify=2)
    assert sorted(set(uneven["swaps"].columns["position"])) == [2, 3, 4]
    assert set(uneven["lens"].columns["position"]) == set(range(5))
    assert not uneven.missing


def test_of_a_long_prompt_the_last_tokens_are_looked_at(model: Any) -> None:
    text = " ".join(f"w{n % 9 + 1}" for n in range(40))
    late = scan(model, text, tokenizer=words())
    assert sorted(set(late["lens"].columns["position"])) == list(range(8, 40))
    assert {len(tokens) for tokens in late["says"].meta["tokens"]} == {40}


def test_what_a_model_does_not_have_is_said_and_the_rest_is_there() -> None:
    sizes: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
    mamba = MambaForCausalLM(MambaConfig(**sizes, pad_token_id=0, bos_token_id=0, eos_token_id=0)).eval()
    part = scan(mamba, PROMPT, AGAINST, tokenizer=words(), answers=("w4", "w5"))
    assert {"says", "lens", "parts", "swaps", "route"} <= set(part.tables)
    assert "attention" in part.missing
    [chapter] = [one for one in part.report.chapters if one.name == "attention"]
    assert chapter.findings == (f"Not to be had for this model: {part.missing['attention']}",)
    with pytest.raises(UnknownNameError, match="'attention' could not be had: "):
        part["attention"]
    assert "Not to be had" in page_of_chapters(part.report)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"answers": ("w4",)}, "are 1, of 2 prompts"),
        ({"answers": ("w4", "w4")}, "answers has 'w4' after both prompts"),
        ({"top": 0}, "top=0"),
        ({"verify": -1}, "verify=-1"),
    ],
)
def test_senseless_arguments_are_refused(model: Any, options: dict[str, Any], said: str) -> None:
    with counted(model) as calls, pytest.raises(SpecError, match=said):
        scan(model, PROMPT, AGAINST, tokenizer=words(), **options)
    assert len(calls) <= 2  # at most what tells what the model says


def test_a_model_with_two_stacks_is_refused() -> None:
    sizes: dict[str, Any] = {"vocab_size": VOCAB, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    two = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0)).eval()
    with pytest.raises(SiteError, match=r"T5ForConditionalGeneration has \['decoder', 'encoder'\]"):
        scan(two, PROMPT, tokenizer=words())


def test_two_prompts_with_one_answer_are_refused(model: Any) -> None:
    with pytest.raises(SpecError, match=r"the model says 'w[0-9]+' after both prompts"):
        scan(model, PROMPT, PROMPT, tokenizer=words())


def test_progress_is_told_section_by_section(model: Any) -> None:
    told: list[tuple[int, int]] = []
    scan(model, PROMPT, tokenizer=words(), progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_scan_is_kept_and_read_again(found: Scan, tmp_path: Any) -> None:
    again = Scan.load(found.save(tmp_path / "scan.json"))
    assert again.to_dict() == found.to_dict()
    assert page_of_chapters(again.report) == page_of_chapters(found.report)
    (tmp_path / "half.json").write_text((tmp_path / "scan.json").read_text()[:100])
    with pytest.raises(ArtifactError, match=r"half\.json is damaged"):
        Scan.load(tmp_path / "half.json")
    for other in ([], {"study": "grid"}, {"study": "scan", "tables": 3, "code": {}, "missing": {}}):
        (tmp_path / "other.json").write_text(json.dumps(other))
        with pytest.raises(SpecError, match="scan"):
            Scan.load(tmp_path / "other.json")


def test_it_shows_itself(found: Scan) -> None:
    shown = repr(found)
    assert shown.splitlines()[0] == f"Scan of {found['says'].meta['model']}: {', '.join(ALL)}"
    assert len(shown.splitlines()) <= 1 + 2 * len(ALL)
    html = found._repr_html_()
    assert html.count("<img ") == len(ALL)
    assert found.code["swaps"].replace('"', "&quot;") in html
    assert found.plot().axes[0].get_ylabel() == "layer"
    assert found.plot("says").axes[0].get_title(loc="left").startswith("after")
    with pytest.raises(UnknownNameError, match="did you mean 'lens'"):
        found.plot("lense")


def test_the_page_is_one_file_that_loads_nothing_and_holds_every_line(found: Scan, tmp_path: Any) -> None:
    text = found.page(tmp_path / "scan.html").read_text(encoding="utf-8")
    assert not re.search(r"<(script|link|img|iframe)[^>]*\b(src|href)=", text)
    for name in ALL:
        assert f'<a href="#{name}">' in text
        assert f'id="{name}"' in text
        assert found.code[name].replace('"', "&quot;") in text


def test_texts_of_the_model_are_not_html(model: Any) -> None:
    evil, alone = "</code><script>alert(1)</script>", scan(model, PROMPT, tokenizer=words())
    read = Scan.from_dict(json.loads(json.dumps(alone.to_dict()).replace(PROMPT, evil)))
    for html in (page_of_chapters(read.report), read._repr_html_()):
        assert "<script>alert" not in html
        assert "&lt;script&gt;alert" in html


def test_tables_are_tables(found: Scan) -> None:
    assert all(isinstance(table, Table) and len(table) for table in found.tables.values())
