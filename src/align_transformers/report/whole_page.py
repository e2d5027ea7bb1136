"""The frame of every page: one file that asks no network for anything."""

from __future__ import annotations

from html import escape
from string import Template

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
$head<title>$title</title>
<style>
$style
</style>
</head>
<body>
<main>
$body
</main>
$end</body>
</html>
""")


def whole_page(title: str, style: str, body: str, *, head: str = "", end: str = "") -> str:
    """Return a page.

    Args:
        title: of the page, as text.
        style: CSS.
        body: HTML.
        head: further HTML in front of the title.
        end: further HTML behind the body.

    >>> "<title>a &lt; b</title>" in whole_page("a < b", "", "<p>...</p>")
    True
    """
    return _PAGE.substitute(title=escape(title), style=style.strip(), body=body, head=head, end=end)
