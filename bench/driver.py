"""The contestants' processes and their turns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import work

FOLDER = Path(__file__).parent
# Large allocations sometimes fault in twenty times slower than at other times; so memory, once had, is kept.
STEADY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "20000000000", "MALLOC_TOP_PAD_": "1000000000"}
QUIET = {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}


class Contestant:
    """A contestant's process.

    Args:
        name: `ours`, or of a module of `peers`.
        environment: variables of its own.
        python: what runs it; by default that of the contestant's environment.
        label: by which it is known, in messages and for its log; by default its name.
    """

    def __init__(
        self, name: str, environment: Mapping[str, str], python: str | None = None, label: str | None = None
    ) -> None:
        self.name = label or name
        program = Path(python) if python else FOLDER / "venvs" / ("ours" if name == "hooks" else name) / "bin/python"
        if not program.exists():
            sys.exit(f"bench: {program} is missing; `make bench` makes the environments")
        (FOLDER / "logs").mkdir(exist_ok=True)
        log = open(FOLDER / "logs" / f"{self.name}.log", "w")  # noqa: SIM115  the process keeps it
        self.process = subprocess.Popen(
            [program, FOLDER / "server.py", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            bufsize=1,
            env={"OMP_NUM_THREADS": "2", **os.environ, **QUIET, **environment},
        )

    def ask(self, name: str, **request: Any) -> dict[str, Any]:
        """Have a work done once; a request is explained in `server.py`.

        Raises:
            Pending: the contestant says that it cannot do this yet.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"work": name, **request}) + "\n")
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"bench: {self.name} died at {name!r}; see bench/logs/{self.name}.log")
        answer = json.loads(line)
        if "pending" in answer:
            raise work.Pending(answer["pending"])
        if "error" in answer:
            sys.exit(f"bench: {self.name} failed at {name!r}: {answer['error']}; see bench/logs/{self.name}.log")
        return answer

    def close(self) -> None:
        """End the process."""
        if self.process.stdin:
            self.process.stdin.close()
        self.process.wait(timeout=30)


@dataclass
class Bench:
    """The processes, started at their first use, how thorough the run is, and what was measured for several rows."""

    repeat: int
    quick: bool
    stack: ExitStack
    running: dict[str, Contestant] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)

    def ask(self, name: str, what: str, task: Mapping[str, Any] | None = None, **args: Any) -> dict[str, Any]:
        """Have a contestant do a work once; a task is that of another model than SmolLM2, see `server.py`."""
        if name not in self.running:
            self.running[name] = Contestant(name, STEADY)
            self.stack.callback(self.running[name].close)
        return self.running[name].ask(what, task=task, args=args)

    def turns(self, works: Mapping[str, tuple[str, str, dict[str, Any]]], repeat: int = 0) -> dict[str, list[Any]]:
        """Let the works take turns, after one round that does not count; a work that is pending is left out.

        Args:
            works: by label the contestant, its work and the arguments.
            repeat: rounds that count.

        Returns:
            By label the answers of the rounds.
        """
        answers: dict[str, list[Any]] = {}
        for label, (name, what, args) in works.items():
            try:
                answers[label] = [self.ask(name, what, **args)]
            except work.Pending:
                continue
        for _ in range(repeat or self.repeat):
            for label in answers:
                name, what, args = works[label]
                answers[label].append(self.ask(name, what, **args))
        return answers

    def profile(self, what: str, task: Mapping[str, Any] | None = None, **args: Any) -> str:
        """Return where the time of one work of ours goes."""
        return str(self.running["ours"].ask(what, task=task, args=args, profile=True)["profile"])

    def alone(self, name: str, what: str, warm: dict[str, Any], args: dict[str, Any]) -> dict[str, Any]:
        """Have a work done in a fresh process, after a small one, with the ordinary allocator; return its memory."""
        one = Contestant(name, {})
        try:
            one.ask(what, args=warm)
            return one.ask(what, args=args, memory=True)
        finally:
            one.close()
