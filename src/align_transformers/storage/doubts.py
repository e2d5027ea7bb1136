"""Whether a model is the one that something was saved with: what differs, by the check that it fails."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from .._errors import ArtifactError, SpecError, near_misses
from .limits import clipped

CHECKS = ("class", "config", "shapes", "dtypes", "weights", "revision", "tokenizer", "finite", "pyvene")
"""The names of the checks that may be waived."""
_FACTS = {
    "class": "class", "config_hash": "config", "dtypes": "dtypes", "shapes_hash": "shapes", "shapes": "shapes",
    "weights_hash": "weights",
}  # fmt: skip
_NAME = "name"  # tells nothing of the content: it is only warned of

_SHOWN = 4  # of the shapes that differ
_LONGEST = 60  # of a value that is shown

Doubts = Mapping[str, Sequence[str]]
"""A line for each fact that differs, by the name of the check."""


def waived_checks(waive: Collection[str], strict: bool) -> frozenset[str]:
    """Return the names of the checks that only warn.

    Raises:
        SpecError: there is no such check.

    >>> sorted(waived_checks(["dtypes"], True))
    ['dtypes']
    """
    if isinstance(waive, str) or not isinstance(waive, Collection):
        raise SpecError(f"waive= is a list of names of checks ({', '.join(CHECKS)}); found {waive!r:.80}")
    for name in waive:
        if name not in CHECKS:
            raise SpecError(f"waive= names no check {name!r:.40}; {near_misses(name, CHECKS)}")
    return frozenset(waive if strict else CHECKS)


def model_doubts(saved: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return what differs between two models, by check.

    With the same weights, name and revision are left out: what a model is called, or where it came from, is no part of
    it.

    Args:
        saved: facts as `identify_model` returns them, or some of them.
        found: those of the model at hand.

    >>> model_doubts({"name": "me/x", "weights_hash": "1"}, {"name": "x", "weights_hash": "1"})
    {}
    """
    doubts: dict[str, list[str]] = {}
    known = None not in (saved.get("weights_hash"), found.get("weights_hash"))
    for fact, check in _FACTS.items():
        if fact in saved and (fact != "weights_hash" or known):
            doubts.setdefault(check, []).extend(differences({fact: saved[fact]}, found))
    if not (known and saved["weights_hash"] == found["weights_hash"]):
        names = {fact: saved[fact] for fact in ("name", "revision") if fact in saved}
        told = None not in (names.get("revision"), found.get("revision"))
        for fact, value in names.items():
            check = "revision" if fact == "revision" and told else _NAME
            doubts.setdefault(check, []).extend(differences({fact: value}, found))
    return {check: lines for check, lines in doubts.items() if lines}


def report(doubts: Doubts, what: str, advice: str, waived: Collection[str]) -> None:
    """Raise or warn, if there is anything to tell.

    Args:
        doubts: by check.
        what: they mean together.
        advice: what to do about it.
        waived: names of the checks that only warn.

    Raises:
        ArtifactError: a check fails that is not waived.
    """
    message = "\n  ".join((f"{what}:", *(line for lines in doubts.values() for line in lines)))
    failed = [check for check, lines in doubts.items() if lines and check != _NAME and check not in waived]
    if failed:
        names = ", ".join(repr(check) for check in failed)
        raise ArtifactError(clipped(f"{message}\n{advice}, or pass waive=[{names}] to go on all the same"))
    if any(doubts.values()):
        names = ", ".join(check for check, lines in doubts.items() if lines and check != _NAME)
        why = f"waived: {names}; going" if names else "it holds what that did, as far as is known: going"
        warnings.warn(clipped(f"{message}\n{why} on all the same"), UserWarning, stacklevel=5)


def differences(saved: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Return a line for each fact that differs, with both values.

    >>> differences({"class": "GPT2Model", "name": None}, {"class": "LlamaModel", "name": None})
    ['class: saved GPT2Model, found LlamaModel']
    """
    lines: list[str] = []
    for fact in saved:
        if saved[fact] == found.get(fact):
            continue
        if isinstance(saved[fact], dict):
            lines += _different_entries(fact, saved[fact], found.get(fact) or {})
        else:
            lines.append(f"{fact}: saved {_shown(saved[fact])}, found {_shown(found.get(fact))}")
    return lines


def _different_entries(fact: str, saved: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    names = [name for name in dict.fromkeys((*saved, *found)) if saved.get(name) != found.get(name)]
    lines = [
        f"{fact}: {_shown(name)} saved {_shown(saved.get(name))}, found {_shown(found.get(name))}"
        for name in names[:_SHOWN]
    ]
    return lines if len(names) <= _SHOWN else [*lines, f"{fact}: and {len(names) - _SHOWN} more"]


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
