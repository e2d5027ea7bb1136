"""Causal tracing of a compiled program that answers with a number: the number is made a probability.

Tracing tells probabilities, and `frac_prevs` has one output, y, which is a share. Two outputs, 0 and `STEEP` y, have
the probability 1 / (1 + exp(-STEEP y)) instead, which grows with y and with nothing else: what restores the number
restores it, and what leaves the number alone leaves it alone.
"""

from __future__ import annotations

import copy
from functools import cache
from itertools import pairwise

import torch
from torch import nn

from align_transformers import Table, causal_tracing

from .compiled import Compiled, load, texts
from .fact import Fact
from .written import COMPONENTS, EXACT, Verdict

STEEP = 4.0
PAIRS = 6


def with_probability(here: Compiled) -> nn.Module:
    """Return the program's network with two outputs, of which the second has a probability that tells the number."""
    model = copy.deepcopy(here.model)
    said = model.unembedding
    both = nn.Linear(said.in_features, 2, bias=False)
    with torch.no_grad():
        both.weight.copy_(torch.cat([torch.zeros_like(said.weight), STEEP * said.weight]))
    model.unembedding = both
    return model.eval()


@cache
def traced() -> list[tuple[Table, tuple[str, ...], tuple[str, ...]]]:
    """Restore everything everywhere, one component, layer and token at a time, in pairs of texts of other numbers."""
    here = load("frac_prevs")
    model, given = with_probability(here), list(dict.fromkeys(texts("frac_prevs", 40, seed=1)))
    pairs = [pair for pair in pairwise(given) if here.program.run(pair[0])[-1] != here.program.run(pair[1])[-1]]
    return [
        (
            causal_tracing(
                model,
                {"input_ids": here.tokens([text])},
                [1],
                components=COMPONENTS,
                window=1,
                counterfactual={"input_ids": here.tokens([other])},
                answers=1,
            ),
            text,
            other,
        )
        for text, other in [here.program.example, *pairs[:PAIRS]]
    ]


def effects(table: Table) -> dict[tuple[str, int, int], float]:
    """Return the share of the total effect that every cell restores."""
    (total,) = table.meta["total_effect"]
    return {(row["component"], row["layer"], row["position"]): row["indirect_effect"] / total for row in table.rows()}


@cache
def verdict() -> Verdict:
    """Return where the effect is in the program's own pair, of which it is known where the texts differ."""
    return Verdict.of(effects(traced()[0][0]), load("frac_prevs").program.places)


def off() -> float:
    """Return by how much clean and corrupted probabilities are off those of the numbers that the program says."""
    say = load("frac_prevs").program.run
    found = 0.0
    for table, *each in traced():
        for name, text in zip(("clean", "corrupted"), each, strict=True):
            expected = torch.sigmoid(torch.tensor(STEEP * say(text)[-1], dtype=torch.float64))
            found = max(found, abs(table.meta[name][0] - float(expected)))
    return found


def at_the_end() -> float:
    """Return how far from all of the effect it is, at most, that the answering token's last state restores."""
    last = load("frac_prevs").model.config.n_layer - 1
    return max(abs(effects(table)["block_output", last, len(text)] - 1) for table, text, _ in traced())


def letters() -> float:
    """Return by how much restoring a letter's first state is off what the program says of the text with that letter.

    The number is what it is of the corrupted text with one letter of the clean one, so that the restored probability is
    known in every text and at every letter.
    """
    say = load("frac_prevs").program.run
    found = 0.0
    for table, text, other in traced():
        first = {row["position"]: row["restored"] for row in table.rows()
                 if (row["component"], row["layer"]) == ("block_output", 0)}  # fmt: skip
        for place, letter in enumerate(text):
            mixed = (*other[:place], letter, *other[place + 1 :])
            expected = torch.sigmoid(torch.tensor(STEEP * say(mixed)[-1], dtype=torch.float64))
            found = max(found, abs(first[1 + place] - float(expected)))
    return found


def table() -> str:
    """Return what was found as text."""
    found = verdict()
    return (
        f"{'tracing of a number':<38}{'places':>8}{'least':>9}{'most':>9}{'elsewhere':>12}{'of':>6}\n"
        f"  {'causal_tracing, frac_prevs':<36}{found.at:>8}{found.least:>9.4f}{found.most:>9.4f}"
        f"{found.elsewhere:>12.1e}{found.cells:>6}"
    )


FACTS = [
    Fact("frac_prevs, causal_tracing: least at the truth", lambda: verdict().least, 1 - 1e-3, 1 + 1e-3),
    Fact("frac_prevs, causal_tracing: most at the truth", lambda: verdict().most, 1 - 1e-3, 1 + 1e-3),
    Fact("frac_prevs, causal_tracing: elsewhere", lambda: verdict().elsewhere, 0, EXACT),
    Fact("frac_prevs, causal_tracing: off the program's probabilities", off, 0, 1e-5),
    Fact("frac_prevs, causal_tracing: last states of the last token, off 1", at_the_end, 0, 1e-4),
    Fact("frac_prevs, causal_tracing: letters restored one by one, off the program", letters, 0, 1e-4),
]
