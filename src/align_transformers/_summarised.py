"""How results and models show themselves: a title and a few facts, as lines or, in a notebook, as a small table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from itertools import islice

_LINES, _LETTERS = 12, 110

Summary = tuple[str, Iterable[tuple[str, str]]]
"""A title, and facts by name; of many the first ones are shown."""


class Summarised:
    """What shows a title and a few facts of itself."""

    def _summary(self) -> Summary:
        """Return the title and the facts."""
        raise NotImplementedError

    def __repr__(self) -> str:
        """Return a line for the title, and one for each fact."""
        title, facts = self._summary()
        return "\n".join([_cut(title), *(_cut(f"  {name}: {fact}") for name, fact in shortened(facts))])

    def _repr_html_(self) -> str:
        """Return the same for a notebook."""
        title, facts = self._summary()
        rows = "".join(
            f'<tr><th style="text-align: left">{escape(name)}</th><td style="text-align: left">{escape(fact)}</td></tr>'
            for name, fact in shortened(facts)
        )
        return f"<div><b>{escape(title)}</b><table>{rows}</table></div>"


def shortened(facts: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the first facts, and that there are more.

    Args:
        facts: by name.

    >>> shortened([(str(n), "") for n in range(20)])[-1]
    ('...', 'and 8 more')
    """
    listed = list(facts)
    more = len(listed) - _LINES
    return [*islice(listed, _LINES), *([("...", f"and {more} more")] if more > 0 else [])]


def _cut(line: str) -> str:
    text = line.replace("\n", "\\n")
    return text if len(text) <= _LETTERS else text[: _LETTERS - 1] + "…"


def numbers(values: Mapping[str, float]) -> str:
    """Return numbers by name on one line.

    Args:
        values: the numbers.

    >>> numbers({"iia": 0.98765, "loss": 2})
    'iia 0.988, loss 2'
    """
    return ", ".join(f"{name} {value:.3g}" for name, value in values.items())
