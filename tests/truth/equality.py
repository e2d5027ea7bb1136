"""Hierarchical equality: WX = (W == X), YZ = (Y == Z), O = (WX == YZ) (Geiger et al. 2023, arXiv:2303.02536).

Networks whose inside is known: one made by hand, and one trained until it solves the task, in which the variables are
found by learning a rotation.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from align_transformers import IntervenableModel, VanillaIntervention
from align_transformers.interventions import RotatedSpaceIntervention
from align_transformers.learning import Scores, evaluate, fit
from align_transformers.zoo import MLPConfig, MLPForClassification

from .fact import Fact, rows

SEEDS, BATCH = 3, 1024  # of the evaluation
GAP = 0.05  # unequal entities differ by at least this, summed over their coordinates


def entities(count: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs `(count, 1, 4 * size)` of four random vectors, and the two variables, each true half the time."""
    w, x, y, z = (torch.rand(count, size, generator=generator) * 2 - 1 for _ in range(4))
    same = torch.rand(2, count, generator=generator) < 0.5
    x, z = torch.where(same[0, :, None], w, _apart(w, x)), torch.where(same[1, :, None], y, _apart(y, z))
    return torch.cat([w, x, y, z], -1).unsqueeze(1), same[0], same[1]


def _apart(one: Tensor, other: Tensor) -> Tensor:
    """Return `other`, moved where it is too near to `one`."""
    near = (one - other).abs().sum(-1, keepdim=True) < GAP
    return torch.where(near, other + GAP, other)


def counterfactuals(count: int, batch: int, size: int, seed: int) -> list[dict[str, Any]]:
    """Return batches of base, two sources, and what the causal model says when WX, YZ or both come from these.

    A third of the examples of a batch gets WX from the first source, a third YZ from the second, and a third both.
    """
    generator = torch.Generator().manual_seed(seed)
    kind = [n % 3 for n in range(batch)]
    takes_wx, takes_yz = torch.tensor([k != 1 for k in kind]), torch.tensor([k != 0 for k in kind])
    parts = [[[0] if k != 1 else [] for k in kind], [[1] if k != 0 else [] for k in kind]]
    made = []
    for _ in range(count):
        (base, wx, yz), (first, source_wx, _), (second, _, source_yz) = (
            entities(batch, size, generator) for _ in range(3)
        )
        label = torch.where(takes_wx, source_wx, wx) == torch.where(takes_yz, source_yz, yz)
        made.append(
            {
                "inputs_embeds": base,
                "source_inputs_embeds": [first, second],
                "subspaces": parts,
                "labels": label.long(),
                "base_labels": (wx == yz).long(),
            }
        )
    return made


@cache
def by_hand() -> MLPForClassification:
    """Return a ReLU network that solves the task for 2-d entities; each variable is the sum of four known neurons.

    Layer 0: neurons 0 to 3 are the parts of |W - X|, 4 to 7 those of |Y - Z|. Layer 1 caps each sum at the gap, so
    that it is 0 or the gap; layer 2 compares the two.
    """
    model = MLPForClassification(MLPConfig(h_dim=8, n_layer=3, activation="relu"))
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    first, second, third = (block.ff1 for block in model.h)
    with torch.no_grad():
        for pair in (0, 1):
            for axis in (0, 1):
                one, other = 4 * pair + axis, 4 * pair + 2 + axis
                row = 4 * pair + 2 * axis
                first.weight[row, one], first.weight[row, other] = 1.0, -1.0
                first.weight[row + 1] = -first.weight[row]
            second.weight[2 * pair : 2 * pair + 2, 4 * pair : 4 * pair + 4] = 1.0
            second.bias[2 * pair + 1] = -GAP
        third.weight[0, :4] = torch.tensor([1.0, -1.0, -1.0, 1.0])
        third.weight[1] = -third.weight[0]
        model.score.weight[0, :2] = 1.0
        model.score.bias[1] = GAP / 2
    return model.eval().requires_grad_(False)


