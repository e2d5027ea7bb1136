"""Boolean programs: a small GPT-2 that runs one, and the direction of its last block that carries the result.

A program as in the tutorial Intervention_Training: five tokens, tests of equality at the leaves, `and` and `or` above
them. The variable that is looked for is the result, at the last token after the last block, along one direction.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from align_transformers import IntervenableModel, VanillaIntervention
from align_transformers.interventions import LowRankRotatedSpaceIntervention
from align_transformers.learning import Scores, evaluate, fit

from .fact import Fact, rows

WORDS, WIDTH, LAYERS, LAST = 8, 64, 2, 5
EQUALS, FALSE = WORDS, WORDS + 1  # two further tokens; the token after FALSE is TRUE
EQUAL = (0.6, 0.3, 0.35)  # how often the tokens of the three tests are made equal


def result(tokens: Tensor) -> Tensor:
    """Return what the program says: `(t0 == t1 and t2 != t3) or t3 == t4`."""
    t0, t1, t2, t3, t4 = tokens[:, :5].unbind(1)
    return ((t0 == t1) & (t2 != t3)) | (t3 == t4)


def inputs(count: int, generator: torch.Generator) -> Tensor:
    """Return `(count, 6)` tokens: five words and the question."""
    words = torch.randint(WORDS, (count, 5), generator=generator)
    equal = torch.rand(count, 3, generator=generator) < torch.tensor(EQUAL)
    for number, (one, other) in enumerate(((0, 1), (2, 3), (3, 4))):
        words[:, other] = torch.where(equal[:, number], words[:, one], words[:, other])
    return torch.cat([words, torch.full((count, 1), EQUALS)], 1)


def labels(tokens: Tensor) -> Tensor:
    """Return the token that answers."""
    return FALSE + result(tokens).long()


@cache
def trained(seed: int = 0, steps: int = 500, batch: int = 128) -> tuple[GPT2LMHeadModel, float]:
    """Return a GPT-2 that was trained to run the program, and its accuracy on new inputs."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    sizes = {"vocab_size": WORDS + 3, "n_positions": 16, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4}
    plain = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": None, "eos_token_id": None}
    model = GPT2LMHeadModel(GPT2Config(initializer_range=WIDTH**-0.5, **sizes, **plain))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    pace = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    for _ in range(steps):
        tokens = inputs(batch, generator)
        loss = nn.functional.cross_entropy(model(tokens, logits_to_keep=1).logits[:, -1], labels(tokens))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        pace.step()
    model.eval().requires_grad_(False)
    tokens = inputs(4000, torch.Generator().manual_seed(seed + 1))
    return model, (model(tokens).logits[:, -1].argmax(-1) == labels(tokens)).float().mean().item()


def pairs(count: int, seed: int, batch: int = 100, *, odd: bool = False) -> list[dict[str, Any]]:
    """Return batches of bases and sources: in half of the pairs the results differ.

    Args:
        count: how many pairs.
        seed: of the draws.
        batch: pairs a batch.
        odd: whether the inputs are those whose words sum to an odd number: no input is of both kinds.
    """
    pool = inputs(20 * count, torch.Generator().manual_seed(seed))
    pool = pool[(pool[:, :5].sum(1) % 2 == 1) == odd]
    sides, half = (pool[~result(pool)], pool[result(pool)]), count // 2
    base = torch.stack([sides[number % 2][number // 2] for number in range(count)])
    source = torch.stack([sides[number // 2 % 2][half + number // 2] for number in range(count)])
    columns = {
        "input_ids": base,
        "source_input_ids": source,
        "labels": labels(source),
        "base_labels": labels(base),
        "source_labels": labels(source),
    }
    places = {"sources->base": LAST}
    return [{**{k: v[at : at + batch] for k, v in columns.items()}, **places} for at in range(0, count, batch)]


@cache
def found(what: str, layer: int = LAYERS - 1) -> Scores:
    """Return the scores of a swap of a block's output at the last token, on inputs that nothing was learned from.

    Args:
        what: `learned`: one direction, fitted to 800 other pairs; `random`: one direction; `whole`: all of it.
        layer: number of the block.
    """
    torch.manual_seed(0)
    direction = LowRankRotatedSpaceIntervention(embed_dim=WIDTH, low_rank_dimension=1)
    intervention = VanillaIntervention() if what == "whole" else direction
    spec = {"layer": layer, "component": "block_output", "intervention": intervention}
    made = IntervenableModel(spec, trained()[0])
    if what == "learned":
        fit(made, pairs(800, seed=2), epochs=10, lr=1e-2)
    return evaluate(made, pairs(1000, seed=3, odd=True))


def table() -> str:
    """Return the scores as text."""
    return rows("boolean program: the result at the last token", {
        f"block {layer}, {what}": found(what, layer)
        for layer in range(LAYERS) for what in ("whole", "learned", "random")
    })  # fmt: skip


FACTS = [
    Fact("program: accuracy on new inputs", lambda: trained()[1], 0.999, 1.0),
    Fact("program: IIA, one learned direction, last block", lambda: found("learned")["iia"], 0.97, 1.0),
    Fact("program: IIA, one random direction (wrong)", lambda: found("random")["iia"], 0.4, 0.7),
    Fact("program: IIA, one learned direction, first block (wrong)", lambda: found("learned", 0)["iia"], 0.4, 0.7),
]
