"""How many tokens go into one pass: as many as fit into a part of the memory that is free."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import SiteError
from ..models import find_leaf
from ..models.scope import after_call

MOST = 2**25
"""Bytes that the activations of a pass may take where more are free: of SmolLM2-135M in float32 873 tokens.

A larger pass is slower on a CPU, whose caches it leaves. The block grid of `make bench` took, and needed above what its
warm-up did: 7.1 s and 458 MiB with 2**28 bytes, 6.1 s and 220 MiB with 2**27, 5.7 s and 78 MiB with 2**26, 5.2 s and
12 MiB with 2**25, 5.9 s and 1 MiB with 2**24.
"""

MOST_ON_GPU = 2**29
"""Likewise on a GPU, which needs more rows to be busy."""


TIMES_FOR_ONE = 4
"""So many times as much may the copies of a single run take before they are divided.

Every pass reads all weights, so a pass of one run gains nothing by being small: a grid of 32 pairs in five blocks took
0.194 s a pair in passes of 870 tokens, and 0.166 s in passes of up to 7,000.
"""


def room(device: torch.device) -> int:
    """Return how many bytes the activations of a pass may take on a device."""
    if device.type == "cuda":
        return min(MOST_ON_GPU, torch.cuda.mem_get_info(device)[0] // (4 * TIMES_FOR_ONE))
    names = os.sysconf_names if hasattr(os, "sysconf_names") else {}
    if "SC_AVPHYS_PAGES" not in names:
        return MOST
    return min(MOST, os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // (4 * TIMES_FOR_ONE))


@contextmanager
def measuring(block: nn.Module, add: Any) -> Iterator[None]:
    """Call `add(bytes)` with the size of what every module inside a block returns while the context is open.

    With what the block itself returns, that is what it would hold if it let go of nothing: more than it does hold.
    """

    def measure(_module: nn.Module, _arguments: Any, output: Any) -> None:
        try:
            tensor: Tensor = find_leaf(output, None, "")[1]
        except SiteError:
            return
        add(tensor.numel() * tensor.element_size())

    with ExitStack() as stack:
        for module in itertools.islice(block.modules(), 1, None):  # the first is the block
            stack.enter_context(after_call(module, measure))
        yield
