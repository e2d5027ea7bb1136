"""The caller's word on where a component is, checked for shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from .._errors import SiteError, SpecError, near_misses
from ..sites import COMPONENTS, Side
from .findings import Findings
from .trace import ModuleCall, Trace

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
    path, side, heads = _checked(component, place, stack, name, list(named))
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
        if heads and width % heads:
            raise SiteError(f"override of {component!r}: width {width} does not divide into {heads} heads")
        rows = torch.arange(width).view(heads, -1) if heads else None
        found.missing.pop(name, None)
        found.note(name, call, side, "the caller's word", heads=rows)


def _checked(component: str, place: Override, stack: str, name: str, stacks: list[str]) -> tuple[str, Side, int]:
    """Return path, side and number of heads (0: none), or say what is wrong with the words themselves."""
    what = f"override of {component!r}:"
    if name not in COMPONENTS:
        raise SpecError(f"{what} no such component; {near_misses(name, COMPONENTS)}")
    if not COMPONENTS[name].in_block:
        raise SpecError(f"{what} that is an end of the model; name its module by dotted path where you need it")
    if stack not in stacks:
        raise SpecError(
            f"{what} there is no stack {stack!r}; {near_misses(stack, [s or '(no prefix)' for s in stacks])}"
        )
    if isinstance(place, str) or len(place) not in (2, 3):
        raise SpecError(
            f"{what} give (path from the block, 'input' or 'output') or with the heads as third; found {place!r}"
        )
    path, side, *heads = place
    if side not in ("input", "output"):
        raise SpecError(f"{what} the side is 'input' or 'output'; found {side!r}")
    if heads and (not isinstance(heads[0], int) or heads[0] < 1):
        raise SpecError(f"{what} the number of heads is a number from 1; found {heads[0]!r}")
    return path, "input" if side == "input" else "output", heads[0] if heads else 0


def _called(found: Findings, path: str, trace: Trace) -> ModuleCall:
    whole = f"{found.block.path}.{path}" if path else found.block.path
    inside = [found.block, *trace.during(found.block)]
    for call in inside:
        if call.path == whole:
            return call
    raise SiteError(
        f"block {found.block.path} calls no module {path!r}; {near_misses(whole, [c.path for c in inside])}"
    )
