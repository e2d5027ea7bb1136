"""SmolLM2's capitals: which token carries the answer at which layer, by three studies that know nothing of each other.

In "The capital of Spain is" the country's token carries what the answer is made of up to some layer, and the last token
carries the answer from there on. Activation patching (another country's state), causal tracing (restoration under
noise) and the logit lens (the state read as it is) must put the change at the same layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache, partial

from align_transformers import Table, causal_tracing, grid, logit_lens

from .capitals import COUNTRY, world
from .fact import Fact

COUNTRIES, DRAWS = 6, 5
LAST = COUNTRY + 1
FROM, TO = 22, 24
"""The layer that it changes at is 23, in all three; one layer more or less is allowed for."""


def _prompts(first: int) -> tuple[dict[str, object], list[int]]:
    here, chosen = world(), slice(first, first + COUNTRIES)
    return {"input_ids": here.prompts[chosen]}, here.answers[chosen].tolist()


@cache
def patched() -> Table:
    """Put another country's states into the run, and measure how far the answer goes over to that country's capital."""
    (base, own), (source, other) = _prompts(0), _prompts(COUNTRIES)
    return grid(
        world().model,
        base,
        source,
        components=["block_output", "attention_output"],
        positions=[COUNTRY, LAST],
        answers=list(zip(own, other, strict=True)),
    )


@cache
def traced() -> Table:
    """Restore states under a noisy country, and measure how much of the answer's probability comes back."""
    prompts, own = _prompts(0)
    return causal_tracing(
        world().model,
        prompts,
        [COUNTRY],
        components=["block_output"],
        positions=[COUNTRY, LAST],
        answers=own,
        draws=DRAWS,
        seed=0,
    )


@cache
def read() -> Table:
    """Read the states as the model reads its last one, and tell the rank of the answer among the tokens."""
    prompts, own = _prompts(0)
    return logit_lens(world().model, prompts, positions=[COUNTRY, LAST], answers=own, top=0)


def _layers() -> int:
    return int(world().model.config.num_hidden_layers)


@cache
def curve(study: str, position: int, component: str = "block_output") -> list[float]:
    """Return for each layer what a study says of a token.

    Args:
        study: `patching`, the share of the way to the other answer; `tracing`, the share of the total effect; `lens`,
            how many digits the rank of the answer has: log10(1 + rank), the mean over countries.
        position: of the token.
        component: of the grid.
    """
    table = {"patching": patched, "tracing": traced, "lens": read}[study]()
    value = {"patching": "recovered", "tracing": "indirect_effect", "lens": "rank"}[study]
    rows = [row for row in table.rows() if row["position"] == position and row["component"] == component]
    whole = sum(table.meta["total_effect"]) / COUNTRIES if study == "tracing" else 1.0
    each = [[row[value] for row in rows if row["layer"] == layer] for layer in range(_layers())]
    if study == "lens":
        each = [[math.log10(1 + rank) for rank in ranks] for ranks in each]
    return [sum(values) / len(values) / whole for values in each]


def taken_over(study: str) -> int:
    """Return the layer from which on the last token carries more than the country's; the lens: has a better rank."""
    sign = -1 if study == "lens" else 1
    both = zip(curve(study, COUNTRY), curve(study, LAST), strict=True)
    behind = [layer for layer, (country, last) in enumerate(both) if sign * (last - country) <= 0]
    return max(behind, default=-1) + 1


def brought_by() -> int:
    """Return the layer whose attention at the last token brings most of the other country's answer."""
    shares = curve("patching", LAST, "attention_output")
    return shares.index(max(shares))


def table() -> str:
    """Return the three studies side by side as text."""
    studies, widths = ("patching", "tracing", "lens"), (10, 8, 10, 8, 12, 10)
    columns = [curve(study, position) for study in studies for position in (COUNTRY, LAST)]
    title = "The capital of (country) is: what carries the answer"
    lines = [
        f"{title:<54}{'patching':>18}{'tracing':>18}{'lens (digits of rank)':>22}",
        f"  {'layer':<52}" + "".join(f"{n:>{width}}" for n, width in zip(("country", "last") * 3, widths, strict=True)),
    ]
    for layer in sorted({*range(0, _layers(), 4), *range(FROM - 1, TO + 1), _layers() - 1}):
        cells = (f"{column[layer]:>{width}.2f}" for column, width in zip(columns, widths, strict=True))
        lines.append(f"  {layer:<52}{''.join(cells)}")
    ends = ", ".join(f"{study} {taken_over(study)}" for study in studies)
    lines.append(f"  the last token takes over at layer: {ends}; brought by the attention of layer {brought_by()}")
    return "\n".join(lines)


def _mean(study: str, position: int, layers: slice) -> float:
    values = curve(study, position)[layers]
    return sum(values) / len(values)


def _facts() -> Iterator[Fact]:
    shares = {
        ("country's token", "0 to 9"): (COUNTRY, slice(0, 10), 0.85, 1.1),
        ("last token", "0 to 9"): (LAST, slice(0, 10), -0.02, 0.05),
        ("country's token", "25 on"): (COUNTRY, slice(25, None), -0.02, 0.05),
        ("last token", "25 on"): (LAST, slice(25, None), 0.9, 1.1),
    }
    for study in ("patching", "tracing"):
        for (token, layers), (*of, low, high) in shares.items():
            yield Fact(f"capitals, {study}: {token}, layers {layers}", partial(_mean, study, *of), low, high, "gguf")
    for study in ("patching", "tracing", "lens"):
        yield Fact(
            f"capitals, {study}: layer at which the last token takes over", partial(taken_over, study), FROM, TO, "gguf"
        )
    yield Fact("capitals, patching: layer whose attention brings it", brought_by, FROM, TO, "gguf")
    yield Fact("capitals, lens: digits of the rank at the end", lambda: curve("lens", LAST)[-1], 0, 0.1, "gguf")
    yield Fact("capitals, lens: the same, country's token, at best", lambda: min(curve("lens", COUNTRY)), 2, 5, "gguf")


FACTS = list(_facts())
