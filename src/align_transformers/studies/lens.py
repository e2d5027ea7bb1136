"""The logit lens: what the model would say if the residual stream ended here.

nostalgebraist 2020, "interpreting GPT: the logit lens".
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from .._checked import checked
from .._errors import SpecError
from ..engine import Planner
from ..interventions import VanillaIntervention
from ..models import find_slot
from ..plan import Edit, Logits, Read, Run
from ..positions import Positions
from ..sites import Site
from ..table import Table
from ._cell_run import CellRun
from ._data import Prompt
from ._layers import depth_of
from ._places import WhichPlaces, places_of
from ._prompts import Prompts, Tokens, Which, encode, indices, token_text
from ._scoring import token_of_each
from ._sweep import Clean, Measurement, Scorer, Sweep


@checked
def logit_lens(
    model: nn.Module,
    prompts: Prompt,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    columns: Mapping[str, str] | None = None,
    components: Sequence[str] = ("block_output",),
    layers: Which = "all",
    positions: WhichPlaces = "all",
    answers: int | str | Sequence[int | str] | None = None,
    top: int = 3,
    store: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | bool | None = None,
    planner: Planner | None = None,
) -> Table:
    """Read every layer's residual stream with the model's own final norm and unembedding.

    The state h of a token at a layer is put where the last block's output of the last token stands, so that all that
    follows the blocks (norm, unembedding, caps and scales of logits) makes softmax(unembed(norm(h))) of it.

    Args:
        model: a causal or masked language model, in whatever mode; it is not changed.
        prompts: one text or several, token tensors, or data with columns, as for `grid`; an encoder-decoder is
            read in its decoder.
        tokenizer: needed where prompts or answers are texts.
        columns: what the columns `base` (the prompts) and `base_answer` are called in the data, where they are called
            otherwise. Further ones are the fields of anchors: `at("{country}")` is the text of the column `country`.
        components: what is read: `block_output`, or anything else that is as wide as the residual stream, such as
            `block_input` or `mlp_output`; in an encoder-decoder with the stack in front, `decoder.block_output`.
        layers: numbers from 0, negative ones from the end, or `"all"`.
        positions: numbers from 0 over the real tokens, negative ones from the end, `"last"`, anchors, or `"all"`; for
            all prompts, or a list for each; or named places, whose tokens are read one by one.
        answers: one token (id or text) for all prompts or for each; default: the column of the data, or the most
            probable one at the last token.
        top: so many of the most probable tokens are told.
        store: a folder that parts are written to; an equal call goes on where a killed one was.
        progress: called after every pass with the cells done and the cells in all; `True` for a bar (rich).
        planner: as for `execute`.

    Returns:
        A `Table`, one row a component, layer, token and prompt (and `place`, if named): `probability`, `logit` and
        `rank` of the answer (0: the most probable token), `top_tokens` and `top_probabilities`. `table.pivot("rank")`
        is by layer and token.

    Raises:
        SpecError: a component is not as wide as the residual stream, or another argument makes no sense.
        PositionError: a position or layer does not exist.
        SiteError: the model has no such component.

    Example:
        >>> import transformers
        >>> _ = torch.manual_seed(0)
        >>> sizes = dict(vocab_size=50, n_embd=16, n_head=2, n_layer=2, n_positions=8)
        >>> model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).eval()
        >>> table = logit_lens(model, {"input_ids": torch.tensor([[1, 2, 3]])})
        >>> len(table), table.columns["rank"][-1]  # the last layer at the last token: what the model says itself
        (6, 0)
    """
    if top < 0:
        raise SpecError(f"top={top} is how many of the most probable tokens are told, from 0")
    encoded = encode(prompts, tokenizer, model, columns)
    sweep = Sweep(
        "logit_lens",
        {"prompts": encoded.inputs},
        (Run("clean", "prompts"),),
        tuple(_runs(model, encoded, components, layers, positions)),
        {"swap": VanillaIntervention()},
        _LensScoring(encoded.answers if answers is None else answers, len(encoded), top, tokenizer),
        Logits(),
    )
    table = sweep.table(model, store=store, progress=progress, planner=planner)
    tokens = [list(row) for row in encoded.tokens("decoder").texts]
    facts = {"study": "logit_lens", "prompts": list(encoded.texts), "tokens": tokens}
    return Table.from_rows(table.rows(), meta={**table.meta, **facts})


def _runs(
    model: nn.Module, prompts: Prompts, components: Sequence[str], layers: Which, positions: WhichPlaces
) -> Iterator[CellRun]:
    """Yield a run for each component and layer; its cells are the tokens of all prompts."""
    if not components:
        raise SpecError("components names nothing: give a list of names, such as ['block_output']")
    for name in dict.fromkeys(components):
        stack, depth = Site(name, 0).stack, depth_of(model, name)
        if stack == "encoder":
            raise SpecError(f"{name} is behind no unembedding: a lens reads the decoder, 'decoder.block_output'")
        end = Site(f"{stack}.block_output" if stack else "block_output", depth - 1)
        tokens, width = prompts.tokens(stack), find_slot(model, end).width
        places = [
            (prompt, place.name, token)
            for prompt, own in enumerate(places_of(prompts, stack, positions))
            for place in own
            for token in place.tokens
        ]
        examples = tuple(prompt for prompt, _, _ in places)
        ends = Positions(tuple((tokens.starts[prompt] + len(tokens.ids[prompt]) - 1,) for prompt in examples))
        here = Positions(tuple((tokens.starts[prompt] + position,) for prompt, _, position in places))
        for layer in indices(layers, depth, "layer", f"{name} has {depth} layers"):
            site = Site(name, layer)
            if (own := find_slot(model, site).width) != width:
                raise SpecError(f"{site} has {own} coordinates, the residual stream {width}: it is not read like this")
            swap = Edit(f"read {site}", end, "swap", ends, source=Read("clean", site, here, examples))
            cells = tuple(
                {"component": name, "layer": layer, **_place(tokens, *place), "prompt": place[0]} for place in places
            )
            yield CellRun(Run(str(site), "prompts", (swap,), examples), cells)


def _place(tokens: Tokens, prompt: int, name: str | None, position: int) -> dict[str, Any]:
    """Return the columns that say which token it is."""
    named = {} if name is None else {"place": name}
    return {**named, "position": position, "token": tokens.texts[prompt][position]}


@dataclass(frozen=True, eq=False)
class _LensScoring:
    """Makes the scorer when the clean runs are in."""

    answers: int | str | Sequence[int | str] | None
    prompts: int
    top: int
    tokenizer: PreTrainedTokenizerBase | None

    def __call__(self, clean: Clean) -> _LensScorer:
        """Return what reads logits.

        Raises:
            SpecError: there are not as many answers as prompts, or one is no token.
        """
        tokens = token_of_each(self.answers, self.prompts, self.tokenizer, clean.says["clean"])
        return _LensScorer(tuple(tokens), self.top, self.tokenizer)


@final
@dataclass(frozen=True, eq=False)
class _LensScorer(Scorer):
    """Tells of each line of logits what the answer's are, and which tokens are the most probable.

    Args:
        answers: a token for each prompt.
        top: how many of the most probable tokens.
        tokenizer: gives tokens their texts.
    """

    answers: Sequence[int]
    top: int
    tokenizer: PreTrainedTokenizerBase | None

    def rows(self, found: Measurement) -> Iterator[dict[str, Any]]:
        """Yield the numbers of each cell."""
        answers = torch.tensor([self.answers[cell["prompt"]] for cell in found.cells], device=found.logits.device)
        logit = found.logits.gather(1, answers[:, None])
        ranks = (found.logits > logit).sum(-1).tolist()
        whole = found.logits.logsumexp(-1, keepdim=True)
        best = found.logits.topk(min(self.top, found.logits.shape[-1]))
        told = zip(logit[:, 0].tolist(), (logit - whole).exp()[:, 0].tolist(), ranks, strict=True)
        top = best.indices.tolist(), (best.values - whole).exp().tolist()
        for (own, probability, rank), tokens, shares in zip(told, *top, strict=True):
            row = {"probability": probability, "logit": own, "rank": rank}
            texts = [token_text(token, self.tokenizer) for token in tokens]
            yield {**row, "top_tokens": texts, "top_probabilities": shares} if self.top else row

    def meta(self) -> Mapping[str, Any]:
        """Return the answers."""
        return {"answers": [token_text(token, self.tokenizer) for token in self.answers]}
