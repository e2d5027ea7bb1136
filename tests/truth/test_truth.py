"""What is known to be true is found. `make truth` prints the same numbers.

They come from a process of their own: under the checks of shapes and of coverage that this one runs with, the trainings
would take many times as long.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.truth.facts import FACTS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def found() -> dict[str, float]:
    """Return what was found of each fact, by name."""
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    command = [sys.executable, "-W", "ignore", "-m", "tests.truth", "--json"]
    environment = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    numbers: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return numbers


@pytest.mark.slow
@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.name)
def test_fact(fact, found):
    if fact.needs is not None:
        pytest.importorskip(fact.needs)
    assert fact.low <= found[fact.name] <= fact.high
