"""A folder of results as a web page: a sentence, a small picture and a link of each. All texts are escaped."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from urllib.parse import quote

from .._version import library_version
from .whole_page import whole_page

GENERATOR = "align-transformers report"
"""What an index says it is made by."""

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --faint: #5a5a5a; --ground: #ffffff; --line: #dddddd; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --faint: #a0a4ab; --ground: #16181d; --line: #34373e; }
}
body { margin: 2rem auto; padding: 0 1rem; max-width: 80rem; color: var(--ink); background: var(--ground);
  font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1rem; line-height: 1.35; margin: 0 0 .25rem; }
p { margin: .25rem 0; }
a { color: inherit; }
.faint { color: var(--faint); font-size: .875rem; overflow-wrap: anywhere; }
.results { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); gap: 1rem;
  padding: 0; list-style: none; }
.results li { border: 1px solid var(--line); border-radius: .5rem; padding: 1rem; min-width: 0;
  overflow-wrap: anywhere; }
.results img { display: block; max-width: 100%; height: 15rem; object-fit: contain; margin: .5rem 0;
  background: #ffffff; border-radius: .25rem; }
.number { font-size: 2rem; line-height: 1.2; margin: .5rem 0 0; }
"""


@dataclass(frozen=True)
class IndexEntry:
    """One result of a folder.

    Args:
        name: its path in the folder.
        title: what it is.
        link: the path in the folder of the page that shows it; "" for none.
        sentence: its main finding.
        image: a PNG of its picture; empty for none.
        number: its main number with its name, where there is no picture.
        facts: such as the model.
    """

    name: str
    title: str
    link: str
    sentence: str
    image: bytes = b""
    number: tuple[str, str] = ("", "")
    facts: str = ""


def index_page(title: str, entries: Sequence[IndexEntry], left: Sequence[tuple[str, str]] = ()) -> str:
    """Return the page.

    Args:
        title: of the page.
        entries: the results.
        left: name of a file that could not be read, and why.
    """
    lines = "".join(f"<li>{escape(name)}: {escape(why)}</li>" for name, why in left)
    body = [f"<h1>{escape(title)}</h1>", '<ul class="results">', *map(_entry, entries), "</ul>"]
    if left:
        body.append(f'<h2>Not shown</h2><ul class="faint">{lines}</ul>')
    body.append(f'<p class="faint">made with align-transformers {escape(library_version())}</p>')
    return whole_page(title, _STYLE, "\n".join(body), head=f'<meta name="generator" content="{GENERATOR}">\n')


def _entry(one: IndexEntry) -> str:
    title = escape(one.title)
    parts = [f'<h2><a href="{quote(one.link)}">{title}</a></h2>' if one.link else f"<h2>{title}</h2>"]
    if one.image:
        data = base64.b64encode(one.image).decode()
        parts.append(f'<img alt="{escape(f"{one.title}: {one.sentence}")}" src="data:image/png;base64,{data}">')
    if one.number[0]:
        parts.append(f'<p class="number">{escape(one.number[1])}</p><p class="faint">{escape(one.number[0])}</p>')
    parts.append(f"<p>{escape(one.sentence)}</p>")
    facts = ". ".join(part for part in (one.name, one.facts) if part)
    return f'<li>{"".join(parts)}<p class="faint">{escape(facts)}</p></li>'
