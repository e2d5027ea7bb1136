"""Gradient drop (Kramar et al. 2024, arXiv:2403.00745): the gradient without what one layer adds to the stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from .._errors import SpecError
from ..engine.hooks import Tap
from ..models import resolve
from ..sites import ADDENDS, Site
from ._taped import gated


class Drops:
    """Gates at all that the blocks of a model add to the residual stream; those of one layer are closed at a time.

    Args:
        sites: by layer.
    """

    def __init__(self, sites: Sequence[Sequence[Site]]) -> None:
        self._sites = sites
        self._closed: int | None = None

    def __len__(self) -> int:
        return len(self._sites)

    def taps(self, model: nn.Module) -> list[Tap]:
        """Return the gates."""
        return [
            gated(site, model, lambda layer=layer: 0.0 if self._closed == layer else 1.0)  # type: ignore[misc]
            for layer, sites in enumerate(self._sites)
            for site in sites
        ]

    @contextmanager
    def at(self, layer: int) -> Iterator[None]:
        """Close the gates of a layer while the context is open."""
        self._closed = layer
        try:
            yield
        finally:
            self._closed = None


def dropping(model: nn.Module) -> Drops:
    """Return the gates of a model.

    Args:
        model: the user's.

    Raises:
        SpecError: it has several stacks of blocks, or it is not known what one of them adds.
    """
    found = resolve(model)
    if "" not in found.stacks:
        raise SpecError(
            f"{found.model_class} has {sorted(found.stacks) or 'no known stack of blocks'}: gradient drop goes along "
            "one residual stream; use drop=False"
        )
    each = []
    for layer, block in enumerate(found.stacks[""]):
        names = [name for name in ADDENDS if name in block.slots]
        adds = [name.replace("_output", "_contribution") for name in names]
        lacking = [name for name in adds if name not in block.slots] or ([] if names else ["mlp_contribution"])
        if lacking:
            why = block.missing.get(lacking[0], "it was not found")
            raise SpecError(f"it is not known what {block.path} adds to the stream ({why}); use drop=False")
        each.append([Site(name, layer) for name in adds])
    return Drops(each)
