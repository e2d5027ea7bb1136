"""The code of docs/counterfactuals.md runs, and says what the page says."""

from __future__ import annotations

import pytest
from tests.pages import ROOT, run_page

PAGE = ROOT / "docs" / "counterfactuals.md"


@pytest.mark.skipif(not PAGE.exists(), reason="the page is not part of this distribution")
def test_the_page_tells_the_truth() -> None:
    ran = run_page(PAGE)
    names = ran.names
    assert "600 pairs; c alone 200, c and var_x 200, var_x alone 200; labels: output" in ran.said
    sides = [{(one["a"], one["b"]) for pair in part for one in (pair["base"], *pair["sources"].values())}
             for part in names["parts"].values()]  # fmt: skip
    assert not sides[0] & sides[2]
    assert len(sides) == 3
    assert names["scores"].interval("iia").n == len(names["parts"]["test"])
