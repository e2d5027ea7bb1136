"""Which version of the library this is."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache
def library_version() -> str:
    """Return the installed version, or `"unknown"` where the package is used from its sources without installing."""
    try:
        return version("align-transformers")
    except PackageNotFoundError:
        return "unknown"
