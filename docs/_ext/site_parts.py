"""Parts of the site that are made from the code: what every error says."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.directives.other import TocTree

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "align_transformers"


def said(node: ast.expr) -> str | None:
    """Return the text of a message, with `…` for what is put in when it is raised; None where it is no text."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(said(part) or "…" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return (said(node.left) or "…") + (said(node.right) or "…")
    return None


def messages_of(code: str) -> Iterator[tuple[str, str]]:
    """Yield the class and the text of every error that `code` raises."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            name, text = node.exc.func, said(node.exc.args[0])
            if isinstance(name, ast.Name) and name.id.endswith("Error") and text and text.strip("… "):
                yield name.id, " ".join(text.split())


def messages(package: Path = PACKAGE) -> Mapping[str, list[str]]:
    """Return every message of the package, by class, each once and in order."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in sorted(package.rglob("*.py")):
        for name, text in messages_of(path.read_text(encoding="utf-8")):
            found[name].add(text)
    return {name: sorted(texts, key=lambda text: text.lstrip("… ").lower()) for name, texts in sorted(found.items())}


class Messages(Directive):
    """What errors of one class say: `messages` with the name of the class."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return a list of messages."""
        items = nodes.bullet_list(classes=["messages"])
        for text in messages()[self.arguments[0]]:
            items += nodes.list_item("", nodes.paragraph(text, text))
        return [items]


class Tutorials(TocTree):
    """A `toctree` that may be of nothing: of a folder without tutorials Sphinx would warn."""

    def run(self) -> list[nodes.Node]:
        """Return the contents, or nothing."""
        return super().run() if any((ROOT / "tutorials").glob("[!_]*.py")) else []


def keep_first_line(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Hide "The share: ..." from napoleon, which takes what stands before the colon for an attribute's type."""
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]


def keep_marks(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Keep |x| from being looked up as a substitution, and end code where a plural's s follows; not in examples."""
    example = False
    for number, line in enumerate(lines):
        example = line.lstrip().startswith(">>>") or (example and bool(line.strip()))
        if not example:
            lines[number] = re.sub(r"(`[^`\s][^`]*`)(?=\w)", r"\1\\ ", line.replace("|", r"\|"))


def setup(app: Any) -> dict[str, bool]:
    """Say to Sphinx what is here."""
    app.add_directive("messages", Messages)
    app.add_directive("tutorials", Tutorials)
    app.connect("autodoc-process-docstring", keep_first_line, priority=100)  # before napoleon's
    app.connect("autodoc-process-docstring", keep_marks, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
