"""Causal scrubbing of arithmetic that is written down (the toy of the method's authors, Chan et al. 2022).

A network of step functions gets three numbers and says whether the first is above 3 and the second above 3, or both
are not. A hypothesis that says so recovers all of the loss; that the third number tells anything, or that a part reads
another property of a number than its size, recovers nothing.
"""

from __future__ import annotations

import itertools
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from align_transformers import Claim, Site, causal_scrubbing

from .fact import Fact

DRAWS = 40


class BothOrNeither(nn.Module):
    """Logits that say whether two of three numbers lie on the same side of 3."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third, self.same = (nn.Identity() for _ in range(4))

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        """Return logits `(batch, 3, 2)` of three numbers `(batch, 3)`."""
        parts = self.first, self.second, self.third
        steps = [part(torch.sigmoid(40 * (input_ids[:, n].float() - 3.5))) for n, part in enumerate(parts)]
        same = self.same(steps[0] * steps[1] + (1 - steps[0]) * (1 - steps[1]))
        logits = torch.stack([-8 * same, 8 * (same - 1)], -1) + 0 * steps[2][:, None]
        return SimpleNamespace(logits=logits[:, None].expand(-1, 3, -1))


def _numbers() -> Tensor:
    return torch.tensor(list(itertools.product(range(1, 7), repeat=3)))


@cache
def recovered(which: str) -> dict[str, Any]:
    """Return what a hypothesis recovers.

    Args:
        which: `true`; `nested`, which names what the last step is computed from; `parity`: the first step tells whether
            its number is even; `third`: the last step depends on the third number instead of the second.
    """
    numbers = _numbers()
    above, even = numbers > 3, numbers % 2 == 0
    answers = (above[:, 0] == above[:, 1]).long().tolist()
    first, second, third = (
        Claim(Site(f"{name}.output"), above[:, n].tolist()) for n, name in enumerate(("first", "second", "third"))
    )
    odd = Claim(Site("first.output"), even[:, 0].tolist())
    claims = {
        "true": [first, second],
        "nested": [Claim(Site("same.output"), answers, children=(first, second))],
        "parity": [odd, second],
        "third": [first, third],
    }
    table = causal_scrubbing(BothOrNeither(), {"input_ids": numbers}, claims[which], answers=answers, draws=DRAWS)
    return dict(table.meta)


FACTS = [
    Fact(
        "arithmetic, scrubbing: loss recovered, the true hypothesis", lambda: recovered("true")["recovered"], 1.0, 1.0
    ),
    Fact("arithmetic, scrubbing: the same, two steps deep", lambda: recovered("nested")["recovered"], 1.0, 1.0),
    Fact("arithmetic, scrubbing: high end, parity (wrong)", lambda: recovered("parity")["high"], -0.1, 0.3),
    Fact("arithmetic, scrubbing: high end, third number (wrong)", lambda: recovered("third")["high"], -0.1, 0.05),
]
