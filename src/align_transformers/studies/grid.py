"""Interchange at every layer and position, head or neuron: where does one swapped activation move the answer?"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

from torch import nn
from transformers import PreTrainedTokenizerBase

from .._checked import checked
from .._errors import SpecError
from ..engine import Planner
from ..metrics import Metrics
from ..table import Table
from ._cells import DirectionName, Selection
from ._data import PairedPrompt, Prompt
from ._pairs import Align
from ._places import WhichPlaces
from ._prompts import ReadAt, Which
from ._scoring import Answer
from ._screening import screened
from ._swaps import asked_swaps


@checked
def grid(
    model: nn.Module,
    base: PairedPrompt,
    source: Prompt | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    columns: Mapping[str, str] | None = None,
    components: Sequence[str] = ("block_output",),
    layers: Which = "all",
    positions: WhichPlaces | None = "all",
    heads: Which | None = None,
    neurons: int | None = None,
    window: int | Mapping[str, int] = 1,
    metric: Metrics | None = None,
    metrics: Mapping[str, Metrics] | None = None,
    answers: tuple[Answer, Answer] | Sequence[tuple[Answer, Answer]] | None = None,
    directions: Sequence[DirectionName] = ("denoise",),
    last: int | None = None,
    align: Align = None,
    at: ReadAt = -1,
    top: int = 0,
    screen: int | None = None,
    seed: int = 0,
    store: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | bool | None = None,
    planner: Planner | None = None,
) -> Table:
    """Swap activations between two runs, one place at a time, and measure what comes of it.

    The whole sweep is one plan: both prompts run once, and every swap computes only the layers and positions that it
    can change, many swaps in one pass, as far as the model allows it. A model in training mode is held in eval mode for
    the time of the call.

    Args:
        model: gives logits for `input_ids`: a causal or masked language model, or an encoder-decoder; not changed.
        base: the prompt, or several: a text, texts, or token tensors; pairs of texts; or data with columns: a
            DataFrame, a Dataset, a dict of columns, or a list of dicts. Texts of unequal length are padded and masked.
            An encoder-decoder's text is its encoder's; its decoder gets the token that begins an answer, or the
            `decoder_input_ids` that are given.
        source: the prompt that answers to each base, where `base` does not have it.
        tokenizer: needed where prompts or answers are texts; gives the tokens their texts.
        columns: what the columns `base`, `source`, `base_answer` and `source_answer` are called in the data, where they
            are called otherwise. Further ones are the fields of anchors: `at("{country}")` is the text of the column
            `country` in the base, and that of `source_country`, if there is one, in the source.
        components: names from `COMPONENTS`, or modules' dotted paths ending in `.input` or `.output`.
        layers: numbers from 0, negative ones from the end, or `"all"` that have the component.
        positions: a swap at each of these: numbers from 0 over the base's real tokens, negative ones from the end,
            `"last"`, anchors (`at("Spain")`: each of its tokens), or `"all"`; for all pairs, or a list for each. Named
            places, `{"subject": at("{country}"), "last": -1}`: all tokens of a place are swapped at once, and the
            column `place` has its name. `None`: all positions at once. In an encoder-decoder they count in the
            component's own sequence. Of several pairs, those have no row whose base lacks a number for all.
        heads: numbers or `"all"`: a swap of each head by itself (with `positions=[-1]` at the last token, with `None`
            at all tokens at once). `None`: the whole vector is swapped.
        neurons: how many neighbouring coordinates are swapped at a time. `None`: all of them.
        window: how many neighbouring layers are swapped at once, for all components but `block_output`, of which it is
            one; or by component. The window of layer L is L - w // 2 to L + ceil(w / 2) - 1, cut at the ends.
        metric: what to measure, for all pairs or one for each. Default: logit of the source's answer minus the base's.
        metrics: several by name instead, each for all pairs or one for each: `{"iia": [accuracy(t) for t in targets]}`.
            One called `iia` has the columns `iia`, `iia_effect` and `iia_recovered`.
        answers: the base's answer and the source's, each one token (id or text), for all pairs or for each. Default:
            the columns of the data, or what the model itself says.
        directions: `"denoise"` or `"denoising"` (what restores the source's answer): the source's activation into the
            base's run; `"noise"` or `"noising"` (what is needed for it): the base's into the source's run.
        last: compare only the last so many tokens, aligned from the end; needed for numbers from 0 and `"all"` where
            lengths in a pair differ.
        align: where an anchor has another number of tokens in the source, pair those from the `"first"` or the
            `"last"` on, as many as both have; default: that is refused.
        at: where the metric is read, for all prompts or for each: a number or an anchor of one token.
        top: tell so many of the most probable tokens after each swap; this takes the logits of all tokens.
        screen: measure the so many strongest cells alone, as `attribution` with `method="atp"` estimates them. The
            column `estimate` has what was estimated, `meta["screen"]` how probable it is that a stronger cell was
            missed, as far as the errors at up to 32 cells drawn from the others tell.
        seed: of that drawing.
        store: a folder that parts are written to, each in one step. The same call goes on where a killed one was.
        progress: called after every pass with the cells done and the cells in all; `True` for a bar (rich).
        planner: which passes are run, as for `execute`; `one_by_one` runs every swap in full, to check a number.

    Returns:
        A `Table`, one row a cell; its columns are explained in `align_transformers.table`. `meta["passes"]` counts the
        forward passes of each kind.

    Raises:
        UnknownNameError: no such component.
        PositionError: unequal lengths without `last`, or spans without `align`; a position, layer or head that does
            not exist, or a text that is not there, is there several times or cuts a token (the pair is named).
        SpecError: both prompts have the same answer and neither `answers` nor a metric is given, the store holds
            another sweep, or another argument makes no sense.
        SiteError: the model's components are not known, or have no heads.

    Example:
        >>> import torch, transformers
        >>> _ = torch.manual_seed(0)
        >>> sizes = dict(vocab_size=50, n_embd=16, n_head=2, n_layer=2, n_positions=8)
        >>> model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).eval()
        >>> base, source = ({"input_ids": torch.tensor([ids])} for ids in ([1, 2, 3], [1, 7, 3]))
        >>> table = grid(model, base, source, answers=(4, 5))
        >>> len(table)
        6
        >>> [round(row["recovered"], 3) for row in table.rows() if row["layer"] == 1]  # the last layer: the last token
        [0.0, 0.0, 1.0]
        >>> by_head = grid(model, base, source, answers=(4, 5), components=["head_output"], heads="all", positions=[-1])
        >>> by_head.pivot(columns="head").shape
        (2, 2)
    """
    asked = Selection(components, layers, heads, neurons, directions, window)
    if top < 0:
        raise SpecError(f"top={top} is how many of the most probable tokens are told, from 0")
    swaps = asked_swaps(
        model, asked, (base, source, tokenizer, columns, positions, last, align), (metric, metrics, answers), top, at
    )
    if screen is not None:
        return screened(model, swaps, screen, seed, store=store, progress=progress, planner=planner)
    return swaps.sweep("grid").table(model, store=store, progress=progress, planner=planner)
