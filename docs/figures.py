"""Makes the figures of the studies, docs/images/*.png, on SmolLM2: `python docs/figures.py [NAME ...]`.

Each is one call of a study and `plot()`. All of them take a few minutes on two cores. The alignment is that of a small
network that adds three digits (tests/truth/addition.py).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import align_transformers as at
from align_transformers import Claim, Site, Table
from align_transformers.report import save_figure

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
SPAIN, ITALY = "The capital of Spain is", "The capital of Italy is"
PAIRS = [("Spain", "Italy"), ("Italy", "France"), ("France", "Japan"), ("Japan", "Spain")]
CITIES = {"Spain": " Madrid", "Italy": " Rome", "France": " Paris", "Japan": " Tokyo", "Germany": " Berlin",
          "China": " Beijing", "Russia": " Moscow", "Cuba": " Havana"}  # fmt: skip
CONTINENTS = {"Japan": "Asia", "China": "Asia", "Cuba": "America"}
NOUNS = "dog boy tree car king road house girl ship farm cat book"
NEAR = ("wall", "walls")


def trace(model, tokenizer) -> Table:
    return at.grid(model, SPAIN, ITALY, tokenizer=tokenizer, top=5)


def tracing(model, tokenizer) -> Table:
    return at.causal_tracing(model, SPAIN, " Spain", tokenizer=tokenizer, draws=10)


def paths(model, tokenizer) -> Table:
    base, source = ([f"The capital of {pair[side]} is" for pair in PAIRS] for side in (0, 1))
    answers = [(CITIES[a], CITIES[b]) for a, b in PAIRS]
    return at.path_patching(model, base, source, tokenizer=tokenizer, answers=answers)


def scrubbing(model, tokenizer) -> Table:
    prompts = [f"The capital of {country} is" for country in CITIES]
    features = {
        "by country": list(CITIES),
        "by continent": [CONTINENTS.get(country, "Europe") for country in CITIES],
        "all alike": ["same"] * len(CITIES),
    }
    return Table.concat(
        {
            name: at.causal_scrubbing(
                model,
                prompts,
                [Claim(Site("block_output", 25), feature=feature, positions=[-1])],
                tokenizer=tokenizer,
                answers=list(CITIES.values()),
            )
            for name, feature in features.items()
        },
        name="hypothesis",
    )


def lens(model, tokenizer) -> Table:
    return at.logit_lens(model, SPAIN, tokenizer=tokenizer)


def attribution(model, tokenizer) -> Table:
    return at.direct_logit_attribution(model, SPAIN, tokenizer=tokenizer, answers=" Madrid", against=" Rome")


def attention(model, tokenizer) -> Table:
    return at.attention_patterns(model, SPAIN, tokenizer=tokenizer, layers=[22], heads=range(6))


def probing(model, tokenizer) -> Table:
    words = [(noun, near, number) for noun in NOUNS.split() for near in NEAR for number in ("singular", "plural")]
    prompts = [f"The {noun}{'s' * (number == 'plural')} near the {near}" for noun, near, number in words]
    return at.probe(
        model,
        prompts,
        [number for *_, number in words],
        tokenizer=tokenizer,
        groups=[noun for noun, *_ in words],
        positions=[1, -1],
        layers=[0, 5, 10, 15, 20, 25, 29],
        draws=1,
        answers={"singular": " is", "plural": " are"},
    )


def steering(model, tokenizer) -> Table:
    subjects = ["film", "play", "meal", "trip", "book", "game", "song", "party"]
    return at.steer(
        model,
        [f"I think that the {subject} was" for subject in subjects],
        at.logit_difference(" good", " bad", tokenizer=tokenizer),
        layers=[12],
        positive=[f"I love this {subject}, it is great" for subject in subjects],
        negative=[f"I hate this {subject}, it is awful" for subject in subjects],
        doses=[-0.6, -0.4, -0.2, 0.2, 0.4, 0.6],
        control=True,
        seed=0,
        tokenizer=tokenizer,
    )


def alignment(model, tokenizer) -> Table:
    sys.path.insert(0, str(ROOT))
    from tests.truth.addition import searched

    return searched("a + b").table


def circuit(model, tokenizer) -> at.Circuit:
    say = "When {} and {} went to the store, {} gave a drink to".format
    names = [("Mary", "John"), ("Tom", "Mark"), ("Anna", "Peter"), ("Kate", "Paul")]
    base, source = ([say(*pair, pair[last]) for pair in names] for last in (1, 0))
    return at.circuit(model, base, source, tokenizer=tokenizer, edges=120, signed=True)


STUDIES: tuple[Callable[..., Table | at.Circuit], ...] = (
    trace, tracing, paths, scrubbing, lens, attribution, attention, probing, steering, alignment, circuit,
)  # fmt: skip


def main() -> None:
    model, tokenizer = at.load_model("smollm2-135m")
    chosen = sys.argv[1:] or [study.__name__ for study in STUDIES]
    for study in STUDIES:
        if study.__name__ in chosen:
            start = time.monotonic()
            value = "rank" if study is lens else None  # the answer's probability comes with the last layers alone
            found, path = study(model, tokenizer), IMAGES / f"{study.__name__}.png"
            if isinstance(found, Table):
                save_figure(found, path, value=value)
            else:
                found.plot().savefig(path, dpi=100, bbox_inches="tight")
            print(f"{path}: {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
