"""The code of every page runs and gives what the page says."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tests.pages import BLOCK, ROOT, run_page

import align_transformers
from align_transformers import AlignError, FitError, load_model
from align_transformers._optional import MissingExtraError

TESTED_ELSEWHERE = {
    "README.md": "tests/test_readme.py",
    "docs/counterfactuals.md": "tests/causal/test_page.py",
    "docs/new_model.md": "tests/models/test_new_model_page.py",
    "docs/new_study.md": "tests/studies/test_new_study.py",
    "docs/places.md": "tests/studies/test_places.py",
    "docs/recurrent.md": "tests/zoo/test_recurrent_page.py",
}
"""Pages by the test that runs them and knows more of them."""

PAGES = [
    path.relative_to(ROOT).as_posix()
    for path in [ROOT / "README.md", ROOT / "llms.txt", ROOT / "SKILL.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if path.exists() and BLOCK.search(path.read_text(encoding="utf-8"))
]


def has_section(name: str) -> bool:
    """Return whether the page of errors explains a class."""
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    _, _, section = page.partition(f"\n## {name}\n")
    section = section.partition("\n## ")[0]
    return "autoexception" in section and (name == "AlignError" or "**Cure**" in section)


def errors(kind: type[AlignError]) -> list[str]:
    """Return the names of a class of errors and of all below it that the package defines."""
    own = [kind.__name__] if kind.__module__.startswith("align_transformers") else []
    return own + [name for below in kind.__subclasses__() for name in errors(below)]


def test_every_error_is_explained() -> None:
    found = errors(AlignError)
    assert {FitError.__name__, MissingExtraError.__name__} <= set(found)
    assert [name for name in found if not has_section(name)] == []


def test_every_name_is_in_the_reference() -> None:
    pages = [page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "reference").glob("*.md")]
    listed = [name for page in pages for name in re.findall(r"^   ([\w.]+)$", page, re.MULTILINE)]
    names = set((ROOT / "tests" / "public_names.txt").read_text(encoding="utf-8").split())
    left_out = names - set(listed) - set(errors(AlignError)) - {"operations", "subspaces"}
    assert left_out == set(), "put them on a page of docs/reference/"
    assert len(listed) == len(set(listed))
    assert {name for name in listed if "." not in name} <= names


loaded = cache(load_model)
"""A model is loaded once for all pages: no call leaves anything of it changed, which is looked at after each page."""


def state_of(model: Any) -> list[Any]:
    """Return what a page could have changed of a model."""
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    weights = [(one.data_ptr(), one._version, one.requires_grad, one.grad) for one in model.parameters()]
    return [hooks, weights, [module.training for module in model.modules()]]


def test_pages_are_found() -> None:
    assert len(PAGES) > 5
    assert set(PAGES) >= TESTED_ELSEWHERE.keys()
    for page, test in TESTED_ELSEWHERE.items():
        assert Path(page).name in (ROOT / test).read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks for it
@pytest.mark.parametrize("name", [name for name in PAGES if name not in TESTED_ELSEWHERE])
def test_the_code_of_a_page_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(align_transformers, "load_model", loaded)
    before = (
        state_of(loaded("smollm2-135m")[0]) if "smollm2-135m" in (ROOT / name).read_text(encoding="utf-8") else None
    )
    run_page(ROOT / name, outputs=True)
    if before is not None:
        assert state_of(loaded("smollm2-135m")[0]) == before


def test_an_output_that_is_wrong_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("Text.\n\n```python\nx = 1\nprint(x)  # 1\nprint('a',\n      x)  # 2\n```\n")
    assert run_page(page, outputs=True).said == "1\na 1\n"  # a print over several lines is not looked at
    page.write_text(page.read_text().replace("# 1", "# 3"))
    with pytest.raises(AssertionError, match=r"page.md:5 says '3', and prints '1\\n'"):
        run_page(page, outputs=True)
    page.write_text("```python\nprint('a b')\n#> a\n#> c\n```\n")
    with pytest.raises(AssertionError, match="'a c'"):
        run_page(page, outputs=True)
    page.write_text("```python\n>>> 1 + 1\n3\n\n```\n")
    with pytest.raises(AssertionError, match="Expected"):
        run_page(page)
