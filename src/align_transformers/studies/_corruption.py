"""What causal tracing corrupts: noise on the embeddings of a subject, or other prompts in its place."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from .._errors import SpecError
from ..anchors import Anchor, where
from ..engine import Inputs
from ._prompts import Prompts, Tokens, indices

Subject = str | Anchor | Sequence[int] | Sequence[Sequence[int]]


def subjects_of(
    subject: Subject, prompts: Prompts, tokens: Tokens, tokenizer: PreTrainedTokenizerBase | None
) -> list[tuple[int, ...]]:
    """Return the positions of the subject in each prompt, from 0 over its real tokens."""
    if isinstance(subject, str | Anchor):
        if tokenizer is None:
            raise SpecError(f"the subject {str(subject)!r} is a text: give tokenizer=..., or positions")
        found = [tuple(row) for row in where(tokenizer, prompts.texts, subject)]
    else:
        each = list(subject) if subject and not isinstance(subject[0], int) else [subject] * len(prompts)
        if len(each) != len(prompts):
            raise SpecError(f"subject names {len(each)} prompts, but there are {len(prompts)}")
        lengths = [len(row) for row in tokens.ids]
        rows: list[Any] = [*each]
        for row in rows:
            tokens.check_counted(row)
        found = [
            tuple(sorted(indices(row, length, "position", f"prompt {number} has {length} tokens")))
            for number, (row, length) in enumerate(zip(rows, lengths, strict=True))
        ]
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
    if "inputs_embeds" not in inspect.signature(model.forward).parameters:
        raise SpecError(
            f"{type(model).__name__} cannot be given embeddings (inputs_embeds), so noise cannot be put on these: give "
            "counterfactual prompts"
        )
    with torch.no_grad():
        embedded = model.get_input_embeddings()(prompts.inputs["input_ids"])  # type: ignore[operator]
    columns = [[start + place for place in span] for start, span in zip(tokens.starts, spans, strict=True)]
    of_subjects = torch.cat([embedded[row, at] for row, at in enumerate(columns)]).float()
    deviation = noise if absolute else noise * float(of_subjects.std())
    drawn = torch.Generator().manual_seed(seed)
    rows = embedded.repeat_interleave(draws, 0)
    for prompt, at in enumerate(columns):
        own = torch.randn(draws, len(at), embedded.shape[-1], generator=drawn) * deviation
        rows[prompt * draws : (prompt + 1) * draws, at] += own.to(rows)
    count = len(prompts)
    rest = {
        name: value.repeat_interleave(draws, 0) if isinstance(value, Tensor) and value.shape[:1] == (count,) else value
        for name, value in prompts.inputs.items()
        if name != "input_ids"
    }
    return {**rest, "inputs_embeds": rows}, deviation


def counterfactual_inputs(others: Prompts, prompts: Prompts) -> Inputs:
    """Return other prompts in the place of the noisy ones."""
    lengths = [[len(ids) for of in each.sequences.values() for ids in of.ids] for each in (prompts, others)]
    if lengths[0] != lengths[1]:
        raise SpecError(f"counterfactual prompts have the prompts' numbers of tokens, {lengths[0]}; found {lengths[1]}")
    return others.inputs
