"""Measure two versions of the library against each other, in a few minutes: is the new one slower, does it say else?

    python bench/before.py OLD/src [--now NEW/src] [--sections NAME ...] [--rounds N] [--control]

Each version is a process of its own (`server.py ours` with its own PYTHONPATH), both with this folder's programs. They
do the same works in turn; every second round begins with the other version. A ratio is the median over the rounds of
(now / before), and stands beside the smallest and the largest; `best` is the ratio of the fastest rounds. A row is
marked SLOWER if its ratio is above 1 by more than the noise and `best` is above 1.02. The noise is 2 %, two and a half
standard errors of the median, or what a second process of the old version shows (`--control`, half as long again),
whichever is most. Such a row is measured once more at the end, and only what is SLOWER twice counts. A row is marked
DIFFERENT if the values of the two are further apart than `work.allowed` says. Ends with status 1 if any row is marked,
or could not be run. Memory is measured once, in fresh processes; two of the same version gave 21 and 28 MiB, so only
twice as much is marked LARGER.

The machine should be idle. Where it is not: `OMP_NUM_THREADS=1`, since two threads wait for each other, and `--cpu`,
the processor time instead of the seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import work
from driver import QUIET, STEADY, Contestant

LEAST = 0.02  # of a time; see Quick.least


@dataclass(frozen=True)
class Quick:
    """One row: a small form of a section of the benchmark.

    Args:
        label: what it is.
        work: name of a work of ours.
        args: of the work.
        task: the model, where it is not SmolLM2.
        memory: measure the peak of the resident set above the loaded model, in a process of its own, not the time.
    """

    label: str
    work: str
    args: Mapping[str, Any] = field(default_factory=dict)
    task: Mapping[str, Any] | None = None
    memory: bool = False

    @property
    def unit(self) -> str:
        """Of the figures; none for a ratio."""
        return "MiB" if self.memory else "" if self.work == "overhead" else "ms"

    @property
    def least(self) -> float:
        """What two processes of the same program may differ by for no reason that matters."""
        return 1.0 if self.memory else LEAST

    @property
    def dtype(self) -> str:
        """The model's."""
        return str((self.task or {}).get("dtype", "float32"))


