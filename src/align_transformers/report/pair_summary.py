"""Swaps in one pair of prompts in plain words, and as the few facts that a machine would ask for first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from .interchange import Drawing
from .words import number, visible


def facts_of_pair(drawing: Drawing) -> dict[str, Any]:
    """Return the main findings of one component as JSON-able data, as `facts` says."""
    flips = [cell for _, cell in sorted(drawing.cells.items()) if cell.flips]
    known = [
        cell for _, cell in sorted(drawing.cells.items()) if cell.effect is not None and cell.recovered is not None
    ]
    largest = max(known, key=lambda cell: cell.recovered or 0.0, default=None)
    return {
        "base_answer": drawing.meta.get("base_answer"),
        "source_answer": drawing.meta.get("source_answer"),
        "cells": len(drawing.cells),
        "flips": [_place(drawing, cell.layer, cell.position) for cell in flips] if drawing.tells_flips else None,
        "largest": largest
        and {
            **_place(drawing, largest.layer, largest.position),
            "effect": largest.effect,
            "recovered": largest.recovered,
        },
    }


def summary_of_pair(drawings: Sequence[Drawing]) -> tuple[str, ...]:
    """Return the main findings in a few plain lines, those of one component after the other."""
    drawing, answer = drawings[0], f"“{drawings[0].source_answer}”"
    lines = []
    if drawing.base_says != "?":
        lines.append(
            f"Without a swap the model answers the base with “{drawing.base_says}”, "
            f"the source with “{drawing.source_says}”."
        )
    if "source_answer" in drawing.meta and (drawing.base_says, drawing.source_says) != (
        drawing.base_answer,
        drawing.source_answer,
    ):
        lines.append(f"The answers compared are “{drawing.base_answer}” and {answer}.")
    for drawing in drawings:
        name = f"{drawing.component}: " if len(drawings) > 1 else ""
        lines += [f"{name}{line}" for line in _findings(drawing, facts_of_pair(drawing))]
    return tuple(lines)


def _findings(drawing: Drawing, found: dict[str, Any]) -> Iterator[str]:
    """Yield what came of the swaps of one component."""
    answer = f"“{drawing.source_answer}”"
    if found["flips"]:
        yield f"{len(found['flips'])} of {found['cells']} swaps turn the answer into {answer}:"
        for position in drawing.positions:
            layers = [cell["layer"] for cell in found["flips"] if cell["position"] == position]
            if layers:
                yield f"  token {position}, {drawing.label(position)}: {_layers(layers, drawing)}"
    elif drawing.tells_flips:
        yield f"None of the {found['cells']} swaps turns the answer into {answer}."
    best = found["largest"]
    if best is not None:
        yield (
            f"The largest effect is at layer {best['layer']}, token {best['position']} ({visible(best['token'])}): "
            f"{drawing.meta['metric']} moves by {best['effect']:+.2f}, "
            f"{number(best['recovered'])} of the way to the source."
        )


def ranges(numbers: Iterable[int], known: Iterable[int]) -> str:
    """Return numbers in words, with a dash where they follow each other in `known`.

    >>> ranges([0, 1, 2, 5], range(9)), ranges([0, 4, 8], [0, 4, 8])
    ('0-2, 5', '0-8')
    """
    place = {value: i for i, value in enumerate(sorted(known))}
    groups = groupby(enumerate(sorted(numbers)), key=lambda pair: place[pair[1]] - pair[0])
    spans = [[value for _, value in group] for _, group in groups]
    return ", ".join(str(span[0]) if len(span) == 1 else f"{span[0]}-{span[-1]}" for span in spans)


def _layers(layers: list[int], drawing: Drawing) -> str:
    if len(layers) == len(drawing.layers):
        return "all layers" if len(layers) > 1 else f"layer {layers[0]}"
    return f"layer{'s' if len(layers) > 1 else ''} {ranges(layers, drawing.layers)}"


def _place(drawing: Drawing, layer: int, position: int) -> dict[str, Any]:
    return {"layer": layer, "position": position, "token": drawing.raw_tokens[position]}
