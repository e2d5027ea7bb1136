"""Train the model that `create_induction_lm` loads, and write its weights: `python -m tests.truth.make_induction`.

Texts of 48 tokens, of 64, repeat 6 to 24 different random tokens. The period is random: with a fixed one, attention
would learn to look back by so many places. In a loss beside that of the next token, all heads of the first layer but
one pay for looking at the token before, and all heads of the second but one for looking behind an earlier occurrence of
the token. So it is known which head does what; what these heads read and write is learned. A minute on one core.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from align_transformers import zoo
from align_transformers.zoo import TransformerLMHeadModel

from .repeats import INDUCTION, PREVIOUS, SIZES, before, behind, repeats, top_1
from .searches import make

STEPS, BATCH, RATE, WARM, WEIGHT_DECAY = 800, 32, 3e-3, 100, 0.1


def patterns(model: TransformerLMHeadModel, tokens: Tensor) -> list[Tensor]:
    """Return each layer's attention pattern, `(texts, heads, queries, keys)`, with its gradient."""
    states = model.tokens(tokens) + model.positions(torch.arange(tokens.shape[1]))
    hidden = torch.full((tokens.shape[1],) * 2, float("-inf")).triu(1)
    found = []
    for block in model.blocks:
        read, attention = block.attention_norm(states), block.attention
        each = (*read.shape[:2], -1, attention.head_dim)
        query, key, value = (
            one(read).view(each).transpose(1, 2) for one in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        found.append((query @ key.transpose(2, 3) * attention.head_dim**-0.5 + hidden).softmax(-1))
        states = states + attention.o_proj((found[-1] @ value).transpose(1, 2).flatten(2))
    return found


def looks(model: TransformerLMHeadModel, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return of each head of each layer the mean share that it gives: to the token before, and to the one to repeat."""
    first, second = patterns(model, tokens)
    return (first * before(tokens)[:, None]).sum(-1).mean((0, 2)), (second * behind(tokens)[:, None]).sum(-1).mean(
        (0, 2)
    )


def train(seed: int = 0, steps: int = STEPS) -> TransformerLMHeadModel:
    """Return a trained model."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = TransformerLMHeadModel(SIZES)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY)
    pace = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARM, (steps - step) / (steps / 4))
    )
    first, second = ([head for head in range(SIZES.n_head) if head != one] for one in (PREVIOUS, INDUCTION))
    started = time.process_time()
    for step in range(steps):
        tokens = repeats(BATCH, generator)
        loss = model(tokens, labels=tokens).loss
        previous, induction = looks(model, tokens)
        optimizer.zero_grad()
        (loss + previous[first].sum() + induction[second].sum()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        pace.step()
        if step % 100 == 99:
            shown = [[round(value, 2) for value in one.tolist()] for one in (previous, induction)]
            line = f"{step + 1:>5} loss {loss.item():.3f}, top-1 {top_1(model):.3f}, previous {shown[0]}, "
            sys.stdout.write(f"{line}induction {shown[1]}, {time.process_time() - started:.0f} s\n")
            sys.stdout.flush()
    return model.eval()


if __name__ == "__main__":
    make(train, Path(zoo.__file__).with_name("induction.safetensors"), top_1)
