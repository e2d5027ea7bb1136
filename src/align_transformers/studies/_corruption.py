"""What causal tracing corrupts: noise on the embeddings of a subject, or other prompts in its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import SpecError
from ..anchors import Anchor, Spot, at, spots_of_each
from ..engine import Inputs
from ..models.arguments import forward_parameters
from ._prompts import Prompts, Tokens

Subject = str | Anchor | Sequence[Spot] | Sequence[Sequence[Spot]]


def subjects_of(subject: Subject, prompts: Prompts, stack: str) -> list[tuple[int, ...]]:
    """Return the positions of the subject in each prompt, from 0 over its real tokens in the sequence of a stack."""
    spots: Any = at(subject) if isinstance(subject, str) else subject
    rows = spots_of_each(spots, len(prompts), "subject")
    found = []
    for number, row in enumerate(rows):
        found.append(tuple(sorted({place for spot in row for place in prompts.at(stack, number, spot)})))
    return found


def noisy(
    model: nn.Module,
    prompts: Prompts,
    tokens: Tokens,
    spans: Sequence[tuple[int, ...]],
    noise: float,
    absolute: bool,
    draws: int,
    seed: int,
) -> tuple[Inputs, float]:
    """Return every prompt `draws` times with noise on its subject, as embeddings; and the noise's deviation."""
    if draws < 1 or not noise >= 0:
        raise SpecError(f"noise is a standard deviation from 0, draws a number from 1; found {noise} and {draws}")
    if "inputs_embeds" not in forward_parameters(model):
        raise SpecError(
            f"{type(model).__name__} cannot be given embeddings (inputs_embeds), so noise cannot be put on these: give "
            "counterfactual prompts"
        )
    with torch.no_grad():
        embedded = model.get_input_embeddings()(prompts.inputs["input_ids"])  # type: ignore[operator]
    columns = [[start + place for place in span] for start, span in zip(tokens.starts, spans, strict=True)]
    of_subjects = torch.cat([embedded[row, own] for row, own in enumerate(columns)]).float()
    deviation = noise if absolute else noise * float(of_subjects.std())
    drawn = torch.Generator().manual_seed(seed)
    rows = embedded.repeat_interleave(draws, 0)
    for prompt, places in enumerate(columns):
        own = torch.randn(draws, len(places), embedded.shape[-1], generator=drawn) * deviation
        rows[prompt * draws : (prompt + 1) * draws, places] += own.to(rows)
    count = len(prompts)
    rest = {
        name: value.repeat_interleave(draws, 0) if isinstance(value, Tensor) and value.shape[:1] == (count,) else value
        for name, value in prompts.inputs.items()
        if name != "input_ids"
    }
    return {**rest, "inputs_embeds": rows}, deviation


def check_embeddings(model: nn.Module, prompts: Prompts) -> None:
    """Refuse a model that makes something else of its own embeddings than of the tokens, such as one that scales these.

    Args:
        model: in eval mode.
        prompts: the first is run, in both ways.

    Raises:
        SpecError: the logits differ.
    """
    count = len(prompts)
    one = {
        name: value[:1] if isinstance(value, Tensor) and value.shape[:1] == (count,) else value
        for name, value in prompts.inputs.items()
    }
    with torch.no_grad():
        rest = {name: value for name, value in one.items() if name != "input_ids"}
        embedded = model.get_input_embeddings()(one["input_ids"])  # type: ignore[operator]
        logits, own = model(**one).logits, model(**rest, inputs_embeds=embedded).logits
    off = float((own - logits).abs().max())
    if not off <= 1e-3 * float(logits.abs().max()):
        raise SpecError(
            f"{type(model).__name__} makes other logits of its own embeddings than of the tokens (off by {off:.2g}): "
            "it scales or masks them only where it is given tokens. Give counterfactual prompts"
        )


def counterfactual_inputs(others: Prompts, prompts: Prompts) -> Inputs:
    """Return other prompts in the place of the noisy ones."""
    lengths = [[len(ids) for of in each.sequences.values() for ids in of.ids] for each in (prompts, others)]
    if lengths[0] != lengths[1]:
        raise SpecError(f"counterfactual prompts have the prompts' numbers of tokens, {lengths[0]}; found {lengths[1]}")
    starts = [[of.starts for of in each.sequences.values()] for each in (prompts, others)]
    if starts[0] != starts[1]:
        raise SpecError(
            "counterfactual prompts are padded on the side on which the prompts are, so that columns answer to each "
            f"other: these begin at the columns {starts[0]}, those at {starts[1]}"
        )
    return others.inputs
