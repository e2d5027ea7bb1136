"""Random plans against an interpreter that knows nothing of the library: plain hooks, one example at a time."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.helpers import COMPONENTS, FAMILIES, LAYERS, hooked, locus, tiny, tokens

from align_transformers import (
    AdditionIntervention,
    CollectIntervention,
    Edit,
    Plan,
    Positions,
    Read,
    Run,
    Site,
    SubtractionIntervention,
    VanillaIntervention,
    ZeroIntervention,
    bind,
    execute,
)

LENGTH, BATCH = 5, 2
RULES = {
    "swap": (VanillaIntervention(), lambda old, source: source),
    "add": (AdditionIntervention(), lambda old, source: old + source),
    "subtract": (SubtractionIntervention(), lambda old, source: old - source),
    "zero": (ZeroIntervention(), lambda old, source: torch.zeros_like(old)),
    "collect": (CollectIntervention(), None),
}
Where = list[list[int]] | None


@dataclass
class Step:
    """One edit, in words that both sides read."""

    component: str
    layer: int
    operation: str
    write: Where
    heads: list[list[int]] | None = None
    reads: str | None = None
    read: Where = None


@dataclass
class World:
    name: str
    steps: list[Step] = field(default_factory=list)


rows = st.lists(st.integers(0, LENGTH - 1), max_size=3, unique=True)


@st.composite
def steps(draw, readable: list[str], heads_of: dict[str, int]):
    component, layer = draw(st.sampled_from(COMPONENTS)), draw(st.integers(0, LAYERS - 1))
    operation = draw(st.sampled_from(list(RULES) if readable else ["zero", "collect"]))
    whole = draw(st.booleans())
    write = None if whole else [draw(rows) for _ in range(BATCH)]
    heads = None
    if component in heads_of and draw(st.booleans()):
        numbers = st.lists(st.integers(0, heads_of[component] - 1), min_size=1, max_size=2, unique=True)
        heads = [draw(numbers) for _ in range(BATCH)]
    step = Step(component, layer, operation, write, heads)
    if operation in ("swap", "add", "subtract"):
        step.reads = draw(st.sampled_from(readable))
        if write is not None:
            step.read = [
                draw(st.lists(st.integers(0, LENGTH - 1), min_size=len(row), max_size=len(row))) for row in write
            ]
    return step


@st.composite
def worlds(draw, family: str):
    heads_of = {
        name: locus(tiny(family), name, 0).heads
        for name in COMPONENTS
        if name.startswith("head_") or "_value_o" in name
    }
    chained = draw(st.booleans())
    found: list[World] = []
    for number in range(draw(st.integers(0, 3))):
        earlier = [world.name for world in found]
        edits = draw(st.lists(steps(earlier[-1:], heads_of), max_size=2)) if chained else []
        found.append(World(f"source_{number}", edits))
    found.append(World("base", draw(st.lists(steps([w.name for w in found], heads_of), min_size=1, max_size=4))))
    return found


# --- the interpreter --------------------------------------------------------------------------------------------------


def interpret(model, found, inputs):
    """Return the logits of the last world and what each of its collecting steps saw, by plain hooks."""
    states: dict[str, dict] = {}
    for world in found:
        seen: dict[int, list] = {}
        later = [step for other in found for step in other.steps if step.reads == world.name]
        places = {(step.component, step.layer) for step in later}
        values: dict[tuple, torch.Tensor] = {}

        def edit(number, step, seen=seen):
            place = locus(model, step.component, step.layer)

            def touch(tensor):
                tensor = tensor.clone()
                for n in range(BATCH):
                    columns = range(LENGTH) if step.write is None else step.write[n]
                    for k, column in enumerate(columns):
                        channels = list(range(place.low, place.high))
                        if step.heads is not None:
                            size = place.head_dim
                            channels = [place.low + h * size + i for h in step.heads[n] for i in range(size)]
                        old = tensor[n, column, channels]
                        if step.operation == "collect":
                            seen.setdefault(number, []).append(old)
                            continue
                        source = None
                        if step.reads is not None:
                            origin = k if step.write is None else step.read[n][k]
                            picked = [channel - place.low for channel in channels]
                            source = states[step.reads][step.component, step.layer][n, origin, picked]
                        tensor[n, column, channels] = RULES[step.operation][1](old, source)
                return tensor

            return (place.module, place.side, touch)

        def keep(key, values=values):
            place = locus(model, *key)

            def touch(tensor):
                values[key] = tensor[..., place.low : place.high].clone()

            return (place.module, place.side, touch)

        touches = [edit(number, step) for number, step in enumerate(world.steps)] + [keep(key) for key in places]
        with hooked(*touches):
            logits = model(**inputs[world.name]).logits
        states[world.name] = values
    return logits, seen


# --- the same for the library -----------------------------------------------------------------------------------------


def as_rows(where):
    return None if where is None else tuple(map(tuple, where))


def as_plan(found):
    runs = []
    for world in found:
        edits = []
        for number, step in enumerate(world.steps):
            site, heads, source = Site(step.component, step.layer), as_rows(step.heads), None
            if step.reads is not None:
                source = Read(step.reads, site, Positions(as_rows(step.read), heads))
            where = Positions(as_rows(step.write), heads)
            edits.append(Edit(f"{world.name} {number}", site, step.operation, where, source=source))
        runs.append(Run(world.name, world.name, tuple(edits)))
    return Plan(tuple(reversed(runs)), ("base",))


@given(data=st.data())
@settings(max_examples=80, suppress_health_check=list(HealthCheck))
def test_random_plans(data):
    family = data.draw(st.sampled_from(FAMILIES))
    found = data.draw(worlds(family))
    model, inputs = tiny(family), {world.name: tokens(BATCH, LENGTH, seed) for seed, world in enumerate(found)}
    with torch.no_grad():
        expected, seen = interpret(model, found, inputs)
        outcome = execute(bind(model, as_plan(found), inputs, {name: rule[0] for name, rule in RULES.items()}))
    assert torch.equal(outcome.outputs["base"].logits, expected)
    for number, step in enumerate(found[-1].steps):
        if step.operation == "collect":
            got = outcome.collected[f"base {number}"]
            flat = [row for rows, real in zip(got.values[0], got.real[0], strict=True) for row in rows[real]]
            assert len(flat) == len(seen.get(number, []))
            for one, other in zip(flat, seen.get(number, []), strict=True):
                assert torch.equal(one[: len(other)], other)
                assert not one[len(other) :].any()
