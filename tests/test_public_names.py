"""What the package offers: every name is there, explained, shown in an example; none is lost, none comes unnoticed.

`public_names.txt` has one name a line. A name that comes or goes is a decision: it is made there, too, and noted in
CHANGELOG.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import align_transformers
from align_transformers import AlignError

ROOT = Path(__file__).parents[1]
NAMES = (ROOT / "tests" / "public_names.txt").read_text(encoding="utf-8").split()
BLOCK = re.compile(r"^```(?:py|python|pycon)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PROMPT = re.compile(r"^\s*(?:>>>|\.\.\.) (.*)$", re.MULTILINE)

NEEDS_NO_EXAMPLE = {
    "comes back from a function, and is not made by hand": (
        *("Alignment", "Bound", "Collected", "Comparison", "Description", "Effect", "Fitted", "Interval"),
        *("AlignmentResult", "AppliedEdits", "CircuitGraph", "IntervenableGeneration", "IntervenableOutput"),
        *("Outcome", "Scan", "Scores"),
    ),
    "a base class: its members have examples": ("ConstantSourceIntervention", "SourcelessIntervention"),
    "loads weights that are not here": (
        *("create_blip", "create_blip_itm", "create_gpt2_lm", "create_gpt_neo", "create_gpt_neox"),
    ),
    "a field of Plan, which has an example": ("Constant",),
    "what planners are made of, of which two have examples": ("Planner", "Step"),
    "the first name of ActivationCache, which has an example": ("Memory",),
    "works beside a fit, which takes too long for an example": ("precompute", "progress_bar"),
}
"""Names that no example uses, by the reason."""


def test_the_list_is_in_order():
    assert sorted(set(NAMES)) == NAMES
    assert len(NAMES) > 100  # nothing is lost by an empty file


def test_the_package_offers_these_and_no_others():
    assert sorted(align_transformers.__all__) == NAMES
    assert {name for name in dir(align_transformers) if not name.startswith("_")} == set(NAMES)


def test_the_contents_page_lists_them():
    page = (ROOT / "src" / "align_transformers" / "__init__.pyi").read_text(encoding="utf-8")
    listed = re.findall(r'^    "(\w+)",$', page.partition("__all__")[2], re.MULTILINE)
    assert sorted(listed) == NAMES


def mistakes(name: str, value: Any) -> Iterator[str]:
    """Yield what is wrong with the explanation of a class or a function."""
    said = inspect.getdoc(value) or ""
    first = said.partition("\n\n")[0]
    if not first.endswith((".", ")", ":")) or first.startswith(f"{name}("):  # what dataclass writes when nobody does
        yield f"begins with {first!r}, which is no sentence"
    if inspect.isroutine(value):
        arguments = said.partition("Args:\n")[2]
        for parameter in inspect.signature(value).parameters:
            if not re.search(rf"^ *[\w*, ]*\b{parameter}\b[\w, ]*:", arguments, re.MULTILINE):
                yield f"says nothing of {parameter}"


@pytest.mark.parametrize("name", NAMES)
def test_each_can_be_had_and_is_explained(name):
    value = getattr(align_transformers, name)
    if inspect.isclass(value) or inspect.isroutine(value):
        assert list(mistakes(name, value)) == []


def test_mistakes_are_found():
    def unexplained(one, two): ...

    unexplained.__doc__ = "Return something.\n\nArgs:\n    one: the first."
    assert list(mistakes("unexplained", unexplained)) == ["says nothing of two"]
    assert len(list(mistakes("Bare", type("Bare", (), {})))) == 1


@cache
def words_of_examples() -> frozenset[str]:
    """Return every word in the code of README, docs and docstrings."""
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    blocks = [block for page in pages for block in BLOCK.findall(page.read_text(encoding="utf-8"))]
    sources = (ROOT / "src").rglob("*.py")
    lines = [line for path in sources for line in PROMPT.findall(path.read_text(encoding="utf-8"))]
    return frozenset(re.findall(r"\w+", "\n".join([*blocks, *lines])))


@pytest.mark.parametrize("name", NAMES)
def test_each_is_used_in_an_example(name):
    value = getattr(align_transformers, name)
    excused = {name for names in NEEDS_NO_EXAMPLE.values() for name in names}
    if inspect.isclass(value) and issubclass(value, AlignError):
        return  # what raises it has the example
    assert (name in words_of_examples()) != (name in excused)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Intervenable"):
        _ = align_transformers.Intervenable
