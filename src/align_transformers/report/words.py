"""Tokens, answers and numbers as readable text."""

from __future__ import annotations

_MARKS = {" ": "\N{MIDDLE DOT}", "\n": "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}", "\t": "\N{RIGHTWARDS ARROW TO BAR}"}


def visible(token: str) -> str:
    r"""Return a token as readable text: spaces, line breaks and tabs as marks, other unprintable characters escaped.

    >>> visible(" Spain"), visible("\n"), visible("\x00"), visible("")
    ('·Spain', '↵', '\\x00', '∅')
    """
    if not token:
        return "\N{EMPTY SET}"
    return "".join(_MARKS.get(c, c if c.isprintable() else ascii(c)[1:-1]) for c in token)


def spoken(answer: str) -> str:
    r"""Return an answer for prose: without white space around it, unless it is nothing else.

    >>> spoken(" Madrid"), spoken("\n")
    ('Madrid', '↵')
    """
    return visible(answer.strip()).replace(_MARKS[" "], " ") if answer.strip() else visible(answer)


def number(value: float | int | None, width: int = 5) -> str:
    """Return a number in at most `width` characters, two decimals where they fit; unknown is a dash.

    >>> number(0.984), number(-0.004), number(123.456), number(-1e9), number(None)
    ('0.98', '0.00', '123.5', '<-999', '-')
    """
    if value is None:
        return "-"
    for decimals in (2, 1, 0):
        text = f"{value + 0.0:.{decimals}f}"
        if float(text) == 0:
            text = text.lstrip("-")
        if len(text) <= width:
            return text
    return ">9999" if value > 0 else "<-999"


def precise(value: float | int | None) -> str:
    """Return a number with three digits that tell, for prose and details.

    >>> precise(0.01234), precise(-12.3456), precise(None), precise(1e-20)
    ('0.0123', '-12.3', '-', '1e-20')
    """
    return "-" if value is None else f"{value + 0.0:.3g}"


def with_interval(value: float | int | None, low: float | int | None, high: float | int | None) -> str:
    """Return a number and its 95 % interval, where it has one.

    >>> with_interval(0.5, 0.25, 0.75), with_interval(0.5, None, None)
    ('0.5 [0.25, 0.75]', '0.5')
    """
    return precise(value) if low is None or high is None else f"{precise(value)} [{precise(low)}, {precise(high)}]"


def cut(text: str, most: int) -> str:
    """Return a text of at most `most` characters.

    >>> cut("antidisestablishment", 8), cut("short", 8)
    ('antidis…', 'short')
    """
    return text if len(text) <= most else text[: most - 1] + "…"
