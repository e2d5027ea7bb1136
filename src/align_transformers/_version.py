"""Which version of the library this is, and of others."""

from __future__ import annotations

from functools import cache


def library_version() -> str:
    """Return the installed version, or `"unknown"` where the package is used from its sources without installing."""
    return installed_version("align-transformers")


@cache
def installed_version(package: str) -> str:
    """Return a package's installed version, or `"unknown"`."""
    from importlib.metadata import PackageNotFoundError, version  # takes as long as all else of `--help` that is ours

    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