def wide(positions: int = 40) -> dict[str, Any]:
    """Return the task of the 4-layer model of width 1,024 in bfloat16."""
    sizes = {"positions": positions, "pairs": 8, "batch": 4, "place": positions // 2}
    return {"shape": asdict(work.WIDE), "dtype": "bfloat16", **sizes}


def grown(layers: int, positions: int) -> dict[str, Any]:
    """Return the task of a model of SmolLM2's widths with so many layers, and prompts of so many tokens."""
    return {"shape": asdict(replace(work.SMOLLM2, layers=layers, vocab=8192)), "positions": positions}


EVERY_THIRD, EVERY_SECOND = list(range(0, 30, 3)), list(range(1, 20, 2))
SECTIONS: dict[str, list[Quick]] = {
    "blocks": [Quick("block grid, 10 x 10", "block_grid", {"layers": EVERY_THIRD, "places": EVERY_SECOND})],
    "heads": [Quick("head grid, 10 x 9", "head_grid", {"layers": EVERY_THIRD})],
    "pairs": [Quick("block grid, 4 x 5, 8 pairs", "block_grid",
                    {"layers": [3, 10, 17, 24], "places": [2, 6, 10, 14, 18], "pairs": 8})],
    "training": [
        Quick("DAS step, block 15", "das", {"layer": 15}),
        Quick("DAS step, block 27", "das", {"layer": 27}),
        Quick("full rotation step, block 15", "rotation", {"layer": 15}),
        Quick("Boundless DAS step, block 15", "boundless", {"layer": 15}),
    ],
    "interchange": [Quick("one interchange, batch 4", "interchange", {"batch": 4})],
    "generation": [Quick("16 tokens with an addition", "generate", {"tokens": 16})],
    "memory": [Quick("block grid, 30 x 20: peak memory", "block_grid", memory=True)],
    "growth": [
        Quick("growth: 6 layers x 5 positions", "block_grid", {}, grown(6, 5)),
        Quick("growth: 6 layers x 40 positions", "block_grid", {}, grown(6, 40)),
        Quick("growth: 24 layers x 5 positions", "block_grid", {}, grown(24, 5)),
    ],
    "overhead": [
        *(Quick(f"tiny call, {n} edit{'s' * (n > 1)}: ours / hooks", "overhead", {"edits": n, "repeat": 12})
          for n in (1, 12, 100)),
        Quick("tiny call, 100 edits at one site: ours / hooks", "overhead",
              {"edits": 100, "repeat": 12, "one_site": True}),
    ],
    "wide": [
        Quick("wide bfloat16: block grid, 4 x 10", "block_grid", {"places": list(range(3, 40, 4))}, wide()),
        Quick("wide bfloat16: head grid", "head_grid", {}, wide()),
        Quick("wide bfloat16: DAS step, block 2", "das", {"layer": 2}, wide()),
        Quick("wide bfloat16: one interchange, batch 4", "interchange", {}, wide()),
    ],
}  # fmt: skip


class Version(Contestant):
    """The process of a version.

    Args:
        label: its name.
        source: where its package is.
        environment: variables of its own.

    Raises:
        SystemExit: it found the library somewhere else.
    """

    def __init__(self, label: str, source: Path, environment: Mapping[str, str]) -> None:
        super().__init__("ours", {**environment, "PYTHONPATH": str(source)}, sys.executable, label)
        self.source, found = source, Path(self.ask("", file="align_transformers")["file"])
        if source not in found.parents:
            sys.exit(f"bench: {label} was to come from {source}, but Python found {found}")


@dataclass
class Row:
    """What came of a row: seconds (or what else is measured) of each round by version, and the last values."""

    quick: Quick
    figures: dict[str, list[float]]
    values: dict[str, Any]
    passes: dict[str, Any]
    allowed: float
    failed: dict[str, str] = field(default_factory=dict)

    def ratios(self, of: str = "now") -> list[float]:
        """Return the ratio to the old version, round by round."""
        return [a / b for a, b in zip(self.figures[of], self.figures["before"], strict=True)]

    @property
    def noise(self) -> float:
        """How much above 1 the median ratio may be without a meaning."""
        ratios = self.ratios()
        middle = median(ratios)
        spread = 1.4826 * median(abs(one - middle) for one in ratios)
        control = abs(median(self.ratios("control")) - 1) if "control" in self.figures else 0.0
        return max(self.quick.least, 2.5 * 1.2533 * spread / len(ratios) ** 0.5, control)

    @property
    def apart(self) -> float:
        """The largest difference between the two versions' values; infinite where one has no number for another's."""
        old, new = (torch.tensor(self.values[name], dtype=torch.float64).flatten() for name in ("before", "now"))
        if len(old) != len(new):
            return float("inf")
        apart = torch.where(old == new, 0.0, (old - new).abs().nan_to_num(float("inf")))
        return float(apart.max()) if len(apart) else 0.0

    @property
    def best(self) -> float:
        """The ratio of the fastest rounds: what else the machine does can only add to a time."""
        return min(self.figures["now"]) / min(self.figures["before"])

    def marks(self) -> list[str]:
        """Return what is wrong."""
        if self.failed:
            return [f"{version} {text}" for version, text in self.failed.items()]
        slower = median(self.ratios()) - 1 > self.noise and self.best - 1 > self.quick.least
        return ["LARGER" if self.quick.memory else "SLOWER"] * slower + ["DIFFERENT"] * (not self.apart <= self.allowed)

    def line(self) -> str:
        """Return the row for the terminal."""
        if self.failed:
            return f"{self.quick.label:46} {'; '.join(self.marks())}"
        scale = 1e3 if self.quick.unit == "ms" else 1
        old, new = (scale * median(self.figures[name]) for name in ("before", "now"))
        ratios = self.ratios()
        text = f"{self.quick.label:46} {old:9.4g} {new:9.4g} {self.quick.unit:3} {median(ratios):6.3f}"
        text += f" ({min(ratios):.2f}..{max(ratios):.2f})  best {self.best:.3f}"
        if "control" in self.figures:
            text += f"  control {median(self.ratios('control')):.3f}"
        text += f"  noise {self.noise:.3f}  apart {self.apart:.1e}"
        if self.passes["before"] != self.passes["now"]:
            text += f"  passes {_short(self.passes['before'])} -> {_short(self.passes['now'])}"
        return " ".join([text, *self.marks()])


def _short(passes: Mapping[str, int] | None) -> str:
    return "+".join(f"{count} {way}" for way, count in (passes or {}).items() if count) or "none"


def measured(quick: Quick, processes: Mapping[str, Version], rounds: int, clock: str) -> Row:
    """Return what came of one row: a round that does not count, then the rounds in which the versions take turns."""
    row = Row(quick, {name: [] for name in processes}, {}, {}, 0.0)
    request = {"task": quick.task, "args": dict(quick.args)}
    if quick.memory:
        return in_memory(row, {name: process.source for name, process in processes.items()})
    for name, process in processes.items():
        try:
            process.ask(quick.work, **request)
        except work.Pending as missing:
            row.failed[name] = f"PENDING: {missing}"
        except SystemExit as error:
            if process.process.poll() is not None:
                raise
            row.failed[name] = f"FAILED: {error}"
    if row.failed:
        return row
    for number in range(rounds):
        for name in list(processes)[:: 1 if number % 2 else -1]:
            answer = processes[name].ask(quick.work, **request)
            times = answer.get("microseconds")
            row.figures[name].append(times["ours"] / times["hooks"] if times else answer[clock])
            row.values[name], row.passes[name] = answer["values"], answer.get("passes")
    row.allowed = allowed(quick, processes["now"])
    return row


def in_memory(row: Row, sources: Mapping[str, Path]) -> Row:
    """Fill a row with the memory of a work, after a small one, in a fresh process with the ordinary allocator."""
    for name, source in sources.items():
        one = Version(f"{name}-memory", source, {})
        try:
            one.ask(row.quick.work, args={"layers": [29], "places": [18, 19]})
            answer = one.ask(row.quick.work, args=dict(row.quick.args), memory=True)
        finally:
            one.close()
        row.figures[name] = [(answer["peak"] - answer["before"]) / 2**20]
        row.values[name], row.passes[name] = answer["values"], answer.get("passes")
    row.allowed = work.allowed("float32", (0.0, 0.0))
    return row


def allowed(quick: Quick, process: Contestant) -> float:
    """Return by how much the values of two versions may differ."""
    if quick.dtype == "float32":
        return work.allowed("float32", (0.0, 0.0))
    facts = quick.task or {}
    layers, positions = facts["shape"]["layers"], facts["positions"]
    cells = [(layer, place) for layer in {0, layers // 2, layers - 1} for place in range(positions // 8, positions, 4)]
    return work.allowed(quick.dtype, process.ask("batching", task=quick.task, args={"cells": cells})["values"])


def shown(row: Row) -> Row:
    """Print a row and return it."""
    print(row.line(), flush=True)
    return row


def main() -> None:
    """Measure, print, and say by the status whether something is worse."""
    here = Path(__file__).resolve().parent.parent / "src"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="`src` of the old checkout")
    parser.add_argument("--now", type=Path, default=here, help="`src` of the new one; default: this one")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="default: all")
    parser.add_argument("--rounds", type=int, default=7, help="rounds that count")
    parser.add_argument("--control", action="store_true", help="a second process of the old version shows the noise")
    parser.add_argument("--cpu", action="store_true", help="processor time instead of seconds")
    parser.add_argument("--json", type=Path, help="also write all rounds to this file")
    options = parser.parse_args()
    os.environ.update(QUIET)
    sources = {"before": options.before.resolve(), "now": options.now.resolve()}
    if options.control:
        sources["control"] = sources["before"]
    for source in sources.values():
        if not (source / "align_transformers").is_dir():
            parser.error(f"{source} has no package align_transformers")
    sys.path.insert(0, str(sources["now"]))
    from align_transformers.models.embedded import embedded_checkpoint

    work.prepare(str(embedded_checkpoint("smollm2-135m")))
    start, load = time.monotonic(), os.getloadavg()[0]
    with ExitStack() as stack:
        processes = {}
        for name, source in sources.items():
            processes[name] = Version(name, source, STEADY)
            stack.callback(processes[name].close)
        print(f"{'':46} {'before':>9} {'now':>9}      now/before", flush=True)
        clock = "cpu" if options.cpu else "seconds"
        rows = [
            shown(measured(quick, processes, options.rounds, clock))
            for name in options.sections
            for quick in SECTIONS[name]
        ]
        if any(row.marks() == ["SLOWER"] for row in rows):
            print("once more:")
        for number, row in enumerate(rows):
            if row.marks() == ["SLOWER"]:
                rows[number] = shown(measured(row.quick, processes, options.rounds, clock))
    marked = [row for row in rows if row.marks()]
    print(summary(rows, marked) + f"; {time.monotonic() - start:.0f} s, load before {load:.1f}")
    if options.json:
        options.json.write_text(json.dumps([{**asdict(row), "marks": row.marks()} for row in rows], indent=1) + "\n")
    sys.exit(bool(marked))


def summary(rows: Sequence[Row], marked: Sequence[Row]) -> str:
    """Return one line about all rows."""
    ratios = [median(row.ratios()) for row in rows if not row.failed]
    middle = f"median of the ratios {median(ratios):.3f}; " if ratios else ""
    names = "; ".join(f"{row.quick.label}: {', '.join(row.marks())}" for row in marked)
    return f"{len(rows)} rows, {middle}" + (f"MARKED: {names}" if marked else "nothing slower, nothing different")


if __name__ == "__main__":
    main()
