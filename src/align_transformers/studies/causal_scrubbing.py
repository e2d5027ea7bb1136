"""Causal scrubbing: a hypothesis says what each part depends on; all else is exchanged, and the loss should stay.

Chan et al. 2022, "Causal scrubbing: a method for rigorously testing interpretability hypotheses".
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
from numpy.random import Generator
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from .._checked import checked, checked_class
from .._errors import PositionError, SpecError
from ..anchors import Spots
from ..engine import Planner
from ..interventions import VanillaIntervention
from ..metrics import Metric, Metrics
from ..models import find_slot
from ..plan import Edit, Logits, Read, Run
from ..positions import Positions
from ..sites import Site
from ..table import Table
from ._cell_run import CellRun
from ._data import Prompt
from ._feeds import refuse_unfed
from ._places import places_of
from ._prompts import Prompts, encode
from ._scoring import metrics_for, token_of_each, tokens_of, values_of
from ._sweep import Clean, Measurement, Scorer, Sweep


@checked_class
@dataclass(frozen=True)
class Claim:
    """What a site depends on: a feature of the input, and nothing else; and what the sites before it depend on.

    Args:
        site: where.
        feature: its value for each prompt: inputs of equal values may be exchanged.
        positions: numbers from 0 over the real tokens, negative ones from the end, `"last"` or anchors, for all prompts
            or a list for each; in all prompts as many tokens. `None`: everywhere.
        children: claims about sites that this one is computed from. Whatever else it is computed from is claimed not to
            matter. Without children the whole input is exchanged for one with the same feature.
        heads: numbers of the site's heads that the claim is about, of a site that has heads; `None`: all of it.

    Raises:
        SpecError: a child lies behind it, or `heads` names none.

    >>> Claim(Site("mlp_output", 1), feature=[0, 1], children=(Claim(Site("mlp_output", 0), feature=[0, 0]),)).count
    2
    """

    site: Site
    feature: Sequence[Hashable]
    positions: Spots | None = None
    children: tuple[Claim, ...] = ()
    heads: Sequence[int] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "children", tuple(self.children))
        if self.heads is not None and not self.heads:
            raise SpecError(f"heads of {self.site} names none; None is all of it")
        for child in self.children:
            if child.site.stack == self.site.stack and _depth(child.site, self.site) > _depth(self.site, child.site):
                raise SpecError(f"{self.site} is not computed from {child.site}, which lies behind it")

    @property
    def count(self) -> int:
        """How many claims there are with it and below it."""
        return 1 + sum(child.count for child in self.children)


def _depth(site: Site, other: Site) -> tuple[int, int]:
    """Return what says of two sites of one stack which lies behind the other, as far as their names tell."""
    if site.layer is None or other.layer is None or site.definition is None:
        return (0, 0)  # a path, or an end of the model: not known
    return site.layer, ("input", "inside", "output").index(site.definition.point)


@checked
def causal_scrubbing(
    model: nn.Module,
    prompts: Prompt,
    hypothesis: Sequence[Claim],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    columns: Mapping[str, str] | None = None,
    answers: int | str | Sequence[int | str] | None = None,
    metric: Metrics | None = None,
    draws: int = 10,
    seed: int = 0,
    together: bool = False,
    store: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | bool | None = None,
    planner: Planner | None = None,
) -> Table:
    """Exchange all that a hypothesis says does not matter, and tell how much of the loss is recovered.

    The logits are computed of another prompt, drawn at random, with the claimed sites put in. A claimed site of prompt
    x is computed of a prompt x' drawn from those that have the same feature as x; where it has claims below it, these
    are computed likewise for x', and all else of one more prompt drawn at random. The *loss recovered* is (scrubbed -
    random) / (model - random): `random` is the loss where the logits are those of a prompt drawn at random, with the
    label of x. Every claim in the tree draws for itself, with replacement; where a value is rare it may draw x itself.

    Args:
        model: a language model, or any model that gives logits for `input_ids`, in whatever mode; it is not changed.
        prompts: texts, token tensors, or data with columns, as for `grid`: all of the data.
        hypothesis: claims about what the logits are computed from.
        tokenizer: needed where prompts or answers are texts.
        columns: what the columns `base` (the prompts) and `base_answer` are called in the data, where they are called
            otherwise. Further ones are the fields of anchors.
        answers: the label, one token (id or text) for all prompts or for each: the loss is -log p(label), in nats.
            Default: the column of the data.
        metric: another loss, for all prompts or one for each.
        draws: how often each prompt is scrubbed.
        seed: of the draws.
        together: what is claimed not to matter is of one prompt for the whole tree, not of one for each claim.
        store: a folder that parts are written to; an equal call goes on where a killed one was.
        progress: called after every pass with the cells done and the cells in all; `True` for a bar (rich).
        planner: as for `execute`.

    Returns:
        A `Table`, one row a prompt and draw: the losses `scrubbed`, `random` and `model`; `drawn`, the prompt that each
        claim drew, claims before those below them; `unclaimed`, those that all else was computed of, of the logits
        first, then of each claim with claims below it; `random_prompt`, the one of `random`. `meta` has `recovered`, a
        ratio of means over all rows, with `low` and `high` (95 % bootstrap interval over the draws), and `itself`: for
        each claim how often it drew the very prompt that it was to be like; `random_itself`: how often `random` did.

    Raises:
        SpecError: a feature has not one value for each prompt, neither answers nor a metric are given, a claim without
            positions where lengths differ, a site does not change with one below it, or an argument makes no sense.
        PositionError: a prompt has no such position, or another number of tokens there.

    Example:
        >>> import torch, transformers
        >>> _ = torch.manual_seed(0)
        >>> sizes = dict(vocab_size=50, n_embd=16, n_head=2, n_layer=2, n_positions=8)
        >>> model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).eval()
        >>> prompts = {"input_ids": torch.tensor([[1, 5], [2, 5], [3, 6]])}
        >>> claim = Claim(Site("block_output", 1), feature=["a", "b", "c"])  # each may be exchanged for itself alone
        >>> table = causal_scrubbing(model, prompts, [claim], answers=[7, 8, 9], draws=2)
        >>> round(table.meta["recovered"], 4), table.meta["itself"]
        (1.0, [1.0])
    """
    encoded = encode(prompts, tokenizer, model, columns)
    labels = encoded.answers if answers is None and metric is None else answers
    losses = metrics_for(_losses(labels, metric, len(encoded), tokenizer), None, len(encoded), "prompts") or {}
    if seed < 0:
        raise SpecError(f"seed is a number from 0; found {seed}")
    if draws < 1 or not hypothesis:
        raise SpecError(
            f"draws is a number from 1, and a hypothesis has at least one claim; found {draws}, {hypothesis!r}"
        )
    tree = _Resampling(encoded, np.random.default_rng(seed), together, draws)
    for claim in hypothesis:
        tree.check(claim, model)
    refuse_unfed(model, encoded, hypothesis)
    runs, itself = tree.runs(hypothesis)
    sweep = Sweep(
        "causal_scrubbing",
        {"data": encoded.inputs},
        (Run("clean", "data"),),
        runs,
        {"swap": VanillaIntervention()},
        _LossScoring(losses[""]),
        Logits(tokens_of(losses, model)),
        facts={"metric": metric, "answers": answers},
    )
    cells = sweep.table(model, store=store, progress=progress, planner=planner)
    asked = {"draws": draws, "seed": seed, "together": together, "prompts": list(encoded.texts)}
    return _compared(cells, {**asked, "itself": itself})


def _losses(
    answers: Any, metric: Any, count: int, tokenizer: PreTrainedTokenizerBase | None
) -> Metric | Sequence[Metric]:
    """Return the loss of all prompts, or of each."""
    if (answers is None) == (metric is None):
        raise SpecError("the loss is that of answers=, the label of each prompt, or a metric=: give one of them")
    if metric is not None:
        return metric
    each = [answers] * count if isinstance(answers, int | str) else list(answers)
    tokens = token_of_each(each, count, tokenizer)
    return [Metric(f"loss({answer!r})", _Loss(token)) for answer, token in zip(each, tokens, strict=True)]


@dataclass(frozen=True)
class _Loss:
    """-log p of a token, in nats."""

    token: int

    def __call__(self, logits: Tensor) -> Tensor:
        return -logits.log_softmax(-1)[:, self.token]


# --- what is drawn, and the runs --------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Resampling:
    """Draws prompts and makes the runs. Each has a line for every prompt and draw.

    Args:
        prompts: the data.
        random: what is drawn from.
        together: one prompt for all that is unclaimed.
        draws: for each prompt.
    """

    prompts: Prompts
    random: Generator
    together: bool
    draws: int

    def check(self, claim: Claim, model: nn.Module) -> None:
        """Refuse claims that make no sense of these prompts."""
        find_slot(model, claim.site)
        lengths = [len(row) for row in self.prompts.tokens(claim.site.sequence).ids]
        if len(claim.feature) != len(self.prompts):
            raise SpecError(
                f"the feature of {claim.site} has {len(claim.feature)} values, there are {len(self.prompts)} prompts"
            )
        if claim.positions is None and len(set(lengths)) > 1:
            raise SpecError(
                f"{claim.site}: prompts have {min(lengths)} to {max(lengths)} tokens, so whole sequences cannot be "
                "exchanged: name positions, such as [-1]"
            )
        if claim.positions is not None:
            counts = [len(row) for row in self._rows(claim)]
            other = next((number for number, count in enumerate(counts) if count != counts[0]), 0)
            if counts[other] != counts[0]:
                raise PositionError(
                    f"{claim.site}: {claim.positions!r} are {counts[0]} tokens of prompt 0, and {counts[other]} of "
                    f"prompt {other}, which cannot be exchanged: name one token with first_token or last_token"
                )
        for child in claim.children:
            self.check(child, model)

    def runs(self, hypothesis: Sequence[Claim]) -> tuple[tuple[CellRun, CellRun], list[float]]:
        """Return the scrubbed run and the one of prompts drawn at random; and how often claims drew the same prompt."""
        asked = np.repeat(np.arange(len(self.prompts)), self.draws)
        others = self._any(asked)
        found = _Drawn([], [others], [], [])
        edits = [self._put(claim, f"{number}", asked, others, found) for number, claim in enumerate(hypothesis)]
        cells = [{"prompt": int(prompt), "draw": n % self.draws} for n, prompt in enumerate(asked)]
        drawn = zip(np.stack(found.drawn, 1).tolist(), np.stack(found.others, 1).tolist(), strict=True)
        scrubbed = tuple(
            {"kind": "scrubbed", **cell, "drawn": tuple(own), "unclaimed": tuple(rest)}
            for cell, (own, rest) in zip(cells, drawn, strict=True)
        )
        examples = tuple(self._any(asked).tolist())
        plain = tuple(
            {"kind": "random", **cell, "drawn": (), "unclaimed": (one,)}
            for cell, one in zip(cells, examples, strict=True)
        )
        runs = (
            CellRun(Run("scrubbed", "data", tuple(edits), tuple(others.tolist())), scrubbed, tuple(found.runs)),
            CellRun(Run("random", "data", (), examples), plain),
        )
        return runs, found.itself

    def _put(self, claim: Claim, name: str, like: np.ndarray, into: np.ndarray, found: _Drawn) -> Edit:
        """Return the edit that puts in what a claimed site is of prompts that share its feature with `like`."""
        own = self._alike(claim.feature, like)
        found.drawn.append(own)
        found.itself.append(float(np.mean(own == like)))
        inside = own
        if claim.children:
            inside = found.others[0] if self.together else self._any(like)
            found.others.append(inside)
        edits = [self._put(child, f"{name}.{n}", own, inside, found) for n, child in enumerate(claim.children)]
        run = Run(f"claim {name}", "data", tuple(edits), tuple(inside.tolist()))
        found.runs.append(run)
        heads = None if claim.heads is None else (tuple(claim.heads),) * len(like)
        places = [replace(self._places(claim, lines), heads=heads) for lines in (into, inside)]
        return Edit(f"claim {name}", claim.site, "swap", places[0], source=Read(run.name, claim.site, places[1]))

    def _places(self, claim: Claim, lines: np.ndarray) -> Positions:
        if claim.positions is None:
            return Positions()
        rows = self._rows(claim)
        return Positions(tuple(rows[line] for line in lines))

    def _rows(self, claim: Claim) -> list[tuple[int, ...]]:
        """Return the columns of a claim in each prompt."""
        stack = claim.site.sequence
        starts = self.prompts.tokens(stack).starts
        each = places_of(self.prompts, stack, "all" if claim.positions is None else claim.positions)
        return [tuple(start + n for one in own for n in one.tokens) for start, own in zip(starts, each, strict=True)]

    def _any(self, like: np.ndarray) -> np.ndarray:
        return self.random.integers(len(self.prompts), size=len(like))

    def _alike(self, feature: Sequence[Hashable], like: np.ndarray) -> np.ndarray:
        groups: dict[Hashable, list[int]] = {}
        for number, value in enumerate(feature):
            groups.setdefault(value, []).append(number)
        return np.array([self.random.choice(groups[feature[line]]) for line in like])


@dataclass(eq=False)
class _Drawn:
    """What was drawn so far.

    Args:
        drawn: for each claim the prompt of each line.
        others: for the logits, and each claim with claims below it, the prompt that the rest of each line is of.
        runs: that make the claimed sites.
        itself: for each claim, how often the prompt was the one that it was to be like.
    """

    drawn: list[np.ndarray]
    others: list[np.ndarray]
    runs: list[Run]
    itself: list[float]


# --- what came of it --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _LossScoring:
    """Makes the scorer when the clean runs are in."""

    losses: Sequence[Metric]

    def __call__(self, clean: Clean) -> _LossScorer:
        return _LossScorer(self.losses, clean)


@final
@dataclass(frozen=True, eq=False)
class _LossScorer(Scorer):
    """The loss of each line, with the label of its own prompt."""

    losses: Sequence[Metric]
    clean: Clean

    def rows(self, found: Measurement) -> Iterator[dict[str, float]]:
        """Yield the loss in each cell."""
        prompts = [cell["prompt"] for cell in found.cells]
        for value in self._of(found.logits, prompts):
            yield {"loss": value}

    def meta(self) -> dict[str, Any]:
        """Return the losses of the unedited model."""
        return {"model_losses": self._of(self.clean.logits["clean"], range(len(self.losses)))}

    def _of(self, logits: Tensor, prompts: Sequence[int]) -> list[float]:
        clean = self.clean.logits["clean"][list(prompts)]
        return values_of([self.losses[prompt] for prompt in prompts], logits, clean, self.clean.tokens)


def _compared(cells: Table, facts: Mapping[str, Any]) -> Table:
    """Return the table with a row a prompt and draw, and what of the loss is recovered."""
    kinds = {kind: [row for row in cells.rows() if row["kind"] == kind] for kind in ("scrubbed", "random")}
    whole: list[float] = cells.meta["model_losses"]
    rows = [
        {
            **{name: row[name] for name in ("prompt", "draw", "drawn", "unclaimed")},
            "random_prompt": other["unclaimed"][0],
            "scrubbed": row["loss"],
            "random": other["loss"],
            "model": whole[row["prompt"]],
        }
        for row, other in zip(kinds["scrubbed"], kinds["random"], strict=True)
    ]
    recovered, low, high = _recovered(rows, facts["draws"], facts["seed"])
    by_chance = float(np.mean([row["random_prompt"] == row["prompt"] for row in rows]))
    made = {name: cells.meta[name] for name in ("model", "identity", "version", "versions", "passes")}
    ends = {"recovered": recovered, "low": low, "high": high, "random_itself": by_chance}
    return Table.from_rows(rows, meta={"study": "causal_scrubbing", **made, **facts, **ends})


def _recovered(
    rows: Sequence[Mapping[str, Any]], draws: int, seed: int
) -> tuple[float | None, float | None, float | None]:
    """Return the share of the loss that is recovered, a ratio of means over prompts and draws, and its interval.

    Draws are resampled for the interval; there is none for one. Nothing where the model does as a random prompt does.
    """
    parts = np.zeros((draws, 2))
    for row in rows:
        parts[row["draw"]] += row["scrubbed"] - row["random"], row["model"] - row["random"]
    above, below = parts.sum(0)
    if not below:
        return None, None, None
    if draws == 1:
        return float(above / below), None, None
    drawn = parts[np.random.default_rng(seed).integers(draws, size=(1000, draws))].sum(1)
    known = drawn[drawn[:, 1] != 0]
    low, high = np.quantile(known[:, 0] / known[:, 1], [0.025, 0.975])
    return float(above / below), float(low), float(high)
