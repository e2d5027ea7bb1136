"""Every study on the compiled programs: its whole effect is where the program says, and nothing is anywhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from torch import Tensor

from align_transformers import (
    Claim,
    Metric,
    Site,
    Table,
    causal_scrubbing,
    causal_tracing,
    direct_logit_attribution,
    grid,
    logit_lens,
    path_patching,
)

from .compiled import PROGRAMS, Compiled, hidden, load, texts, wrong
from .fact import Fact

EXACT = 1e-5
COMPONENTS = ("block_output", "attention_output", "mlp_output")
CATEGORICAL = ("hist", "reverse", "sort")  # frac_prevs answers with a number, which has no probability


@dataclass(frozen=True)
class Verdict:
    """What a study found.

    Args:
        at: the places of the truth.
        least: the smallest of what it found there, as a share of what there is to find.
        most: the largest of what it found there.
        elsewhere: the largest, by size, of what it found anywhere else.
        cells: in how many places it looked.
    """

    at: int
    least: float
    most: float
    elsewhere: float
    cells: int

    @classmethod
    def of(cls, cells: dict[Any, float], truth: frozenset[Any]) -> Verdict:
        """Compare what was found in cells with the cells of the truth."""
        there = [cells[place] for place in truth]
        other = [abs(value) for place, value in cells.items() if place not in truth]
        return cls(len(there), min(there), max(there), max(other), len(cells))


def _inputs(here: Compiled, *each: Any) -> list[dict[str, Tensor]]:
    return [{"input_ids": here.tokens([text])} for text in each]


def _metric(here: Compiled) -> Metric | None:
    return None if len(here.outputs) > 1 else Metric("the number", _number)


def _number(logits: Tensor) -> Tensor:
    return logits[:, 0]


def _answers(here: Compiled) -> Any:
    return None if len(here.outputs) == 1 else tuple(map(here.answer, here.program.example))


def by_grid(name: str) -> Verdict:
    """Swap every component at every layer and token."""
    return _swapped(load(name))


def by_hidden_grid(name: str) -> Verdict:
    """Swap every component at every layer and token of the program whose coordinates are hidden behind a rotation."""
    return _swapped(hidden(name)[0])


def _swapped(here: Compiled) -> Verdict:
    base, source = _inputs(here, *here.program.example)
    table = grid(
        here.model, base, source, components=COMPONENTS, metric=_metric(here), answers=_answers(here), tokenizer=None
    )
    return Verdict.of(_cells(table, "recovered"), here.program.places)


def by_tracing(name: str) -> Verdict:
    """Restore every component at every layer and token in the other text's run."""
    here = load(name)
    clean, other = _inputs(here, *here.program.example)
    table = causal_tracing(
        here.model,
        clean,
        [1],
        components=COMPONENTS,
        window=1,
        counterfactual=other,
        answers=here.answer(here.program.example[0]),
    )
    total = table.meta["total_effect"][0]
    cells = {place: effect / total for place, effect in _cells(table, "indirect_effect").items()}
    return Verdict.of(cells, here.program.places)


def _cells(table: Table, value: str) -> dict[tuple[str, int, int], float]:
    return {(row["component"], row["layer"], row["position"]): row[value] for row in table.rows()}


def by_lens(name: str) -> Verdict:
    """Read the answer off every layer and token: it is there after the last block, where the program says it."""
    here = load(name)
    base = here.program.example[0]
    table = logit_lens(here.model, _inputs(here, base)[0], answers=here.answer(base), positions=range(1, 1 + len(base)))
    cells = {(row["layer"], row["position"]): row["logit"] for row in table.rows()}
    said, last = here.program.run(base), here.model.config.n_layer - 1
    return Verdict.of(cells, frozenset((last, 1 + n) for n, one in enumerate(said) if one == said[-1]))


