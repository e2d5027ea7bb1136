"""Importing libraries that only some installations have."""

from __future__ import annotations

import importlib
from typing import Any

from ._errors import AlignError


class MissingExtraError(AlignError, ImportError):
    """A library of an optional extra is not installed; the message names the extra."""


def optional(name: str, *, extra: str) -> Any:
    """Import the module `name`, which comes with the optional extra `extra`.

    Raises:
        MissingExtraError: it is not installed; the message says what to install.

    >>> optional("json", extra="tables").dumps([1])
    '[1]'
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or name.split(".")[0] != error.name.split(".")[0]:
            raise  # the library is there, and something that it needs is not
        missing = name.split(".")[0]
        message = f"this needs {missing}: install it with  pip install 'align-transformers[{extra}]'"
        raise MissingExtraError(message, name=error.name) from error
