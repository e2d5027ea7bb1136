"""Rotated interventions alone, forward and backward, against pyvene's: medians of interleaved repetitions.

    python bench/rotations.py --peer /path/to/venv/with/pyvene==0.1.8/bin/python

The peer runs in an environment of its own. Both sides are processes that wait for a case, run it a few times, and
answer with the seconds that one run took; they take turns, so that what else the machine does meets both alike.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from statistics import median
from time import perf_counter
from typing import Any

GOALS = {"rank 32": 50, "full": 30, "boundless": 30}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "rank 32": ("LowRankRotatedSpaceIntervention", {"low_rank_dimension": 32}),
    "full": ("RotatedSpaceIntervention", {}),
    "boundless": ("BoundlessRotatedSpaceIntervention", {}),
}


def steps(library: str, width: int, batch: int) -> dict[str, Callable[[], float]]:
    """Return for each case a function that runs one step and returns its seconds."""
    import torch

    module = import_module(library)

    torch.set_num_threads(1)
    torch.manual_seed(0)
    base, source, weights = (torch.randn(batch, width) for _ in range(3))

    def step_of(name: str, options: dict[str, Any]) -> Callable[[], float]:
        intervention = getattr(module, name)(embed_dim=width, **options)
        parameters = [p for p in intervention.parameters() if p.requires_grad]

        def step() -> float:
            for p in parameters:
                p.grad = None
            start = perf_counter()
            (intervention(base, source) * weights).sum().backward()
            took = perf_counter() - start
            with torch.no_grad():  # a small move, as an optimiser would make it: nothing can be kept for the next step
                for p in parameters:
                    if p.grad is not None:
                        p.add_(p.grad, alpha=-1e-6)
            return took

        return step

    return {case: step_of(name, options) for case, (name, options) in CASES.items()}


def serve(library: str, width: int, batch: int) -> None:
    """Answer each case named on a line of standard input with the seconds of one step."""
    made = steps(library, width, batch)
    import torch

    print(json.dumps({"ready": library, "torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        print(json.dumps({"seconds": turn(made[line.strip()])}), flush=True)


def turn(step: Callable[[], float]) -> float:
    """Return the median seconds of a step in a row of them: at least three, and a tenth of a second of them."""
    times: list[float] = []
    while len(times) < 3 or sum(times) < 0.1:
        times.append(step())
    return median(times)


class Side:
    """One of the two processes."""

    def __init__(self, python: str, library: str, arguments: argparse.Namespace) -> None:
        command = [
            python,
            __file__,
            "--serve",
            library,
            "--width",
            str(arguments.width),
            "--batch",
            str(arguments.batch),
        ]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ready = self._answer("ready")

    def time(self, case: str) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write(case + "\n")
        self.process.stdin.flush()
        return float(self._answer("seconds")["seconds"])

    def _answer(self, key: str) -> dict[str, Any]:
        """Return the next line that is an answer; libraries print other things."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{") and key in json.loads(line):
                return dict(json.loads(line))
        raise RuntimeError(f"{self.process.args} ended without an answer")

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def compare(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return for each case both medians in milliseconds, their ratio and the goal."""
    ours = Side(sys.executable, "align_transformers.interventions", arguments)
    peer = Side(arguments.peer, "pyvene", arguments)
    print(f"d={arguments.width}, batch {arguments.batch}, 1 thread; torch {ours.ready['torch']}, {peer.ready['torch']}")
    rows = []
    for case in CASES:
        times: dict[str, list[float]] = {"ours": [], "peer": []}
        for repetition in range(arguments.repetitions + 1):
            for name, side in (("ours", ours), ("peer", peer)):
                took = side.time(case)
                if repetition:  # the first warms up
                    times[name].append(took)
        mine, theirs = (1000 * median(times[name]) for name in ("ours", "peer"))
        rows.append({"case": case, "ours_ms": mine, "pyvene_ms": theirs, "ratio": theirs / mine, "goal": GOALS[case]})
    ours.close()
    peer.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", help="the Python of an environment with pyvene==0.1.8")
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--serve", metavar="LIBRARY", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve, arguments.width, arguments.batch)
        return
    if not arguments.peer:
        parser.error("--peer is needed: python -m venv pv && pv/bin/pip install pyvene==0.1.8")
    rows = compare(arguments)
    if arguments.json:
        print(json.dumps(rows))
        return
    for row in rows:
        verdict = "met" if row["ratio"] >= row["goal"] else "MISSED"
        print(
            f"{row['case']:>10}: {row['ours_ms']:8.2f} ms, pyvene {row['pyvene_ms']:8.2f} ms, "
            f"{row['ratio']:6.0f} times as fast; goal {row['goal']} {verdict}"
        )


if __name__ == "__main__":
    main()
