"""Networks of which it is known what carries what, and language models with a causal model beside them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from align_transformers import CausalModel, CounterfactualDataset, causal_model
from align_transformers.learning.losses import cross_entropy
from align_transformers.learning.settings import Settings
from align_transformers.studies.abstraction.fitting import Lesson
from align_transformers.studies.abstraction.task import Task
from align_transformers.studies.abstraction.task_making import Writing, make_task


@causal_model
def add(a: range(5), b: range(5), c: range(5)):
    """Add three digits, the first two first."""
    x = a + b
    return x + c


def adder(seed: int = 0) -> tuple[nn.Module, Tensor]:
    """Return a network whose hidden layer has a + b along the first column of a rotation, c along the second."""
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(seed))).Q
    network = nn.Sequential(nn.Linear(3, 6, bias=False), nn.Identity(), nn.Linear(6, 13))
    k = torch.arange(13.0)
    with torch.no_grad():
        network[0].weight.copy_(rotation[:, :3] @ torch.tensor([[1.0, 1, 0], [0, 0, 1], [1, -1, 0]]))
        network[2].weight.copy_(2 * k[:, None] * (rotation[:, 0] + rotation[:, 1]))
        network[2].bias.copy_(-(k**2))
    return network, rotation


def vector(one: dict[str, Any]) -> list[float]:
    """Return an input of `adder`."""
    return [float(one["a"]), float(one["b"]), float(one["c"])]


def words(count: int = 12) -> CausalModel:
    """Return a model of one word that passes through two variables."""
    return CausalModel(
        ["word", "middle", "answer"],
        dict.fromkeys(["word", "middle", "answer"], range(count)),
        {"middle": ["word"], "answer": ["middle"]},
        {"middle": lambda word: word, "answer": lambda middle: (middle + 1) % count},
    )


def tokens_of(one: dict[str, Any]) -> list[int]:
    """Return a text about a word: of two lengths, the word second."""
    return [1, 10 + one["word"], 3, 4] if one["word"] % 2 else [1, 10 + one["word"], 3, 4, 5]


def task_of(
    model: nn.Module, causal: CausalModel, data: CounterfactualDataset, *, positions: Any = None, **written: Any
) -> Task:
    """Return a task of data in three parts, all pairs with shared entities allowed."""
    writing = Writing(**{"template": None, "tokenizer": None, "encode": None, "label": None, **written})
    return make_task(model, causal, {"train": data, "validation": data, "test": data}, writing, positions)


def lesson_of(batch_size: int = 8, tokens: tuple[int, ...] | None = None, **settings: Any) -> Lesson:
    """Return a lesson with cross-entropy."""
    return Lesson(Settings.of({"lr": 1e-2, **settings}), batch_size, cross_entropy, tokens)
