"""What is known to be true is found. `make truth` prints the same numbers."""

from __future__ import annotations

import pytest
from tests.truth.facts import FACTS


@pytest.mark.slow
@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.name)
def test_fact(fact):
    if fact.needs is not None:
        pytest.importorskip(fact.needs)
    assert fact.low <= fact.find() <= fact.high
