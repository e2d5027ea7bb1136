"""What tells models, functions and other arguments of a study apart: digests of all that they hold."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import partial
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    MethodDescriptorType,
    MethodType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .._errors import SpecError
from .modules import uncompiled

_PLAIN = (bool, int, float, complex, str, bytes, range, slice, torch.dtype, torch.device, np.generic, Enum, type(...))
_BY_NAME = {__name__.partition(".")[0], "torch", "numpy", "transformers", "scipy", "sklearn", *sys.stdlib_module_names}
"""Packages whose functions and classes are told by their names: they are what they are."""
_IN_C = (BuiltinFunctionType, MethodDescriptorType, WrapperDescriptorType)
_CODE = (FunctionType, MethodType, *_IN_C, partial, CodeType, ModuleType, type)
_NAMES_OF_THE_RUN = {"name_or_path", "warnings_issued", "max_seq_len_cached"}
"""Attributes of modules that say nothing about what these compute."""
_CHUNK = 2**22  # numbers
_OF_TORCH = set(vars(nn.Module())) - {"training"}


def fingerprint(model: nn.Module) -> dict[str, str]:
    """Return what tells a model from others: its class, and a digest of its configuration, settings and weights.

    Every weight and buffer is looked at, and so are the modules' plain attributes, such as which adapters are switched
    on. Hooks that somebody has registered are not: most only look on.

    Raises:
        SpecError: weights are not at hand.

    >>> first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    >>> fingerprint(first) == fingerprint(first), fingerprint(first) == fingerprint(second)
    (True, False)
    """
    model = uncompiled(model)
    found = hashlib.sha256(str(getattr(model, "config", "")).encode())
    found.update(_weights(model, "the model"))
    ignored = _OF_TORCH | _NAMES_OF_THE_RUN
    for name, module in model.named_modules():
        settings = {key: value for key, value in vars(module).items() if key not in ignored and _is_plain(value)}
        found.update(f"{name} {type(module).__qualname__} {digest(settings, name)}".encode())
    return {"class": type(model).__name__, "digest": found.hexdigest()[:16]}


def digest(value: Any, what: str) -> str:
    """Return a digest of a value and of all that it holds; of functions their code and what they look up.

    Args:
        value: plain data, tensors, functions, modules, dataclasses, and objects with attributes of these kinds.
        what: it is, for the error.

    Raises:
        SpecError: it holds something that cannot be told from others.

    >>> digest(lambda x: x + 1, "f") == digest(lambda x: x + 1, "f") != digest(lambda x: x + 2, "f")
    True
    """
    return _Digest(what).of(value).hex()[:16]


def _is_known_by_name(value: Any) -> bool:
    """Whether a function or class is one of a package's, and so what its name says; not if made inside another."""
    return str(value.__module__).partition(".")[0] in _BY_NAME and "<" not in value.__qualname__


def _is_plain(value: Any, in_order: bool = False) -> bool:
    """Whether a value is plain data all through; if asked for, such that its text is always the same, without sets."""
    if value is None or isinstance(value, _PLAIN):
        return True
    if type(value) in (list, tuple) or (isinstance(value, set | frozenset) and not in_order):
        return all(_is_plain(item, in_order) for item in value)
    return type(value) is dict and all(_is_plain(item, in_order) for pair in value.items() for item in pair)


def weights_digest(model: nn.Module) -> str | None:
    """Return a digest of the values of all parameters; `None` where some are not at hand.

    >>> first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    >>> weights_digest(first) == weights_digest(first), weights_digest(first) == weights_digest(second)
    (True, False)
    """
    named = dict(uncompiled(model).named_parameters())
    return None if any(weight.is_meta for weight in named.values()) else _of_tensors(named).hex()[:16]


def _weights(module: nn.Module, what: str) -> bytes:
    """Return a digest of all parameters and buffers."""
    named = dict([*module.named_parameters(), *module.named_buffers()])
    away = [name for name, weight in named.items() if weight.is_meta]
    if away:
        raise SpecError(
            f"the weights of {what} are not at hand ({away[0]} is on the meta device), so that models cannot be told "
            "apart: leave out store="
        )
    return _of_tensors(named)


def _of_tensors(named: Mapping[str, Tensor]) -> bytes:
    with ThreadPoolExecutor() as pool:  # hashing lets other threads run
        values = pool.map(_values, named.values())
        return _joined("weights", (f"{name} ".encode() + value for name, value in zip(named, values, strict=True)))


