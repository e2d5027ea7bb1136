"""The code of docs/counterfactuals.md runs, and says what the page says."""

from __future__ import annotations

import linecache
import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "counterfactuals.md"


@pytest.mark.skipif(not PAGE.exists(), reason="the page is not part of this distribution")
def test_the_page_tells_the_truth(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)):
        where = f"counterfactuals {number}"
        linecache.cache[where] = (len(block), None, block.splitlines(keepends=True), where)  # as notebooks do
        exec(compile(block, where, "exec"), names)
    said = capsys.readouterr().out
    assert "600 pairs; c alone 200, c and var_x 200, var_x alone 200; labels: output" in said
    sides = [{(one["a"], one["b"]) for pair in part for one in (pair["base"], *pair["sources"].values())}
             for part in names["parts"].values()]  # fmt: skip
    assert not sides[0] & sides[2]
    assert len(sides) == 3
    assert names["scores"].interval("iia").n == len(names["parts"]["test"])
