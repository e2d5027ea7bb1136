"""Texts that repeat themselves, and what is known of them: what the induction model was trained on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from align_transformers.zoo import TransformerConfig

WORDS, LENGTH, HALF = 64, 48, 24
SHORTEST = 6
PREVIOUS, INDUCTION = 3, 0
"""The head of the first layer that looks at the token before, and that of the second that looks at what comes next."""

SIZES = TransformerConfig(vocab_size=WORDS, n_positions=LENGTH, h_dim=64, n_layer=2, n_head=4, head_dim=32)


def repeats(count: int, generator: torch.Generator, *, period: int | None = None, length: int = LENGTH) -> Tensor:
    """Return texts `(count, length)` of different random tokens, again and again.

    Args:
        count: how many.
        generator: of the draws.
        period: after so many tokens it begins again; default: 6 to 24, at random for each text.
        length: of a text.
    """
    each = torch.randint(SHORTEST, HALF + 1, (count, 1), generator=generator)
    each = each if period is None else torch.full((count, 1), period)
    words = torch.rand(count, WORDS, generator=generator).argsort(-1)
    return words.gather(1, torch.arange(length) % each)


def before(tokens: Tensor) -> Tensor:
    """Return for each query the key that is the token before it, as ones in `(texts, queries, keys)`."""
    length = tokens.shape[1]
    return torch.eye(length).roll(-1, 1).tril(-1).expand(len(tokens), -1, -1)


def behind(tokens: Tensor) -> Tensor:
    """Return for each query the keys behind earlier occurrences of its token: what comes next stands there."""
    same = (tokens[:, :, None] == tokens[:, None, :]).tril(-1).float()
    return nn.functional.pad(same[:, :, :-1], (1, 0))


def held_out(count: int = 256) -> Tensor:
    """Return texts that nothing was learned from."""
    return repeats(count, torch.Generator().manual_seed(10_000))


@torch.no_grad()
def top_1(model: nn.Module) -> float:
    """Return how often the most probable token is right, over the second half of texts: all is repeated there."""
    tokens = held_out()
    right = model(tokens).logits[:, :-1].argmax(-1) == tokens[:, 1:]
    return right[:, HALF - 1 :].float().mean().item()
