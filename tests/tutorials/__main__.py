"""Run tutorials: `python -m tests.tutorials [--small] [NAME ...]`, or `make tutorials ARGS="--small NAME"`.

Figures go to out/tutorials. `--small` is what the tests run: less of everything, and the same assertions. Each tutorial
is a process of its own, which `--here` is.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from .cells import run

ROOT = Path(__file__).parents[2]
FOLDER, FIGURES = ROOT / "tutorials", ROOT / "out" / "tutorials"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))


def here(name: str) -> int:
    """Run a tutorial in this process; return 1 if it shows no figure."""
    small = os.environ.get("TUTORIALS") == "small"
    ran = run(FOLDER / f"{name}.py", FIGURES / "small" if small else FIGURES)
    if ran.unsaid and not small:
        sys.stdout.write(f"note: the prose says {', '.join(ran.unsaid)}, which no cell above it printed\n")
    sys.stdout.write(f"{len(ran.figures)} figures, {time.process_time():.0f} s of the processor\n")
    return int(not ran.figures)


def child(name: str, *, small: bool, **how: bool) -> subprocess.CompletedProcess[str]:
    """Run a tutorial in a process of its own."""
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    size = {"TUTORIALS": "small"} if small else {}
    environment = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg", **size}
    command = [sys.executable, "-m", "tests.tutorials", "--here", name]
    return subprocess.run(command, cwd=ROOT, env=environment, text=True, check=False, **how)  # type: ignore[call-overload]


def main(asked: list[str]) -> int:
    """Run the tutorials asked for, or all; return 1 if one failed, 2 for no such tutorial."""
    names = [name for name in asked if not name.startswith("--")] or NAMES
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        sys.stderr.write(f"there is no tutorial {', '.join(unknown)}; there are {', '.join(NAMES)}\n")
        return 2
    if "--here" in asked:
        return here(names[0])
    failed = []
    for name in names:
        sys.stdout.write(f"--- {name}\n")
        sys.stdout.flush()
        if child(name, small="--small" in asked).returncode:
            failed.append(name)
    sys.stdout.write(f"failed: {', '.join(failed)}\n" if failed else f"all {len(names)} tutorials ran\n")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
