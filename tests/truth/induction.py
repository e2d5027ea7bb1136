"""Induction: a model of two layers of attention alone that goes on with what was said before (Olsson et al. 2022).

Head 3 of the first layer writes to each token what stood before it; with that, head 0 of the second layer finds the
place behind an earlier occurrence of the token that is read now, and says what stands there (arXiv:2209.11895). That no
other head does is made sure in the training (`make_induction.py`); what the heads read and write is learned.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from align_transformers import (
    Claim,
    Site,
    Table,
    accuracy,
    attention_patterns,
    causal_scrubbing,
    direct_logit_attribution,
    grid,
    logit_lens,
    path_patching,
)
from align_transformers.zoo import TransformerLMHeadModel, create_induction_lm

from .fact import Fact
from .repeats import HALF, INDUCTION, LENGTH, PREVIOUS, SIZES, before, behind, held_out, repeats, top_1

TEXTS = 128
SENDS, READS = f"a0.h{PREVIOUS}", f"a1.h{INDUCTION}"
SENDERS = ("input", *(f"a0.h{head}" for head in range(SIZES.n_head)))
RECEIVERS = (f"{READS}<q>", f"{READS}<k>", f"{READS}<v>", "logits")


@cache
def model() -> TransformerLMHeadModel:
    """Return the trained model."""
    return create_induction_lm()[2]


@cache
def texts() -> tuple[dict[str, Any], dict[str, Any], list[int], list[int]]:
    """Return texts, as many others, where each is read in its second half, and what comes next there."""
    generator = torch.Generator().manual_seed(5)
    base, source = repeats(TEXTS, generator), repeats(TEXTS, generator)
    at = torch.randint(HALF, LENGTH - 1, (TEXTS,), generator=generator)
    answers = base[torch.arange(TEXTS), at + 1]
    return {"input_ids": base}, {"input_ids": source}, at.tolist(), answers.tolist()


@cache
def path(receiver: str) -> dict[str, float]:
    """Return for each sender how often the answer is right when what it tells a receiver is that of another text."""
    base, source, at, answers = texts()
    senders = [*SENDERS, *(f"a1.h{head}" for head in range(SIZES.n_head) if receiver == "logits")]
    right = {"top_1": [accuracy(answer) for answer in answers]}
    table = path_patching(model(), base, source, receiver, senders=senders, freeze="all", metrics=right, at=at)
    return {row["sender"]: row["top_1"] for row in table.mean(("sender",), value="top_1").rows()}


PERIOD, SHORT, DATA, DRAWS = 12, 16, 256, 4
SEEN, NEXT = 3, 4
"""The last token of `SHORT` stood at `SEEN` before, and the answer is the token at `NEXT`."""


@cache
def scrubbed(which: str) -> Table:
    """Scrub texts of one period: the logits come of the induction head, and that of three things.

    Its query depends on the token that is read, its value on the token behind the earlier one. The hypotheses differ
    in what its keys depend on.

    Args:
        which: `naive`: on the token that stands there; `one key`: at the one place that matters on the token before,
            by way of the head that looks there, and nothing at all at the others; `refined`: on that head everywhere.
    """
    data = repeats(DATA, torch.Generator().manual_seed(7), period=PERIOD, length=SHORT)
    read, answers, itself = data[:, SEEN].tolist(), data[:, NEXT].tolist(), list(range(DATA))
    own = (INDUCTION,)

    def told_by(head: int, feature: list[int], at: list[int] | None) -> Claim:
        return Claim(Site("head_output", 0), feature, at, heads=(head,))

    token, nothing = Claim(Site("embedding_output"), itself), [0] * DATA
    keys = Site("key_output", 1)
    claims = {
        "naive": Claim(keys, itself, children=(token, told_by(PREVIOUS, feature=nothing, at=None)), heads=own),
        "one key": Claim(keys, read, [NEXT], (told_by(PREVIOUS, feature=read, at=[NEXT]),), own),
        "refined": Claim(keys, itself, children=(told_by(PREVIOUS, feature=itself, at=None),), heads=own),
    }
    query = Claim(Site("query_output", 1), read, [-1], (Claim(Site("embedding_output"), read, [-1]),), own)
    value = Claim(Site("value_output", 1), answers, [NEXT], heads=own)
    both = list(zip(read, answers, strict=True))
    head = Claim(
        Site("head_output", 1), both if which == "one key" else itself, [-1], (query, claims[which], value), own
    )
    return causal_scrubbing(model(), {"input_ids": data}, [head], answers=answers, draws=DRAWS, seed=0)


@cache
def attributed() -> dict[tuple[str, int], float]:
    """Return what share of the answer's logit each head, and the embeddings, add."""
    base, _, at, answers = texts()
    table = direct_logit_attribution(model(), base, answers=answers, at=at)
    whole = sum(table.meta["logit"]) / TEXTS
    parts = table.mean(("component", "layer", "head"), value="contribution").rows()
    return {
        (f"a{row['layer']}.h{row['head']}" if row["head"] is not None else row["component"], row["layer"]): (
            row["contribution"] / whole
        )
        for row in parts
    }


