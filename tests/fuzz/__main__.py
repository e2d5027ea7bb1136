"""`python -m tests.fuzz ARCHITECTURE DTYPE FIRST [LAST]`: run the plans of some seeds, and shrink those that differ."""

from __future__ import annotations

import sys
import time
from collections import Counter

import torch
from tests.fuzz.check import Log, problems, shown, shrunk, valid
from tests.fuzz.draw import draw


def main(architecture: str, dtype: str, first: str, last: str = "") -> None:
    """Run the seeds from the first to before the last."""
    torch.set_num_threads(1)
    total: Counter[str] = Counter()
    begin = time.perf_counter()
    for seed in range(int(first), int(last or int(first) + 1)):
        log, case = Log([]), draw(architecture, dtype, seed)
        runs = valid(case)
        found = problems(case, log)
        total += log.counts() + Counter({"plans": 1, "refused plans": not runs})
        if found:
            print(f"--- seed {seed}:", *found[:4], sep="\n")  # noqa: T201
            small = shrunk(case) if runs else case
            print(*problems(small, Log([]))[:3], shown(small), sep="\n", flush=True)  # noqa: T201
    print(architecture, dtype, dict(total), f"{time.perf_counter() - begin:.0f} s")  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
