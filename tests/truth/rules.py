"""Gradients against exact swaps in SmolLM2, by the rule of the backward pass: the table is what it is.

Two tasks: who of two names gets the drink (only the name's second mention differs), and capitals. Cells are means over
pairs: heads, MLPs and residual streams by token. No rule is best everywhere, which is what the facts say: RelP ranks
heads far worse than the true gradient where paths go through queries and keys, which constant patterns cut, and its
estimates of MLPs are far better there.
"""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import numpy as np

from align_transformers import Table, attribution, grid, load_model

from .fact import Fact

RULES: dict[str, Any] = {
    "true gradient": "true", "frozen norm": "frozen_norm", "secant": "secant", "half": "half", "patterns": "patterns",
    "norm + secant + half": ["norm", "secant", "half"], "relp (all four)": "relp", "gim": "gim",
}  # fmt: skip
NAMES = "Mary John Tom James Dan Martin Amy Scott Mark Paul Anna Kate Peter Simon Laura Kevin".split()  # noqa: SIM905
CAPITALS = {"Spain": "Madrid", "Italy": "Rome", "France": "Paris", "Germany": "Berlin", "Portugal": "Lisbon"}
PARTS: dict[str, dict[str, Any]] = {
    "heads": {"components": ["attention_value_output"], "heads": "all"},
    "MLPs": {"components": ["mlp_output"]},
    "streams": {"components": ["block_output"]},
}


def _names(count: int) -> dict[str, Any]:
    """Return pairs of sentences in which the other name is mentioned again, and the answers of both."""
    drawn = [random.Random(n).sample(NAMES, 2) for n in range(count)]
    text = "Then, {} and {} went to the store. {} gave a drink to"
    both = [[text.format(a, b, last) for last in (b, a)] for a, b in drawn]
    base, source = (list(side) for side in zip(*both, strict=True))
    return {"base": base, "source": source, "answers": [(f" {a}", f" {b}") for a, b in drawn], "last": 5}


def _capitals(count: int) -> dict[str, Any]:
    """Return pairs of countries whose capitals are asked for, and these."""
    drawn = [random.Random(n).sample(list(CAPITALS), 2) for n in range(count)]
    base, source = ([f"The capital of {pair[k]} is" for pair in drawn] for k in (0, 1))
    answers = [(f" {CAPITALS[a]}", f" {CAPITALS[b]}") for a, b in drawn]
    return {"base": base, "source": source, "answers": answers, "last": 2}


TASKS = {"names": _names(4), "capitals": _capitals(6)}


@cache
def _model() -> dict[str, Any]:
    model, tokenizer = load_model("smollm2-135m")
    return {"model": model, "tokenizer": tokenizer}


def _cells(table: Table) -> Any:
    """Return the mean effect of each cell over pairs: cells of a pair stand in one order."""
    pairs: dict[int, list[float]] = {}
    for pair, effect in zip(table.columns["pair"], table.columns["effect"], strict=True):
        pairs.setdefault(pair, []).append(effect)
    return np.asarray(list(pairs.values())).mean(0)


@cache
def _exact(task: str, part: str) -> Any:
    return _cells(grid(**_model(), **TASKS[task], **PARTS[part]))


@cache
def _agreement(task: str, part: str, rule: str) -> tuple[float, float]:
    """Return Pearson's and Spearman's correlation of estimates with exact swaps."""
    table = attribution(**_model(), **TASKS[task], **PARTS[part], rule=RULES[rule], verify=0)
    both = np.stack([_exact(task, part), _cells(table)])
    pearson, spearman = (float(np.corrcoef(one)[0, 1]) for one in (both, both.argsort(-1).argsort(-1)))
    return pearson, spearman


def table() -> str:
    """Return Pearson's and Spearman's correlation by rule, task and component."""
    columns = [(task, part) for task in TASKS for part in PARTS]
    head = "".join(f"{f'{task}, {part}':>22}" for task, part in columns)
    lines = [f"{'rule: Pearson / Spearman with exact swaps':<42}{head}"]
    for rule in RULES:
        each = [_agreement(task, part, rule) for task, part in columns]
        lines.append(f"{rule:<42}" + "".join(f"{f'{one:.3f} / {other:.3f}':>22}" for one, other in each))
    sizes = ", ".join(f"{task}, {part}: {len(_exact(task, part))}" for task, part in columns)
    counts = ", ".join(str(len(task["base"])) for task in TASKS.values())
    return "\n".join([*lines, f"cells: {sizes}; means over {counts} pairs"])


def _true(task: str, *parts: str) -> float:
    return min(_agreement(task, part, "true gradient")[0] for part in parts)


def _gained(number: int, part: str) -> float:
    """Return by how much RelP raises Pearson's (0) or Spearman's (1) correlation in the names."""
    true, rule = (_agreement("names", part, name)[number] for name in ("true gradient", "relp (all four)"))
    return rule - true


FACTS = [
    Fact("names, heads: Pearson of the true gradient", lambda: _true("names", "heads"), 0.7, 1.0),
    Fact("capitals: least Pearson of the true gradient", lambda: _true("capitals", *PARTS), 0.8, 1.0),
    Fact("names, heads: Spearman of RelP - that of the true gradient", lambda: _gained(1, "heads"), -2.0, -0.3),
    Fact("names, MLPs: Pearson of RelP - that of the true gradient", lambda: _gained(0, "MLPs"), 0.2, 2.0),
]