def by_attribution(name: str) -> Verdict:
    """Take the answer's logit apart: one part makes it."""
    here = load(name)
    base = here.program.example[0]
    answer = 0 if len(here.outputs) == 1 else here.answer(base)
    table = direct_logit_attribution(here.model, _inputs(here, base)[0], answers=answer)
    cells = {
        (row["component"], row["layer"]): row["contribution"] / table.meta["logit"][0]
        for row in table.rows()
        if row["component"] != "attention_bias"
    }
    (end,) = (sender for sender, receiver in here.program.edges if receiver == "logits")
    component = "mlp_contribution" if end.startswith("m") else "head_contribution"
    return Verdict.of(cells, frozenset({(component, int(end[1]))}))


PAIRS = 24


def by_paths(name: str) -> Verdict:
    """Send from everything to everything, along each edge alone: the largest change of a logit over some pairs."""
    here = load(name)
    bases, sources = (here.tokens(list(texts(name, PAIRS, seed))) for seed in (1, 2))
    changed = Metric("change", _change, compares=True)
    receivers = [f"m{n}" for n in range(here.model.config.n_layer)] + ["logits"]
    receivers += [f"a{n}.h0<{read}>" for n in range(here.model.config.n_layer) for read in "qkv"]
    cells: dict[tuple[str, str], float] = {}
    for receiver in receivers:
        senders = [sender for sender in ("input", *_writers(here)) if _comes_before(sender, receiver)]
        table = path_patching(
            here.model,
            {"input_ids": bases},
            {"input_ids": sources},
            receiver,
            senders=senders,
            freeze="all",
            metric=changed,
        )
        for row in table.rows():
            edge = row["sender"], receiver
            cells[edge] = max(cells.get(edge, 0.0), abs(row["effect"]))
    return Verdict.of(cells, here.program.edges)


def _change(logits: Tensor, clean: Tensor) -> Tensor:
    return (logits - clean).abs().amax(-1)


def _writers(here: Compiled) -> Iterator[str]:
    for layer in range(here.model.config.n_layer):
        yield from (f"a{layer}.h0", f"m{layer}")


def _comes_before(sender: str, receiver: str) -> bool:
    order = {"i": -1, "a": 0, "m": 1}
    if sender == "input" or receiver == "logits":
        return True
    one, other = (2 * int(name[1]) + order[name[0]] for name in (sender, receiver))
    return one < other


DRAWS, DATA = 10, 60


@cache
def scrubbed(name: str, right: bool) -> Table:
    """Scrub the last layer at the last token: it depends on what the program says there, and not on the first letter.

    `reverse` is asked for its second letter instead, since its answer is the first.
    """
    here = load(name)
    data = list(dict.fromkeys(texts(name, DATA, seed=3)))
    labels = [here.program.run(text)[-1] for text in data]
    others = [text[1 if name == "reverse" else 0] for text in data]
    (end,) = (sender for sender, receiver in here.program.edges if receiver == "logits")
    site = Site("mlp_output" if end.startswith("m") else "attention_output", int(end[1]))
    claim = Claim(site, feature=labels if right else others, positions=[-1])
    prompts = {"input_ids": here.tokens(data)}
    if len(here.outputs) > 1:
        return causal_scrubbing(
            here.model, prompts, [claim], answers=[here.answer(text) for text in data], draws=DRAWS, seed=0
        )
    losses = [Metric(f"squared distance from {label}", _Squared(label)) for label in labels]
    return causal_scrubbing(here.model, prompts, [claim], metric=losses, draws=DRAWS, seed=0)


@dataclass(frozen=True)
class _Squared:
    label: float

    def __call__(self, logits: Tensor) -> Tensor:
        return (logits[:, 0] - self.label) ** 2


