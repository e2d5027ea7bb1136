"""Causal tracing: corrupt the subject, restore one state at a time, and see where the answer comes back.

Meng et al. 2022, arXiv:2202.05262.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from .._checked import checked
from .._errors import SpecError
from ..engine import Planner
from ..interventions import VanillaIntervention
from ..models import evaluating
from ..plan import Edit, Logits, Read, Run
from ..positions import Positions
from ..sites import Site
from ..table import Table
from ._cell_run import CellRun
from ._cells import layers_near, width_of
from ._corruption import Subject, check_embeddings, counterfactual_inputs, noisy, subjects_of
from ._data import Prompt
from ._layers import depth_of
from ._places import Placed, WhichPlaces, places_of
from ._prompts import Prompts, Which, encode, indices, token_text
from ._scoring import token_of_each
from ._sweep import Clean, Measurement, Scorer, Sweep

ROLES = (
    "first subject token", "middle subject tokens", "last subject token", "first subsequent token", "further tokens",
    "last token", "before the subject",
)  # fmt: skip
"""What a token is to the subject. A subject of one token is its last."""


@checked
def causal_tracing(
    model: nn.Module,
    prompts: Prompt,
    subject: Subject,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    columns: Mapping[str, str] | None = None,
    components: Sequence[str] = ("block_output", "mlp_output", "attention_output"),
    layers: Which = "all",
    positions: WhichPlaces = "all",
    window: int | Mapping[str, int] = 10,
    noise: float = 3.0,
    absolute: bool = False,
    draws: int = 10,
    seed: int = 0,
    counterfactual: Prompt | None = None,
    severed: Sequence[str] = (),
    severed_at: Literal["restored", "all"] = "restored",
    answers: int | str | Sequence[int | str] | None = None,
    store: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | bool | None = None,
    planner: Planner | None = None,
) -> Table:
    """Restore clean states in runs whose subject is corrupted, and tell how much of the answer's probability returns.

    With p the probability of the answer at the last token: p in the clean run, p* in the corrupted one, p*(t, L) in the
    corrupted one with the state of token t at layer L as it was in the clean one. The *total effect* is p - p*, the
    *indirect effect* of the state is p*(t, L) - p*. Probabilities are averaged over the draws of the noise.

    Args:
        model: a language model of transformers, in whatever mode; it is not changed.
        prompts: one text or several, token tensors, or data with columns, as for `grid`; encoder-decoders get them in
            the encoder.
        subject: what is corrupted: a piece of the text or an `Anchor` (these need a tokenizer), or positions as below,
            for all prompts or a list for each.
        tokenizer: needed where prompts are texts.
        columns: what the columns `base` (the prompts) and `base_answer` are called in the data, where they are called
            otherwise. Further ones are the fields of anchors: `at("{country}")` is the text of the column `country`.
        components: which states are restored; of an encoder-decoder with the stack in front (`encoder.block_output`).
        layers: numbers or `"all"`.
        positions: which tokens are restored, each by itself: numbers from 0 over the real tokens, negative ones from
            the end, `"last"`, anchors, or `"all"`; for all prompts, or a list for each; or named places,
            `{"subject": at("{country}"), "last": -1}`, all of whose tokens are restored at once.
        window: how many neighbouring layers are restored at once, for all components but `block_output`, of which it
            is one; or by component. The window of layer L is L - w // 2 to L + ceil(w / 2) - 1, cut at the ends.
        noise: standard deviation of the Gaussian noise on the subject's embeddings, in standard deviations of the
            embeddings of all prompts' subject tokens (over all their numbers).
        absolute: `noise` is in the embeddings' own unit instead.
        draws: how often the noise is drawn. All restorations of a prompt see the same draws.
        seed: of the draws; numbers are drawn on the CPU in float32, prompt by prompt.
        counterfactual: prompts that take the place of the noisy ones, as many and token by token as long: the corrupted
            run is theirs then, and `noise`, `draws` and `seed` are not used.
        severed: components (`mlp_output`, `attention_output`) that are held at their corrupted values in all layers
            above the restored one, so that they cannot pass on what was restored.
        severed_at: `restored`: at the token that is restored; `all`: at all tokens.
        answers: one token (id or text) for all prompts or for each; default: the column of the data, or the most
            probable one in the clean run.
        store: a folder that parts are written to; an equal call goes on where a killed one was.
        progress: called after every pass with the cells done and the cells in all; `True` for a bar (rich).
        planner: as for `execute`.

    Returns:
        A `Table`, one row a component, layer, token (or `place`) and prompt: `role` (one of `ROLES`), `restored` (the
        mean probability over the draws), `indirect_effect` with `low` and `high` (95 % bootstrap interval over the
        draws; none for one draw), `draws`. `meta` has for each prompt `clean`, `corrupted`, `total_effect` and the
        answer, and the noise's standard deviation. `table.mean(("component", "layer", "role"),
        value="indirect_effect", unit="prompt")` has the average over prompts with its interval over these: a role may
        have several tokens in a prompt, which are no independent ones.

    Raises:
        SpecError: the model cannot be given embeddings, or makes something else of them than of tokens; counterfactual
            prompts do not answer to the prompts, a severed component is restored, or another argument makes no sense.
        PositionError: the subject is not found, or a position or layer does not exist.
        SiteError: the model has no such component.

    Example:
        >>> import transformers
        >>> _ = torch.manual_seed(0)
        >>> sizes = dict(vocab_size=50, n_embd=16, n_head=2, n_layer=2, n_positions=8)
        >>> model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).eval()
        >>> table = causal_tracing(model, {"input_ids": torch.tensor([[1, 2, 3, 4]])}, [1, 2], draws=3)
        >>> len(table), table.meta["passes"]["packed"] > 0
        (24, True)
        >>> last = table.select("block_output", where={"layer": 1, "position": 3})
        >>> bool(abs(last.columns["indirect_effect"][0] - table.meta["total_effect"][0]) < 1e-5)
        True
    """
    clean = encode(prompts, tokenizer, model, columns)
    stack = "encoder" if "encoder" in clean.sequences else ""
    tokens = clean.tokens(stack)
    spans = subjects_of(subject, clean, stack)
    if counterfactual is None:
        corrupted, deviation = noisy(model, clean, tokens, spans, noise, absolute, draws, seed)
    else:
        corrupted, draws, deviation = counterfactual_inputs(encode(counterfactual, tokenizer, model), clean), 1, None
    plan = _Restorations(model, clean, stack, spans, draws, severed, severed_at)
    widths = {name: width_of(window, name) for name in components}
    sweep = Sweep(
        "causal_tracing",
        {"clean": clean.inputs, "corrupted": corrupted},
        (Run("clean", "clean"), Run("corrupted", "corrupted")),
        tuple(run for name in dict.fromkeys(components) for run in plan.runs(name, layers, widths[name], positions)),
        {"swap": VanillaIntervention()},
        _AnswerScoring(clean.answers if answers is None else answers, len(clean), draws, tokenizer),
        Logits(),
    )
    if counterfactual is None:
        with evaluating(model):
            check_embeddings(model, clean)
    cells = sweep.table(model, store=store, progress=progress, planner=planner)
    said = {
        "prompts": list(clean.texts),
        "tokens": [list(row) for row in tokens.texts],
        "subject": [list(s) for s in spans],
    }
    asked = {"window": widths, "severed": list(severed), "severed_at": severed_at if severed else None}
    drawn = {"noise": deviation, "draws": draws, "seed": seed if deviation is not None else None}
    return _averaged(cells, {**cells.meta, "study": "causal_tracing", **said, **asked, **drawn})


# --- what is restored -------------------------------------------------------------------------------------------------


_AT_ONCE = 32
"""Lines whose probabilities of all tokens are there at a time."""
_Line = tuple[int, Placed, int]
"""A prompt, a place in it, and a draw."""


@dataclass(frozen=True, eq=False)
class _Restorations:
    """Makes the runs that restore states.

    Args:
        model: the user's.
        prompts: clean.
        stack: in whose sequence positions count.
        spans: the subject's positions in each.
        draws: corrupted examples for each prompt.
        severed: components that are held at their corrupted values above.
        severed_at: at which tokens.
    """

    model: nn.Module
    prompts: Prompts
    stack: str
    spans: Sequence[tuple[int, ...]]
    draws: int
    severed: Sequence[str]
    severed_at: str

    def runs(self, component: str, layers: Which, width: int, positions: WhichPlaces) -> Iterator[CellRun]:
        """Yield a run for each layer; its cells are the tokens of all prompts, in all draws."""
        if component in self.severed:
            raise SpecError(f"{component} is restored and severed; take it from one of these")
        stack = depth_of(self.model, component)
        places = [
            (prompt, place)
            for prompt, own in enumerate(places_of(self.prompts, self.stack, positions))
            for place in own
        ]
        cells = tuple(self._cell(component, *place, draw) for place in places for draw in range(self.draws))
        lines = [(prompt, place, draw) for prompt, place in places for draw in range(self.draws)]
        for layer in indices(layers, stack, "layer", f"{component} has {stack} layers"):
            name, near = f"{component} {layer}", layers_near(layer, width, stack)
            edits = [self._restore(f"{name}: {one}", Site(component, one), lines) for one in near]
            edits += [
                self._hold(f"{name}: {held} {above}", Site(held, above), lines)
                for held in self.severed
                for above in range(near.stop, stack)
            ]
            examples = tuple(prompt * self.draws + draw for prompt, _, draw in lines)
            yield CellRun(
                Run(name, "corrupted", tuple(edits), examples), tuple({"layer": layer, **cell} for cell in cells)
            )

    def _restore(self, name: str, site: Site, lines: Sequence[_Line]) -> Edit:
        at = self._columns(lines)
        return Edit(name, site, "swap", at, source=Read("clean", site, at, tuple(prompt for prompt, *_ in lines)))

    def _hold(self, name: str, site: Site, lines: Sequence[_Line]) -> Edit:
        at = self._columns(lines) if self.severed_at == "restored" else self._all(lines)
        examples = tuple(prompt * self.draws + draw for prompt, _, draw in lines)
        return Edit(name, site, "swap", at, source=Read("corrupted", site, at, examples))

    def _columns(self, lines: Sequence[_Line]) -> Positions:
        starts = self.prompts.tokens(self.stack).starts
        return Positions(tuple(tuple(starts[prompt] + token for token in place.tokens) for prompt, place, _ in lines))

    def _all(self, lines: Sequence[_Line]) -> Positions:
        tokens = self.prompts.tokens(self.stack)
        starts, lengths = tokens.starts, [len(row) for row in tokens.ids]
        return Positions(tuple(tuple(range(starts[p], starts[p] + lengths[p])) for p, *_ in lines))

    def _cell(self, component: str, prompt: int, place: Placed, draw: int) -> dict[str, Any]:
        count, one = len(self.prompts.tokens(self.stack).ids[prompt]), len(place.tokens) == 1
        return {
            "component": component,
            **({} if place.name is None else {"place": place.name}),
            "position": place.tokens[0] if one else None,
            "token": self.prompts.said(self.stack, prompt, place.tokens),
            "role": _role(place.tokens[0], self.spans[prompt], count) if one else None,
            "prompt": prompt,
            "draw": draw,
        }


def _role(place: int, span: Sequence[int], count: int) -> str:
    """Return what a token is to the subject."""
    first, middle, last, next_one, further, end, before = ROLES
    if place in span:
        return last if place == span[-1] else first if place == span[0] else middle
    if place == count - 1:
        return end
    if place < span[-1]:
        return before
    return next_one if place == span[-1] + 1 else further


# --- what came of it --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _AnswerScoring:
    """Makes the scorer when the clean runs are in."""

    answers: int | str | Sequence[int | str] | None
    prompts: int
    draws: int
    tokenizer: PreTrainedTokenizerBase | None

    def __call__(self, clean: Clean) -> _Probabilities:
        """Return what tells the probability of each prompt's answer."""
        ids = token_of_each(self.answers, self.prompts, self.tokenizer, clean.says["clean"])
        return _Probabilities(clean, ids, [token_text(token, self.tokenizer) for token in ids], self.draws)


@final
@dataclass(frozen=True, eq=False)
class _Probabilities(Scorer):
    """The probability of the answer of each prompt.

    Args:
        clean: the clean and the corrupted runs.
        answers: a token for each prompt.
        texts: of these.
        draws: corrupted examples for each prompt.
    """

    clean: Clean
    answers: Sequence[int]
    texts: Sequence[str]
    draws: int

    def kept(self, logits: Tensor) -> Tensor:
        """Return the probability of every answer, whichever cell's."""
        tokens = list(dict.fromkeys(self.answers))
        return torch.cat([torch.softmax(few, -1)[:, tokens] for few in logits.split(_AT_ONCE)])

    def rows(self, found: Measurement) -> Iterator[dict[str, float]]:
        """Yield the probability in each cell, and how much that is above the same draw without the restoration."""
        places = {token: column for column, token in enumerate(dict.fromkeys(self.answers))}
        columns = [places[self.answers[cell["prompt"]]] for cell in found.cells]
        values = found.logits[range(len(columns)), columns].tolist()
        corrupted = self._of(
            self.clean.logits["corrupted"], [n // self.draws for n in range(self.draws * len(self.answers))]
        )
        for cell, value in zip(found.cells, values, strict=True):
            yield {"restored": value, "indirect_effect": value - corrupted[cell["prompt"] * self.draws + cell["draw"]]}

    def meta(self) -> dict[str, Any]:
        """Return for each prompt what the clean and the corrupted runs say of the answer."""
        count = len(self.answers)
        clean = self._of(self.clean.logits["clean"], range(count))
        each = self._of(self.clean.logits["corrupted"], [n // self.draws for n in range(self.draws * count)])
        corrupted = [sum(each[n * self.draws : (n + 1) * self.draws]) / self.draws for n in range(count)]
        total = [one - other for one, other in zip(clean, corrupted, strict=True)]
        return {"answers": list(self.texts), "clean": clean, "corrupted": corrupted, "total_effect": total}

    def _of(self, logits: Tensor, prompts: Sequence[int]) -> list[float]:
        tokens = torch.tensor([self.answers[prompt] for prompt in prompts], device=logits.device)
        found: list[float] = torch.softmax(logits, -1).gather(1, tokens[:, None])[:, 0].tolist()
        return found


def _averaged(cells: Table, meta: Mapping[str, Any]) -> Table:
    """Return the table with a row for all draws of a cell."""
    kept = ("component", "layer", "place", "position", "token", "role", "prompt")
    by = [name for name in kept if name in cells.columns]
    effects = cells.mean(by, value="indirect_effect")
    rows = [
        {
            **{name: row[name] for name in (*by, "indirect_effect", "low", "high")},
            "restored": mean["restored"],
            "draws": row["count"],
        }
        for row, mean in zip(effects.rows(), cells.mean(by, value="restored", draws=1).rows(), strict=True)
    ]
    return Table.from_rows(rows, meta=meta)
