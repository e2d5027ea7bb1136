"""Hierarchical equality: WX = (W == X), YZ = (Y == Z), O = (WX == YZ) (Geiger et al. 2023, arXiv:2303.02536).

Networks whose inside is known: one made by hand, and one trained until it solves the task, in which the variables are
found by learning a rotation.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from align_transformers import AlignmentResult, CausalModel, CounterfactualDataset, Site, align
from align_transformers.zoo import MLPConfig, MLPForClassification

from .fact import Fact
from .searches import along, found, overview

SEEDS, THINGS = 3, 100
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
    return model.float().eval().requires_grad_(False), accuracy(model, size, generator)


def accuracy(model: nn.Module, size: int, generator: torch.Generator) -> float:
    """Return how often a network is right about new entities."""
    inputs, wx, yz = entities(100_000, size, generator)
    return (model(inputs).logits.argmax(-1) == (wx == yz)).float().mean().item()


@cache
def same(things: int) -> CausalModel:
    """Return the causal model, of so many things."""
    return CausalModel(
        ["w", "x", "y", "z", "wx", "yz", "o"],
        values={**dict.fromkeys("wxyz", range(things)), **dict.fromkeys(("wx", "yz", "o"), (False, True))},
        parents={"wx": ["w", "x"], "yz": ["y", "z"], "o": ["wx", "yz"]},
        functions=dict.fromkeys(("wx", "yz", "o"), lambda one, other: one == other),
    )


@cache
def pairs() -> dict[str, CounterfactualDataset]:
    """Return pairs: WX, YZ or both come from sources, each in a third of them.

    Those whose answer is the base's are kept: of two answers the other one is what any disturbance gives.
    """
    sets = ["wx", "yz", {"wx", "yz"}]
    data = CounterfactualDataset.sample(same(THINGS), 120_000, variables=sets, balanced="o", trivial=True, seed=0)
    return data.split((0.5, 0.15, 0.35), seed=0)


def searched(model: MLPForClassification, size: int, most: int | None = None, **how: Any) -> AlignmentResult:
    """Search a network for the variables; things are random vectors of `size` numbers, parts have `most` pairs."""
    vectors = torch.rand(THINGS, size, generator=torch.Generator().manual_seed(3)) * 2 - 1

    def encode(setting: Mapping[str, Any]) -> Tensor:
        return vectors[[setting[name] for name in "wxyz"]].view(1, -1)

    parts = {name: part.take(range(min(most or len(part), len(part)))) for name, part in pairs().items()}
    return align(model, same(THINGS), parts, encode=encode, **how)


@cache
def swapped(variable: str, which: str) -> float:
    """Return the IIA of a variable in known neurons of the network made by hand."""
    neurons = {"first four": along(torch.eye(8)[:, :4]), "last four": along(torch.eye(8)[:, 4:])}
    how = {"sites": Site("h[0].output"), "variables": [variable], "methods": {which: neurons[which]}, "controls": ()}
    return float(searched(by_hand(), 2, 3000, **how).best()["iia"])


@cache
def rotations() -> AlignmentResult:
    """Learn the two variables as 8 dimensions each of a rotation of each layer."""
    layers = [Site(f"h[{layer}].output") for layer in range(3)]
    how = {"methods": "das", "ranks": 8, "seeds": SEEDS, "batch_size": 256, "max_steps": 500, "lr": 0.03}
    return searched(trained()[0], 4, sites=layers, variables=[("wx", "yz")], **how)


def best(layer: int, column: str = "iia") -> float:
    """Return a number of the rotation of a layer that does best on the validation pairs, of some seeds."""
    rows = found(rotations(), component=f"h[{layer}].output")
    return float(max(rows, key=lambda row: row["validation"])[column])


def table() -> str:
    """Return what was found as text."""
    return overview("hierarchical equality, 8 dimensions a variable", {"trained": rotations()})


FACTS = [
    Fact("equality by hand: accuracy", lambda: accuracy(by_hand(), 2, torch.Generator().manual_seed(0)), 1.0, 1.0),
    Fact("equality by hand, align: IIA of WX, its neurons", lambda: swapped("wx", "first four"), 1.0, 1.0),
    Fact("equality by hand, align: IIA of YZ, its neurons", lambda: swapped("yz", "last four"), 1.0, 1.0),
    Fact("equality by hand, align: WX, the other's neurons (wrong)", lambda: swapped("wx", "last four"), 0.45, 0.55),
    Fact("equality, trained: accuracy on new entities", lambda: trained()[1], 0.999, 1.0),
    Fact("equality, trained: IIA, layer 1, best of 3", lambda: best(0), 0.99, 1.0),
    Fact("equality, trained: IIA, layer 2, best of 3", lambda: best(1), 0.5, 0.65),
    Fact("equality, trained: IIA, layer 3, best of 3", lambda: best(2), 0.0, 0.52),
    Fact("equality, trained: layer 1 minus layer 2, intervals", lambda: best(0, "low") - best(1, "high"), 0.3, 1),
    Fact("equality, trained: the fit of layer 1 to permuted labels", lambda: best(0, "permuted"), 0.0, 0.7),
    Fact("equality, trained: the fit of layer 1 in a random network", lambda: best(0, "reinitialised"), 0.0, 0.7),
]
