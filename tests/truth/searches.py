"""What the sections share that search with `align`: weights that were made before, and rows of its tables."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from align_transformers import AlignmentResult, Intervention, LowRankRotatedSpaceIntervention
from align_transformers.zoo import TransformerConfig, TransformerLMHeadModel

Row = Mapping[str, Any]


def loaded(weights: Path, sizes: TransformerConfig) -> TransformerLMHeadModel:
    """Return a transformer with weights that a script wrote in half precision."""
    model = TransformerLMHeadModel(sizes)
    model.load_state_dict({name: value.float() for name, value in load_file(weights).items()})
    return model.eval().requires_grad_(False)


def make(train: Callable[[], nn.Module], weights: Path, right: Callable[[nn.Module], float]) -> None:
    """Train a model, write its weights in half precision, and print how often it is right with these."""
    torch.set_num_threads(1)
    trained = train()
    halves = {name: value.half().contiguous() for name, value in trained.state_dict().items()}
    trained.load_state_dict({name: value.float() for name, value in halves.items()})
    save_file(halves, str(weights))
    sys.stdout.write(f"in half precision: right {right(trained):.4f}; {weights.stat().st_size} bytes\n")


def found(result: AlignmentResult, **wanted: Any) -> list[Row]:
    """Return the rows of a search with these values in these columns."""
    return [row for row in result.table.rows() if all(row[name] == value for name, value in wanted.items())]


def one(result: AlignmentResult, **wanted: Any) -> Row:
    """Return the only row with these values."""
    (row,) = found(result, **wanted)
    return row


def most(rows: list[Row], name: str = "iia") -> float:
    """Return the largest number of a column; 0 where it was not measured, since base and source are the same there."""
    return max((row[name] or 0.0 for row in rows), default=0.0)


def overview(title: str, results: Mapping[str, AlignmentResult]) -> str:
    """Return what each search chose as text, with its interval and controls."""
    heads = ("IIA", "from", "to", "n", "full", "random", "perm.", "reinit.")
    lines = [f"{title:<62}" + "".join(f"{head:>8}" for head in heads)]
    columns = ("iia", "low", "high", "n", "full", "random", "permuted", "reinitialised")
    for name, result in results.items():
        for row in found(result, chosen=True):
            rank = "" if row["rank"] is None else f" {row['rank']}"
            where = f"{row['component']} {row['layer']} at {row['place']}, {row['method']}{rank}"
            numbers = ("" if row[column] is None else row[column] for column in columns)
            shown = "".join(f"{value:>8}" if isinstance(value, str | int) else f"{value:>8.3f}" for value in numbers)
            lines.append(f"  {name + ': ' + row['variables'] + ', ' + where:<60}{shown}")
    return "\n".join(lines)


def along(columns: Tensor) -> Callable[[int, int | None], Intervention]:
    """Return a method that swaps a known subspace.

    Args:
        columns: an orthonormal basis, `(width, k)`.
    """

    def make(width: int, rank: int | None) -> Intervention:
        made = LowRankRotatedSpaceIntervention(embed_dim=width, low_rank_dimension=columns.shape[1])
        made.rotate_layer.set_weight(columns)
        return made.requires_grad_(False)

    return make
