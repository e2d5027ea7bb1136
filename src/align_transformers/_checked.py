"""Every public argument is looked at before it is used: whether it is of the type that its function says it takes."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, ParamSpec, TypeVar, Union, get_args, get_origin

from ._errors import SpecError, UnknownNameError, near_misses

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound=type)

_WORDS: Mapping[Any, tuple[str, str]] = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("True or False", "truth values"),
    str: ("a text", "texts"),
    os.PathLike: ("a path", "paths"),
}
"""What types are called, of one and of several."""
_MANY = 2**12
"""Entries of a list that are looked at, one by one."""


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function refuse arguments that are not of the types in its signature, and others than these.

    It raises a `SpecError` then, and an `UnknownNameError` for a name that there is not.

    An array, a tensor of one number or a NumPy number stands for the plain numbers that it holds, where the function
    takes only these. Words in an `Annotated` type stand at the end of the message. What the signature does not type is
    handed on as it is.

    Args:
        function: with a signature.

    >>> @checked
    ... def half(number: float) -> float:
    ...     return number / 2
    >>> half("3")
    Traceback (most recent call last):
    align_transformers._errors.SpecError: half: number is a number; found '3'
    """
    called: Callable[..., R] = function
    known: list[_Signature] = []

    @functools.wraps(function)
    def looking(*args: P.args, **kwargs: P.kwargs) -> R:
        if not known:
            known.append(_Signature.of(function))
        places, types, names = known[0]
        given = [
            _taken(function, places[n], value, types) if n < len(places) else value for n, value in enumerate(args)
        ]
        for name in kwargs:
            if names is not None and name not in names:
                raise UnknownNameError(f"{_owner(function)} has no argument {name!r}; {near_misses(name, names)}")
        named = {name: _taken(function, name, value, types) for name, value in kwargs.items()}
        return called(*given, **named)

    return looking


def checked_class(cls: C) -> C:
    """Let the constructor of a class refuse arguments as `checked` does.

    Args:
        cls: a class whose `__init__` has a signature, such as a dataclass.
    """
    cls.__init__ = checked(cls.__init__)  # type: ignore[misc]
    return cls


class _Signature(NamedTuple):
    """What a function takes.

    Args:
        places: names of the arguments that go by place.
        types: of the arguments that say it; one that is only imported for type checkers is not known.
        names: of all arguments; `None` if it takes any.
    """

    places: tuple[str, ...]
    types: Mapping[str, Any]
    names: frozenset[str] | None

    @classmethod
    def of(cls, function: Callable[..., Any]) -> _Signature:
        """Read the signature of a function."""
        known, types = vars(sys.modules[function.__module__]), {}
        parameters = inspect.signature(function).parameters.values()
        for one in parameters:
            if one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD) or one.annotation is one.empty:
                continue
            try:
                types[one.name] = eval(one.annotation, known) if isinstance(one.annotation, str) else one.annotation
            except (NameError, AttributeError):
                continue
        places = tuple(one.name for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD))
        takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters)
        return cls(places, types, None if takes_any else frozenset(one.name for one in parameters))


def _owner(function: Callable[..., Any]) -> str:
    """Return what a function is called: a constructor as its class."""
    return function.__qualname__.removesuffix(".__init__").rpartition("<locals>.")[2]


def _taken(function: Callable[..., Any], name: str, value: Any, types: Mapping[str, Any]) -> Any:
    """Return an argument as the function takes it: as it is, or what it stands for.

    Raises:
        SpecError: it is of another type.
        UnknownNameError: it is another word than those that there are.
    """
    hint = types.get(name, Any)
    if is_of(value, hint):
        return value
    plain = _plain(value)
    if is_of(plain, hint):
        return plain
    message = f"{_owner(function)}: {name} is {_listed(dict.fromkeys(_words(hint)))}; found {_shown(value)}"
    if is_of([value], hint):
        message += f": write {name}=[{_shown(value)}]"
    message = ". ".join([message, *_notes(hint)])
    words = [one for kind in _kinds(hint) if get_origin(kind) is Literal for one in get_args(kind)]
    if isinstance(value, str) and words and all(isinstance(one, str) for one in words):
        raise UnknownNameError(f"{message}; {near_misses(value, words)}")
    raise SpecError(message)


