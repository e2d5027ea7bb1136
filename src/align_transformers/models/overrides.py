"""The caller's word on where a component is, checked for shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from .._errors import SiteError, SpecError, near_misses
from ..sites import COMPONENTS
from .findings import Findings
from .trace import Call, Trace

Override = tuple[str, str] | tuple[str, str, int]
"""Path from the block (empty for the block itself), `input` or `output`, and how many heads where there are any."""


def override(named: Mapping[str, Sequence[Findings]], component: str, place: Override, trace: Trace) -> None:
    """Put a component of every block where the caller says it is.

    Args:
        named: the blocks of each stack.
        component: its name, with the stack's name and a dot in front where there are several.
        place: where it is.
        trace: the forward pass that was watched.

    Raises:
        SpecError: the component or the side is misspelt.
        SiteError: no such module was called in a block, or what it holds has not the block's rows.
    """
    stack, _, name = component.rpartition(".")
    if name not in COMPONENTS or not COMPONENTS[name].in_block or stack not in named:
        raise SpecError(f"override of {component!r}: {near_misses(name, COMPONENTS)} Stacks: {list(named)}")
    path, side, *heads = place
    if side not in ("input", "output"):
        raise SpecError(f"override of {component!r}: the side is 'input' or 'output'; found {side!r}")
    for found in named[stack]:
        call = _called(found, path, trace)
        tensor = call.input if side == "input" else call.output
        if tensor is None or tensor.numel() // tensor.shape[-1] != found.batch * found.length:
            shape = None if tensor is None else tuple(tensor.shape)
            raise SiteError(
                f"override of {component!r}: {call.path}.{side} has shape {shape}, but the block works on "
                f"{found.batch} x {found.length} vectors"
            )
        width = int(tensor.shape[-1])
        if heads and width % heads[0]:
            raise SiteError(f"override of {component!r}: width {width} does not divide into {heads[0]} heads")
        rows = torch.arange(width).view(heads[0], -1) if heads else None
        found.missing.pop(name, None)
        found.found(name, call, "input" if side == "input" else "output", "the caller's word", heads=rows)


def _called(found: Findings, path: str, trace: Trace) -> Call:
    whole = f"{found.block.path}.{path}" if path else found.block.path
    inside = [found.block, *trace.during(found.block)]
    for call in inside:
        if call.path == whole:
            return call
    raise SiteError(
        f"block {found.block.path} calls no module {path!r}; {near_misses(whole, [c.path for c in inside])}"
    )