@cache
def trained(seed: int = 42, size: int = 4, steps: int = 4000, batch: int = 2048) -> tuple[MLPForClassification, float]:
    """Return an MLP with three layers of 16 neurons that was trained on the task, and its accuracy on new entities.

    It is trained in double precision, so that it becomes the same network on every machine: thousands of steps make
    another one of every difference of rounding, and what each layer holds differs from network to network.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = MLPForClassification(MLPConfig(h_dim=4 * size, n_layer=3, activation="relu")).double()
    optimizer = torch.optim.Adam(model.parameters())
    pace = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps)
    for _ in range(steps):
        inputs, wx, yz = entities(batch, size, generator)
        loss = nn.functional.cross_entropy(model(inputs.double()).logits, (wx == yz).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        pace.step()
    model.float().eval().requires_grad_(False)
    inputs, wx, yz = entities(10_000, size, generator)
    return model, (model(inputs).logits.argmax(-1) == (wx == yz)).float().mean().item()


def swaps(parts: Sequence[Sequence[int]]) -> Scores:
    """Return how the network made by hand does when the neurons `parts` of layer 0 are taken for WX and for YZ."""
    spec = {"component": "h[0].output", "intervention_type": VanillaIntervention, "subspace_partition": parts}
    return evaluate(IntervenableModel([spec, spec], by_hand()), counterfactuals(2, 1024, 2, seed=1))


@cache
def rotated(layer: int, seed: int = 0, steps: int = 800, batch: int = 256, lr: float = 0.03) -> Scores:
    """Learn the two variables as 8 dimensions each of a rotation of one layer, and return the scores on new data."""
    torch.manual_seed(seed)
    rotation = RotatedSpaceIntervention(embed_dim=16, subspace_partition=[[0, 8], [8, 16]])
    spec = {"component": f"h[{layer}].output", "intervention": rotation}
    model, _ = trained()
    made = IntervenableModel([spec, spec], model)
    fit(made, counterfactuals(steps, batch, 4, seed=100 + seed), epochs=1, lr=lr, seed=seed)
    return evaluate(made, counterfactuals(20, BATCH, 4, seed=7))


def best(layer: int) -> Scores:
    """Return the scores of the rotation that does best, of some seeds."""
    return max((rotated(layer, seed) for seed in range(SEEDS)), key=lambda scores: scores["iia"])


def of_kind(layer: int, kind: int) -> float:
    """Return the IIA of the best rotation where WX (0), YZ (1) or both (2) come from a source."""
    values = best(layer).numbers["soft"]["iia"].view(-1, BATCH)
    return values[:, torch.arange(BATCH) % 3 == kind].double().mean().item()


def table() -> str:
    """Return the scores as text."""
    return rows("hierarchical equality, trained: 8 dimensions a variable", {
        f"layer {layer + 1}, seed {seed}": rotated(layer, seed) for layer in range(3) for seed in range(SEEDS)
    })  # fmt: skip


def _solved_by_hand() -> float:
    inputs, wx, yz = entities(100_000, 2, torch.Generator().manual_seed(0))
    return (by_hand()(inputs).logits.argmax(-1) == (wx == yz)).float().mean().item()


FACTS = [
    Fact("equality by hand: accuracy", _solved_by_hand, 1.0, 1.0),
    Fact("equality by hand: IIA, the right neurons", lambda: swaps([[0, 4], [4, 8]])["iia"], 1.0, 1.0),
    Fact("equality by hand: IIA, the other's neurons (wrong)", lambda: swaps([[4, 8], [0, 4]])["iia"], 0.45, 0.55),
    Fact("equality, trained: accuracy on new entities", lambda: trained()[1], 0.999, 1.0),
    Fact("equality, trained: IIA, layer 1, best of 3", lambda: best(0)["iia"], 0.99, 1.0),
    Fact("equality, trained: the same, both variables at once", lambda: of_kind(0, 2), 0.99, 1.0),
    Fact("equality, trained: IIA, layer 2, best of 3", lambda: best(1)["iia"], 0.5, 0.65),
    Fact("equality, trained: IIA, layer 3, best of 3", lambda: best(2)["iia"], 0.0, 0.52),
]
