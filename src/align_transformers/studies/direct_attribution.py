"""Direct logit attribution: the parts of the residual stream, each as what it adds to a logit.

Elhage et al. 2021, "A mathematical framework for transformer circuits"; Wang et al. 2022, arXiv:2211.00593.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from .._checked import checked
from .._errors import SiteError, SpecError
from ..engine import Outcome, Planner, bind
from ..models import Slot, evaluating, resolve
from ..models.shown import shares_of
from ..plan import Logits, Plan, Read, Run
from ..planners import execute
from ..positions import Positions
from ..sites import Site
from ..table import Table
from ._data import Prompt
from ._made_with import made_with
from ._nodes import heads_at, writers
from ._prompts import Prompts, ReadAt, encode, token_text
from ._scoring import token_of_each

_CLOSE = 1e-5
"""What the parts may miss of the logits, as a share of the largest part or of 1 (float32; 1e-6 was the most found)."""
_ROUNDED = 2.0
"""By how many eps of what half precision rounds the parts may miss the logits besides (0.7 was found)."""


@checked
@torch.no_grad()
def direct_logit_attribution(
    model: nn.Module,
    prompts: Prompt,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    columns: Mapping[str, str] | None = None,
    answers: int | str | Sequence[int | str] | None = None,
    against: int | str | Sequence[int | str] | None = None,
    heads: bool = True,
    at: ReadAt = -1,
    planner: Planner | None = None,
) -> Table:
    """Take the residual stream in front of the final norm apart, and tell what each part adds to the answer's logit.

    The stream x is the sum of the embeddings and what attention and MLP of every block add to it. With the norm's scale
    *frozen* at that of x, norm and unembedding are linear: the logit is the sum over parts p of w . (A p) and a
    constant, where A is the frozen norm and w the answer's row of the unembedding. One forward pass is made.

    Args:
        model: a language model with one residual stream, in whatever mode; it is not changed.
        prompts: one text or several, token tensors, or data with columns, as for `grid`.
        tokenizer: needed where prompts or answers are texts.
        columns: what the columns `base` (the prompts) and `base_answer` are called in the data, where they are called
            otherwise. Further ones are the fields of anchors: `at("{country}")` is the text of the column `country`.
        answers: one token (id or text) for all prompts or for each; default: the column of the data, or the most
            probable one.
        against: tokens whose logit is taken off: the parts are those of the logit difference then.
        heads: attention is told head by head, where what it adds is linear in the heads' outputs; the projection's bias
            is a row of its own. `False`: a row a layer.
        at: at which token, for all prompts or for each, as for `grid`.
        planner: as for `execute`.

    Returns:
        A `Table`, one row a part and prompt: `component` (`block_input` of layer 0: the embeddings;
        `head_contribution`, `mlp_contribution`, ...), `layer`, `head`, `contribution` (in logits). `component`
        `attention_bias` is what an output projection's bias adds, `constant` what biases of norm and unembedding add.
        `meta` has for each prompt `logit`, which the rows sum up to, `error`, by how much they miss it, and
        `tolerance`, what they may: 1e-5 of the largest part, or of 1; a model in half precision rounds its residual
        stream x_p behind every part p, so that there it is 2 eps |w * (A x_p)| more, the Euclidean norm over channels
        and parts. Where the model caps its logits (`capped`), `logit` is that in front of the cap.

    Raises:
        SiteError: it is not known what the blocks add to the residual stream, or that they add it.
        SpecError: the parts miss a logit by more than the tolerance, or an argument makes no sense.

    Example:
        >>> import transformers
        >>> _ = torch.manual_seed(0)
        >>> sizes = dict(vocab_size=50, n_embd=16, n_head=2, n_layer=2, n_positions=8)
        >>> model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).eval()
        >>> table = direct_logit_attribution(model, {"input_ids": torch.tensor([[1, 2, 3]])}, answers=7)
        >>> abs(sum(table.columns["contribution"]) - table.meta["logit"][0]) < 1e-5
        True
    """
    encoded = encode(prompts, tokenizer, model, columns)
    named = encoded.answers if answers is None else answers
    given = None if named is None else token_of_each(named, len(encoded), tokenizer)
    others = None if against is None else token_of_each(against, len(encoded), tokenizer, what="against")
    parts = list(_addends(model, heads))
    depth = len(resolve(model).stacks[""])
    ends = Site("block_output", depth - 1), Site("final_norm_output")
    outcome, seen = _clean(model, encoded, [*(part.read for part in parts), *ends], encoded.columns(at), planner)
    with evaluating(model):
        values = {part.site: part.value(seen[part.read]).float() for part in parts}
        values |= {site: seen[site].float() for site in ends}
        logits = outcome.outputs["clean"].float()
        norm = FrozenNorm(resolve(model).slot(ends[1]).module, values[ends[0]], values[ends[1]])
    chosen, end = given or logits.argmax(-1).tolist(), _Unembedding(model, values[ends[1]], logits)

    def less(of: Callable[[Sequence[int]], Tensor]) -> Tensor:
        return of(chosen) - (0 if others is None else of(others))

    rows, target = less(end.rows), less(end.logits)
    told, added = zip(*_told(parts, values), strict=True)
    told = (*told, {"component": "constant", "layer": None, "head": None})
    back = norm.back(rows)[:, None]
    constant = (norm.bias * rows).sum(-1) + less(end.constants)
    shares = torch.cat([(torch.stack(added, 1) * back).sum(-1), constant[:, None]], 1)
    stream = torch.stack([values[part.site] for part in parts if not part.heads], 1).cumsum(1)
    rounded = torch.cat([(stream * back).flatten(1), values[ends[1]] * rows], 1)
    rounded = _rounding(outcome.outputs["clean"].dtype) * rounded.norm(dim=1)
    error, tolerance = _missed(shares, target, rounded, model)
    return Table.from_rows(
        (
            {**part, "prompt": prompt, "contribution": share}
            for prompt, of_prompt in enumerate(shares.tolist())
            for part, share in zip(told, of_prompt, strict=True)
        ),
        meta={
            "study": "direct_logit_attribution",
            "prompts": list(encoded.texts),
            "answers": [token_text(token, tokenizer) for token in chosen],
            "against": None if others is None else [token_text(token, tokenizer) for token in others],
            "logit": target.tolist(),
            "error": error.tolist(),
            "tolerance": tolerance.tolist(),
            "capped": end.capped,
            "passes": {way: [p.way for p in outcome.passes].count(way) for way in {p.way for p in outcome.passes}},
            **made_with(model),
        },
    )


def _missed(shares: Tensor, logits: Tensor, rounded: Tensor, model: nn.Module) -> tuple[Tensor, Tensor]:
    """Return by how much parts miss the logits, and what they may.

    Args:
        shares: `(prompts, parts)`.
        logits: of each prompt.
        rounded: by how much the model rounds each.
        model: the user's.

    Raises:
        SpecError: they miss one by more, or it is no number.
    """
    error = (shares.sum(-1) - logits).abs()
    tolerance = _CLOSE * shares.abs().amax(-1).clamp(min=1) + _ROUNDED * rounded
    if not bool((error <= tolerance).all()):
        raise SpecError(
            f"the parts of {type(model).__name__} miss the logit by {float(error.max()):.2g}, and not more than "
            f"{float(tolerance[error.argmax()]):.2g} is rounding: something else adds to its residual stream"
        )
    return error, tolerance


def _clean(
    model: nn.Module, prompts: Prompts, sites: Sequence[Site], columns: Sequence[int], planner: Planner | None
) -> tuple[Outcome, dict[Site, Tensor]]:
    """Run the prompts, and return what came of it and what each site holds at a column of each, `(prompts, width)`."""
    places = Positions(tuple((column,) for column in columns))
    reads = {site: Read("clean", site, places) for site in sites}
    logits = Logits(None, (("prompts", tuple(columns)),))
    plan = Plan((Run("clean", "prompts"),), ("clean",), logits, tuple(reads.values()))
    with evaluating(model):
        outcome = execute(bind(model, plan, {"prompts": prompts.inputs}, {}), planner)
    return outcome, {site: outcome.values[read][:, 0] for site, read in reads.items()}


@dataclass(frozen=True)
class _Addend:
    """What adds to the residual stream at a site.

    Args:
        site: where.
        heads: how many there are, where it is told head by head.
        projection: what makes the heads' shares of what they give: of the tokens that are told, not of all.
    """

    site: Site
    heads: int = 0
    projection: Slot | None = None

    @property
    def read(self) -> Site:
        """Where it is read."""
        return self.site if self.projection is None else Site("attention_value_output", self.site.layer)

    def value(self, read: Tensor) -> Tensor:
        """Return what is added, of what was read, `(prompts, channels)`."""
        return read if self.projection is None else shares_of(self.projection, read)


def _addends(model: nn.Module, heads: bool) -> Iterator[_Addend]:
    """Yield all that adds to the residual stream.

    Raises:
        SiteError: there is something of which it is not known what it adds.
    """
    found = resolve(model)
    if "" not in found.stacks:
        raise SiteError(f"{type(model).__name__} has {sorted(found.stacks)}: logits are taken apart along one stream")
    yield _Addend(Site("block_input", 0))
    for layer, block in enumerate(found.stacks[""]):
        for name in writers(block):
            yield _Addend(Site(name.replace("_output", "_contribution"), layer))
            by_head = Site("head_contribution", layer)
            if heads and name == "attention_output" and found.find(by_head) is not None:
                slot, z = found.slot(by_head), found.slot(Site("attention_value_output", layer))
                alone = slot.leaf == (0, 0) and z.side == "input" and z.module is slot.module and z.channels is None
                yield _Addend(by_head, heads_at(by_head, found), slot if alone else None)


def _told(parts: Sequence[_Addend], values: Mapping[Site, Tensor]) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """Yield what is told, and what each part of that adds to the stream, `(prompts, width)`."""
    split = {part.site.layer for part in parts if part.heads}
    for part in parts:
        layer, name = part.site.layer, part.site.component
        value = values[part.site]
        if part.heads:
            each = value.unflatten(-1, (part.heads, -1))
            yield from (({"component": name, "layer": layer, "head": n}, head) for n, head in enumerate(each.unbind(1)))
            rest = values[Site("attention_contribution", layer)] - each.sum(1)
            yield {"component": "attention_bias", "layer": layer, "head": None}, rest
        elif name != "attention_contribution" or layer not in split:
            yield {"component": name, "layer": layer, "head": None}, value


class FrozenNorm:
    """A norm with its scale as it was: linear. What it is is measured, since norms are written in many ways.

    Args:
        module: the norm.
        before: `(prompts, width)` what went in.
        after: `(prompts, width)` what came out.

    Raises:
        SpecError: with a frozen scale it is not linear.
    """

    def __init__(self, module: nn.Module, before: Tensor, after: Tensor) -> None:
        weight = next(iter(module.parameters()), before)

        def call(value: Tensor) -> Tensor:
            made: Tensor = module.forward(value.to(weight.dtype))  # past all hooks
            return made.float()

        self.bias = (call(before) + call(-before)) / 2
        width = before.shape[-1]
        signs = torch.ones(width, device=before.device)
        signs[1::2] = -1
        signs = signs - (signs.mean() if width % 2 else 0)
        shifted = call(before + before.abs().mean())
        near = (1e-3 + 2 * _rounding(weight.dtype)) * (1 + after.abs().max())
        self._centred = bool((shifted - call(before)).abs().max() < near)
        self._weight = (call(signs[None]) - self.bias) / signs
        ready = self._through(before)
        size = (ready * ready).sum(-1, keepdim=True)
        scale = ((after - self.bias) * ready).sum(-1, keepdim=True) / torch.where(size == 0, 1, size)
        if bool((size == 0).any()):  # of nothing, such as heads without values, it is what it is close to nothing
            probe = self._through(signs)
            made = ((call(1e-6 * signs[None]) - self.bias) * probe).sum(-1, keepdim=True)
            scale = torch.where(size == 0, made / (1e-6 * probe.square().sum(-1, keepdim=True)), scale)
        self._scale = scale
        missed = (self(before) + self.bias - after).abs().max()
        if bool(missed > near):
            raise SpecError(
                f"{type(module).__name__} is not linear where its scale is frozen (off by {float(missed):.2g})"
            )

    def _through(self, value: Tensor) -> Tensor:
        return (value - value.mean(-1, keepdim=True) if self._centred else value) * self._weight

    def __call__(self, value: Tensor) -> Tensor:
        """Return what the frozen norm makes of a part, without its bias."""
        return self._through(value) * self._scale

    def back(self, rows: Tensor) -> Tensor:
        """Return what a part is multiplied with, so that the sum is that of what the norm makes of it and `rows`."""
        weighed = rows * self._weight * self._scale
        return weighed - weighed.mean(-1, keepdim=True) if self._centred else weighed


class _Unembedding:
    """The rows of the unembedding, with what the model multiplies its logits with.

    Args:
        model: the user's.
        normed: `(prompts, width)` what is unembedded.
        logits: `(prompts, vocab)` of the model: a sample of them tells what they are multiplied with, and the largest
            and smallest ones whether they are capped.
    """

    def __init__(self, model: nn.Module, normed: Tensor, logits: Tensor) -> None:
        module = getattr(model, "get_output_embeddings", lambda: None)()
        if module is None or not hasattr(module, "weight"):
            raise SiteError(f"{type(model).__name__} names no layer that makes logits (get_output_embeddings)")
        self._module, self._normed, self._factor = module, normed, 1.0
        ends = torch.cat([logits.argmax(-1), logits.argmin(-1)]).tolist()
        some = sorted({*range(0, logits.shape[-1], 1 + logits.shape[-1] // 64), *ends})
        plain, own = torch.stack([self.logits([token] * len(logits)) for token in some], -1), logits[:, some]
        factor = float((own * plain).sum() / (plain * plain).sum())
        off = (plain * factor - own).abs().max()
        self.capped = bool(off > (1e-3 + 2 * _rounding(module.weight.dtype)) * (1 + logits.abs().max()))
        if not self.capped:
            self._factor = factor

    def rows(self, tokens: Sequence[int]) -> Tensor:
        """Return the row of a token for each prompt, `(prompts, width)`."""
        return self._module.weight[list(tokens)].float() * self._factor

    def constants(self, tokens: Sequence[int]) -> Tensor:
        """Return the bias of a token for each prompt."""
        bias = getattr(self._module, "bias", None)
        found = torch.zeros(len(tokens), device=self._normed.device) if bias is None else bias[list(tokens)].float()
        return found * self._factor

    def logits(self, tokens: Sequence[int]) -> Tensor:
        """Return the logit of a token for each prompt, in front of a cap."""
        return (self._normed * self.rows(tokens)).sum(-1) + self.constants(tokens)


def _rounding(dtype: torch.dtype) -> float:
    """Return by what share of themselves the model's numbers are rounded; 0 where that hardly counts, as in float32."""
    return torch.finfo(dtype).eps if dtype in (torch.float16, torch.bfloat16) else 0.0