def is_of(value: Any, hint: Any) -> bool:
    """Whether a value is of a type. `True` is no number, a text no sequence, and a list may stand for a tuple.

    Of a tensor the kind of its numbers counts and how many axes it has, not how long they are.

    Args:
        value: anything.
        hint: a type, as it stands in a signature.

    >>> from collections.abc import Sequence
    >>> is_of([1, 2], Sequence[int]), is_of("ab", Sequence[str]), is_of(True, int), is_of(1, float | None)
    (True, False, False, True)
    """
    if hint is Any or type(value) is hint:
        return True
    origin, inside = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return is_of(value, inside[0])
    if origin in (Union, UnionType):
        return any(is_of(value, one) for one in inside)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in inside)
    if hint is None or hint is NoneType:
        return value is None
    kind = origin or hint
    if not isinstance(kind, type):
        return True
    if kind in (int, float):
        return isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
    if hasattr(kind, "array_type"):
        return _is_array(value, kind)
    if inside and kind in (list, tuple, Sequence, Mapping, Iterable):
        return _is_several(value, kind, inside)
    return isinstance(value, kind)


def _is_several(value: Any, kind: type, inside: tuple[Any, ...]) -> bool:
    """Whether a value is a collection of entries of some types."""
    if issubclass(kind, Mapping):
        return isinstance(value, Mapping) and all(is_of(k, inside[0]) and is_of(v, inside[1]) for k, v in value.items())
    if isinstance(value, str | bytes) or not isinstance(value, list | tuple if kind is tuple else kind):
        return False
    if isinstance(value, Mapping) or (hasattr(value, "tolist") and inside[0] is not Any):
        entries = value if isinstance(value, Mapping) else value.tolist()
        return isinstance(entries, Iterable) and all(is_of(one, inside[0]) for one in entries)
    if not isinstance(value, Sequence) or len(value) > _MANY:
        return True  # what can be gone through once is not gone through here
    if kind is tuple and Ellipsis not in inside:
        return len(value) == len(inside) and all(map(is_of, value, inside))
    return all(is_of(one, inside[0]) for one in value)


def _is_array(value: Any, kind: Any) -> bool:
    """Whether a value is an array with numbers of a kind, and with so many axes."""
    if not isinstance(value, kind.array_type):
        return False
    named = isinstance(kind.dtypes, list | tuple)
    if named and str(value.dtype).rpartition(".")[2] not in kind.dtypes:
        return False
    return kind.index_variadic is not None or value.ndim == len(kind.dims)


def _plain(value: Any) -> Any:
    """Return arrays and NumPy numbers, and what lists hold of these, as plain numbers; other things as they are."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def _kinds(hint: Any) -> Iterator[Any]:
    """Yield what a type is one of."""
    origin, inside = get_origin(hint), get_args(hint)
    if origin is Annotated:
        yield from _kinds(inside[0])
    elif origin in (Union, UnionType):
        for one in inside:
            yield from _kinds(one)
    else:
        yield hint


def _notes(hint: Any) -> Iterator[str]:
    """Yield the words that stand in a type for whoever gives something else."""
    if get_origin(hint) is Annotated:
        yield from (note for note in get_args(hint)[1:] if isinstance(note, str))
    for one in get_args(hint) if get_origin(hint) in (Annotated, Union, UnionType) else ():
        yield from _notes(one)


def _words(hint: Any, several: bool = False) -> Iterator[str]:
    """Yield what the kinds of a type are called."""
    for kind in _kinds(hint):
        origin, inside = get_origin(kind), get_args(kind)
        name = getattr(origin or kind, "__name__", str(kind))
        if kind is None or kind is NoneType:
            yield "None"
        elif origin is Literal:
            yield from map(repr, inside)
        elif (origin or kind) in _WORDS:
            yield _WORDS[origin or kind][several]
        elif hasattr(kind, "array_type"):
            yield f"a tensor ({kind.dim_str})"
        elif inside and origin in (list, tuple, Sequence, Iterable):
            parts = inside if origin is tuple and Ellipsis not in inside else inside[:1]
            of = _listed(dict.fromkeys(word for part in parts for word in _words(part, True)))
            yield f"lists of {of}" if several else of if origin is Sequence else f"a list of {of}"
        elif origin is not None and issubclass(origin, Mapping):
            yield "dicts" if several else "a dict"
        else:
            article = "an" if name[:1] in "AEIOU" else "a"
            yield "a function" if name == "Callable" else name if several else f"{article} {name}"


def _listed(words: Iterable[str]) -> str:
    """Return words with commas between them, and an `or` before the last."""
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def _shown(value: Any) -> str:
    """Return a value as a message shows it."""
    if isinstance(value, str | int | float | list | tuple | dict | range | None):
        return f"{value!r:.80}".replace("\n", " ")
    return f"a {type(value).__name__}"
