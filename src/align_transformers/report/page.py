"""Pictures as a web page: one self-contained file that asks no network for anything."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from .._files import write_atomically
from .._version import library_version
from .chapters import Chapters
from .page_panels import choices_of, rows_of_panels
from .page_sections import facts_of, html_of, list_of, prompts_of
from .page_style import SCRIPT, STYLE, THEMES
from .panels import Picture, Section
from .tabular import Tabular
from .views import Views, views_of
from .whole_page import whole_page


def save_page(
    table: Tabular, path: str | os.PathLike[str], *, value: str | None = None, component: str | None = None
) -> Path:
    """Write a study's table as an interactive HTML page, in one step.

    The page holds all that it needs, asks no network, and is small. Pointing at a cell, or going to it with the arrow
    keys, shows its numbers with their intervals, and whatever else the table tells of it; below each figure are its
    summary in words and the table behind it, to copy or to save as CSV. The page of `align` is a report: the verdict,
    the causal model as a graph, the data, the chosen hypotheses with their controls, flags, what the choice cost, and
    where it fails.

    Args:
        table: of a study.
        path: the HTML file to write.
        value: which number, as for `picture`.
        component: which component, likewise.

    Returns:
        The path written.

    Raises:
        SpecError, UnknownNameError: as for `picture`.
        OSError: the folder cannot be written to.
    """
    return write_atomically(path, page_of(views_of(table, value, component)).encode())


def page_of(shown: Picture | Views) -> str:
    """Return a picture, or several to choose from, as a page."""
    views = Views(shown) if isinstance(shown, Picture) else shown
    drawn = views.first
    facts = {**drawn.facts, "made with": f"align-transformers {library_version()}"}
    findings, sections = list_of(drawn.findings), drawn.sections
    if sections and drawn.findings:
        findings = html_of(Section("Verdict", drawn.findings))
    body = [
        findings * bool(sections),
        *(html_of(one) for one in sections if one.opens),
        choices_of(views.choices, drawn),
        *map(_view, ((0,) * len(views.choices), *views.others), (drawn, *views.others.values())),
        *(html_of(one) for one in sections if not one.opens),
        facts_of(facts),
    ]
    return _filled(drawn.title, body)


def _view(key: tuple[int, ...], drawn: Picture) -> str:
    """Return what goes with a choice: the prompts, how the figure is read, its panels, and what they show."""
    words = f"<p>{escape(drawn.intro or drawn.caption)}</p>{_HINT}"
    found = "" if drawn.sections else list_of(drawn.findings)
    panels = rows_of_panels(drawn.panels, "-".join(map(str, ("panel", *key))))
    number = " ".join(map(str, key))
    return f'<div class="view" data-view="{number}">{prompts_of(drawn.prompts)}{words}{panels}{found}</div>'


def page_of_chapters(report: Chapters) -> str:
    """Return a report of several chapters as a page."""
    links = [f'<li><a href="#{escape(one.name)}">{escape(one.title)}</a></li>' for one in report.chapters]
    body = [prompts_of(report.prompts), *(f"<p>{escape(line)}</p>" for line in report.words)]
    body += [_HINT, f'<nav aria-label="Contents"><ol>{"".join(links)}</ol></nav>']
    if report.before:
        body += ['<p class="faint label">The lines of Python below go on from:</p>', _code(report.before)]
    for one in report.chapters:
        words = "".join(f"<p>{escape(line)}</p>" for line in one.words)
        drawn = rows_of_panels(one.picture.panels, one.name) if one.picture else ""
        body.append(
            f'<section class="chapter" id="{escape(one.name)}"><h2>{escape(one.title)}</h2>{words}'
            f'<div class="found">{list_of(one.findings)}</div>{drawn}'
            f'<p class="faint label">The same in Python:</p>{_code([one.code])}</section>'
        )
    body.append(facts_of({**report.facts, "made with": f"align-transformers {library_version()}"}))
    return _filled(report.title, body)


_HINT = (
    '<p class="faint hint">Point at a cell, a point or a bar for details, or go there with the tab and arrow keys.</p>'
)


def _code(lines: Sequence[str]) -> str:
    return f"<pre><code>{escape(chr(10).join(lines))}</code></pre>"


def _filled(title: str, body: Iterable[str]) -> str:
    parts = "\n".join(part for part in body if part)
    end = f'<div id="pointed-at" role="status"></div>\n<script>{SCRIPT}</script>\n'
    return whole_page(title, THEMES + STYLE, f"<h1>{escape(title)}</h1>\n{parts}", end=end)
