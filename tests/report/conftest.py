"""A table with planted values, for all reports."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from align_transformers.table import Table

SPAIN = ["The", " capital", " of", " Spain", " is"]
ITALY = ["The", " capital", " of", " Italy", " is"]


def planted(layer: int, position: int) -> float:
    """The country carries the answer below layer 23, the last token from there on; small distinct values elsewhere."""
    if position == 3:
        return 1.0 - layer / 1000 if layer < 23 else 0.01
    if position == 4:
        return 0.9 + layer / 1000 if layer >= 23 else -0.03
    return 0.0


@pytest.fixture
def make_table() -> Callable[..., Table]:
    """Build a trace's table: `recovered(layer, position)`, flips where it is at least 0.9."""

    def make(
        recovered: Callable[[int, int], float | None] = planted,
        *,
        layers: int = 30,
        tokens: list[str] | None = None,
        source_tokens: list[str] | None = None,
        base_answer: str = " Madrid",
        source_answer: str = " Rome",
        **changes: object,
    ) -> Table:
        base = SPAIN if tokens is None else tokens
        source = source_tokens or (ITALY if tokens is None else tokens)
        rows = []
        for layer in range(layers):
            for position in range(len(base)):
                value = recovered(layer, position)
                best = source_answer if (value or 0) >= 0.9 else base_answer
                rows.append(
                    {
                        "component": "block_output",
                        "layer": layer,
                        "position": position,
                        "token": base[position],
                        "source_token": source[position],
                        "metric": None if value is None else 12 * value - 5,
                        "effect": None if value is None else 12 * value,
                        "recovered": value,
                        "change": 3.0,
                        "fired": 1,
                        "top_tokens": [best, " the", " a", " home", "\n"],
                        "top_probabilities": [0.5, 0.2, 0.1, 0.05, 0.01],
                    }
                )
        meta = {
            "model": "smollm2-135m",
            "base": "".join(base),
            "source": "".join(source),
            "base_tokens": base,
            "source_tokens": source,
            "base_answer": base_answer,
            "source_answer": source_answer,
            "metric": "logit difference",
            "base_value": -5.0,
            "source_value": 7.0,
            "version": "0.1.0",
            **changes,
        }
        return Table.from_rows(rows, meta=meta)

    return make
