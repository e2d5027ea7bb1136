"""Calls as users make them: without the type checks of the test run, which would speak before the library does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from jaxtyping import config


@contextmanager
def untyped() -> Iterator[None]:
    """Switch the checks of jaxtyping and beartype off for a while."""
    before = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        config.update("jaxtyping_disable", before)