def _values(tensor: Tensor) -> bytes:
    flat = tensor.detach().contiguous().flatten()
    found = hashlib.sha256(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
    for begin in range(0, flat.numel(), _CHUNK):  # of what is on a device only so much is copied at once
        found.update(flat[begin : begin + _CHUNK].cpu().view(torch.uint8).numpy().data)
    return found.digest()


def _joined(kind: str, parts: Iterable[bytes]) -> bytes:
    found = hashlib.sha256(kind.encode())
    for part in parts:
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.digest()


class _Digest:
    """Goes through a value; one that holds itself is not gone through twice."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._above: list[int] = []

    def of(self, value: Any) -> bytes:
        if _is_plain(value, in_order=True):
            return _joined("plain", [f"{type(value).__qualname__} {value!r}".encode()])
        if id(value) in self._above:
            return _joined("above", [])
        self._above.append(id(value))
        found = self._of(value)
        self._above.pop()
        return found

    def _of(self, value: Any) -> bytes:
        if isinstance(value, Tensor):
            return _values(value)
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            return _joined("array", [f"{value.shape} {value.dtype}".encode(), value.tobytes()])
        if isinstance(value, list | tuple):
            return self._several(type(value).__qualname__, value)
        if isinstance(value, set | frozenset):
            return _joined("set", sorted(map(self.of, value)))
        if isinstance(value, Mapping):
            return _joined("mapping", sorted(self.of(key) + self.of(entry) for key, entry in value.items()))
        if isinstance(value, _CODE):
            return self._code(value)
        return self._object(value)

    def _several(self, kind: str, values: Iterable[Any]) -> bytes:
        return _joined(kind, map(self.of, values))

    def _code(self, value: Any) -> bytes:
        """Return the digest of what can be called, or looked into by name."""
        if isinstance(value, partial):
            return self._several("partial", (value.func, value.args, value.keywords))
        if isinstance(value, MethodType):
            return self._several("method", (value.__func__, value.__self__))
        if isinstance(value, CodeType):
            return self._several("code", (value.co_code, value.co_consts, value.co_names, value.co_varnames))
        if isinstance(value, ModuleType):
            return _joined("module", [value.__name__.encode()])
        if isinstance(value, _IN_C):
            return self._several("in C", (value.__qualname__, getattr(value, "__self__", None)))
        if _is_known_by_name(value):
            return _joined("name", [f"{value.__module__} {value.__qualname__}".encode()])
        if isinstance(value, type):
            return self._several("class", (value.__mro__[1:], [pair for pair in vars(value).items() if _is_own(*pair)]))
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        looked_up = {key: value.__globals__[key] for key in _names(value.__code__) if key in value.__globals__}
        return self._several("function", (value.__code__, value.__defaults__, value.__kwdefaults__, cells, looked_up))

    def _object(self, value: Any) -> bytes:
        """Return the digest of something by its class and its attributes."""
        if callable(getattr(value, "get_vocab", None)):
            return self._several("tokenizer", (type(value), value.get_vocab()))
        if isinstance(value, nn.Module):
            held = {key: entry for key, entry in vars(value).items() if key not in _OF_TORCH}
            weights = _weights(value, self._what)
            return self._several("module", (type(value), weights, held, dict(value.named_children())))
        if is_dataclass(value):
            held = {one.name: getattr(value, one.name) for one in fields(value) if one.compare}
            return self._several("dataclass", (type(value), held))
        if not hasattr(value, "__dict__"):
            raise SpecError(
                f"{self._what} holds a {type(value).__qualname__}, which cannot be told from others of its kind, so it "
                "cannot be known whether a store is of the same sweep: hold plain data, tensors or functions, or leave "
                "out store="
            )
        return self._several("object", (type(value), vars(value)))


def _names(code: CodeType) -> set[str]:
    """Return the names that a function looks up, and those that the functions inside it do."""
    inside = (_names(one) for one in code.co_consts if isinstance(one, CodeType))
    return set(code.co_names).union(*inside)


def _is_own(name: str, value: Any) -> bool:
    """Whether an entry of a class is something that its author wrote."""
    return isinstance(value, FunctionType) or (not name.startswith("__") and _is_plain(value))
