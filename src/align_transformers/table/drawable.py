"""A table as a picture. Its kind is that of the study; `report` makes it, and is loaded when it is asked for."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any, cast

from .._checked import checked
from .._errors import AlignError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..report.tabular import Tabular

_ROWS, _DPI, _TOLD, _LETTERS = 8, 80, 3, 30


class Drawable:
    """What a table has to show itself."""

    @checked
    def plot(self, value: str | None = None, *, component: str | None = None) -> Figure:
        """Draw the table as its study is drawn, and return matplotlib's figure (pyplot is not touched).

        Args:
            value: which number, such as `rank` of a logit lens; default: the study's main one.
            component: which component; default: all, side by side.

        Raises:
            SpecError: the study has no picture, a number has no interval that it needs, or several rows would stand at
                one place; the message says what to choose.
            UnknownNameError: the table has no such column or component.
            MissingExtraError: matplotlib is not installed.

        Example:
            >>> from align_transformers import Table
            >>> rows = [{"component": "mlp_output", "layer": n, "head": 0, "recovered": n / 4} for n in range(4)]
            >>> figure = Table.from_rows(rows, meta={"model": "toy"}).plot()
            >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
            ['0', '1', '2', '3']
        """
        from ..report.figure import figure_of
        from ..report.kinds import picture

        return figure_of(picture(cast("Tabular", self), value, component=component))

    def __repr__(self) -> str:
        table = cast("Any", self)
        known = [str(table.meta[name]) for name in ("study", "model") if name in table.meta]
        title = f"Table of {' on '.join(known)}" if known else "Table"
        count = f"{len(table)} row{'s' * (len(table) != 1)}"
        return "\n".join([f"{title}: {count}", *(f"  {name}: {_range(own)}" for name, own in table.columns.items())])

    def _repr_html_(self) -> str:
        """Return the picture and the facts for a notebook; a few rows where there is no picture."""
        table = cast("Any", self)
        facts = f"{len(table)} rows of {', '.join(table.columns) or 'no columns'}"
        try:
            from ..report.figure import image_of

            data = base64.b64encode(image_of(self.plot(), dpi=_DPI)).decode()
            shown = f'<img alt="{escape(str(table.meta.get("study", "table")))}" src="data:image/png;base64,{data}">'
        except AlignError as error:  # no picture, or no matplotlib: why is said below the rows
            shown, facts = _plain(table), f"{facts}. No picture: {error}"
        known = ", ".join(f"{name} {table.meta[name]}" for name in ("study", "model", "version") if name in table.meta)
        return f'<div>{shown}<p style="color: gray">{escape(f"{known}. {facts}" if known else facts)}</p></div>'


def _plain(table: Any) -> str:
    """Return the first rows as HTML."""
    head = "".join(f"<th>{escape(name)}</th>" for name in table.columns)
    cells = zip(*(values[:_ROWS] for values in table.columns.values()), strict=True)
    rows = ["".join(f"<td>{escape(_text(value))}</td>" for value in row) for row in cells]
    more = f"<p>and {len(table) - _ROWS} more rows</p>" if len(table) > _ROWS else ""
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>{more}"


def _range(values: Sequence[Any]) -> str:
    """Return in short what a column holds: from where to where numbers go, or the first of what is told apart."""
    known = [value for value in values if value is not None]
    missing = f", {len(values) - len(known)} missing" if len(known) < len(values) else ""
    if not known:
        return f"nothing{missing}"
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        ends = dict.fromkeys((_text(min(known)), _text(max(known))))
        return f"{' to '.join(ends)}{missing}"
    told = list(dict.fromkeys(map(repr, known)))
    more = f", ... ({len(told)})" if len(told) > _TOLD else ""
    return f"{', '.join(one if len(one) <= _LETTERS else f'{one[:_LETTERS]}…' for one in told[:_TOLD])}{more}{missing}"


def _text(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
