"""One meaning a name: a class or an alias is defined once in the package, and so is the name of a file."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "align_transformers"

DEFINED_TWICE = {"Self"}
"""What may be defined in several files: the type of the class that a method is of."""


def types_of(code: str) -> Iterator[str]:
    """Yield the names of the classes and aliases of a module, without a leading underscore."""
    for node in ast.parse(code).body:
        names = [node.name] if isinstance(node, ast.ClassDef) else []
        if isinstance(node, ast.Assign):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        for name in names:
            bare = name.lstrip("_")
            if bare[:1].isupper() and not bare.isupper():  # no constant, and no variable
                yield bare


def places_of_names() -> Mapping[str, list[str]]:
    """Return for each type and each file name where it is."""
    places: dict[str, list[str]] = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        where = path.relative_to(PACKAGE).as_posix()
        for name in types_of(path.read_text(encoding="utf-8")):
            places[name].append(where)
        if path.name != "__init__.py":
            places[path.name].append(where)
    return places


def test_a_name_has_one_meaning() -> None:
    places = places_of_names()
    assert len(places) > 200
    twice = {name: where for name, where in places.items() if len(where) > 1 and name not in DEFINED_TWICE}
    assert twice == {}


def test_types_are_seen() -> None:
    code = "class _Part: ...\nRows = tuple[int, ...]\nLIMIT = 1\n_here = 2\ndef f(): ...\n"
    assert list(types_of(code)) == ["Part", "Rows"]
