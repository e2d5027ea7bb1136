"""What is known to be true is found. `make truth` prints the same numbers, and those that take minutes of training.

They come from a process of their own: under the checks of shapes and of coverage that this one runs with, they would
take many times as long.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.truth.__main__ import main
from tests.truth.facts import IN_TESTS, SECTIONS

ROOT = Path(__file__).parents[2]
FACTS = [fact for name in IN_TESTS for fact in SECTIONS[name].FACTS]


@pytest.fixture(scope="session")
def found() -> dict[str, float]:
    """Return what was found of each fact, by name."""
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    command = [sys.executable, "-W", "ignore", "-m", "tests.truth", "--json", *IN_TESTS]
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


def test_facts_have_names_of_their_own():
    names = [fact.name for section in SECTIONS.values() for fact in section.FACTS]
    assert len(names) == len(set(names))


def test_a_section_that_is_not_there_is_said_with_those_that_are(capsys):
    assert main(["nothing"]) == 2
    assert "there is no section nothing; there are swaps" in capsys.readouterr().err
