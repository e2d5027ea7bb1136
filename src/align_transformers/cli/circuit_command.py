"""`align-transformers circuit`: find a circuit on one half of some pairs, measure it on the other, and draw it."""

from __future__ import annotations

import csv
import random
from pathlib import Path
from typing import Annotated, Any

import typer

from .._errors import SpecError
from .options import AsJson, ModelName, OutFolder, Quiet, TwoAnswers, two
from .running import CircuitFound, Job

_COLUMNS = ("base", "source", "base_answer", "source_answer")
_FEW = 4  # pairs below which all are used for both


def circuit(
    base: Annotated[
        str,
        typer.Argument(
            metavar="BASE",
            help="The prompt whose behaviour is explained, or @pairs.csv with the columns base and source (and "
            "base_answer, source_answer).",
        ),
    ],
    source: Annotated[
        str | None, typer.Argument(metavar="[SOURCE]", help="The prompt whose values absent edges carry.")
    ] = None,
    model: ModelName = "smollm2-135m",
    method: Annotated[str, typer.Option(help="How it is found: eap, eap-ig, exact, acdc or masks.")] = "eap",
    edges: Annotated[int | None, typer.Option(help="How many edges at most. Default: 200, of acdc none.")] = None,
    signed: Annotated[
        bool, typer.Option("--signed", help="Only edges that help, by the sign of their scores.")
    ] = False,
    threshold: Annotated[float | None, typer.Option(help="Of acdc: how much distance an edge is worth.")] = None,
    ablation: Annotated[
        str, typer.Option(help="What stands for absent edges: resample, mean, 'mean by position', zero.")
    ] = "resample",
    answers: TwoAnswers = None,
    minimality: Annotated[bool, typer.Option("--minimality", help="Leave out each of its edges in turn.")] = False,
    seed: Annotated[int, typer.Option(help="Of the halves and of random circuits.")] = 0,
    out: OutFolder = Path("."),
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Which edges between heads and MLPs are enough for what the model does?

    An edge is absent where a head or an MLP gets of another one what that does in the source's run. The circuit is
    found on one half of the pairs and measured on the other, each circuit run exactly: what it keeps of the way from
    the source's metric (0) to the base's (1), what is left without it, and random circuits beside it. `circuit.json`
    (the edge list), `circuit.png`, `circuit.html` (with a threshold to move) and `circuit.parquet` (what was measured)
    are written.

    **Examples**

    `align-transformers circuit @pairs.csv --edges 200 --signed`

    `align-transformers circuit @pairs.csv --method acdc --threshold 0.01 --json | jq .summary`

    `align-transformers circuit "Mary and John went out. John spoke to" "Mary and John went out. Anna spoke to"`
    """
    pairs = _pairs(base, source)
    named = two(answers)
    if named is not None and "base_answer" in pairs:
        raise SpecError("the file has a column of answers, so leave out --answers")
    count = edges if edges is not None or threshold is not None else 200
    chosen: dict[str, Any] = {
        "method": method,
        "edges": count,
        "threshold": threshold,
        "signed": signed,
        "ablation": ablation,
    }

    def study(loaded: Any, *, tokenizer: Any, progress: Any) -> CircuitFound:
        from ..studies import circuit as find
        from ..studies import evaluate_circuit

        shared: dict[str, Any] = {"tokenizer": tokenizer, "answers": named, "seed": seed, "progress": progress}
        first = _taken(pairs, _half(len(pairs["base"]), seed))
        found: Any = find(loaded, first, **chosen, **shared)
        table = evaluate_circuit(loaded, found, pairs, minimality=True if minimality else None, **shared)
        return CircuitFound(found, table)

    Job("circuit", out, as_json, quiet).run(model, study, "running circuits")


def _half(count: int, seed: int) -> list[int]:
    """Return the numbers of the pairs that the circuit is found on: of a few all."""
    if count < _FEW:
        return list(range(count))
    return sorted(random.Random(seed).sample(range(count), count // 2))


def _taken(pairs: dict[str, list[str]], which: list[int]) -> dict[str, list[str]]:
    return {name: [values[one] for one in which] for name, values in pairs.items()}


def _pairs(base: str, source: str | None) -> dict[str, list[str]]:
    """Return columns of pairs, from a file or of two prompts.

    Raises:
        SpecError: there is no source, or the file lacks columns or lines.
        OSError: the file cannot be read.
    """
    if not base.startswith("@"):
        if source is None:
            raise SpecError("circuit takes BASE and SOURCE, or @pairs.csv with the columns base and source")
        return {"base": [base], "source": [source]}
    if source is not None:
        raise SpecError(f"{base} is a file of pairs, so leave out SOURCE")
    with Path(base[1:]).open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        columns = list(reader.fieldnames or ())
        rows = list(reader)
    if not {"base", "source"} <= set(columns):
        raise SpecError(f"{base[1:]} has the columns {columns}; it needs a first line with base, source")
    if not rows:
        raise SpecError(f"{base[1:]} has no lines below the first")
    return {name: [row[name] for row in rows] for name in _COLUMNS if name in columns}
