"""Places by text in calls, batches and activations: tokens become columns of the batch, whatever its padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.helpers import grab, locus, logits_with, tiny, writer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from align_transformers import IntervenableModel, Site, VanillaIntervention, activations, at, fit_pca, last_token, where
from align_transformers._errors import PositionError, SpecError
from align_transformers.learning.batches import read_batch
from align_transformers.locations import Addressed, Axis, Location, locate
from align_transformers.positions import Positions

WORDS = ["?", "in", "Spain", "they", "speak", "Spanish", "South", "Korea", "and", "well"]
BASES = ["in Spain they speak", "well in South Korea and Spain they speak"]
SOURCES = ["well in South Korea they speak", "they speak Spanish in Spain"]


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="?")


def batch(words: Any, texts: list[str], side: str) -> dict[str, Any]:
    return dict(words(texts, padding=True, padding_side=side, return_tensors="pt", return_token_type_ids=False))


def alone(text: str) -> dict[str, Any]:
    return {"input_ids": torch.tensor([[WORDS.index(word) for word in text.split()]])}


def face() -> IntervenableModel:
    kind = {"layer": 1, "component": "block_output", "intervention_type": VanillaIntervention}
    return IntervenableModel(kind, tiny("llama"))


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_a_call_takes_what_where_tells(side, with_mask, words):
    base, source = (batch(words, texts, side) for texts in (BASES, SOURCES))
    masks = [{"attention_mask": one["attention_mask"]} if with_mask else {} for one in (source, base)]
    read = where(words, SOURCES, "{word}", fields=[{"word": "Korea"}, {"word": "Spain"}], **masks[0])
    written = where(words, BASES, at("Spain"), **masks[1])
    intervenable = face()
    for _ in range(2):  # the second call is bound as the first
        logits = intervenable(base, source, {"sources->base": (read, written)})[1].logits
        for number, (into, out) in enumerate(((1, 3), (5, 4))):
            place = locus(tiny("llama"), "block_output", 1)
            [new] = grab(tiny("llama"), alone(SOURCES[number]), place)
            touch = writer(place, [[into]], lambda old, _, new=new, out=out: new[0, [out]])
            wanted = logits_with(tiny("llama"), alone(BASES[number]), touch)[0, -1]
            column = -1 if side == "left" else len(BASES[number].split()) - 1
            assert torch.allclose(logits[number, column], wanted, atol=1e-4)


def test_one_source_serves_all_bases_with_its_own_padding(words):
    read, written = where(words, SOURCES[1], "Spain"), where(words, BASES, "Spain")
    assert (read, written) == ([[4]], [[1], [5]])
    source, base = Axis(1, [(1, 6)]), Axis(2, [(4, 8), (0, 8)])  # columns of real tokens
    [found] = locate({"sources->base": (read, written)}, "sources->base", [Addressed("pos", 1)], [source], [base])
    assert found == Location(Positions(((5,), (5,))), Positions(((5,), (5,))))


def test_a_call_is_not_bound_as_one_that_counts_otherwise(words):
    base = batch(words, BASES, "left")
    shared = {"attention_mask": torch.ones_like(base["attention_mask"])}
    tokens, columns = (where(words, BASES, "speak", "last", **mask) for mask in ({}, shared))
    assert tokens == columns
    intervenable = face()
    intervenable(base, base, {"sources->base": (tokens, tokens)})
    with pytest.raises(PositionError, match=r"position 3 .*is outside example 0"):
        intervenable(base, base, {"sources->base": (columns, columns)})


@pytest.mark.parametrize("side", ["left", "right"])
def test_batches_take_what_where_tells(side, words):
    told = where(words, BASES, at("they speak"))
    intervenable = face()
    made = batch(words, BASES, side)
    columns = {"source_0->base.0.pos": torch.tensor([[0], [0]]), "source_0->base.1.pos": where(words, BASES, "Spain")}
    sources = {f"source_{name}": value for name, value in batch(words, SOURCES, side).items()}
    call = read_batch({**made, **sources, **columns}, tiny("llama"), intervenable.config, intervenable.representations)
    gap = len(BASES[1].split()) - len(BASES[0].split()) if side == "left" else 0
    assert call.unit_locations[0].base.rows == ((1 + gap,), (5,))
    assert told == [[2, 3], [6, 7]]
    with pytest.raises(
        SpecError, match=r"column 'source_0->base.1.pos': where 'Spain' stands.*where\(tokenizer, texts"
    ):
        read_batch(
            {**made, **sources, "source_0->base.1.pos": at("Spain")}, tiny("llama"), intervenable.config,
            intervenable.representations,
        )  # fmt: skip


def test_an_anchor_in_a_call_is_refused_with_what_to_write(words):
    base, source = (batch(words, texts, "right") for texts in (BASES, SOURCES))
    with pytest.raises(SpecError, match=r"where 'Spain' stands is not known here.*where\(tokenizer, texts, 'Spain'\)"):
        face()(base, source, {"sources->base": (at("Spain"), at("Spain"))})
    with pytest.raises(SpecError, match=r"is a pair \(source, base\): \(where\(tokenizer, sources"):
        face()(base, source, {"sources->base": where(words, BASES, "Spain")})


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_activations_are_taken_where_a_text_stands(side, words):
    model, site = tiny("llama"), Site("mlp_output", 1)
    batches = [batch(words, BASES, side), batch(words, SOURCES, side)]
    rows = activations(model, batches, site, at("they speak"), tokenizer=words)
    wanted = []
    for text, places in zip(BASES + SOURCES, ([2, 3], [6, 7], [4, 5], [0, 1]), strict=True):
        [values] = grab(model, alone(text), locus(model, "mlp_output", 1))
        wanted.append(values[0, places])
    assert torch.allclose(rows, torch.cat(wanted), atol=1e-4)
    told = where(words, BASES + SOURCES, "they speak")
    assert torch.equal(activations(model, batches, site, told), rows)
    each = activations(model, batches, site, [["last"], [at("Spain"), -1], [-2], ["last"]], tokenizer=words)
    last = activations(model, batches, site)
    assert torch.allclose(each[[0, 2, 4]], last[[0, 1, 3]], atol=1e-5)
    assert each.shape == (5, 32)
    pca = fit_pca(model, batches, site, 1, positions=last_token("speak"), tokenizer=words)
    assert pca.rotation.shape == (32, 1)
    with pytest.raises(PositionError, match="example 2: 'Spain' is not in 'well in South Korea they speak'"):
        activations(model, batches, site, at("Spain"), tokenizer=words)
    with pytest.raises(SpecError, match=r"example 0: .*give tokenizer="):
        activations(model, batches, site, at("Spain"))
    with pytest.raises(SpecError, match="positions names 1 prompts, but there are 4"):
        activations(model, batches, site, [[0]])