@cache
def coordinates() -> Verdict:
    """Swap every coordinate of frac_prevs' stream behind m0, at every token of some pairs.

    What must come of each is what the program says if `is_x` of that letter is the source's, and for every other
    coordinate what it said before. So IIA is 1 for one coordinate, and all others are inert.
    """
    here = load("frac_prevs")
    bases, sources = (list(texts("frac_prevs", PAIRS, seed)) for seed in (1, 2))
    given = ({"input_ids": here.tokens(side)} for side in (bases, sources))
    table = grid(here.model, *given, components=["block_output"], layers=[0], neurons=1, metric=_metric(here))
    (is_x,) = (number for number, label in enumerate(here.labels) if label.startswith("map_"))
    off: dict[tuple[int, bool], list[float]] = {}
    for row in table.rows():
        base, source = bases[row["pair"]], sources[row["pair"]]
        letter = row["position"] - 1
        taken = letter >= 0 and row["neuron"] == is_x
        text = (*base[:letter], source[letter], *base[letter + 1 :]) if taken else base
        here_off = row["metric"] - here.program.run(text)[-1]
        off.setdefault((row["neuron"], taken), []).append(here_off if not taken else float(abs(here_off) < EXACT))
    cells = {key: float(np.mean(values)) if key[1] else max(map(abs, values)) for key, values in off.items()}
    return Verdict.of(cells, frozenset({(is_x, True)}))


STUDIES: dict[str, tuple[Callable[[str], Verdict], tuple[str, ...]]] = {
    "grid": (by_grid, tuple(PROGRAMS)),
    "grid, rotated": (by_hidden_grid, tuple(PROGRAMS)),
    "causal_tracing": (by_tracing, CATEGORICAL),
    "path_patching, every edge": (by_paths, tuple(PROGRAMS)),
    "logit_lens": (by_lens, CATEGORICAL),
    "direct_logit_attribution": (by_attribution, tuple(PROGRAMS)),
}


@cache
def verdict(study: str, name: str) -> Verdict:
    """Return what a study found in a program."""
    return STUDIES[study][0](name)


def table() -> str:
    """Return what all studies found as text."""
    lines = [f"{'compiled programs':<38}{'places':>8}{'least':>9}{'most':>9}{'elsewhere':>12}{'of':>6}"]
    for study, (_, names) in STUDIES.items():
        for name in names:
            found = verdict(study, name)
            line = f"  {study + ', ' + name:<36}{found.at:>8}{found.least:>9.4f}{found.most:>9.4f}"
            lines.append(f"{line}{found.elsewhere:>12.1e}{found.cells:>6}")
    return "\n".join(lines)


def _facts() -> Iterator[Fact]:
    for name in PROGRAMS:
        yield Fact(f"{name}: texts that it gets wrong, of all", lambda name=name: wrong(name), 0, 0)
        yield Fact(f"{name}: off the compiler's own transformer", lambda name=name: load(name).error, 0, 1e-6)
    for study, (_, names) in STUDIES.items():
        few = (0.5, 1.001) if study.startswith("path") else (1 - 1e-3, 1 + 1e-3)
        for name in names:
            yield Fact(f"{name}, {study}: least at the truth", lambda s=study, n=name: verdict(s, n).least, *few)
            yield Fact(f"{name}, {study}: elsewhere", lambda s=study, n=name: verdict(s, n).elsewhere, 0, EXACT)
    for name in PROGRAMS:
        true, false = "loss recovered, true claim", "upper end, false claim (wrong)"
        yield Fact(
            f"{name}, causal_scrubbing: {true}", lambda n=name: scrubbed(n, True).meta["recovered"], 0.9999, 1.0001
        )
        yield Fact(f"{name}, causal_scrubbing: {false}", lambda n=name: scrubbed(n, False).meta["high"], -0.2, 0.5)
    yield Fact("frac_prevs, coordinates behind m0: IIA of is_x", lambda: coordinates().least, 1.0, 1.0)
    yield Fact("frac_prevs, coordinates behind m0: all others, change", lambda: coordinates().elsewhere, 0, EXACT)


FACTS = list(_facts())
