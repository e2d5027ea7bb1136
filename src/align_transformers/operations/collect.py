"""Look, do not touch."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor

from .._checked import checked
from .operation import Operation


@final
class Collect(Operation):
    """The coordinates stay as they are, and are handed back.

    Args:
        detach: hand back copies that hold no graph. Otherwise, where gradients are on, a pass goes on with what is
            handed back: `torch.autograd.grad` with respect to it is that of a hook.

    >>> import torch
    >>> Collect().new(torch.ones(2), None).tolist()
    [1.0, 1.0]
    """

    writes = False

    @checked
    def __init__(self, detach: bool = False) -> None:
        super().__init__()
        self.detach = detach

    def arguments(self) -> dict[str, Any]:
        """Return whether copies are handed back."""
        return {"detach": self.detach}

    def new(self, base: Tensor, source: Tensor | None) -> Tensor:
        """Return `base`."""
        return base.detach() if self.detach else base
