"""The examples of `docs/new_model.md` give what it says."""

from __future__ import annotations

from tests.pages import ROOT, run_page

PAGE = ROOT / "docs" / "new_model.md"


def test_the_page() -> None:
    assert PAGE.read_text(encoding="utf-8").count(">>> ") > 12
    run_page(PAGE)
