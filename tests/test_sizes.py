"""Files and functions stay small: 400 lines a file, 60 a function, its docstring not counted."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
FILE_LIMIT = 400
FUNCTION_LIMIT = 60


def too_long(code: str) -> Iterator[str]:
    """Yield a line for the file and for each function of `code` that is over its limit."""
    lines = len(code.splitlines())
    if lines > FILE_LIMIT:
        yield f"the file has {lines} lines, over {FILE_LIMIT}"
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            if ast.get_docstring(node, clean=False) is not None:
                docstring = node.body[0]
                length -= (docstring.end_lineno or 0) - docstring.lineno + 1
            if length > FUNCTION_LIMIT:
                yield f"line {node.lineno}: {node.name} has {length} lines, over {FUNCTION_LIMIT}"


FILES = sorted(SOURCE.rglob("*.py"))


def test_there_is_something_to_measure() -> None:
    assert len(FILES) > 5


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_size(path: Path) -> None:
    found = list(too_long(path.read_text(encoding="utf-8")))
    assert not found, f"{path.relative_to(SOURCE)}: " + "; ".join(found)


def test_the_ruler_measures() -> None:
    fits = "def f():\n" + '    """' + "x\n" * 100 + '    """\n' + "    x = 1\n" * 59
    assert list(too_long(fits)) == []
    assert list(too_long(fits + "    y = 1\n")) == ["line 1: f has 61 lines, over 60"]
    assert list(too_long("# x\n" * 400)) == []
    assert list(too_long("# x\n" * 401)) == ["the file has 401 lines, over 400"]
