"""Print every fact with what was found: `python -m tests.truth`, or `make truth`.

Seconds are those of the processor: they do not depend on what else the machine does. With `--json` only
the numbers are printed, by name.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.util import find_spec

import torch

from .facts import FACTS, TABLES


def numbers() -> dict[str, float]:
    """Return what is found of every fact whose package is there."""
    return {fact.name: fact.find() for fact in FACTS if fact.needs is None or find_spec(fact.needs)}


def main() -> int:
    """Find every fact; return 1 if one is not as it must be."""
    torch.set_num_threads(1)
    if "--json" in sys.argv:
        sys.stdout.write(json.dumps(numbers()))
        return 0
    wrong = 0
    for fact in FACTS:
        started = time.process_time()
        found = fact.find()
        right = fact.low <= found <= fact.high
        wrong += not right
        line = f"{fact.name:<64}{found:>10.4g}   in [{fact.low:g}, {fact.high:g}]{'' if right else '   WRONG'}"
        sys.stdout.write(f"{line:<106}{time.process_time() - started:>6.1f} s\n")
        sys.stdout.flush()
    for table in TABLES:
        sys.stdout.write(f"\n{table()}\n")
    sys.stdout.write(f"\n{len(FACTS) - wrong} of {len(FACTS)} facts hold; {time.process_time():.0f} s\n")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
