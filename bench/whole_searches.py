"""Whole alignment searches on SmolLM2: of thirty places of a country's capital, and of what swaps tell before any fit.

The search is one call of `align`: all fits in the same passes, a loss over answers, halving. What it is measured
against fits and scores each place by itself, over the whole vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from work import Task, load

TEMPLATE = "Here is a short list of facts about the world . I think that the capital of {country} is"
STEPS, PAIRS, RATE = 16, 32, 1e-2
"""Of a fit: its steps, the pairs of one, and the learning rate."""
LAYERS = (1, 9, 17, 21, 25, 29)
TOLD = {
    line.split()[0]: tuple(line.split()[1:])
    for line in """
Spain Madrid Spanish/Italy Rome Italian/France Paris French/Germany Berlin German/Japan Tokyo Japanese
China Beijing Chinese/Russia Moscow Russian/Greece Athens Greek/Portugal Lisbon Portuguese
Sweden Stockholm Swedish/Norway Oslo Norwegian/Denmark Copenhagen Danish/Hungary Budapest Hungarian
Poland Warsaw Polish/Finland Helsinki Finnish/Turkey Ankara Turkish/Korea Seoul Korean/Thailand Bangkok Thai
Egypt Cairo/Austria Vienna/Ireland Dublin/Iran Tehran/Iraq Baghdad/Cuba Havana/Peru Lima/Kenya Nairobi
Canada Ottawa/Belgium Brussels/Chile Santiago/Syria Damascus/Lebanon Beirut/Romania Bucharest/Bulgaria Sofia
Serbia Belgrade/Croatia Zagreb/Vietnam Hanoi""".strip().replace("\n", "/").split("/")
}  # fmt: skip
"""Of each country its capital, and of some the language."""


@cache
def tokenizer(checkpoint: str) -> Any:
    """Return the tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(checkpoint)


def single(task: Task, word: str) -> bool:
    """Whether a word is one token."""
    return len(tokenizer(task.checkpoint)(f" {word}")["input_ids"]) == 1


