"""Steps of an alignment search: a rotation at every block, all fitted in the same passes or one after the other.

The pairs are random prompts; each fit learns to give the source's own answer. `PLACE` is the last token.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from work import Task, blocks, load

STEPS = 3
"""Of a fit. The first fills what is kept of the inputs and is not counted: a step is the quicker of the others."""


def prompts(task: Task, pairs: int) -> tuple[dict[str, Tensor], Tensor]:
    """Return as many bases and as many sources, and the answers of the sources."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, task.shape.vocab, (2 * pairs, task.positions), generator=generator).to(task.device)
    return {"input_ids": ids}, torch.randint(5, task.shape.vocab, (pairs,), generator=generator).to(task.device)


def together(task: Task) -> Callable[..., tuple[Tensor, dict[str, Any]]]:
    """A rotation at every block, all in the same passes: the fits of `align`."""
    from align_transformers.causal import CausalModel
    from align_transformers.learning import cross_entropy
    from align_transformers.learning.settings import Settings
    from align_transformers.sites import Site
    from align_transformers.studies._prompts import encode
    from align_transformers.studies.abstraction import fitting, methods, runner
    from align_transformers.studies.abstraction.hypothesis import Hypothesis
    from align_transformers.studies.abstraction.task import Container, CounterfactualPairs
    from align_transformers.studies.abstraction.task import Task as Search

    causal = CausalModel(["word", "answer"], {"word": [0, 1]}, {"answer": ["word"]}, {"answer": lambda word: word})

    def once(pairs: int, answers: bool = False, memory: int = 2**29) -> tuple[Tensor, dict[str, Any]]:
        model = load(task)
        inputs, labels = prompts(task, pairs)
        base, source = np.arange(pairs), pairs + np.arange(pairs)
        sets, nobody = (frozenset(["answer"]),) * pairs, (base, {"answer": source})
        every = CounterfactualPairs(base, {"answer": source}, sets, labels, labels, nobody)
        search = Search(
            model, causal, inputs, ({},) * (2 * pairs), encode(inputs, None, model), (), {"last": -1}, {"train": every},
            lambda labels: labels, "answer", ("word",),
        )  # fmt: skip
        tokens = tuple(labels.unique().tolist()) if answers else None
        settings = Settings(lr=1e-3, epochs=STEPS, schedule="constant", warmup=0)
        lesson = fitting.Lesson(settings, pairs, cross_entropy, tokens)
        sites = [Container(Site("block_output", layer), None, "last") for layer in range(task.shape.layers)]
        search.read(sites)
        learners = []
        for place in sites:
            one = methods.Methods.of("das", task.rank).candidate(
                search, Hypothesis(("answer",), place, "das", task.rank)
            )
            one.intervention.rotate_layer.set_weight(task.rotation(task.rank))
            learners.append(fitting.learner_of(one, every, lesson))
        running, times = runner.Runner(search, memory), {}
        chunks = list(fitting.chunks(learners, running, every, lesson))
        for number, chunk in enumerate(chunks):
            marks = [time.perf_counter()]
            fitting.advance(
                chunk, running, every, lesson, tell=lambda _, marks=marks: marks.append(time.perf_counter())
            )
            times[number] = min(np.diff(marks)[1:])
        notes = {"passes": dict(running.passes), "step": float(sum(times.values())), "chunks": len(chunks)}
        return torch.tensor([one.losses[0] for one in learners]), notes

    return once


def alone(task: Task) -> Callable[..., tuple[Tensor, dict[str, Any]]]:
    """Some of the same rotations, one `fit` after the other, with a memory each."""
    import align_transformers as at

    def once(pairs: int, layers: list[int]) -> tuple[Tensor, dict[str, Any]]:
        model, losses, times = load(task), [], []
        inputs, labels = prompts(task, pairs)
        ids, place = inputs["input_ids"], torch.full((pairs, 1), task.positions - 1)
        batch = {"input_ids": ids[:pairs], "source_input_ids": ids[pairs:], "labels": labels}
        batch |= {"source_0->base.0.pos": place, "source_0->base.1.pos": place}
        for layer in layers:
            one = at.LowRankRotatedSpaceIntervention(embed_dim=task.shape.width, low_rank_dimension=task.rank)
            one.rotate_layer.set_weight(task.rotation(task.rank))
            face = at.IntervenableModel({"layer": layer, "component": "block_output", "intervention": one}, model)
            options: Mapping[str, Any] = {"epochs": STEPS, "lr": 1e-3, "schedule": "constant", "warmup": 0}
            history = at.fit(face, [batch], **options).history
            losses.append(history[0]["loss"])
            times.append(min(row["examples"] / row["examples_per_second"] for row in history[1:]))
        return torch.tensor(losses), {"step": sum(times)}

    return once


def loop(task: Task) -> Callable[..., Tensor]:
    """One step of some of the rotations with hooks: whole passes of source and base, all logits."""
    from peers.hooks import Rotation, capture, hooked, placed

    def once(pairs: int, layers: list[int]) -> Tensor:
        model, losses = load(task), []
        inputs, labels = prompts(task, pairs)
        ids = inputs["input_ids"]
        for layer in layers:
            rotation = Rotation(task.rotation(task.rank), task.rank)
            adam = torch.optim.Adam(rotation.parameters(), lr=1e-3)
            block = blocks(task, model)[layer]
            with torch.no_grad():
                (value,) = capture(model, [block], ids[pairs:])

            def edit(output: Tensor, rotation: Rotation = rotation, value: Tensor = value) -> Tensor:
                return placed(output, task.positions - 1, rotation(output[:, -1], value[:, -1]))

            with hooked((block, edit)):
                loss = nn.functional.cross_entropy(model(ids[:pairs]).logits[:, -1], labels)
            loss.backward()
            adam.step()
            losses.append(loss.item())
        return torch.tensor(losses)

    return once


def floor(task: Task) -> Callable[..., Tensor]:
    """What a step of all cannot avoid: the last token of every pair through the blocks above each edit, both ways."""
    model = load(task)

    def once(pairs: int) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        count = task.shape.layers * pairs
        edited = torch.randn(count, 1, task.shape.width, generator=generator).to(task.device).requires_grad_()
        _, labels = prompts(task, pairs)
        at = torch.tensor([[task.positions - 1]], device=task.device)
        rope = model.model.rotary_emb(edited, at)
        states = edited[:pairs]
        for number, block in enumerate(blocks(task, model)[1:], 1):
            states = block(states, attention_mask=None, position_embeddings=rope)
            states = torch.cat([states, edited[number * pairs : (number + 1) * pairs]])
        logits = model.lm_head(model.model.norm(states[:, -1]))
        nn.functional.cross_entropy(logits, labels.repeat(task.shape.layers)).backward()
        return edited.grad.norm()

    return once
