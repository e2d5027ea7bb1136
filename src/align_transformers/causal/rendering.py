"""Inputs as texts: what a template makes of them, and where in the text each of its fields stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from string import Formatter
from typing import Any

from .._errors import SpecError, UnknownNameError, near_misses
from ..anchors import Anchor, Spot

Template = str | Callable[[dict[str, Any]], str]
"""`"{a}+{b}="`, or a function from an input to a text."""


@dataclass(frozen=True)
class RenderedText:
    """The text of an input.

    Args:
        text: all of it.
        fields: by name where in it the values of an input stand, in order: first character, and one past the last.
    """

    text: str
    fields: Mapping[str, Sequence[tuple[int, int]]] = field(default_factory=dict)

    def meant(self, spot: Spot) -> Spot:
        """Return a spot, where `at("{a}")` is the place at which the template has `{a}`, whatever it reads there."""
        if not isinstance(spot, Anchor) or not isinstance(spot.text, str):
            return spot
        spans = self.fields.get(spot.text[1:-1], ()) if spot.text[:1] + spot.text[-1:] == "{}" else ()
        number = (spot.occurrence or 1) - (1 if (spot.occurrence or 1) > 0 else 0)
        if not spans or not -len(spans) <= number < len(spans) or (spot.occurrence is None and len(spans) > 1):
            return spot
        return replace(spot, text=spans[number], occurrence=None)


def rendered(template: Template, setting: Mapping[str, Any], what: str = "template") -> RenderedText:
    """Return the text of an input.

    Args:
        template: with `{name}` for the value of an input, as `str.format` takes it; or a function.
        setting: the input, by name.
        what: the argument, for messages.

    Raises:
        SpecError: the template is none, or the function gives no text.
        UnknownNameError: the template has a field that there is not.

    >>> rendered("{a}+{b:02d}=", {"a": 3, "b": 3})
    RenderedText(text='3+03=', fields={'a': [(0, 1)], 'b': [(2, 4)]})
    """
    if not isinstance(template, str):
        found = template(dict(setting))
        if not isinstance(found, str):
            raise SpecError(f"{what} is a function from an input to a text; it gave {found!r:.80}")
        return RenderedText(found)
    text, spans = "", dict[str, list[tuple[int, int]]]()
    try:
        for before, name, form, conversion in Formatter().parse(template):
            text += before
            if name is None:
                continue
            if name not in setting:
                raise UnknownNameError(f"{what} has the field {name!r}; {near_misses(name, setting)}")
            piece = "{" + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "") + "}"
            said = piece.format(setting[name])
            spans.setdefault(name, []).append((len(text), len(text) + len(said)))
            text += said
    except ValueError as error:
        if isinstance(error, SpecError):
            raise
        raise SpecError(f"{what}={template!r}: {error}") from error
    return RenderedText(text, spans)
