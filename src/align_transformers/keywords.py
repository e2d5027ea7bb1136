"""Which keywords of a call are ours, and which the model's: one that nobody names would vanish in its `**kwargs`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, get_args

from torch import nn

from ._errors import SpecError, UnknownNameError, near_misses
from .config import ALIASES
from .engine import Inputs
from .models import uncompiled

_UNSAID = ("output_attentions", "output_hidden_states", "use_cache", "num_items_in_batch")
"""What transformers' decorators read of the `**kwargs` of every model."""
_UNSAID_IN_GENERATE = ("tokenizer", "assistant_tokenizer", "trust_remote_code")
_ARGUMENT = re.compile(r"^\s*\**([a-z_]\w*)\s*(?:\([^\n]*\))?\s*:", re.MULTILINE)


def sorted_out(
    keywords: Mapping[str, Any], ours: Mapping[str, Any], models: Iterable[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return our arguments, with those that were given under another name of theirs, and the model's.

    Args:
        keywords: what a call has besides our arguments.
        ours: our arguments by name, `None` where one is not given.
        models: names that the model takes; looked at only as far as there are keywords to be found.

    Raises:
        UnknownNameError: neither we nor the model name a keyword.
        SpecError: an argument is given under both of its names.

    >>> sorted_out({"activations_sources": 1, "labels": 2}, {"source_representations": None}, ["labels"])
    ({'source_representations': 1}, {'labels': 2})
    """
    found, rest = dict(ours), {}
    for keyword, value in keywords.items():
        name = ALIASES.get(keyword, keyword)
        if name == keyword or name not in ours:
            rest[keyword] = value
        elif found[name] is not None:
            raise SpecError(f"{keyword!r} is another name of {name!r}, which is given, too: give one of them")
        else:
            found[name] = value
    _check_named(rest, ours, models)
    return found, rest


def _check_named(keywords: Iterable[str], ours: Iterable[str], models: Iterable[str]) -> None:
    unnamed, known, names = list(keywords), set(ours), iter(models)
    while unnamed:
        name = next(names, None)
        if name is None:
            raise UnknownNameError(
                f"no argument {unnamed[0]!r}: neither this call nor the model's signature names it; "
                f"{near_misses(unnamed[0], known)} What the model reads without naming it goes into the base"
            )
        known.add(name)
        if name in unnamed:
            unnamed.remove(name)


def forward_keywords(model: nn.Module) -> Iterator[str]:
    """Yield the names that a model's `forward` takes, as far as it or what it hands them on to says so.

    Those that are plain to see come first: what the others cost is spared where these are all that is asked for.

    Args:
        model: the user's. Where its `forward` takes any keyword and does not say which, the names of all modules in it
            count, and those that its docstring explains.
    """
    model = uncompiled(model)
    plain = inspect.signature(model.forward).parameters.values()
    yield from (one.name for one in plain if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL))
    names, told = _parameters(model.forward)
    yield from names
    if not told:
        yield from _ARGUMENT.findall(f"{inspect.getdoc(model.forward)}\n{inspect.getdoc(model)}")
        for module in _one_of_each(model):
            yield from _parameters(module.forward)[0]


def generate_keywords(model: nn.Module) -> Iterator[str]:
    """Yield the names that a model's `generate` takes: its own, those of its configuration, and those of `forward`."""
    yield from forward_keywords(model)
    yield from _UNSAID_IN_GENERATE
    for module in _one_of_each(uncompiled(model)):
        for name in ("generate", "prepare_inputs_for_generation"):
            function = getattr(module, name, None)
            if callable(function):
                yield from _parameters(function)[0]
        yield from (name for name in vars(getattr(module, "generation_config", None) or object) if name[0] != "_")


def _one_of_each(model: nn.Module) -> Iterator[nn.Module]:
    """Yield one module of each class."""
    yield from {type(module): module for module in model.modules()}.values()


def _parameters(function: Callable[..., Any]) -> tuple[list[str], bool]:
    """Return the names of a function's parameters, and whether these are all that it takes.

    `**kwargs: Unpack[SomeTypedDict]` names what it takes.
    """
    try:
        parameters = inspect.signature(function, eval_str=True).parameters.values()
    except (NameError, AttributeError):  # an annotation that only a type checker can read
        parameters = inspect.signature(function).parameters.values()
    names: list[str] = []
    told = True
    for one in parameters:
        if one.kind is one.VAR_KEYWORD:
            known = [name for kind in get_args(one.annotation) for name in getattr(kind, "__annotations__", ())]
            names, told = [*names, *known, *_UNSAID], bool(known)
        elif one.kind is not one.VAR_POSITIONAL:
            names.append(one.name)
    return names, told


def with_keywords(base: Inputs, model_kwargs: Mapping[str, Any]) -> Inputs:
    """Return the base together with further keyword arguments of the model.

    Args:
        base: the model's keyword arguments, or its only one.
        model_kwargs: come to them.

    Raises:
        SpecError: there are some, and the base is one tensor.
    """
    if not model_kwargs:
        return base
    if not isinstance(base, Mapping):
        raise SpecError(f"the base is one tensor, so {sorted(model_kwargs)} cannot go with it: pass the base as a dict")
    return {**base, **model_kwargs}
