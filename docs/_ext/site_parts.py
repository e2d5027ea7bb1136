"""Parts of the site that are made from the code: what every error says."""

from __future__ import annotations

import ast
import inspect
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import jupytext
import nbformat
import typer
from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from sphinx.directives.other import TocTree
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from align_transformers.cli import app

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "align_transformers"
ELSEWHERE = re.compile(r"""<(?:script|img|iframe|source|video|link)\b[^>]*?(?:src|href)=["'](?:https?:)?//[^>]*>""")
LOG = logging.getLogger(__name__)


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
            if isinstance(name, ast.Name) and name.id.endswith("Error") and len(re.findall(r"\w", text or "")) > 7:
                yield name.id, " ".join(text.split())


def messages(package: Path = PACKAGE) -> Mapping[str, list[str]]:
    """Return every message of the package, by class, each once and in order."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in sorted(package.rglob("*.py")):
        for name, text in messages_of(path.read_text(encoding="utf-8")):
            found[name].add(text)
    return {name: sorted(texts, key=lambda text: text.lstrip("… ").lower()) for name, texts in sorted(found.items())}


class Messages(SphinxDirective):
    """What errors of one class say: `messages` with the name of the class."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return a list of messages."""
        self.env.note_reread()  # whatever has changed
        items = nodes.bullet_list(classes=["messages"])
        for text in messages()[self.arguments[0]]:
            items += nodes.list_item("", nodes.paragraph(text, text, support_smartquotes=False))
        return [items]


class Commands(SphinxDirective):
    """Every command of the command line, its arguments and options."""

    def run(self) -> list[nodes.Node]:
        """Return a section for each."""
        self.env.note_reread()
        commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
        return [self.section(name, command) for name, command in commands.items()]

    def section(self, name: str, command: Any) -> nodes.section:
        """Return what one command is and takes."""
        section = nodes.section("", nodes.title(name, name), ids=[nodes.make_id(name)], names=[name])
        section += self.parse_text_to_nodes(inspect.cleandoc(command.help or ""))
        items = nodes.definition_list()
        for one in command.params:
            if one.name != "help":
                term = ", ".join((*one.opts, *one.secondary_opts)) if one.opts[0].startswith("-") else one.name.upper()
                said = self.parse_text_to_nodes(" ".join((getattr(one, "help", None) or "").split()))
                items += nodes.definition_list_item(
                    "", nodes.term("", "", nodes.literal(term, term)), nodes.definition("", *said)
                )
        section += items
        return section


class Tutorials(TocTree):
    """A `toctree` of those of its entries that are there; with `others` of all that the page does not name."""

    option_spec: ClassVar[Any] = {**TocTree.option_spec, "others": directives.flag}

    def run(self) -> list[nodes.Node]:
        """Return the contents, or nothing."""
        self.env.note_reread()
        every = sorted(f"tutorials/{path.stem}" for path in (ROOT / "tutorials").glob("[!_]*.py"))
        page = (ROOT / "docs" / "tutorials.md").read_text(encoding="utf-8").split()
        there = [line for line in every if line not in page] if "others" in self.options else self.content
        there = [line for line in there if line in every]
        self.content = StringList(there, items=[self.state_machine.get_source_and_line()] * len(there))
        return super().run() if there else []


def read_tutorial(text: str) -> nbformat.NotebookNode:
    """Return the notebook that a percent script is, with a hidden cell that lets figures be pictures."""
    notebook = jupytext.reads(text, fmt="py:percent")
    pictures = nbformat.v4.new_code_cell("%matplotlib inline", id="pictures", metadata={"tags": ["remove-cell"]})
    notebook.cells.insert(0, pictures)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    return notebook


def keep_first_line(sphinx: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Hide "The share: ..." from napoleon, which takes what stands before the colon for an attribute's type."""
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]


def keep_marks(sphinx: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Keep |x| from being looked up as a substitution, and end code where a plural's s follows; not in examples."""
    example = False
    for number, line in enumerate(lines):
        example = line.lstrip().startswith(">>>") or (example and bool(line.strip()))
        if not example:
            lines[number] = re.sub(r"(`[^`\s][^`]*`)(?=\w)", r"\1\\ ", line.replace("|", r"\|"))


def ask_nobody(sphinx: Any, exception: Exception | None) -> None:
    """Warn of a page that asks another host for something when it is opened."""
    if exception is None and sphinx.builder.format == "html":
        for page in sorted(Path(sphinx.outdir).rglob("*.html")):
            for found in ELSEWHERE.findall(page.read_text(encoding="utf-8")):
                LOG.warning("%s asks another host: %s", page.relative_to(sphinx.outdir), found)


def for_assistants(sphinx: Any, exception: Exception | None) -> None:
    """Put the pages for coding assistants at the root of the site, with links to its pages."""
    if exception is None and sphinx.builder.format == "html":
        for name in ("llms.txt", "SKILL.md"):
            text = re.sub(r"\]\(docs/([\w/]+)\.md", r"](\1.html", (ROOT / name).read_text(encoding="utf-8"))
            (Path(sphinx.outdir) / name).write_text(text, encoding="utf-8")


def setup(sphinx: Any) -> dict[str, bool]:
    """Say to Sphinx what is here."""
    sphinx.connect("build-finished", ask_nobody)
    sphinx.connect("build-finished", for_assistants)
    sphinx.add_directive("messages", Messages)
    sphinx.add_directive("commands", Commands)
    sphinx.add_directive("tutorials", Tutorials)
    sphinx.connect("autodoc-process-docstring", keep_first_line, priority=100)  # before napoleon's
    sphinx.connect("autodoc-process-docstring", keep_marks, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
