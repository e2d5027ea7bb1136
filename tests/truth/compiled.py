"""Programs compiled into transformers (Tracr, Lindner et al. 2023, arXiv:2301.05062): what each part does is written.

Four RASP programs, each with the edges that its compilation has. A study of a pair of texts must find its whole
effect exactly at the places that the program uses for what differs, and nothing elsewhere. The weights are those that
`make_compiled.py` wrote.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from align_transformers.zoo import TransformerConfig, TransformerLMHeadModel

HERE = Path(__file__).parent / "weights"
LONGEST = 6
BEGIN = "BOS"
Letters = Sequence[str]


def frac_prevs(text: Letters) -> list[Any]:
    """Return for each letter which share of the text up to it are `x`."""
    return [text[: end + 1].count("x") / (end + 1) for end in range(len(text))]


def hist(text: Letters) -> list[Any]:
    """Return how often each letter is in the text."""
    return [text.count(letter) for letter in text]


def reverse(text: Letters) -> list[Any]:
    """Return the text from its end."""
    return list(text[::-1])


def sort(text: Letters) -> list[Any]:
    """Return the letters in order."""
    return sorted(text)


@dataclass(frozen=True)
class Program:
    """A program with the edges of its compilation along which a change of letters can go.

    Args:
        run: what it says of the letters of a text.
        letters: that it knows.
        edges: from what writes into the residual stream to what reads it there.
        example: a base and a source that differ so that the answer at the last letter does.
        places: where that difference is carried: component, layer and position.
    """

    run: Callable[[Letters], list[Any]]
    letters: str
    edges: frozenset[tuple[str, str]]
    example: tuple[str, str]
    places: frozenset[tuple[str, int, int]]


def _edges(text: str) -> frozenset[tuple[str, str]]:
    pairs = (one.split(" -> ") for one in text.split(", "))
    return frozenset((sender, receiver) for sender, receiver in pairs)


PROGRAMS = {
    "frac_prevs": Program(  # is it an x? m0; the mean over the letters so far: a1
        frac_prevs,
        "abcx",
        _edges("input -> m0, m0 -> a1.h0<v>, a1.h0 -> logits"),
        ("xabcx", "xxbcx"),
        frozenset({("block_output", 0, 2), ("mlp_output", 0, 2), ("attention_output", 1, 5), ("block_output", 1, 5)}),
    ),
    "hist": Program(  # equal letters are attended to, and the beginning: 1 / (1 + count); m0 makes the count of it
        hist,
        "abcd",
        _edges("input -> a0.h0<q>, input -> a0.h0<k>, a0.h0 -> m0, m0 -> logits"),
        ("abcab", "abbab"),
        frozenset({("attention_output", 0, 5), ("mlp_output", 0, 5), ("block_output", 0, 5)}),
    ),
    "reverse": Program(  # layers 0 to 2 find the opposite place, of indices alone; a3 takes the letter from there
        reverse,
        "abcd",
        _edges("input -> a3.h0<v>, a3.h0 -> logits"),
        ("abcda", "dabcb"),
        frozenset({*(("block_output", n, 1) for n in range(3)), ("attention_output", 3, 5), ("block_output", 3, 5)}),
    ),
    "sort": Program(  # m0: keys; a1, m1: how many are smaller, the place that a letter goes to; a2
        sort,
        "12345",
        _edges(
            "input -> m0, m0 -> a1.h0<q>, m0 -> a1.h0<k>, a1.h0 -> m1, m1 -> a2.h0<k>, input -> a2.h0<v>, "
            "a2.h0 -> logits"
        ),
        ("31421", "31521"),  # the largest one, before and after: it goes to the same place
        frozenset({*(("block_output", n, 3) for n in range(2)), ("attention_output", 2, 5), ("block_output", 2, 5)}),
    ),
}


@dataclass(frozen=True, eq=False)
class Compiled:
    """A compiled program.

    Args:
        program: what it is.
        model: what it was compiled to.
        vocabulary: the tokens.
        labels: of each coordinate of the residual stream what it holds.
        outputs: of each logit what it stands for.
        error: by how much the residual stream is at most another one than the compiler's own transformer has.
    """

    program: Program
    model: TransformerLMHeadModel
    vocabulary: list[str]
    labels: list[str]
    outputs: list[str]
    error: float

    def tokens(self, texts: Sequence[Letters]) -> Tensor:
        """Return the tokens of texts of one length, `(texts, 1 + length)`."""
        return torch.tensor([[self.vocabulary.index(one) for one in (BEGIN, *text)] for text in texts])

    def said(self, logits: Tensor) -> list[Any]:
        """Return what a row of logits, `(n_outputs,)`, says for each of the rows."""
        if len(self.outputs) == 1:
            return [row[0].item() for row in logits]
        names = [name.rpartition(":")[2] for name in self.outputs]
        kind = int if self.program.run is hist else str
        return [kind(names[row.argmax()]) for row in logits]

    def answer(self, text: Letters) -> int:
        """Return the logit that stands for what the program says at the last letter."""
        return [name.rpartition(":")[2] for name in self.outputs].index(str(self.program.run(text)[-1]))


@cache
def load(name: str) -> Compiled:
    """Load a compiled program."""
    with np.load(HERE / f"{name}.npz") as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file.files if key != "facts"}
        facts = json.loads(str(file["facts"]))
    model = TransformerLMHeadModel(TransformerConfig(**facts["config"])).eval().requires_grad_(False)
    inputs, streams = arrays.pop("inputs"), arrays.pop("streams")
    model.load_state_dict(arrays)
    seen: list[Tensor] = []
    with model.final_norm.register_forward_pre_hook(lambda _, given: seen.append(given[0])):
        model(inputs)
    error = (seen[0] - streams).abs().max().item()
    return Compiled(PROGRAMS[name], model, facts["vocabulary"], facts["labels"], facts["outputs"], error)


@cache
def hidden(name: str, seed: int = 0) -> tuple[Compiled, Tensor]:
    """Return a program whose coordinates are hidden behind a random rotation, and that: its columns are the labels'."""
    here = load(name)
    width = len(here.labels)
    rotation = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(seed))).Q
    model = TransformerLMHeadModel(here.model.config).eval().requires_grad_(False)
    model.load_state_dict(here.model.state_dict())
    for embedding in (model.tokens, model.positions):
        embedding.weight.copy_(embedding.weight @ rotation.T)
    for block in model.blocks:
        attention, mlp = block.attention, block.mlp
        for reads in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.up):
            reads.weight.copy_(reads.weight @ rotation.T)
        for writes in (attention.o_proj, mlp.down):
            writes.weight.copy_(rotation @ writes.weight)
            writes.bias.copy_(rotation @ writes.bias)
    model.unembedding.weight.copy_(model.unembedding.weight @ rotation.T)
    return replace(here, model=model), rotation


def wrong(name: str) -> int:
    """Return on how many texts of up to six letters, of all that there are, it is not what the program says."""
    here = load(name)
    count = 0
    for length in range(1, LONGEST + 1):
        texts = list(itertools.product(here.program.letters, repeat=length))
        for start in range(0, len(texts), 1024):
            part = texts[start : start + 1024]
            logits = here.model(here.tokens(part)).logits[:, 1:]
            for text, rows in zip(part, logits, strict=True):
                found, true = here.said(rows), here.program.run(text)
                exact = len(here.outputs) > 1
                right = found == true if exact else np.allclose(found, true, atol=1e-5)
                count += not right
    return count


def texts(name: str, count: int, seed: int, length: int = 5) -> Iterator[tuple[str, ...]]:
    """Yield random texts."""
    generator = torch.Generator().manual_seed(seed)
    letters = load(name).program.letters
    for row in torch.randint(len(letters), (count, length), generator=generator):
        yield tuple(letters[number] for number in row)