@cache
def patched() -> dict[str, float]:
    """Return what share of the way to the other text's answer each head of the second layer goes by itself."""
    base, source, at, answers = texts()
    others = source["input_ids"][torch.arange(TEXTS), torch.tensor(at) + 1].tolist()
    two = [(own, other) for own, other in zip(answers, others, strict=True)]
    kept = [number for number, (own, other) in enumerate(two) if own != other]
    base, source = ({"input_ids": one["input_ids"][kept]} for one in (base, source))
    table = grid(
        model(),
        base,
        source,
        components=["head_output"],
        layers=[1],
        heads="all",
        positions=None,
        answers=[two[number] for number in kept],
        at=[at[number] for number in kept],
    )
    return {f"a1.h{row['head']}": row["recovered"] for row in table.mean(("head",), value="recovered").rows()}


@cache
def ranks() -> list[float]:
    """Return how often the answer is the most probable token, read off each layer at the token that is read."""
    base, _, at, answers = texts()
    rows = []
    for position in sorted(set(at)):
        some = [number for number, one in enumerate(at) if one == position]
        given, named = {"input_ids": base["input_ids"][some]}, [answers[number] for number in some]
        rows += logit_lens(model(), given, positions=[position], answers=named, top=0).rows()
    return [sum(row["rank"] == 0 for row in rows if row["layer"] == layer) / TEXTS for layer in range(SIZES.n_layer)]


@cache
def looks() -> tuple[list[float], list[float]]:
    """Return what each head gives, the mean over queries of some texts.

    Of the first layer to the token before, in the first half: there the keys are that the induction head looks at. Of
    the second to those behind earlier occurrences of the token, in the second half.
    """
    tokens = held_out(8)
    table = attention_patterns(model(), {"input_ids": tokens})
    shares = torch.zeros(SIZES.n_layer, SIZES.n_head, len(tokens), LENGTH, LENGTH)
    places = [torch.tensor(table.columns[name]) for name in ("layer", "head", "prompt", "query", "key")]
    shares[tuple(places)] = torch.tensor(table.columns["attention"], dtype=torch.float32)
    first, second = (
        (shares[layer] * mask)[:, :, queries].sum(-1).mean((1, 2)).tolist()
        for layer, mask, queries in ((0, before(tokens), slice(1, HALF)), (1, behind(tokens), slice(HALF, None)))
    )
    return first, second


def _most(shares: list[float], but: int) -> float:
    return max(share for head, share in enumerate(shares) if head != but)


