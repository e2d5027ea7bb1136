"""Links of README, llms.txt, SKILL.md and the pages: those inside lead somewhere, those outside are well-formed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tests.pages import ROOT

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "llms.txt",
    ROOT / "SKILL.md",
    *(ROOT / "docs").rglob("*.md"),
]
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(<?([^()\s>]+)>?(?: \"[^\"]*\")?\)")
FROM_START = {
    "patch a head": "howto/patch_a_head.md",
    "steer a generation": "howto/steer.md",
    "run DAS with controls": "howto/das_with_controls.md",
    "find a circuit": "howto/find_a_circuit.md",
    "add a model": "howto/add_a_model.md",
    "read an error": "errors.md",
}


def links(page: Path) -> Iterator[str]:
    """Yield what a page links to, outside of its code."""
    text = re.sub(r"`[^`\n]*`", "`", FENCED.sub("", page.read_text(encoding="utf-8")))
    yield from LINK.findall(text)


def slugs(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and MyST write them."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def mistakes(page: Path) -> Iterator[str]:
    """Yield the links of a page that lead nowhere."""
    for link in links(page):
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            if parts.scheme != "https" or not re.fullmatch(r"[\w-]+(\.[\w-]+)+", parts.netloc):
                yield f"{link} is no address"
            continue
        target = (page.parent / parts.path).resolve() if parts.path else page
        made = target.match("docs/reference/api/*.rst")  # written when the site is built
        if not target.exists() and not made:
            yield f"{link} is not there"
        elif parts.fragment and target.suffix == ".md" and parts.fragment not in slugs(target):
            yield f"{link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    assert list(mistakes(page)) == []


def test_mistakes_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A b\n[x](page.md#a-b) [x](#a-b) [x](https://example.org/y) `[x](no.md)`\n```\n[x](no.md)\n```\n")
    assert list(mistakes(page)) == []
    page.write_text("[x](no.md) [x](page.md#c) [x](http://example.org) [x](https://exam ple) [x](https://example)")
    assert len(list(mistakes(page))) == 4  # with a space it is no link


@pytest.mark.parametrize("target", FROM_START.values(), ids=FROM_START)
def test_a_newcomer_is_one_click_away(target: str) -> None:
    assert target in links(ROOT / "docs" / "index.md")


def test_every_page_is_in_llms_txt_or_in_one_that_is() -> None:
    listed = {ROOT / link for link in links(ROOT / "llms.txt")}
    assert {page for page in (ROOT / "docs" / "howto").glob("*.md") if page.name != "index.md"} <= listed
