"""Text that names places: every token found by it spells the text, whatever the tokenizer and the padding."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.untyped import untyped
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from align_transformers import PositionError, SpecError
from align_transformers.anchors import (
    Anchor,
    at,
    first_token,
    last_token,
    offsets_of,
    read_back,
    spots_of_each,
    tokens_at,
    where,
)

TEXTS = [
    "The capital of Spain is Madrid, and Spain is old.",
    "In Italy the capital is Rome; the café 'Zürich' is open.",
    "東京 is the capital of Japan, not 京都 🙂.",
    "spain, SPAIN and Spaniards: the Spanish live there",
]


@lru_cache(maxsize=4)
def tokenizer(kind: str) -> Any:
    """Return a tokenizer of a kind, trained on a few texts so that some words are whole and some are in pieces."""
    if kind == "bytes":  # GPT-2, Llama 3, SmolLM2
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        trainer: Any = trainers.BpeTrainer(vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
        core.post_processor = processors.ByteLevel(trim_offsets=False)
    elif kind == "unigram":  # T5, XLM-R, Llama 2
        core = Tokenizer(models.Unigram())
        core.pre_tokenizer = pre_tokenizers.Metaspace()
        core.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=70, unk_token="<unk>", special_tokens=["<unk>", "<s>"])
    else:  # BERT
        core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=110, special_tokens=["[UNK]", "<s>"])
    core.train_from_iterator(TEXTS * 3, trainer)
    if kind != "bytes":
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", core.token_to_id("<s>"))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>")


KINDS = ["bytes", "unigram", "wordpiece"]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_tokens_found_are_those_that_spell_the_piece(kind, data):
    text = data.draw(st.sampled_from(TEXTS))
    begin = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(begin + 1, len(text)))
    offsets = offsets_of(tokenizer(kind), text)
    own = [n for n, (first, last) in enumerate(offsets) if any(begin <= c < end for c in range(first, last))]
    beside = [c for n in own for c in range(*offsets[n]) if not begin <= c < end and not text[c].isspace()]
    if not own or beside:
        with pytest.raises(PositionError):
            at(slice(begin, end)).tokens(text, offsets)
    else:
        assert list(at(slice(begin, end)).tokens(text, offsets)) == own
        assert first_token(slice(begin, end)).tokens(text, offsets) == (own[0],)
        assert last_token(slice(begin, end)).tokens(text, offsets) == (own[-1],)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_columns_of_a_padded_batch_hold_the_piece(kind, side):
    words = tokenizer(kind)
    pieces = ["Madrid", "Rome", "Japan", "Spanish"]
    batch = words(TEXTS, padding=True, padding_side=side, return_tensors="pt")
    found = where(
        words, TEXTS, "{city}", fields=[{"city": piece} for piece in pieces], attention_mask=batch["attention_mask"]
    )
    for row, places, piece in zip(batch["input_ids"], found, pieces, strict=True):
        assert words.decode(row[places]).replace(" ", "").replace("##", "") == piece
    plain = where(words, TEXTS, "{city}", fields=[{"city": piece} for piece in pieces])
    gaps = [int(row.argmax()) for row in batch["attention_mask"]]
    assert found == [[place + gap for place in places] for places, gap in zip(plain, gaps, strict=True)]


def test_tokens_are_read_back_where_their_text_is_made_of_them():
    for text in TEXTS:
        ids = tokenizer("bytes")(text)["input_ids"]
        assert read_back(tokenizer("bytes"), ids) == (text, offsets_of(tokenizer("bytes"), text))
    words = tokenizer("wordpiece")  # which decodes "The" and "##y" to "The ##y"
    with pytest.raises(SpecError, match="made of other tokens"):
        read_back(words, words("They")["input_ids"])
    with pytest.raises(SpecError, match="give tokenizer="):
        read_back(None, [1])


def test_spots_are_for_all_prompts_or_for_each():
    assert spots_of_each("all", 2) == ["all", "all"]
    assert spots_of_each(at("a"), 2) == [[at("a")], [at("a")]]
    assert spots_of_each([[0], ["last", at("b")]], 2) == [[0], ["last", at("b")]]
    for wrong, why in (
        ([[0]], "names 1 prompts, but there are 2"),
        ([[0], 1], "for some prompts"),
        ([], "no position"),
        ([[], [0]], "no"),
    ):
        with pytest.raises(SpecError, match=why):
            spots_of_each(wrong, 2)
    with pytest.raises(PositionError, match=r"position 4 does not exist: it has 4 tokens \(0 to 3\)"):
        tokens_at(4, 4, lambda: ("", []))


def test_the_real_tokenizer():
    from align_transformers import load_model

    _, words = load_model("smollm2-135m")
    assert where(words, "The capital of Spain is", "Spain") == [[3]]
    assert where(words, "I like Spain", "Spain", "last") == [[len(words("I like Spain")["input_ids"]) - 1]]


def test_several_pieces_have_to_be_told_apart():
    words = tokenizer("bytes")
    with pytest.raises(PositionError, match=r"prompt 1: 'Spain' is 2 times in .*\[Spain\].*occurrence=1"):
        where(words, ["Spain!", TEXTS[0]], "Spain")
    first, second = (where(words, TEXTS[0], "Spain", occurrence=n)[0] for n in (1, 2))
    assert first < second
    assert where(words, TEXTS[0], "Spain", occurrence=-1)[0] == second
    assert where(words, TEXTS[0], at("Spain", occurrence=-2))[0] == first
    with pytest.raises(PositionError, match=r"occurrence=3 of 'Spain', which is 2 times.*\[Spain\].*; .*\[Spain\]"):
        where(words, TEXTS[0], "Spain", occurrence=3)


@pytest.mark.parametrize(
    ("anchor", "why"),
    [
        ("Portugal", "'Portugal' is not in"),
        ("adri", "shares the token"),
        (slice(900, 910), "no token stands for ''"),
    ],
)
def test_what_is_not_there_is_refused_with_the_prompt_named(anchor, why):
    with pytest.raises(PositionError, match=f"prompt 0: .*{why}"):
        where(tokenizer("bytes"), TEXTS[0], anchor)


def test_what_makes_no_sense_is_refused():
    words = tokenizer("bytes")
    with untyped(), pytest.raises(SpecError, match="text is a text or a slice; found 3"):
        at(3)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="occurrence counts from 1"):
        at("a", occurrence=0)
    with pytest.raises(SpecError, match="this one is empty"):
        at("")
    with untyped(), pytest.raises(SpecError, match="'all', 'first' or 'last'"):
        Anchor("a", "middle")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="prompt 0: the example has no field 'city'; it has \\['country'\\]"):
        where(words, TEXTS[0], "{city}", fields=[{"country": "Spain"}])
    with pytest.raises(SpecError, match="fields has 2 entries, but there are 1 prompts"):
        where(words, TEXTS[0], "{city}", fields=[{}, {}])
    with pytest.raises(SpecError, match="attention_mask has 1 rows for 2 prompts"):
        where(words, TEXTS[:2], "the", attention_mask=torch.ones(1, 3))

    class Slow:
        is_fast = False

    with untyped(), pytest.raises(SpecError, match="Slow does not tell where in a text its tokens stand"):
        where(Slow(), "text", "t")  # type: ignore[arg-type]
