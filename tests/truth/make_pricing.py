"""Train the model of `pricing.py`, and write its weights: `python -m tests.truth.make_pricing`.

Three prices are read, one token each: the lowest and the highest that is wanted, and what the thing costs. At the last
one the model says whether that lies between the two. Nothing else is asked of it: where it compares, and what with
what, is learned. Under a minute on one core.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from align_transformers.zoo import TransformerConfig, TransformerLMHeadModel

from .searches import make

WEIGHTS = Path(__file__).parent / "weights" / "pricing.safetensors"
PRICES = 16
SIZES = TransformerConfig(vocab_size=PRICES, n_positions=8, h_dim=32, n_layer=2, n_head=2, mlp_dim=64, n_outputs=2)
STEPS, BATCH, RATE = 1500, 512, 3e-3


def prices() -> tuple[Tensor, Tensor]:
    """Return all triples `(n, 3)` whose first price is not above the second, and whether the third lies between."""
    found = torch.cartesian_prod(*[torch.arange(PRICES)] * 3)
    low, high, cost = found[found[:, 0] <= found[:, 1]].T
    return torch.stack([low, high, cost], 1), (low <= cost) & (cost <= high)


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    """Return how often the model is right, over all triples."""
    triples, between = prices()
    return (model(triples).logits[:, -1].argmax(-1) == between).float().mean().item()


def train(seed: int = 0, steps: int = STEPS) -> TransformerLMHeadModel:
    """Return a trained model. Half of the triples of a batch are between, half are not."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = TransformerLMHeadModel(SIZES)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    pace = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    triples, between = prices()
    often = torch.where(between, 1 / between.sum(), 1 / (~between).sum())
    started = time.process_time()
    for step in range(steps):
        some = torch.multinomial(often, BATCH, replacement=True, generator=generator)
        loss = nn.functional.cross_entropy(model(triples[some]).logits[:, -1], between[some].long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        pace.step()
        if step % 100 == 99:
            line = f"{step + 1:>5} loss {loss.item():.5f}, right {accuracy(model):.4f}"
            sys.stdout.write(f"{line}, {time.process_time() - started:.0f} s\n")
            sys.stdout.flush()
    return model.eval()


if __name__ == "__main__":
    make(train, WEIGHTS, accuracy)
