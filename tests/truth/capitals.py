"""SmolLM2's capitals: what is learned on some countries says little about others.

At the last token of a country, in the middle of SmolLM2, the whole residual stream carries the country: its swap makes
the model name the source's capital. A learned subspace of moderate rank scores higher on the countries it was fitted to
than the whole stream, and fails on countries it has not seen: it has learned those countries, not the variable.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from align_transformers import IntervenableModel, Intervention, Memory, VanillaIntervention, load_model
from align_transformers.interventions import LowRankRotatedSpaceIntervention
from align_transformers.learning import Replaying, Scores, evaluate, fit

from .fact import Fact, rows

CAPITALS = {
    "Spain": "Madrid", "Italy": "Rome", "France": "Paris", "Germany": "Berlin", "Portugal": "Lisbon",
    "Austria": "Vienna", "Greece": "Athens", "Poland": "Warsaw", "Hungary": "Budapest", "Romania": "Bucharest",
    "Bulgaria": "Sofia", "Russia": "Moscow", "Turkey": "Ankara", "Egypt": "Cairo", "Kenya": "Nairobi",
    "Iran": "Tehran", "Japan": "Tokyo", "China": "Beijing", "Thailand": "Bangkok", "Vietnam": "Hanoi",
    "Indonesia": "Jakarta", "Syria": "Damascus", "Canada": "Ottawa", "Cuba": "Havana", "Chile": "Santiago",
    "Norway": "Oslo", "Sweden": "Stockholm", "Denmark": "Copenhagen", "Ireland": "Dublin", "Netherlands": "Amsterdam",
    "Serbia": "Belgrade", "Slovenia": "Ljubljana", "Ethiopia": "Addis", "Algeria": "Algiers", "Sudan": "Khartoum",
    "Uganda": "Kampala", "Zambia": "Lusaka", "Pakistan": "Islamabad", "Bangladesh": "Dhaka", "Nepal": "Kathmandu",
    "Afghanistan": "Kabul", "Philippines": "Manila", "Malaysia": "Kuala", "Cambodia": "Phnom", "Iceland": "Reykjavik",
    "Latvia": "Riga", "Bolivia": "La", "Somalia": "Mogadishu", "Rwanda": "Kigali", "Israel": "Jerusalem",
    "Peru": "Lima", "Finland": "Helsinki", "Ghana": "Accra", "Australia": "Canberra", "Nigeria": "Abuja",
    "Argentina": "Buenos",
}  # fmt: skip
"""Of each country the first word of its capital; the model does not know all of them."""

LAYER, RANK, HELD_OUT, BATCH = 17, 32, 16, 16
COUNTRY = 3  # where the country stands in "The capital of Spain is"


@dataclass(frozen=True, eq=False)
class World:
    """A model with the countries whose capitals it knows.

    Args:
        model: SmolLM2.
        tokenizer: its own.
        prompts: `(countries, 5)`, the tokens of a question for each.
        answers: `(countries,)`, the first token of the capital.
        training: numbers of the countries that may be learned from.
        others: of those that may not.
        memory: what the model makes of the prompts below the swap.
    """

    model: nn.Module
    tokenizer: Any
    prompts: Tensor
    answers: Tensor
    training: list[int]
    others: list[int]
    memory: Memory


@cache
def world(seed: int = 0) -> World:
    """Load the model, ask it for all capitals, and deal the countries that it knows."""
    model, tokenizer = load_model("smollm2-135m")
    model.requires_grad_(False)
    prompts = tokenizer([f"The capital of {country} is" for country in CAPITALS], return_tensors="pt")["input_ids"]
    answers = torch.tensor([tokenizer(f" {capital}")["input_ids"][0] for capital in CAPITALS.values()])
    known = model(prompts, logits_to_keep=1).logits[:, -1].argmax(-1) == answers
    order = torch.randperm(int(known.sum()), generator=torch.Generator().manual_seed(seed)).tolist()
    return World(model, tokenizer, prompts[known], answers[known], order[HELD_OUT:], order[:HELD_OUT], Memory())


def pairs(countries: list[int], count: int, seed: int) -> list[dict[str, Any]]:
    """Return batches of pairs of these countries whose capitals differ in their first token."""
    here = world()
    bases, sources = torch.cartesian_prod(torch.tensor(countries), torch.tensor(countries)).T
    differ = here.answers[bases] != here.answers[sources]
    order = torch.randperm(int(differ.sum()), generator=torch.Generator().manual_seed(seed))[:count]
    parts = zip(bases[differ][order].split(BATCH), sources[differ][order].split(BATCH), strict=True)
    return [
        {
            "input_ids": here.prompts[base],
            "source_input_ids": here.prompts[source],
            "labels": here.answers[source],
            "sources->base": COUNTRY,
        }
        for base, source in parts
    ]


@cache
def found(what: str) -> tuple[Scores, Scores]:
    """Return the scores of a swap at the country, on the countries learned from and on others.

    Args:
        what: `learned`: a subspace of `RANK` dimensions, fitted; `random`: one of as many; `whole`: all of the stream.
    """
    torch.manual_seed(0)
    here = world()
    subspace = LowRankRotatedSpaceIntervention(embed_dim=here.model.config.hidden_size, low_rank_dimension=RANK)
    intervention: Intervention = VanillaIntervention() if what == "whole" else subspace
    spec = {"layer": LAYER, "component": "block_output", "intervention": intervention}
    made = IntervenableModel(spec, here.model)
    forward = Replaying(made, here.memory)
    if what == "learned":
        fit(made, pairs(here.training, 320, seed=1), epochs=5, lr=1e-2, forward=forward)
    groups = pairs(here.training, 128, seed=2), pairs(here.others, 128, seed=3)
    learned_from, others = (evaluate(made, group, forward=forward) for group in groups)
    return learned_from, others


def table() -> str:
    """Return the scores as text."""
    here, scores = world(), {}
    for what, name in (
        ("learned", f"learned, rank {RANK}"),
        ("random", f"random, rank {RANK}"),
        ("whole", "whole stream"),
    ):
        learned_from, others = found(what)
        scores |= {f"{name}, countries learned from": learned_from, f"{name}, held-out countries": others}
    known, sizes = (
        f"{len(here.answers)} of {len(CAPITALS)}",
        f"{len(here.training)} to learn from, {len(here.others)} held out",
    )
    return rows(f"SmolLM2 knows {known} capitals: {sizes}", scores)


def _fact(what: str, name: str, group: int, low: float, high: float) -> Fact:
    name = f"capitals: IIA, {name}, {('countries learned from', 'held-out countries')[group]}"
    return Fact(name, lambda: found(what)[group]["iia"], low, high, needs="gguf")


def _gap() -> float:
    return found("whole")[1]["iia"] - found("learned")[1]["iia"]


FACTS = [
    _fact("whole", "whole stream", 0, 0.75, 1.0),
    _fact("whole", "whole stream", 1, 0.7, 1.0),
    _fact("learned", f"learned rank {RANK}", 0, 0.9, 1.0),
    _fact("learned", f"learned rank {RANK}", 1, 0.0, 0.3),
    _fact("random", f"random rank {RANK}", 1, 0.0, 0.1),
    Fact("capitals: whole minus learned, held-out countries", _gap, 0.5, 1.0, needs="gguf"),
]
