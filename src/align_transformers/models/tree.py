"""A small tree with rows of facts, drawn as plain text, for rich, or as HTML."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import Any

from .._optional import optional

TreeRow = tuple[str, ...]
_STYLE = (
    "font:13px/1.5 ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace",
    "border:none;padding:0 1.2em 0 0;text-align:left;white-space:nowrap",
    "border:none;padding:0 1.2em 0 0;text-align:left;white-space:normal",
)


@dataclass(frozen=True)
class Tree:
    """One node.

    Args:
        title: what it says.
        note: said after the title, less loudly.
        rows: a table below the title; rows are equally long.
        children: nodes below the table.
        faint: whether it is of less interest.
    """

    title: str
    note: str = ""
    rows: tuple[TreeRow, ...] = ()
    children: tuple[Tree, ...] = ()
    faint: bool = False


def text_of(tree: Tree) -> str:
    """Return a tree as plain text.

    >>> print(text_of(Tree("a", rows=(("x", "1"), ("long", "2")), children=(Tree("b"), Tree("c", "of d")))))
    a
    │   x     1
    │   long  2
    ├── b
    └── c  of d
    """
    return "\n".join(_lines(tree))


def _lines(tree: Tree) -> Iterator[str]:
    yield f"{tree.title}  {tree.note}" if tree.note else tree.title
    widths = [max(map(len, column)) for column in zip(*tree.rows, strict=True)]
    for row in tree.rows:
        cells = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield ("│   " if tree.children else "    ") + cells.rstrip()
    for number, child in enumerate(tree.children, 1):
        last = number == len(tree.children)
        first, *rest = _lines(child)
        yield ("└── " if last else "├── ") + first
        for line in rest:
            yield ("    " if last else "│   ") + line


def rich_of(tree: Tree) -> Any:
    """Return a tree as rich draws it.

    Raises:
        MissingExtraError: rich is not installed.
    """
    node = optional("rich.tree", extra="report").Tree(_label(tree, root=True), guide_style="dim")
    _grow(node, tree)
    return node


def _grow(node: Any, tree: Tree) -> None:
    for child in tree.children:
        _grow(node.add(_label(child, root=False)), child)


def _label(tree: Tree, *, root: bool) -> Any:
    text = optional("rich.text", extra="report").Text
    loud = "bold" if root or tree.rows or (tree.children and not tree.faint) else ""
    title = text.assemble((tree.title, "dim" if tree.faint else loud), (f"  {tree.note}" if tree.note else "", "dim"))
    return optional("rich.console", extra="report").Group(title, _TreeTable(tree.rows)) if tree.rows else title


@dataclass(frozen=True)
class _TreeTable:
    """Rows for rich, as a table of all columns; where that is too wide, the last column below the one in the middle.

    Args:
        rows: at least one.
    """

    rows: tuple[TreeRow, ...]

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        rows, styles = self.rows, ["cyan", *[""] * (len(self.rows[0]) - 2), "dim"]
        wide = sum(max(map(len, column)) + 2 for column in zip(*rows, strict=True)) - 2
        narrow = wide > options.max_width and len(rows[0]) == 4
        if narrow:
            rows, styles = (
                tuple((name, f"{where}\n{note}".rstrip(), size) for name, where, size, note in rows),
                styles[:3],
            )
        grid = optional("rich.table", extra="report").Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
        for number, style in enumerate(styles):
            grid.add_column(style=style, overflow="fold", no_wrap=narrow and number != 1)
        text = optional("rich.text", extra="report").Text
        for row in rows:
            grid.add_row(*map(text, row))
        yield grid


def html_of(tree: Tree) -> str:
    """Return a tree as a piece of HTML that needs nothing else; every text in it is escaped.

    >>> "<b>&lt;i&gt;</b>" in html_of(Tree("<i>"))
    True
    """
    return f'<div style="{_STYLE[0]}">{_html(tree, 0)}</div>'


def _html(tree: Tree, depth: int) -> str:
    title = escape(tree.title) if tree.faint or not (depth == 0 or tree.rows or tree.children) else ""
    title = title or f"<b>{escape(tree.title)}</b>"
    note = f' <span style="opacity:.65">{escape(tree.note)}</span>' if tree.note else ""
    rows = "".join(
        "<tr>"
        + "".join(f'<td style="{_STYLE[2 if n == 3 else 1]}">{escape(cell)}</td>' for n, cell in enumerate(row))
        + "</tr>"
        for row in tree.rows
    )
    table = f'<table style="border-collapse:collapse;margin:.2em 0 .4em;font:inherit">{rows}</table>' if rows else ""
    below = "".join(_html(child, depth + 1) for child in tree.children)
    faint = ";opacity:.65" if tree.faint else ""
    inside = f'<div style="margin-left:1.4em">{table}{below}</div>'
    if table or below:
        shut = "" if not tree.faint else ">"
        opened = "<details" + (" open>" if not shut else ">")
        return f'{opened}<summary style="cursor:pointer{faint}">{title}{note}</summary>{inside}</details>'
    return f'<div style="{faint.lstrip(";")}">{title}{note}</div>'
