"""Run the code of a page: README, the pages of the site, `llms.txt`, `SKILL.md`."""

from __future__ import annotations

import ast
import contextlib
import doctest
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(?:py|python|pycon)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SAYS = re.compile(r"^print\(.*\)  # (.*)$")
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass
class Ran:
    """What a page's code left behind and printed."""

    names: dict[str, Any] = field(default_factory=dict)
    said: str = ""


def blocks(page: Path) -> Iterator[tuple[int, str]]:
    """Yield each block of Python with the line of the page before its first one."""
    text = page.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        yield text[: found.start(1)].count("\n"), found[1]


def run_page(page: Path, *, outputs: bool = False) -> Ran:
    """Run the blocks of a page, one after the other with the same names; those with prompts are doctests.

    Args:
        page: a text with fenced blocks.
        outputs: whether the comment behind a `print`, or below it after `#>`, is what it prints (`...`: anything).
    """
    ran = Ran({"__name__": page.stem})
    for line, block in blocks(page):
        if block.lstrip().startswith(">>>"):
            _doctest(page, line, block, ran)
        else:
            _statements(page, line, block, ran, outputs)
    return ran


def _doctest(page: Path, line: int, block: str, ran: Ran) -> None:
    test = doctest.DocTestParser().get_doctest(block, ran.names, page.name, str(page), line)
    found = io.StringIO()
    result = doctest.DocTestRunner(optionflags=FLAGS).run(test, out=found.write, clear_globs=False)
    ran.names |= test.globs
    assert not result.failed, found.getvalue()


def _statements(page: Path, line: int, block: str, ran: Ran, outputs: bool) -> None:
    tree = ast.parse(block, str(page))
    lines = block.splitlines()
    for statement in ast.increment_lineno(tree, line).body:
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(ast.Module([statement], []), str(page), "exec"), ran.names)
        ran.said += said.getvalue()
        wanted = _wanted(lines[(statement.end_lineno or 0) - line - 1 :]) if outputs else ""
        if wanted:
            same = doctest.OutputChecker().check_output(wanted + "\n", said.getvalue(), FLAGS)
            assert same, f"{page.name}:{statement.lineno} says {wanted!r}, and prints {said.getvalue()!r}"


def _wanted(lines: list[str]) -> str:
    """Return what a page says is printed: the comment behind a `print`, or those with `#>` below it."""
    below = takewhile(lambda line: line.startswith("#> "), lines[1:])
    behind = SAYS.match(lines[0])
    return behind[1] if behind else " ".join(line[3:] for line in below)
