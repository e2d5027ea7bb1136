"""What every test run has in common: shapes and types are checked, nothing is random, nothing asks the network."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Tests import `tests.helpers`, however pytest was started.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests import checks

# Before the package is imported: from here on its functions check their arguments and their results.
checks.install("align_transformers")

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

import align_transformers  # noqa: E402, F401  (imported under the hook, whatever test comes first)
from align_transformers import engine, planners  # noqa: E402

collect_ignore = ["truth/make_compiled.py"]  # run in an environment of its own, which has the compiler
settings.register_profile(
    "tests", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("tests")
torch.set_num_threads(1)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what tests measure and do not assert: their properties named `printed`."""
    for report in terminalreporter.getreports("passed"):
        printed = [value for name, value in report.user_properties if name == "printed"]
        if printed and report.when == "call":
            terminalreporter.section(report.nodeid)
            for value in printed:
                terminalreporter.write_line(value)


MEANING = (
    "contracts/test_engine_interventions.py",
    "engine",
    "interventions/test_build.py",
    "interventions/test_pca.py",
    "interventions/test_rotated.py",
    "zoo",
    "models/test_adapters.py",
    "models/test_ends.py",
    "models/test_one_block.py",
    "models/test_overrides.py",
    "models/test_towers.py",
    "studies/test_recurrent_steps.py",
    "test_call_forms.py",
    "test_generate.py",
    "test_generate_texts.py",
    "test_intervenable.py",
    "test_binding_cache.py",
    "test_rooms.py",
    "test_snippet.py",
)
"""Folders and files of the tests about what a plan means, which are run with each planner."""

PLANNERS = {"one_by_one": engine.one_by_one} | ({"planned": planners.DEFAULT} if planners.HAS_FAST else {})


def _about_meaning(path: Path) -> bool:
    inside = path.relative_to(Path(__file__).parent).as_posix()
    return any(inside == name or inside.startswith(f"{name}/") for name in MEANING)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out all but the tests about meaning where the room is not there that the others are about, too."""
    left_out = not planners.HAS_FAST and collection_path.suffix == ".py" and collection_path.name != "conftest.py"
    return True if left_out and not _about_meaning(collection_path) else None


def pytest_generate_tests(metafunc: Any) -> None:
    """Run the tests about meaning with each planner; others, such as those that count passes, with the default one."""
    if "planner" in metafunc.fixturenames and _about_meaning(Path(str(metafunc.definition.path))):
        metafunc.parametrize("planner", list(PLANNERS), indirect=True)


@pytest.fixture(autouse=True)
def planner(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> engine.Planner:
    """Make a planner that of every call that names none, and return it."""
    name = getattr(request, "param", None)
    if name is not None:
        monkeypatch.setattr(planners, "DEFAULT", PLANNERS[name])
    return planners.DEFAULT


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start every test from the same random state."""
    torch.manual_seed(0)
