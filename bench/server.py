"""One contestant in a process of its own: reads a request a line, does the work once, answers with seconds and values.

    python bench/server.py NAME

A request is `{"work": name, "args": {...}}`; with `"task": {...}` the work is one of a model with random weights (see
`work.random_task`), not of SmolLM2; with `"memory": true` the answer also has the resident set before the work
and at its highest, in bytes; with `"profile": true` the functions in which the time went. A contestant is a module of
`peers` (or `ours`) with a dict `WORKS`: each value is called once with the task, and gives a function that does the
work and returns the values by which the results are compared (or these and a dict
of what else goes into the answer). `{"file": module}` asks where a module was found.
"""

from __future__ import annotations

import cProfile
import importlib
import io
import json
import os
import pstats
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import work


def main() -> None:
    """Serve requests until the input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the libraries print must not come between the answers
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    name = sys.argv[1]
    module = importlib.import_module("ours" if name == "ours" else f"peers.{name}")
    contestant = Contestant(module.WORKS, work.read())
    for line in sys.stdin:
        answers.write(json.dumps(contestant.answer(json.loads(line))) + "\n")


class Contestant:
    """The works of one contestant, each set up at its first request."""

    def __init__(self, works: Mapping[str, Callable[[work.Task], Callable[..., Any]]], task: work.Task) -> None:
        self.works, self.task = works, task
        self.tasks: dict[str, work.Task] = {"": task}
        self.ready: dict[tuple[str, str], Callable[..., Any]] = {}

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return what came of one request; errors are part of the answer."""
        try:
            if "file" in request:
                return {"file": importlib.import_module(request["file"]).__file__}
            once = self._ready(request["work"], request.get("task"))
            return self._run(once, request)
        except work.Pending as missing:
            return {"pending": str(missing)}
        except Exception as error:
            traceback.print_exc()
            return {"error": f"{type(error).__name__}: {error}"}

    def _ready(self, name: str, facts: Mapping[str, Any] | None) -> Callable[..., Any]:
        if name not in self.works:
            raise work.Pending(f"has no work {name!r}")
        task = json.dumps(facts, sort_keys=True) if facts else ""
        if task not in self.tasks:
            self.tasks[task] = work.random_task(**(facts or {}))
        if (name, task) not in self.ready:
            self.ready[name, task] = self.works[name](self.tasks[task])
        return self.ready[name, task]

    def _run(self, once: Callable[..., Any], request: Mapping[str, Any]) -> dict[str, Any]:
        before = _resident("VmRSS")
        if request.get("memory"):
            Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark to what is resident now
        profile = cProfile.Profile() if request.get("profile") else None
        call = once if profile is None else partial(profile.runcall, once)
        used = time.process_time()
        seconds, values = work.timed(partial(call, **request.get("args", {})), self.tasks[""].device)
        used = time.process_time() - used
        values, notes = values if isinstance(values, tuple) else (values, {})
        answer = {"seconds": seconds, "cpu": used, "values": torch.as_tensor(values).tolist(), **notes}
        if request.get("memory"):
            answer |= {"before": before, "peak": _resident("VmHWM")}
        return answer if profile is None else answer | {"profile": _top(profile)}


def _resident(field: str) -> int:
    """Return a figure of this process's memory in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def _top(profile: cProfile.Profile, count: int = 25) -> str:
    """Return the functions with the most time of their own."""
    text = io.StringIO()
    pstats.Stats(profile, stream=text).strip_dirs().sort_stats("tottime").print_stats(count)
    return text.getvalue()


if __name__ == "__main__":
    main()
