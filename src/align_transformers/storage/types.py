"""Which classes a file may name: the library's own interventions, and those that the caller hands in. Nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from .. import interventions
from .._errors import ArtifactError, SpecError, near_misses
from ..interventions import FunctionIntervention, Intervention

_EXPORTED = [getattr(interventions, name) for name in interventions.__all__]
_CLASSES = [value for value in _EXPORTED if isinstance(value, type) and issubclass(value, Intervention)]

OWN: Mapping[str, type[Intervention]] = MappingProxyType(
    {
        kind.__name__: kind
        for kind in _CLASSES
        if kind is not FunctionIntervention and not any(other in kind.__subclasses__() for other in _CLASSES)
    }
)
"""The library's interventions by name: those that no other is derived from. A function is not among them: it would have
to be code in the file."""


OF_THE_CALLER = "classes:"
"""In front of the name of a class of the caller's that is also the name of one of the library's."""


def known_types(classes: Sequence[type]) -> dict[str, type[Intervention]]:
    """Return the library's interventions and the caller's, by the name that a file has for them.

    Args:
        classes: subclasses of `Intervention`, each under its own name.

    Raises:
        SpecError: one is no such class, or has a name that another of them has.

    >>> known_types(())["VanillaIntervention"].__name__
    'VanillaIntervention'
    """
    known = dict(OWN)
    for kind in classes:
        if not isinstance(kind, type) or not issubclass(kind, Intervention):
            raise SpecError(f"classes= holds subclasses of Intervention; found {kind!r}")
        if known.setdefault(written_name(kind), kind) is not kind:
            raise SpecError(f"classes= holds two classes of the name {kind.__name__}")
    return known


def written_name(kind: type) -> str:
    """Return the name that a file has for a class.

    >>> written_name(OWN["VanillaIntervention"]), written_name(type("VanillaIntervention", (), {}))
    ('VanillaIntervention', 'classes:VanillaIntervention')
    """
    name = kind.__name__
    return name if OWN.get(name, kind) is kind else OF_THE_CALLER + name


def find_type(name: str, classes: Sequence[type], where: str) -> type[Intervention]:
    """Return the class that a file names.

    Raises:
        ArtifactError: it is neither the library's nor the caller's; the message lists both.
    """
    known = known_types(classes)
    if name not in known:
        given = ", ".join(kind.__name__ for kind in classes) or "none"
        raise ArtifactError(
            f"{where}: unknown intervention {name!r:.80}. Given as classes=: {given}; the library's own: "
            f"{near_misses(name[:80], OWN)}. Pass the class itself: classes=[...]; nothing is imported by name"
        )
    return known[name]
