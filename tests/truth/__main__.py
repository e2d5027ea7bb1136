"""Print every fact with what was found: `python -m tests.truth`, or `make truth`.

Of some sections alone: `python -m tests.truth induction written`, or `make truth ARGS="induction written"`. Seconds are
those of the processor: they do not depend on what else the machine does. With `--json` only the numbers are printed, by
name.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.util import find_spec
from types import ModuleType

import torch

from .facts import SECTIONS


def numbers(sections: list[ModuleType]) -> dict[str, float]:
    """Return what is found of every fact whose package is there."""
    facts = (fact for section in sections for fact in section.FACTS)
    return {fact.name: fact.find() for fact in facts if fact.needs is None or find_spec(fact.needs)}


def show(section: ModuleType) -> int:
    """Print the facts of a section, and its table; return how many are not as they must be."""
    wrong = 0
    for fact in section.FACTS:
        started = time.process_time()
        found = fact.find()
        right = fact.low <= found <= fact.high
        wrong += not right
        line = f"{fact.name:<68}{found:>10.4g}   in [{fact.low:g}, {fact.high:g}]{'' if right else '   WRONG'}"
        sys.stdout.write(f"{line:<110}{time.process_time() - started:>6.1f} s\n")
        sys.stdout.flush()
    if hasattr(section, "table"):
        sys.stdout.write(f"\n{section.table()}\n\n")
    return wrong


def main(asked: list[str]) -> int:
    """Find every fact of the sections asked for; return 1 if one is not as it must be, 2 for no such section."""
    torch.set_num_threads(1)
    names = [name for name in asked if name != "--json"] or list(SECTIONS)
    unknown = sorted(set(names) - set(SECTIONS))
    if unknown:
        sys.stderr.write(f"there is no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}\n")
        return 2
    sections = [SECTIONS[name] for name in names]
    if "--json" in asked:
        sys.stdout.write(json.dumps(numbers(sections)))
        return 0
    wrong = sum(show(section) for section in sections)
    count = sum(len(section.FACTS) for section in sections)
    sys.stdout.write(f"{count - wrong} of {count} facts hold; {time.process_time():.0f} s\n")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
