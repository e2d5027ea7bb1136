"""Probes: can a label be read off a state, could anything, and does the model use the direction it is read along?

Hewitt and Liang 2019, arXiv:1909.03368 (control tasks); Geiger et al. 2021, arXiv:2106.02997 (interchange).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from .._bar import telling
from .._checked import checked
from .._errors import SpecError
from ..engine import Planner, bind
from ..metrics import Metrics
from ..models import evaluating
from ..plan import Plan, Read, Run
from ..planners import execute
from ..table import Table
from ._data import Prompt
from ._places import WhichPlaces
from ._probe_draws import LabelledPrompts, ProbeDraw, mean_over_groups
from ._probe_edits import PlaceDirections
from ._probe_fits import Erasure, estimator_of
from ._probe_places import ProbedPlace, places_probed
from ._probe_scoring import ProbeScoring, answers_of
from ._prompts import Prompts, ReadAt, Which, encode
from ._scoring import metrics_for
from ._sweep import Sweep

Progressing = Callable[[int, int], None]
_EFFECTS = {
    "swap": "swap_effect", "means_swap": "means_swap_effect", "random_swap": "random_swap_effect",
    "whole_swap": "whole_swap_effect", "erase": "erase_effect",
}  # fmt: skip
"""The columns of what edits do, by what is done."""


@checked
def probe(
    model: nn.Module,
    prompts: Prompt,
    labels: str | Sequence[Any],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    columns: Mapping[str, str] | None = None,
    components: Sequence[str] = ("block_output",),
    layers: Which = "all",
    positions: WhichPlaces = -1,
    groups: str | Sequence[Any] | None = None,
    types: str | Sequence[Any] | None = None,
    estimator: Any = "logistic_regression",
    erasure: Erasure = "direction",
    folds: int = 5,
    draws: int = 3,
    answers: Mapping[Any, int | str] | Sequence[int | str] | None = None,
    metric: Metrics | None = None,
    at: ReadAt = -1,
    seed: int = 0,
    store: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | bool | None = None,
    planner: Planner | None = None,
) -> Table:
    """Read labels off the states of a place, and ask what the directions that this is done along do in the model's run.

    `accuracy` is that of probes on groups that they were not trained on. `selectivity` is the accuracy less that of
    probes of control labels, one drawn for each type from the labels there are, both where probes saw other prompts of
    the type: what a probe gets by knowing types alone. The directions are those of the same probes, and edits are made
    in prompts that they were not trained on: with Q the orthonormal columns that span the gradients of the scores (of
    two classes one), b the state of a prompt and s that of its partner, a prompt of another label, a swap makes b into
    b + Q Qᵀ(s - b), and erasing b - Q Qᵀ(b - mean). The effect is a metric after the edit less that before.

    Args:
        model: a language model of transformers, in whatever mode; it is not changed.
        prompts: one text or several, token tensors, or data with columns, as for `grid`.
        labels: one for each prompt: texts, numbers or truth values, of two or more classes; or the name of a column.
        tokenizer: needed where prompts or answers are texts.
        columns: what the columns `base` (the prompts) and `base_answer` are called in the data, where they are called
            otherwise. Further ones are the fields of anchors, and may be labels, groups and types.
        components: which states are read; of an encoder-decoder with the stack in front (`encoder.block_output`).
        layers: numbers from 0, negative ones from the end, or `"all"`.
        positions: one or several places, each probed by itself, of one token in every prompt: numbers over the real
            tokens, negative ones from the end, or anchors, for all prompts or a list for each; `"all"` of prompts that
            are as long as each other; or several with names, `{"subject": last_token("{country}"), "last": -1}`.
        groups: what each prompt belongs to, such as its entity: prompts of one group are trained on or tested, never
            both. Default: equal prompts are one group.
        types: what control labels go by, such as the word. Default: the groups.
        estimator: `logistic_regression` (of states divided by one number), `difference_of_means`, or a classifier or
            pipeline of scikit-learn whose scores are linear; where it draws, it gets the seed. Behind a
            `StandardScaler` the same accuracy comes with directions that hardly move a state.
        erasure: `direction`: the probe's own; `leace`: all that is linear of the label (`fit_eraser`).
        folds: of the cross-validation.
        draws: how often folds, control labels, partners and random directions are drawn: numbers are means over these.
        answers: a token for each label, or one for each prompt (default: the column of the data): the metric is then
            the logit of the partner's answer less that of the prompt's own, so that effects are positive as the model
            comes to answer like the partner.
        metric: another one, for all prompts or for each. Default, with no answers: how much of the probability of what
            the model itself says of a prompt is lost.
        at: where the metric is read, for all prompts or for each, as for `grid`.
        seed: of the draws.
        store: a folder that parts of the causal half are written to; an equal call goes on where a killed one was.
        progress: called after every place and pass with places and cells done, and of these in all; `True` for a bar.
        planner: as for `execute`.

    Returns:
        A `Table`, one row a component, layer and place (`position`, and `place` where places have names). Each of these
        with `<name>_low` and `<name>_high`, a 95 % bootstrap interval over groups: `accuracy`; `seen_accuracy` and
        `control_accuracy` (of types that were seen), `selectivity` (their difference); `swap_effect`,
        `means_swap_effect` (along the difference of means), `random_swap_effect` (as large a move along random
        directions), `whole_swap_effect` (all of the state), `erase_effect`. Besides `cosine` (between the probe's
        directions and the means', root mean square) and `n` (groups). `meta` has the classes with their counts,
        `majority` (the share of the largest), and with answers `solved`, the share of prompts whose own answer is the
        most probable of these.

    Raises:
        SpecError: a class is in fewer groups than there are folds, equal prompts stand in different groups, the
            estimator is not linear, or another argument makes no sense.
        PositionError: a prompt, which is named, has no such position.
        SiteError: the model has no such component.
        MissingExtraError: scikit-learn is not installed.

    Example:
        >>> import transformers
        >>> _ = torch.manual_seed(0)
        >>> sizes = dict(vocab_size=50, n_embd=16, n_head=2, n_layer=2, n_positions=8)
        >>> model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).eval()
        >>> ids = torch.tensor([[5 + n % 2, 10 + n, 4] for n in range(20)])
        >>> table = probe(model, {"input_ids": ids}, ids[:, 0].tolist(), positions=[0], layers=[-1], draws=1)
        >>> table.columns["accuracy"], abs(table.columns["swap_effect"][0]) < 1e-6  # read with ease, and used no more
        ((1.0,), True)
    """
    encoded = encode(prompts, tokenizer, model, columns)
    if metric is not None and answers is not None:
        raise SpecError("give answers= or metric=, not both")
    if folds < 2 or draws < 1 or seed < 0:
        raise SpecError(f"probes need folds >= 2, draws >= 1, seed >= 0; found {folds}, {draws} and {seed}")
    of = {name: _column(encoded, name, of) for name, of in (("labels", labels), ("groups", groups), ("types", types))}
    known = LabelledPrompts.of(**of, texts=_texts(encoded))
    places = places_probed(model, encoded, components, layers, positions)
    drawn = [ProbeDraw.of(known, folds, seed, number) for number in range(draws)]
    own = encoded.answers if answers is None and metric is None else answers
    scoring = ProbeScoring(
        len(encoded), answers_of(own, known, tokenizer), metrics_for(metric, None, len(encoded), "prompts")
    )
    asked = estimator_of(estimator, seed)
    wanted = scoring.logits(model, encoded, at)
    total = len(places) * (1 + len(encoded) * draws * len(_EFFECTS))
    with telling("probe", progress) as tell:
        states, passes = _states(model, encoded, places, planner)
        fits = []
        for number, (place, x) in enumerate(zip(places, states, strict=True), start=1):
            fits.append(PlaceDirections.of(place, x, known, drawn, asked, erasure))
            tell(number, total)
        runs = tuple(run for fit in fits for run in fit.runs(drawn))
        made = {name: one for fit in fits for name, one in fit.interventions().items()}
        clean = (Run("clean", "prompts"),)
        sweep = Sweep("probe", {"prompts": encoded.inputs}, clean, runs, made, scoring, wanted)
        cells = sweep.table(
            model, store=store, planner=planner, progress=lambda done, _: tell(len(places) + done, total)
        )
    kind = estimator if isinstance(estimator, str) else str(asked)
    facts = {"estimator": kind, "erasure": erasure, "folds": folds, "draws": draws, "seed": seed}
    passes += Counter(cells.meta["passes"])
    meta = {**cells.meta, **_facts(encoded, places, known), **facts, "passes": dict(passes)}
    return Table.from_rows(_rows(cells, fits, known, seed), meta=meta)


def _facts(prompts: Prompts, places: Sequence[ProbedPlace], known: LabelledPrompts) -> dict[str, Any]:
    """Return what the table says of the prompts and their labels."""
    counts, tokens = known.counts(), prompts.tokens(places[0].site.sequence)
    return {
        "study": "probe", "prompts": list(prompts.texts),
        "tokens": [list(row) for row in tokens.texts], "labels": counts,
        "majority": max(counts.values()) / len(known), "groups": known.n_groups, "types": known.n_types,
    }  # fmt: skip


# --- what is read -----------------------------------------------------------------------------------------------------


def _texts(prompts: Prompts) -> list[tuple[tuple[int, ...], ...]]:
    """Return what tells equal prompts."""
    return [tuple(tokens.ids[n] for tokens in prompts.sequences.values()) for n in range(len(prompts))]


def _column(prompts: Prompts, what: str, values: Any) -> Any:
    """Return what is given, or a column of the data where that is its name."""
    if not isinstance(values, str):
        return values
    known = list(prompts.fields[0]) if prompts.fields else []
    if values not in known:
        raise SpecError(f"{what}={values!r} is no column of the prompts; their columns: {known or 'they have none'}")
    return [row[values] for row in prompts.fields]


def _states(
    model: nn.Module, prompts: Prompts, places: Sequence[ProbedPlace], planner: Planner | None
) -> tuple[list[np.ndarray], Counter[str]]:
    """Return the activations of all prompts at each place, float64, and the passes that it took."""
    every = range(len(prompts))
    reads = [Read("prompts", place.site, place.at(every)) for place in places]
    plan = Plan((Run("prompts", "prompts"),), (), None, tuple(dict.fromkeys(reads)))
    with torch.no_grad(), evaluating(model):
        outcome = execute(bind(model, plan, {"prompts": prompts.inputs}, {}), planner)
    states = [outcome.values[read].flatten(1).double().cpu().numpy() for read in reads]
    return states, Counter(passed.way for passed in outcome.passes)


# --- what comes of it -------------------------------------------------------------------------------------------------


def _rows(cells: Table, fits: Sequence[PlaceDirections], known: LabelledPrompts, seed: int) -> Iterator[dict[str, Any]]:
    """Yield the table's rows: means over prompts and draws, with intervals over groups."""
    effects: dict[tuple[Any, ...], np.ndarray] = {}
    for row in cells.rows():
        key = tuple(row[name] for name in (*fits[0].place.cell, "kind"))
        effects.setdefault(key, np.zeros(len(known)))[row["prompt"]] += row["effect"]
    for one in fits:
        where = one.place.cell
        values = {
            "accuracy": np.mean([fit.correct for fit in one.fits], 0),
            "seen_accuracy": np.mean([fit.seen for fit in one.fits], 0),
            "control_accuracy": np.mean([fit.control for fit in one.fits], 0),
        }
        values["selectivity"] = values["seen_accuracy"] - values["control_accuracy"]
        for kind, column in _EFFECTS.items():
            values[column] = effects[(*where.values(), kind)] / len(one.fits)
        told: dict[str, float | None] = {}
        for name, of_prompts in values.items():
            keys = (name, f"{name}_low", f"{name}_high")
            told |= dict(zip(keys, mean_over_groups(of_prompts, known.groups, seed), strict=True))
        cosines = [cosine for fit in one.fits for cosine in fit.cosines]
        cosine = float(np.mean(cosines)) if cosines else None
        yield {**where, **told, "cosine": cosine, "n": known.n_groups}