@cache
def _parts(checkpoint: str) -> tuple[Any, dict[str, Any]]:
    """Return the causal model, and all pairs of countries whose capital the model knows in three parts."""
    import work

    from align_transformers import CausalModel, CounterfactualDataset

    task = work.read()
    model, read = load(task), tokenizer(checkpoint)
    told = {one: of[0] for one, of in TOLD.items() if single(task, one) and single(task, of[0])}
    texts = read([TEMPLATE.format(country=one) for one in told], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        said = model(texts, logits_to_keep=1).logits[:, -1].argmax(-1).tolist()
    known = {
        one: of for (one, of), token in zip(told.items(), said, strict=True) if read(f" {of}")["input_ids"] == [token]
    }
    causal = CausalModel(
        ["country", "capital", "said"],
        {"country": list(known), "capital": list(known.values()), "said": list(known.values())},
        {"capital": ["country"], "said": ["capital"]},
        {"capital": known.__getitem__, "said": lambda capital: capital},
    )
    data = CounterfactualDataset.pairs(causal, [{"country": one} for one in known], "capital")
    return causal, data.split(seed=0)


def whole(task: Task) -> Callable[..., tuple[Tensor, dict[str, Any]]]:
    """The last token of every layer in one call: one pass, a loss over answers, the worse halves dropped."""
    import align_transformers as at

    causal, parts = _parts(task.checkpoint)

    def once(steps: int = STEPS, search: str = "halving", loss: str = "answers") -> tuple[Tensor, dict[str, Any]]:
        found = at.align(
            load(task), causal, parts, template=TEMPLATE, tokenizer=tokenizer(task.checkpoint), methods="das",
            ranks=task.rank, batch_size=PAIRS, search=search, loss=loss, controls=(), only_solved=False,
            epochs=steps, max_steps=steps, lr=RATE, resamples=1, seed=0,
        )  # fmt: skip
        rows = list(found.table.rows())
        notes = {"fitted": sum(row["status"] == "fitted" for row in rows), "best": found.best()["validation"]}
        return torch.tensor([found.best()["iia"]]), notes

    return once


def one_by_one(task: Task) -> Callable[..., tuple[Tensor, dict[str, Any]]]:
    """Some of the same fits, each by itself with its scores: `fit` and `evaluate`, over the whole vocabulary."""
    import align_transformers as at

    _, parts = _parts(task.checkpoint)
    text = {"template": TEMPLATE, "tokenizer": tokenizer(task.checkpoint), "positions": -1}

    def once(layers: list[int], steps: int = STEPS) -> tuple[Tensor, dict[str, Any]]:
        scores = []
        for layer in layers:
            torch.manual_seed(0)
            one = at.LowRankRotatedSpaceIntervention(embed_dim=task.shape.width, low_rank_dimension=task.rank)
            face = at.IntervenableModel({"layer": layer, "component": "block_output", "intervention": one}, load(task))
            batches = parts["train"].batches(PAIRS, seed=0, **text)
            at.fit(face, batches, epochs=steps, max_steps=steps, lr=RATE)
            each = [at.evaluate(face, parts[name].batches(64, **text))["iia"] for name in ("validation", "test")]
            scores.append(each)
        return torch.tensor(scores), {}

    return once


def nominated(task: Task) -> Callable[..., tuple[Tensor, dict[str, Any]]]:
    """Of 18 places of country, attribute and answer those that swaps nominate, and those that fits find good.

    The prompt is "In Spain, the official language is"; a pair differs in country and attribute. The answer is the
    largest logit among the answers that there are.
    """
    from align_transformers import CausalModel, CounterfactualDataset
    from align_transformers.learning.losses import cross_entropy
    from align_transformers.learning.settings import Settings
    from align_transformers.sites import Site
    from align_transformers.studies.abstraction import fitting, methods, runner, signatures, task_making
    from align_transformers.studies.abstraction.hypothesis import Hypothesis
    from align_transformers.studies.abstraction.task import Container

    names, attributes = ("country", "attribute", "answer"), ("capital", "language")
    known = [one for one, of in TOLD.items() if len(of) == 2 and all(single(task, word) for word in (one, *of))]

    def said(country: str, attribute: str) -> str:
        return TOLD[country][attributes.index(attribute)]

    causal = CausalModel(
        list(names),
        {"country": known, "attribute": list(attributes)},
        {"answer": ["country", "attribute"]},
        {"answer": said},
    )
    order = np.random.default_rng(0)
    crossed = [
        ({"country": one, "attribute": attribute}, {"country": other, "attribute": attributes[not n]})
        for n, attribute in enumerate(attributes) for one in known for other in known if one != other
    ]  # fmt: skip
    chosen = [crossed[n] for n in order.permutation(len(crossed))]

    def data(pairs: list[Any]) -> Any:
        return [
            CounterfactualDataset.of(causal, [b for b, _ in pairs], [s for _, s in pairs], name, trivial=True)
            for name in names
        ]

    def once(steps: int = 6) -> tuple[Tensor, dict[str, Any]]:
        writing = task_making.Writing(
            "In {country}, the official {attribute} is", tokenizer(task.checkpoint), None, None
        )
        started, recall, fitted = time.perf_counter(), [], {}
        held, taught = data(chosen[:48]), data(chosen[48 : 48 + 16 * steps])
        places = {"country": 1, "attribute": 5, "last": 6}
        for number, name in enumerate(names):
            parts = {"train": taught[number], "validation": held[number], "test": held[number]}
            here = task_making.make_task(load(task), causal, parts, writing, places)
            sites = [Container(Site("block_output", layer), None, place) for place in places for layer in LAYERS]
            asked, running = methods.Methods.of("das", task.rank), runner.Runner(here, 2**29)
            here.read(sites)
            picked = signatures.signatures(here, running, asked, sites, [name], "validation")
            tokens = tuple(here.writer(here.values("answer")).unique().tolist())
            settings = Settings(lr=RATE, epochs=steps, max_steps=steps, schedule="constant", warmup=0)
            lesson = fitting.Lesson(settings, 16, cross_entropy, tokens)
            each = [asked.candidate(here, Hypothesis((name,), site, "das", task.rank)) for site in sites]
            learners = [fitting.learner_of(one, here.parts["train"], lesson) for one in each]
            fitting.advance(learners, running, here.parts["train"], lesson)
            val = here.parts["validation"]
            said_of = runner.measured(
                running,
                each,
                val,
                lambda _: np.arange(48),
                lambda logits, tokens=tokens: logits[:, tokens].argmax(-1),
            )
            answers = torch.tensor(tokens)
            scores = np.array([float((answers[one] == val.labels).double().mean()) for one in said_of])
            near = scores >= scores.max() - 0.1
            nominated = np.array([picked.nominates(one.hypothesis) for one in each])
            recall.append(float((near & nominated).sum() / near.sum()))
            fitted[name] = f"{int(nominated.sum())} of {len(sites)} for {int(near.sum())} (best {scores.max():.2f})"
        return torch.tensor(recall), {"picked": fitted, "took": time.perf_counter() - started}

    return once
