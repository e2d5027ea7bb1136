"""Circuits of a model, each run exactly, beside a plain forward pass and beside two forward passes and a backward one.

The prompts are the first tokens of the others'; the metric is the difference of two logits at the last one.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import work
from torch import Tensor
from work import Task, load

TOKENS = 16
SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of the edges that are kept, as the MIB benchmark has them."""


def runner_of(task: Task, count: int) -> Any:
    """Return what runs circuits of the model on some pairs, with all that they share recorded."""
    from align_transformers import graph, logit_difference
    from align_transformers.studies._pairs import pair_up
    from align_transformers.studies.circuits.circuit_runner import Answered, CircuitRunner

    model = load(task)
    sides = [{"input_ids": ids[:count, :TOKENS]} for ids in (task.bases, task.turned)]
    pairs = pair_up(*sides, None, model, None, None, None, None)
    metrics = [logit_difference(5, 7)] * len(pairs)
    runner = CircuitRunner(model, graph(model), pairs, Answered(metrics))
    runner.ends  # noqa: B018  # records both runs
    return runner


def costs(task: Task) -> Callable[..., tuple[Tensor, dict[str, Any]]]:
    """What circuits cost, all in turns: medians in milliseconds."""

    @torch.no_grad()
    def once(pairs: int, repeat: int = 3) -> tuple[Tensor, dict[str, Any]]:
        runner, model, bases = runner_of(task, pairs), load(task), task.bases[:pairs, :TOKENS]
        generator = torch.Generator().manual_seed(0)
        order = torch.randperm(len(runner.graph), generator=generator)
        nested = torch.zeros(len(SIZES), len(order), dtype=torch.bool)
        for row, share in zip(nested, SIZES, strict=True):
            row[order[: int(share * len(order))]] = True
        half = torch.rand(1, len(order), generator=generator) < 0.5

        def forward() -> Tensor:
            return model(input_ids=bases).logits[:, -1]

        def both_ways() -> None:
            forward()
            with torch.enable_grad():
                embeddings = model.get_input_embeddings()(bases).detach().requires_grad_()
                logits = model(inputs_embeds=embeddings).logits[:, -1]
                torch.autograd.grad((logits[:, 5] - logits[:, 7]).sum(), embeddings)

        ways: dict[str, Callable[[], Any]] = {
            "plain": forward,
            "two forward, one backward": both_ways,
            "half of the edges": lambda: runner.measure(half),
            "ten nested": lambda: runner.measure(nested),
            "mask step": lambda: runner.gradient(half[0].float()),
        }
        rounds = [[work.timed(way, task.device)[0] for way in ways.values()] for _ in range(repeat + 1)][1:]
        medians = [1e3 * median(column) for column in zip(*rounds, strict=True)]
        whole = runner.measure(torch.ones(1, len(order), dtype=torch.bool))[0]
        facts = {"milliseconds": dict(zip(ways, medians, strict=True)), "edges": len(order)}
        return torch.cat([whole.float(), runner.ends[0].float()]), facts

    return once
