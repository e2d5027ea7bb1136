"""2,000 random plans over twelve architectures in float32 and bfloat16; `make fuzz` runs 10,000.

A seed that fails is run again, and shrunk, by `python -m tests.fuzz ARCHITECTURE DTYPE SEED`.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest
from tests.fuzz.check import Log, problems, shown, shrunk
from tests.fuzz.draw import draw
from tests.fuzz.models import ARCHITECTURES, DTYPES

PLANS = int(os.environ.get("FUZZ_PLANS", "2000"))
FIRST = int(os.environ.get("FUZZ_FIRST", "0"))
_FEWER = {"float32": 0.75, "bfloat16": 0.25}  # each plan of half precision is run in double precision, too
_TRIED = ("full", "partial", "parts", "twins", "inherited", "no memory")


@pytest.mark.filterwarnings("ignore")  # what models have to say about their inputs
@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_planned_gives_what_one_by_one_gives(architecture, dtype, record_property):
    total: Counter[str] = Counter()
    for seed in range(FIRST, FIRST + round(PLANS * _FEWER[dtype] / len(ARCHITECTURES))):
        log, case = Log([]), draw(architecture, dtype, seed)
        found = problems(case, log)
        total += log.counts() + Counter(plans=1)
        if found:
            small = shrunk(case)
            pytest.fail(f"seed {seed}: {found[:3]}\nreduced: {problems(small, Log([]))[:3]}\n{shown(small)}")
    record_property("printed", f"{architecture} {dtype}: " + ", ".join(f"{n} {name}" for name, n in total.items()))
    if total["plans"] >= 100:
        assert all(total[name] for name in _TRIED), f"not tried: {[name for name in _TRIED if not total[name]]}"