def table() -> str:
    """Return the paths and hypotheses as text."""
    found = {receiver: path(receiver) for receiver in RECEIVERS}
    senders = list(found["logits"])
    lines = [
        f"{'induction: top-1 when the text along one path is another':<58}" + "".join(f"{r:>10}" for r in RECEIVERS)
    ]
    for sender in senders:
        cells = (f"{found[r][sender]:>10.3f}" if sender in found[r] else f"{'':>10}" for r in RECEIVERS)
        lines.append(f"  {sender:<56}{''.join(cells)}")
    lines.append(f"\n{'  keys of the induction head depend on':<58}{'recovered':>10}{'from':>9}{'to':>9}{'draws':>8}")
    for which in ("naive", "one key", "refined"):
        meta = scrubbed(which).meta
        line = f"    {which:<54}{meta['recovered']:>10.3f}{meta['low']:>9.3f}{meta['high']:>9.3f}{meta['draws']:>8}"
        lines.append(line)
    return "\n".join(lines)


def _worst(receiver: str, *but: str) -> float:
    return min(value for sender, value in path(receiver).items() if sender not in but)


def _largest(shares: dict[Any, float], but: Any) -> float:
    return max(abs(value) for name, value in shares.items() if name != but)


def _apart() -> float:
    return float(scrubbed("refined").meta["low"] - scrubbed("naive").meta["high"])


FACTS = [
    Fact("induction: top-1 in the second half, texts not trained on", lambda: top_1(model()), 0.98, 1.0),
    Fact("induction, attention_patterns: a0.h3, to the token before", lambda: looks()[0][PREVIOUS], 0.8, 1.0),
    Fact("induction, attention_patterns: other heads, at most", lambda: _most(looks()[0], PREVIOUS), 0.0, 0.05),
    Fact("induction, attention_patterns: a1.h0, to what comes next", lambda: looks()[1][INDUCTION], 0.9, 1.0),
    Fact("induction, attention_patterns: other heads of it, at most", lambda: _most(looks()[1], INDUCTION), 0.0, 0.05),
    Fact(f"induction, path_patching: top-1 without {SENDS} -> {READS}<k>", lambda: path(RECEIVERS[1])[SENDS], 0.0, 0.2),
    Fact(f"induction, path_patching: without any other -> {READS}<k>", lambda: _worst(RECEIVERS[1], SENDS), 0.95, 1.0),
    Fact(f"induction, path_patching: without {SENDS} -> {READS}<q>", lambda: path(RECEIVERS[0])[SENDS], 0.95, 1.0),
    Fact(f"induction, path_patching: without input -> {READS}<q>", lambda: path(RECEIVERS[0])["input"], 0.0, 0.3),
    Fact(f"induction, path_patching: without {SENDS} -> {READS}<v>", lambda: path(RECEIVERS[2])[SENDS], 0.95, 1.0),
    Fact(f"induction, path_patching: without {READS} -> logits", lambda: path("logits")[READS], 0.0, 0.1),
    Fact("induction, path_patching: without any other -> logits", lambda: _worst("logits", READS), 0.95, 1.0),
    Fact(f"induction, grid: recovered by {READS}", lambda: patched()[READS], 0.9, 1.1),
    Fact("induction, grid: by any other head of the layer", lambda: _largest(patched(), READS), 0.0, 0.05),
    Fact(f"induction, attribution: share of {READS}", lambda: attributed()[READS, 1], 0.9, 1.1),
    Fact("induction, attribution: any other part", lambda: _largest(attributed(), (READS, 1)), 0.0, 0.05),
    Fact("induction, logit_lens: top-1 behind the first layer", lambda: ranks()[0], 0.0, 0.1),
    Fact("induction, logit_lens: top-1 behind the second", lambda: ranks()[1], 0.98, 1.0),
    Fact("induction, scrubbing: loss recovered, naive", lambda: scrubbed("naive").meta["recovered"], 0.2, 0.7),
    Fact("induction, scrubbing: loss recovered, one key", lambda: scrubbed("one key").meta["recovered"], 0.9, 0.99),
    Fact("induction, scrubbing: loss recovered, refined", lambda: scrubbed("refined").meta["recovered"], 0.99, 1.001),
    Fact("induction, scrubbing: low end, refined, minus high end, naive", _apart, 0.2, 0.8),
]
