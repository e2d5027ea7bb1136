"""Directions that are planted: one that can be read and is not used, one that is used, and one to steer along.

In `frac_prevs` the token of a letter stays in the residual stream behind the MLP that made `is_x` of it: both say
whether it is an x, and only the second is read by what follows. A probe of either has to find it, and a swap along it
has to do nothing for the one and all for the other. Where logits are linear in the stream, a dose along a direction
moves them by as much as the unembedding says, in all prompts alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor, nn

from align_transformers import Metric, Table, attention_patterns, logit_difference, probe, steer
from align_transformers.zoo import TransformerConfig, TransformerLMHeadModel

from .compiled import Compiled, load, texts
from .fact import Fact

TEXTS, PLACE, LENGTH = 60, 2, 5
DEPENDS = 1 / LENGTH
"""What one letter tells of the share at the last of five."""


@cache
def probed() -> dict[tuple[str, int], dict[str, float]]:
    """Probe `frac_prevs` for whether the second letter is an x, at that letter, and swap along the probes' directions.

    The metric is the number that the program says at the last letter, signed so that it grows towards the partner's.
    """
    here = load("frac_prevs")
    given = list(dict.fromkeys(texts("frac_prevs", TEXTS, seed=4, length=LENGTH)))
    labels = [text[PLACE - 1] == "x" for text in given]
    sides = {False: Metric("share", _share), True: Metric("share, towards less", _towards_less)}
    table = probe(
        here.model,
        {"input_ids": here.tokens(given)},
        labels,
        components=["mlp_output", "block_output"],
        positions=[PLACE],
        metric=[sides[label] for label in labels],
        draws=1,
    )
    return {(row["component"], row["layer"]): row for row in table.rows()}


def _share(logits: Tensor) -> Tensor:
    return logits[:, 0]


def _towards_less(logits: Tensor) -> Tensor:
    return -logits[:, 0]


WIDTH, WORDS = 16, 8
MORE, LESS, YES, NO = WORDS, WORDS + 1, WORDS + 2, WORDS + 3
DOSES = (-2.0, -1.0, -0.5, 0.5, 1.0, 2.0)


@cache
def planted() -> tuple[TransformerLMHeadModel, Tensor]:
    """Return a model with a direction, which two tokens write, one with either sign, and two logits read; words do not.

    Attention gives nothing, and there are no norms: so the logits of `YES` and `NO` are the stream times the direction.
    """
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator)).Q.T
    direction, others = basis[0], basis[1:]
    sizes = TransformerConfig(vocab_size=WORDS + 4, n_positions=12, h_dim=WIDTH, n_layer=2, n_head=2, norm=False)
    model = TransformerLMHeadModel(sizes).eval().requires_grad_(False)
    for parameter in (*model.positions.parameters(), model.unembedding.weight):
        nn.init.zeros_(parameter)
    for block in model.blocks:
        nn.init.zeros_(block.attention.o_proj.weight)
        nn.init.zeros_(block.attention.o_proj.bias)
    model.tokens.weight.copy_(torch.randn(WORDS + 4, WIDTH - 1, generator=generator) @ others)
    model.tokens.weight[MORE] += direction
    model.tokens.weight[LESS] = model.tokens.weight[MORE] - 2 * direction
    model.unembedding.weight[YES], model.unembedding.weight[NO] = direction, -direction
    return model, direction


@cache
def steered(which: str) -> Table:
    """Steer the planted model in several doses.

    Args:
        which: `fitted`: along the difference of means of texts that end in one or the other token; `other`: along a
            direction at right angles.
    """
    model, direction = planted()
    words = torch.randint(WORDS, (12, 5), generator=torch.Generator().manual_seed(1))
    sides = [{"input_ids": torch.cat([words[:, 1:], torch.full((12, 1), end)], 1)} for end in (MORE, LESS)]
    options = {"positive": sides[0], "negative": sides[1], "direction": "mean"}
    if which == "other":
        options = {"direction": torch.randn(WIDTH, generator=torch.Generator().manual_seed(2))}
        options["direction"] -= options["direction"] @ direction * direction
    return steer(
        model, {"input_ids": words}, logit_difference(YES, NO), layers=[0], doses=DOSES, max_new_tokens=0, **options
    )


def off() -> float:
    """Return by how much an effect is at most another one than 2 x dose x norm, of the two logits together."""
    table = steered("fitted")
    (norm,) = (one["norm"] for one in table.meta["directions"])
    return max(abs(row["effect"] - 2 * row["dose"] * norm) for row in table.rows())


def wrong_way() -> float:
    """Return the largest share of prompts that a dose moved against its sign."""
    return max(point["wrong_way"] for point in steered("fitted").meta["curve"] if point["dose"])


def looks_back(name: str, layer: int, text: str) -> float:
    """Return by how much the attention of a compiled program is at most another one than what the program says.

    `frac_prevs` looks at all letters so far alike, `reverse` at the opposite one.
    """
    here: Compiled = load(name)
    table = attention_patterns(here.model, {"input_ids": here.tokens([text])}, layers=[layer])
    count, most = len(text), 0.0
    for row in table.rows():
        query, key = row["query"], row["key"]
        if query == 0:
            continue
        true = float(0 < key <= query) / query if name == "frac_prevs" else float(key == count + 1 - query)
        most = max(most, abs(row["attention"] - true))
    return most


def _facts() -> Iterator[Fact]:
    used, unused = ("mlp_output", 0), ("block_output", 1)
    for place, name in ((used, "is_x, used"), (unused, "the letter behind the last block, not used")):
        yield Fact(f"probe, {name}: accuracy", lambda place=place: probed()[place]["accuracy"], 1.0, 1.0)
        low, high = (DEPENDS - 1e-4, DEPENDS + 1e-4) if place == used else (-1e-5, 1e-5)
        yield Fact(f"probe, {name}: effect of a swap", lambda place=place: probed()[place]["swap_effect"], low, high)
    yield Fact("steer: cosine of the fitted direction and the planted", cosine, 1 - 1e-5, 1 + 1e-5)
    yield Fact(
        "steer: agreement of the differences",
        lambda: steered("fitted").meta["directions"][0]["agreement"],
        0.9999,
        1.0001,
    )
    yield Fact("steer: off 2 x dose x norm, of any prompt and dose", off, 0, 1e-4)
    yield Fact("steer: moved the wrong way", wrong_way, 0, 0)
    yield Fact("steer: effect at right angles", lambda: max(map(abs, steered("other").columns["effect"])), 0, 1e-4)
    yield Fact(
        "attention_patterns: frac_prevs looks at all so far, off", lambda: looks_back("frac_prevs", 1, "xabcx"), 0, 1e-5
    )
    yield Fact(
        "attention_patterns: reverse looks at the opposite, off", lambda: looks_back("reverse", 3, "abcda"), 0, 1e-5
    )


def cosine() -> float:
    """Return the cosine of the fitted direction and the planted one."""
    found = torch.tensor(steered("fitted").meta["directions"][0]["direction"])
    return float(torch.cosine_similarity(found, planted()[1], dim=0))


FACTS = list(_facts())
