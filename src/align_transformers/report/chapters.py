"""Several results about one thing as one report: a page, lines of a terminal, a notebook's output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .panels import Bars, Panel, Picture


@dataclass(frozen=True)
class Chapter:
    """One question, its answer in words and as a picture, and how to ask it again.

    Args:
        name: short, such as `lens`; an anchor of the page.
        title: the question.
        words: what is seen and how it is read, for newcomers, a paragraph each.
        picture: what is drawn, whose findings are the answer; `None` where nothing is.
        missing: why there is no answer; "" where there is one.
        code: the line of Python that repeats it.
    """

    name: str
    title: str
    words: tuple[str, ...]
    picture: Picture | None
    code: str
    missing: str = ""

    @property
    def findings(self) -> tuple[str, ...]:
        """The answer in words."""
        return self.picture.findings if self.picture else (f"Not to be had for this model: {self.missing}",)

    @property
    def brief(self) -> tuple[tuple[Panel, ...], ...]:
        """The panels where there is little room: bars alone, where there are any."""
        rows = self.picture.panels if self.picture else ()
        bars = tuple(tuple(panel for panel in row if isinstance(panel, Bars)) for row in rows)
        return tuple(row for row in bars if row) or rows


@dataclass(frozen=True)
class Chapters:
    """A report of several chapters.

    Args:
        title: a sentence.
        words: what it is and how it is read.
        prompts: what was read, as (name, text, what the model says after it, or "").
        chapters: in the order in which they are read.
        before: lines of Python that those of the chapters rest on.
        facts: name -> fact.
    """

    title: str
    words: tuple[str, ...]
    prompts: tuple[tuple[str, str, str], ...]
    chapters: tuple[Chapter, ...]
    before: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
