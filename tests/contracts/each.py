"""One test for many entries of a table: an item for each group of them, since an item costs more than most entries."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch


def each(argument: str, groups: Mapping[str, Mapping[str, Any]]) -> Callable[[Callable[..., None]], Any]:
    """Run a test for each entry of each group, from the same random state; a group is an item.

    Args:
        argument: of the test, that gets the entry.
        groups: entries by name, by name of their group.
    """

    def decorate(test: Callable[..., None]) -> Any:
        @functools.wraps(test)
        def run(group: str, **given: Any) -> None:
            for name, entry in groups[group].items():
                torch.manual_seed(0)
                with _named(name):
                    test(**{argument: entry}, **given)

        others = [one for name, one in inspect.signature(test).parameters.items() if name != argument]
        first = inspect.Parameter("group", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        run.__signature__ = inspect.Signature([first, *others])  # type: ignore[attr-defined]
        return pytest.mark.parametrize("group", [name for name, entries in groups.items() if entries])(run)

    return decorate


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Say which entry it was that failed."""
    try:
        yield
    except Exception as error:
        raise AssertionError(f"{name}: {error}") from error
