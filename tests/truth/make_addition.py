"""Train the model of `addition.py`, and write its weights: `python -m tests.truth.make_addition`.

Three digits are read, one token each; at every token the model says the sum of what it has read so far. In a loss
beside that, the third token pays for looking anywhere but at itself in the first block, and for looking at the first
token in the second. So what it learns of the first digit comes to it through the second token: there, behind the first
block, the sum of two digits is made before the third one is known. This order is imposed; how the sum is held is
learned. Under a minute on one core.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from align_transformers.zoo import TransformerConfig, TransformerLMHeadModel

from .searches import make

WEIGHTS = Path(__file__).parent / "weights" / "addition.safetensors"
DIGITS = 10
SIZES = TransformerConfig(
    vocab_size=DIGITS, n_positions=8, h_dim=32, n_layer=2, n_head=2, mlp_dim=64, n_outputs=3 * (DIGITS - 1) + 1
)
STEPS, RATE, WARM, WEIGHT_DECAY = 800, 5e-3, 50, 0.01


def sums() -> tuple[Tensor, Tensor]:
    """Return all triples of digits `(1000, 3)`, and of each token the sum of the digits up to it."""
    digits = torch.cartesian_prod(*[torch.arange(DIGITS)] * 3)
    return digits, digits.cumsum(-1)


def patterns(model: TransformerLMHeadModel, tokens: Tensor) -> tuple[list[Tensor], Tensor]:
    """Return each block's attention pattern, `(texts, heads, queries, keys)`, and the logits."""
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
        states = states + block.mlp(block.mlp_norm(states))
    return found, model.unembedding(model.final_norm(states))


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    """Return how often the sum of all three digits is right."""
    digits, said = sums()
    return (model(digits).logits[:, -1].argmax(-1) == said[:, -1]).float().mean().item()


def train(seed: int = 0, steps: int = STEPS) -> TransformerLMHeadModel:
    """Return a trained model."""
    torch.manual_seed(seed)
    model = TransformerLMHeadModel(SIZES)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY)
    pace = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARM, (steps - step) / (steps / 2))
    )
    digits, said = sums()
    started = time.process_time()
    for step in range(steps):
        (first, second), logits = patterns(model, digits)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), said.flatten())
        looks = first[:, :, 2, :2].sum(-1).mean() + second[:, :, 2, 0].mean()
        optimizer.zero_grad()
        (loss + looks).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        pace.step()
        if step % 100 == 99:
            line = f"{step + 1:>5} loss {loss.item():.4f}, looks {looks.item():.4f}, right {accuracy(model):.3f}"
            sys.stdout.write(f"{line}, {time.process_time() - started:.0f} s\n")
            sys.stdout.flush()
    return model.eval()


if __name__ == "__main__":
    make(train, WEIGHTS, accuracy)
