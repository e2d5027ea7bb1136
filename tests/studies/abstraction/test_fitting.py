"""Many fits in one pass are the fits that they would be alone; interchanges are those of hooks written by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.helpers import new_model
from tests.studies.abstraction.kit import add, adder, lesson_of, task_of, tokens_of, vector, words
from torch import Tensor, nn

from align_transformers import CounterfactualDataset, IntervenableModel, LowRankRotatedSpaceIntervention, Site
from align_transformers._errors import SpecError
from align_transformers.learning import fit
from align_transformers.learning.settings import FitError
from align_transformers.studies.abstraction.fitting import Stored, advance, chunks, learner_of
from align_transformers.studies.abstraction.hypothesis import Hypothesis
from align_transformers.studies.abstraction.methods import Methods
from align_transformers.studies.abstraction.runner import Runner, hits, measured
from align_transformers.studies.abstraction.task import Container

PLACES = {"word": 1, "last": -1}


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def language(request):
    model = new_model(request.param).requires_grad_(False)
    data = CounterfactualDataset.sample(words(), 60, variables="middle", seed=0)
    return task_of(model, data.causal_model, data, encode=tokens_of, positions=PLACES)


def hypotheses(task: Any, method: str = "das", rank: int | None = 2) -> list[Hypothesis]:
    layers = range(2)
    return [
        Hypothesis(("middle",), Container(Site("block_output", layer), None, place), method, rank, seed)
        for seed in (0, 1)
        for layer in layers
        for place in task.places
    ]


def by_hand(task: Any, candidate: Any, rows: Any) -> Tensor:
    """Return the logits of interchanges, one pair at a time, without padding."""
    pairs = task.parts["test"]
    sides = (pairs.base, pairs.sources["middle"])
    return torch.stack([_by_hand(task, candidate, [int(side[row]) for side in sides]) for row in rows])


@torch.no_grad()
def _by_hand(task: Any, candidate: Any, pair: list[int]) -> Tensor:
    container = candidate.hypothesis.container
    block = dict(task.model.named_modules())[_block(task.model, container.site.layer)]
    base, source = (torch.tensor([tokens_of(task.settings[number])]) for number in pair)
    here, there = (1 if container.place == "word" else text.shape[1] - 1 for text in (base, source))
    seen: list[Tensor] = []

    def read(_module, _given, output):
        seen.append(_state(output)[:, there].clone())

    def write(_module, _given, output):
        state = _state(output).clone()
        state[:, here] = candidate.intervention(state[:, here][:, None], seen[0][:, None])[:, 0]
        return (state, *output[1:]) if isinstance(output, tuple) else state

    with block.register_forward_hook(read):
        task.model(source)
    with block.register_forward_hook(write):
        return task.model(base).logits[0, -1]


def _state(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _block(model: nn.Module, layer: int) -> str:
    known = dict(model.named_modules())
    return next(path for stem in ("transformer.h", "model.layers") if (path := f"{stem}.{layer}") in known)


def test_interchanges_are_those_of_hooks(language):
    """Inputs of two lengths, padded; several layers, places and ranks in one plan."""
    methods, pairs = Methods.of(["swap", "das"], 2), language.parts["test"]
    candidates = [
        methods.candidate(language, one) for one in (*hypotheses(language)[:4], *hypotheses(language, "swap", None)[:4])
    ]
    rows = np.arange(10)
    found = measured(Runner(language, 2**28), candidates, pairs, lambda _: rows, lambda logits: logits)
    for candidate, logits in zip(candidates, found, strict=True):
        torch.testing.assert_close(logits, by_hand(language, candidate, rows), atol=2e-5, rtol=1e-4)


def test_many_fits_are_the_fits_alone(language):
    methods, lesson, pairs = Methods.of("das", 2), lesson_of(max_steps=5), language.parts["train"]
    candidates = [methods.candidate(language, one) for one in hypotheses(language)]
    learners = [learner_of(one, pairs, lesson) for one in candidates]
    batches = [list(one.batches) for one in learners]
    advance(learners, Runner(language, 2**28), pairs, lesson)
    for number in (0, 3, 6):
        hypothesis, learner = candidates[number].hypothesis, learners[number]
        alone = methods.candidate(language, hypothesis).intervention
        config = {"layer": hypothesis.container.site.layer, "component": "block_output", "intervention": alone}
        face = IntervenableModel(config, language.model)
        at = language.rows(hypothesis.container)
        loader = [
            {
                **{name: of[pairs.base[rows]] for name, of in language.inputs.items()},
                **{f"source_{name}": of[pairs.sources["middle"][rows]] for name, of in language.inputs.items()},
                "source_0->base.0.pos": torch.tensor([at[n] for n in pairs.sources["middle"][rows]]),
                "source_0->base.1.pos": torch.tensor([at[n] for n in pairs.base[rows]]),
                "labels": pairs.labels[rows],
            }
            for rows in batches[number]
        ]
        found = fit(face, loader, epochs=1, lr=1e-2)
        assert [row["loss"] for row in found.history] == pytest.approx(learner.losses, rel=1e-4)
        torch.testing.assert_close(learner.trained.rotation, alone.rotation, atol=1e-4, rtol=0)


def test_chunks_bound_memory_and_change_nothing(language):
    methods, lesson, pairs = Methods.of("das", 2), lesson_of(max_steps=3), language.parts["train"]
    found = []
    for memory in (2**28, 2**13):
        learners = [learner_of(methods.candidate(language, one), pairs, lesson) for one in hypotheses(language)]
        runner = Runner(language, memory)
        sizes = [len(chunk) for chunk in chunks(learners, runner, pairs, lesson)]
        assert (len(sizes) == 1) == (memory == 2**28)
        assert sum(sizes) == len(learners)
        advance(learners, runner, pairs, lesson)
        found.append(torch.stack([one.trained.rotation.detach() for one in learners]))
    torch.testing.assert_close(*found, atol=1e-5, rtol=0)


def test_the_loss_over_the_answers_alone_is_that_of_their_logits(language):
    methods, pairs = Methods.of("das", 2), language.parts["train"]
    tokens = tuple(pairs.labels.unique().tolist())
    lesson = lesson_of(max_steps=1, tokens=tokens)
    one = learner_of(methods.candidate(language, hypotheses(language)[0]), pairs, lesson)
    fresh = methods.candidate(language, hypotheses(language)[0])
    rows = one.batches[0]
    advance([one], Runner(language, 2**28), pairs, lesson)
    logits = by_hand(language, fresh, rows)[:, list(tokens)]
    labels = torch.tensor([tokens.index(int(label)) for label in pairs.labels[rows]])
    assert one.losses[0] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-4)


def test_joint_interchanges_use_blocks_of_one_rotation():
    """Each variable has its part; one that is not interchanged leaves the base as it is, bit for bit."""
    network, _ = adder()
    data = CounterfactualDataset.sample(add, 200, variables=["x", "c", {"x", "c"}], seed=0)
    task = task_of(network, add, data, encode=vector)
    pairs = task.parts["test"]
    hypothesis = Hypothesis(("x", "c"), Container(Site("0.output")), "das", 1)
    candidate = Methods.of("das", 1).candidate(task, hypothesis)
    rows = pairs.of(("x", "c"))
    assert len(rows) == 200
    (found,) = measured(Runner(task, 2**28), [candidate], pairs, lambda _: rows, lambda logits: logits)
    r = candidate.intervention.rotation.detach()
    with torch.no_grad():
        hidden = network[0](torch.tensor([vector(setting) for setting in task.settings]))
        for row in rows:
            edited = hidden[pairs.base[row]]
            for part, name in enumerate(("x", "c")):
                if name in pairs.sets[row]:
                    column = r[:, part]
                    edited = edited + ((hidden[pairs.sources[name][row]] - edited) @ column) * column
            torch.testing.assert_close(found[row], network[2](edited), atol=1e-4, rtol=1e-5)


def test_a_wired_variable_is_found_in_its_direction():
    network, rotation = adder()
    data = CounterfactualDataset.sample(add, 400, variables="x", seed=0)
    task = task_of(network, add, data, encode=vector)
    candidate = Methods.of("das", 1).candidate(task, Hypothesis(("x",), Container(Site("0.output")), "das", 1))
    learner = learner_of(candidate, task.parts["train"], lesson_of(32, max_steps=400, lr=0.03))
    runner = Runner(task, 2**28)
    before = hits(runner, [candidate], task.parts["test"])[0].mean()
    advance([learner], runner, task.parts["train"], lesson_of(32, max_steps=400, lr=0.03))
    assert before < 0.5
    assert hits(runner, [candidate], task.parts["test"])[0].mean() == 1.0
    assert (
        abs(float(candidate.intervention.rotation[:, 0].detach() @ rotation[:, 0])) > 0.9
    )  # the IIA is 1 before the direction is quite right


class Killed(Exception):
    pass


def test_a_killed_search_goes_on_bit_for_bit(language, tmp_path):
    methods, lesson, pairs = Methods.of("das", 2), lesson_of(max_steps=4), language.parts["train"]

    def learners():
        return [learner_of(methods.candidate(language, one), pairs, lesson) for one in hypotheses(language)]

    whole = learners()
    advance(whole, Runner(language, 2**13), pairs, lesson, store=Stored(tmp_path / "whole", "fits", {"seed": 0}))
    steps = 0

    def kill(count):
        nonlocal steps
        steps += 1
        if steps == 9:
            raise Killed

    store = Stored(tmp_path / "killed", "fits", {"seed": 0})
    with pytest.raises(Killed):
        advance(learners(), Runner(language, 2**13), pairs, lesson, store=store, tell=kill)
    again, done = learners(), []
    advance(again, Runner(language, 2**13), pairs, lesson, store=store, tell=done.append)
    assert len(list((tmp_path / "killed").iterdir())) > 0
    for one, other in zip(whole, again, strict=True):
        assert torch.equal(one.trained.rotate_layer.free, other.trained.rotate_layer.free)
        assert one.losses == other.losses
    with pytest.raises(SpecError, match="another search, with another seed"):
        advance(learners(), Runner(language, 2**13), pairs, lesson, store=replace(store, facts={"seed": 1}))


def test_a_loss_that_is_no_number_is_named(language):
    methods, pairs = Methods.of("das", 2), language.parts["train"]
    lesson = replace(lesson_of(max_steps=2), loss=lambda logits, labels: logits.sum(-1) * float("nan"))
    one = learner_of(methods.candidate(language, hypotheses(language)[0]), pairs, lesson)
    with pytest.raises(
        FitError, match=r"middle: layer 0 block_output at word \(das, rank 2\): the loss is nan at step 1"
    ):
        advance([one], Runner(language, 2**28), pairs, lesson)
    model = language.model
    assert not any(module._forward_hooks for module in model.modules())
    assert isinstance(one.trained, LowRankRotatedSpaceIntervention)
    assert one.trained.rotate_layer.free.grad is None
