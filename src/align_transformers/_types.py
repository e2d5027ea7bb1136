"""Whether plain data, as a file has it, is of the types that a function says it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type; a list is any kind of sequence, a whole number is a `float`, `True` no number.

    >>> fits(1, float | None), fits(True, int), fits([1, "x"], list[int]), fits("a", Literal["a", "b"])
    (True, False, False, True)
    """
    if hint is Any:
        return True
    if hint is None or hint is NoneType:
        return value is None
    origin, inside = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in inside)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in inside)
    kind = origin or hint
    if not isinstance(kind, type):
        return True
    if issubclass(kind, Mapping):
        return isinstance(value, Mapping)
    if kind in (bool, int, str):
        return type(value) is kind
    if kind is float:
        return type(value) in (int, float)
    if origin is not None and issubclass(kind, Iterable):
        return isinstance(value, list | tuple) and all(fits(one, inside[0]) for one in value)
    return isinstance(value, kind)


def misfit(arguments: Mapping[str, Any], hints: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the first argument that is not of its type; `None` if all are.

    Args:
        arguments: by name; those without a type are not looked at.
        hints: types by name.

    >>> misfit({"width": "3"}, {"width": int})
    "width is int; found '3'"
    """
    for name, value in arguments.items():
        if name in hints and not fits(value, hints[name]):
            kind = getattr(hints[name], "__name__", None) if isinstance(hints[name], type) else None
            return f"{name} is {kind or str(hints[name]).replace('typing.', '')}; found {value!r:.80}"
    return None


@lru_cache(maxsize=256)
def hints_of(function: Callable[..., Any]) -> Mapping[str, Any]:
    """Return the types of a function's arguments by name."""
    return get_type_hints(function)
