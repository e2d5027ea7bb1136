"""Places by name and by text, and data with columns: in every study, against plain hooks or plain numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas
import pytest
import torch
from tests.helpers import LAYERS, grab, locus, logits_with, tiny, writer
from tests.pages import ROOT, run_page
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from align_transformers import at, first_token, last_token, where
from align_transformers._errors import PositionError, SpecError, UnknownNameError
from align_transformers.metrics import accuracy, logit_difference
from align_transformers.sites import Site
from align_transformers.studies import (
    Claim,
    causal_scrubbing,
    causal_tracing,
    direct_logit_attribution,
    grid,
    logit_lens,
    path_patching,
    score,
)

SPOKEN = "? the capital of Spain Italy France South Korea New Zealand is my friend says well Madrid Rome Paris Seoul"
WORDS = SPOKEN.split()
DATA = {
    "base": ["the capital of Spain is", "my friend says the capital of France is"],
    "source": ["well the capital of Italy is", "my friend says the capital of Spain is"],
    "base_answer": ["Madrid", "Paris"],
    "source_answer": ["Rome", "Madrid"],
    "country": ["Spain", "France"],
    "source_country": ["Italy", "Spain"],
}
PLACES = {"country": at("{country}"), "last": -1}


class Columns:
    """What `datasets.Dataset` is here: columns by name, and their names."""

    def __init__(self, columns: dict[str, list[Any]]) -> None:
        self.column_names, self._columns = list(columns), columns

    def __getitem__(self, name: str) -> list[Any]:
        return self._columns[name]


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made)


def encoded(text: str) -> dict[str, Tensor]:
    return {"input_ids": torch.tensor([[WORDS.index(word) for word in text.split()]])}


CHANGES: list[float] = []
"""By how much each swap by hand changed what was there."""


def after_swap(model: Any, component: str, layers: range, base: str, source: str, places: list[tuple[int, int]]) -> Any:
    """Return the last logits of a base in which some places hold what those of a source have, at several layers."""
    sites = [locus(model, component, layer) for layer in layers]
    wanted = grab(model, encoded(source), *sites)
    written, read = zip(*places, strict=True)

    def put(old: Tensor, new: Tensor) -> Tensor:
        CHANGES.append(float((new - old).norm()))
        return new

    touches = [
        writer(site, [written], lambda old, _example, new=new: put(old, new[0, list(read)]))
        for site, new in zip(sites, wanted, strict=True)
    ]
    return logits_with(model, encoded(base), *touches)[0, -1]


def difference(logits: Any, pair: int) -> float:
    ids = [WORDS.index(DATA[f"{side}_answer"][pair]) for side in ("base", "source")]
    return float(logits[ids[1]] - logits[ids[0]])


def token(side: str, pair: int, place: str) -> int:
    text = DATA[side][pair].split()
    country = DATA["country" if side == "base" else "source_country"][pair]
    return text.index(country) if place == "country" else len(text) - 1


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@torch.no_grad()
def test_named_places_of_prompts_of_unequal_lengths(family, words):
    model = tiny(family)
    table = grid(model, pandas.DataFrame(DATA), tokenizer=words, positions=PLACES, directions=("denoise", "noise"))
    assert len(table) == 2 * LAYERS * 2 * 2
    for row in table.rows():
        into, out = ("base", "source") if row["direction"] == "denoise" else ("source", "base")
        pair, name = row["pair"], row["place"]
        places = [(token(into, pair, name), token(out, pair, name))]
        layers = range(row["layer"], row["layer"] + 1)
        logits = after_swap(model, "block_output", layers, DATA[into][pair], DATA[out][pair], places)
        assert row["metric"] == pytest.approx(difference(logits, pair), abs=1e-4)
        assert (row["position"], row["source_position"]) == tuple(token(s, pair, name) for s in ("base", "source"))
        assert row["token"] == DATA["base"][pair].split()[row["position"]]
    means = table.mean(["direction", "layer", "place"], value="effect")
    assert len(means) == 2 * LAYERS * 2
    for row in means.rows():
        same = {name: row[name] for name in ("direction", "layer", "place")}
        assert row["effect"] == pytest.approx(np.mean(table.select(where=same).columns["effect"]))
        assert row["count"] == 2
    matrix = table.pivot("metric", columns="place", where={"pair": 0, "direction": "denoise"})
    assert list(matrix.columns) == ["country", "last"]
    assert table.meta["places"] == {"country": repr(at("{country}")), "last": "-1"}


@torch.no_grad()
def test_all_tokens_of_a_named_place_are_one_cell_and_unnamed_ones_are_one_each(words):
    model, (base, source) = tiny("gpt2"), ("the capital of South Korea is", "the capital of New Zealand is")
    data = [{"base": base, "source": source, "country": "South Korea", "source_country": "New Zealand"}]
    options: dict[str, Any] = {"tokenizer": words, "answers": ("Madrid", "Rome"), "layers": [1]}
    named = grid(model, data, positions={"country": at("{country}"), "all": "all"}, **options)
    alone = grid(model, data, positions=at("{country}"), **options)
    told = [(("all", None), range(6)), (("country", None), [3, 4]), ((None, 3), [3]), ((None, 4), [4])]
    rows = {(row.get("place"), row["position"]): row for row in (*named.rows(), *alone.rows())}
    assert sorted(rows, key=str) == sorted((key for key, _ in told), key=str)
    for key, places in told:
        logits = after_swap(model, "block_output", range(1, 2), base, source, [(place, place) for place in places])
        wanted = logits[WORDS.index("Rome")] - logits[WORDS.index("Madrid")]
        assert rows[key]["metric"] == pytest.approx(float(wanted), abs=1e-4)
        assert rows[key]["token"] == "".join(base.split()[place] for place in places)  # as the tokens are


@torch.no_grad()
def test_spans_of_unequal_lengths_are_refused_or_aligned_as_is_said(words):
    model = tiny("llama")
    data = {
        "base": ["the capital of Spain is", "the capital of South Korea is"],
        "source": ["the capital of Italy is", "well the capital of Italy is"],
        "country": ["Spain", "South Korea"],
        "source_country": ["Italy", "Italy"],
    }
    options: dict[str, Any] = {"tokenizer": words, "answers": ("Seoul", "Rome"), "layers": [1]}
    with pytest.raises(PositionError, match=r"pair 1: '\{country\}' is 2 tokens in the base \('SouthKorea'\) and 1 in"):
        grid(model, data, positions=PLACES, **options)
    ids = WORDS.index("Seoul"), WORDS.index("Rome")
    for align, at_base in (("first", 3), ("last", 4)):
        table = grid(model, data, positions=PLACES, align=align, **options)
        row = next(row for row in table.rows() if (row["pair"], row["place"]) == (1, "country"))
        logits = after_swap(model, "block_output", range(1, 2), data["base"][1], data["source"][1], [(at_base, 4)])
        assert row["metric"] == pytest.approx(float(logits[ids[1]] - logits[ids[0]]), abs=1e-4)
        assert (row["position"], row["source_position"]) == (at_base, 4)
    both = {**data, "source": ["the capital of New Zealand is"] * 2, "source_country": ["New Zealand"] * 2}
    table = grid(model, both, positions={"country": first_token("{country}")}, **options)  # one token of each
    assert table.columns["source_position"] == (3, 3)
    [_, row] = grid(model, both, positions={"country": at("{country}")}, align="last", **options).rows()
    logits = after_swap(model, "block_output", range(1, 2), both["base"][1], both["source"][1], [(3, 3), (4, 4)])
    assert row["metric"] == pytest.approx(float(logits[ids[1]] - logits[ids[0]]), abs=1e-4)
    assert (row["position"], row["token"]) == (None, "SouthKorea")


@torch.no_grad()
def test_windows_of_layers_are_swapped_at_once():
    model, (base, source) = tiny("gpt2"), (DATA["base"][1], DATA["source"][1])
    components = ["mlp_output", "block_output"]
    sides = encoded(base), encoded(source)
    options: dict[str, Any] = {"positions": [6], "metric": logit_difference(5, 4)}
    table = grid(model, *sides, components=components, window=2, **options)
    for row in table.rows():
        layer = row["layer"]
        layers = range(max(0, layer - 1), layer + 1) if row["component"] == "mlp_output" else range(layer, layer + 1)
        logits = after_swap(model, row["component"], layers, base, source, [(6, 6)])
        assert row["metric"] == pytest.approx(float(logits[5] - logits[4]), abs=1e-4)
        assert row["change"] == pytest.approx(float(torch.tensor(CHANGES[-len(layers) :]).norm()), rel=1e-4)
        assert row["fired"] == len(layers)
    assert table.meta["window"] == {"mlp_output": 2, "block_output": 1}
    wide = grid(model, *sides, components=components, window={"block_output": 3}, **options)
    [row] = [row for row in wide.rows() if row["component"] == "block_output" and row["layer"] == 1]
    logits = after_swap(model, "block_output", range(LAYERS), base, source, [(6, 6)])
    assert row["metric"] == pytest.approx(float(logits[5] - logits[4]), abs=1e-4)
    with pytest.raises(SpecError, match="window is a number of layers from 1; found 0"):
        grid(model, *sides, components=components, window=0, **options)


def test_data_is_the_same_in_every_form(words):
    model, options = tiny("gpt2"), {"tokenizer": words, "layers": [1], "positions": [-1]}
    sides = DATA["base"], DATA["source"]
    answers = list(zip(DATA["base_answer"], DATA["source_answer"], strict=True))
    plain = grid(model, *sides, answers=answers, **options)
    rows = [{name: values[number] for name, values in DATA.items()} for number in range(2)]
    other = {{"base": "clean", "base_answer": "says"}.get(name, name): values for name, values in DATA.items()}
    renamed = grid(model, other, columns={"base": "clean", "base_answer": "says"}, **options)
    for data in (DATA, rows, pandas.DataFrame(DATA), Columns(DATA)):
        assert grid(model, data, **options) == plain
    assert renamed == plain
    assert grid(model, list(zip(*sides, strict=True)), answers=answers, **options) == plain
    frame = pandas.DataFrame(DATA)
    assert grid(model, frame["base"], frame["source"], answers=answers, **options) == plain
    swept = path_patching(model, frame, senders=["m0"], positions=[-1], tokenizer=words)
    assert swept == path_patching(model, *sides, senders=["m0"], positions=["last"], answers=answers, tokenizer=words)


@torch.no_grad()
def test_studies_of_single_prompts_take_columns_and_anchors(words):
    model, frame = tiny("gpt2"), pandas.DataFrame(DATA)
    answers, texts = DATA["base_answer"], DATA["base"]
    every = logit_lens(model, texts, tokenizer=words, answers=answers)
    found = logit_lens(model, frame, tokenizer=words, positions=PLACES)
    wanted = {(row["layer"], row["position"], row["prompt"]): row["logit"] for row in every.rows()}
    assert len(found) == LAYERS * 2 * 2
    for row in found.rows():
        assert row["position"] == token("base", row["prompt"], row["place"])
        assert row["logit"] == pytest.approx(wanted[row["layer"], row["position"], row["prompt"]], abs=1e-5)
    parts = direct_logit_attribution(model, frame, tokenizer=words, at=at("{country}"))
    assert parts.meta["answers"] == answers
    for number, text in enumerate(texts):
        logits = model(**encoded(text)).logits[0, token("base", number, "country")]
        assert parts.meta["logit"][number] == pytest.approx(float(logits[WORDS.index(answers[number])]), abs=1e-4)
    said = [int(model(**encoded(text)).logits[0, -1].argmax()) for text in texts]
    right = [accuracy(token) for token in said]
    assert score(model, Columns(DATA), right, tokenizer=words).columns["metric"] == (1.0, 1.0)
    assert score(model, texts, right, tokenizer=words, at=["last", -1]).columns["metric"] == (1.0, 1.0)


@torch.no_grad()
def test_tracing_restores_all_tokens_of_a_place(words):
    model, text, other = tiny("llama"), "the capital of South Korea is", "the capital of New Zealand is"
    data = {"base": [text], "country": ["South Korea"], "base_answer": ["Seoul"]}
    options: dict[str, Any] = {"tokenizer": words, "counterfactual": other, "window": 2}
    components = ["mlp_output"]
    named = {"country": at("{country}"), "first": first_token("{country}")}
    table = causal_tracing(model, data, at("{country}"), positions=named, components=components, **options)
    assert table.meta["subject"] == [[3, 4]]
    answer = WORDS.index("Seoul")
    for row in table.rows():
        places = [(3, 3), (4, 4)] if row["place"] == "country" else [(3, 3)]
        layers = range(max(0, row["layer"] - 1), row["layer"] + 1)
        gives = after_swap(model, "mlp_output", layers, other, text, places).softmax(-1)[answer]
        assert row["restored"] == pytest.approx(float(gives), rel=1e-4)
        assert row["role"] == (None if row["place"] == "country" else "first subject token")
    assert table.columns["token"][:2] == ("SouthKorea", "South")


@torch.no_grad()
def test_senders_and_receivers_have_places_by_text(words):
    model = tiny("gpt2")
    options: dict[str, Any] = {"tokenizer": words, "senders": ["m1"], "freeze": "none"}
    table = path_patching(model, DATA, positions=PLACES, **options)
    for row in table.rows():
        places = [tuple(token(side, row["pair"], row["place"]) for side in ("base", "source"))]
        sides = DATA["base"][row["pair"]], DATA["source"][row["pair"]]
        logits = after_swap(model, "mlp_output", range(1, 2), *sides, places)
        assert row["metric"] == pytest.approx(difference(logits, row["pair"]), abs=1e-4)
    numbers = [[token("base", pair, "country")] for pair in range(2)]
    by_text, by_number = (
        path_patching(model, DATA, receivers="m2", positions=[-1], receiver_positions=places, **options)
        for places in (at("{country}"), numbers)
    )
    assert by_text == by_number


def test_claims_have_places_by_text(words):
    model, frame = tiny("llama"), pandas.DataFrame(DATA)
    tables = [
        causal_scrubbing(model, frame, [Claim(Site("block_output", 1), [0, 0], positions=positions)], tokenizer=words)
        for positions in (at("{country}"), [[3], [6]])
    ]
    assert tables[0] == tables[1]
    several = {"base": ["the South Korea", "the Spain is"], "country": ["South Korea", "Spain"]}
    claim = Claim(Site("block_output", 1), [0, 0], positions=at("{country}"))
    with pytest.raises(PositionError, match="are 2 tokens of prompt 0, and 1 of prompt 1"):
        causal_scrubbing(model, several, [claim], tokenizer=words, answers="Rome")


@pytest.mark.parametrize("side", ["left", "right"])
def test_tokens_are_read_back_under_any_padding(side, words):
    model, options = tiny("llama"), {"answers": ("Madrid", "Rome"), "layers": [1], "tokenizer": words}
    sides = []
    for name in ("base", "source"):
        lengths = [len(text.split()) for text in DATA[name]]
        ids = torch.zeros(2, 10, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, length in enumerate(lengths):
            where_ = slice(10 - length, None) if side == "left" else slice(0, length)
            ids[row, where_] = encoded(DATA[name][row])["input_ids"]
            mask[row, where_] = 1
        sides.append({"input_ids": ids, "attention_mask": mask})
    found = grid(model, *sides, positions={"name": at("capital of"), "end": "last"}, **options)
    wanted = grid(model, DATA["base"], DATA["source"], positions={"name": at("capital of"), "end": "last"}, **options)
    for column in ("place", "position", "token", "pair"):
        assert found.columns[column] == wanted.columns[column]
    assert found.columns["metric"] == pytest.approx(wanted.columns["metric"], abs=1e-4)
    told = [
        where(words, DATA["base"], "capital", **mask) for mask in ({}, {"attention_mask": sides[0]["attention_mask"]})
    ]
    by_text, *by_number = (
        logit_lens(model, sides[0], positions=places, tokenizer=words, layers=[1]) for places in (at("capital"), *told)
    )
    assert by_number == [by_text, by_text]
    with pytest.raises(SpecError, match=r"base 0: where a piece of text stands.*give tokenizer="):
        grid(model, *sides, positions=at("capital"), answers=(1, 2))


@torch.no_grad()
def test_an_encoder_has_its_own_text(words):
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2, "vocab_size": 61}
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0, pad_token_id=0)).eval()
    options: dict[str, Any] = {
        "tokenizer": words,
        "answers": ("Rome", "Madrid"),
        "components": ["encoder.block_output"],
    }
    sides = DATA["base"][1], DATA["source"][1]
    named = grid(model, *sides, positions={"country": at("{country}")} | {"country": [6]}, **options)
    [by_text] = [grid(model, *sides, positions=first_token("capital of"), **options)]
    assert set(by_text.columns["position"]) == {4}
    assert by_text.columns["metric"] == grid(model, *sides, positions=[4], **options).columns["metric"]
    assert set(named.columns["token"]) == {"France"}


BASE, SOURCE = "the Spain of Spain is", "the Italy of Spain is"


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"positions": at("Spain")}, PositionError, r"base 0: 'Spain' is 2 times in .*the \[Spain\].*of \[Spain\]"),
        ({"positions": at("Italy")}, PositionError, r"base 0: 'Italy' is not in 'the Spain of Spain is'"),
        ({"positions": at("Spain", occurrence=2)}, PositionError, r"source 0: occurrence=2 of 'Spain', which is 1"),
        ({"positions": at("pain", occurrence=1)}, PositionError, r"base 0: 'pain' shares the token 'Spain'"),
        ({"positions": at("{city}")}, SpecError, r"base 0: the example has no field 'city'; it has none"),
        ({"positions": {}}, SpecError, r"positions names places"),
        ({"positions": {"": 0}}, SpecError, r"positions names places"),
        ({"positions": {"end": 5}}, PositionError, r"base 0: position 5 does not exist: the base has 5 tokens"),
        ({"positions": [[0], [1]]}, SpecError, r"positions names 2 prompts, but there are 1"),
        ({"positions": ["Spain"]}, SpecError, r"(?s)positions.*Spain"),
        ({"at": at("the Spain")}, SpecError, r"base 0: at='the Spain' is 2 tokens, 'theSpain', and logits are read"),
        ({"at": [0, 1]}, SpecError, r"at names 2 positions, but there are 1 prompts"),
        ({"source": None}, SpecError, r"there is no source: give source="),
        ({"base": {"base": [BASE], "source": [SOURCE]}}, SpecError, r"has a column 'source', so leave out source="),
        ({"base": [(BASE, SOURCE)]}, SpecError, r"is a list of pairs, so leave out source="),
        ({"columns": {"base": "clean"}}, SpecError, r"columns= names columns, and base has none: it is a str"),
        ({"columns": {"bse": "clean"}, "base": {"clean": [BASE]}}, UnknownNameError, r"did you mean 'base'"),
        ({"base": {"clean": [BASE]}, "columns": {"base": "x"}}, SpecError, r"has no column 'x'; it has \['clean'\]"),
        ({"base": {"base": BASE}}, SpecError, r"column 'base' has an entry for each prompt; found 'the Spain"),
        ({"base": {"base": [BASE], "x": []}}, SpecError, r"unequal lengths: {'base': 1, 'x': 0}"),
        ({"base": {"base": [BASE, 3]}}, SpecError, r"column 'base' holds texts; row 1 has 3"),
        ({"base": {"base": [BASE], "base_answer": ["is"]}, "answers": None}, SpecError, r"answers of one side only"),
        ({"base": [{"base": BASE}, {"bse": BASE}]}, SpecError, r"row 1 of the data has the keys \['bse'\], row 0"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_before_a_pass(changes, error, said, words):
    model = tiny("gpt2")
    options: dict[str, Any] = {"base": BASE, "source": SOURCE, "answers": ("Rome", "Madrid"), "tokenizer": words}
    with model.register_forward_pre_hook(lambda *_: pytest.fail("a pass was run")), pytest.raises(error, match=said):
        grid(model, **{**options, **changes})


def test_pairs_are_no_prompts(words):
    with pytest.raises(SpecError, match="prompts"):
        logit_lens(tiny("gpt2"), [(BASE, SOURCE)], tokenizer=words)  # type: ignore[list-item]


def test_what_where_tells_is_taken_as_it_is(words):
    texts = DATA["base"]
    told = where(words, texts, last_token("{country}"), fields=[{"country": c} for c in DATA["country"]])
    options: dict[str, Any] = {"tokenizer": words, "layers": [0]}
    by_number = logit_lens(tiny("gpt2"), texts, positions=told, **options)
    by_text = logit_lens(
        tiny("gpt2"), {"base": texts, "country": DATA["country"]}, positions=at("{country}"), **options
    )
    assert by_number == by_text


def test_the_code_of_the_page_runs():
    ran = run_page(ROOT / "docs" / "places.md")
    assert ran.said == "(2, 2)\n['Madrid', 'Rome']\n"
    assert ran.names["means"].columns["count"] == (2,) * 4
