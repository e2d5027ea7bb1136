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

from jaxtyping import install_import_hook

# Before the package is imported: from here on each of its functions checks its arguments and its result.
_checked = install_import_hook("align_transformers", "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

import align_transformers  # noqa: E402, F401  (imported under the hook, whatever test comes first)

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


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start every test from the same random state."""
    torch.manual_seed(0)
