"""How far into a forward pass a place is, and the blocks of a model in the order in which they are called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from torch import nn

from ..models import ComponentMap, Slot
from ..models.resolve import known_map
from ..sites import Point, Site

INPUT, INSIDE, OUTPUT = 0, 1, 2
_POINTS: Mapping[Point, int] = {"input": INPUT, "inside": INSIDE, "output": OUTPUT}
_RANKS = {"encoder": 0, "": 1, "decoder": 1}


@dataclass(frozen=True, order=True)
class Depth:
    """How far into a forward pass a place is; a larger one is reached later.

    Args:
        rank: -1 before the blocks, 0 in an encoder's blocks, 1 in the main stack, 2 after it.
        layer: block number.
        point: `INPUT` of the block, `INSIDE` it, or its `OUTPUT`.
    """

    rank: int
    layer: int
    point: int

    @property
    def state(self) -> Depth:
        """Where the residual stream is known if a pass starts here: the block's input or its output."""
        return Depth(self.rank, self.layer, INPUT) if self.point == INSIDE else self


START, END = Depth(-1, 0, INPUT), Depth(2, 0, INPUT)
_FIRST = {"input": (None, (0, 0)), "output": (None, (), (0,))}
"""By side of a module, the ways to what is the first tensor there, whatever else there is."""
_END_DEPTHS = {("", True): START, ("", False): END, ("encoder", True): START, ("decoder", False): END}
"""Of the ends of a model: stack, and whether it is the embeddings. What lies between two stacks has no depth."""


def depth_of(site: Site) -> Depth | None:
    """Return how deep a site is, as far as its name tells.

    >>> depth_of(Site("mlp_output", 3)) < depth_of(Site("block_output", 3)) < depth_of(Site("logits"))
    True
    """
    component = site.definition
    if component is None or site.call is not None or site.stack not in _RANKS:
        return None
    if site.layer is None:
        return _END_DEPTHS.get((site.stack, component.point == "input"))
    return Depth(_RANKS[site.stack], site.layer, _POINTS[component.point])


@dataclass(frozen=True, eq=False)
class BlockCall:
    """The call of one block.

    Args:
        number: how many come before it.
        rank: 0 in an encoder, 1 in the main stack.
        layer: block number in its stack.
        input: where the residual stream comes in.
        output: where it goes out.
    """

    number: int
    rank: int
    layer: int
    input: Slot
    output: Slot

    @property
    def module(self) -> nn.Module:
        """The block."""
        return self.output.module


class Blocks:
    """The blocks of a model in the order of their calls.

    Args:
        calls: one a block.
    """

    def __init__(self, calls: Sequence[BlockCall]) -> None:
        self.calls = tuple(calls)
        self._at = {(call.rank, call.layer): call.number for call in calls}
        inside = Counter(module for call in calls for module in call.module.modules())
        self._shared = {module for module, count in inside.items() if count > 1}

    def __len__(self) -> int:
        return len(self.calls)

    def knows(self, depth: Depth) -> bool:
        """Whether there is such a block, or the depth is outside the blocks."""
        return depth.rank not in (0, 1) or (depth.rank, depth.layer) in self._at

    def find(self, depth: Depth) -> tuple[int, bool]:
        """Return the number of the block, and whether its output is meant rather than its input."""
        if depth >= END:
            return len(self.calls) - 1, True
        return self._at[depth.rank, depth.layer], depth.point == OUTPUT

    def depth_of(self, path: str) -> Depth | None:
        """Return how deep a module's dotted path is; `None` if it lies in no block, or in several."""
        inside = [call for call in self.calls if path == call.output.path or path.startswith(call.output.path + ".")]
        if len(inside) != 1:
            return None
        call, rest = inside[0], path.removeprefix(inside[0].output.path).lstrip(".")
        if call.module.get_submodule(rest) in self._shared:
            return None  # it is called in other blocks, too
        return Depth(call.rank, call.layer, INSIDE)

    def depth_at(self, slot: Slot) -> Depth | None:
        """Return how deep a slot is that was named by its module's dotted path.

        What a block gets and returns is its input and its output by that name, too: it is not inside it.
        """
        depth = self.depth_of(slot.path)
        if depth is None:
            return None
        call = self.calls[self._at[depth.rank, depth.layer]]
        block, point = (call.input, INPUT) if slot.side == "input" else (call.output, OUTPUT)
        if slot.path != block.path:
            return depth
        first = slot.leaf is None and block.leaf in _FIRST[slot.side] and not block.also
        return Depth(depth.rank, depth.layer, point) if first or slot.leaf == block.leaf else None

    def closes(self, call: BlockCall) -> bool:
        """Whether a block is the last of the encoder, whose output another stack reads."""
        following = self.calls[call.number + 1 :][:1]
        return bool(following) and following[0].rank != call.rank


_blocks: WeakKeyDictionary[ComponentMap, Blocks | None] = WeakKeyDictionary()


def blocks_of(model: nn.Module) -> Blocks | None:
    """Return the blocks of a model; `None` where they are not known, or one of them is called twice.

    Args:
        model: as far as it was resolved.
    """
    found = known_map(model)
    if found is None:
        return None
    if found not in _blocks:
        _blocks[found] = _make_blocks(found)
    return _blocks[found]


def _make_blocks(found: ComponentMap) -> Blocks | None:
    names = {"": 1} if "" in found.stacks else {"encoder": 0, "decoder": 1}
    if not all(name in found.stacks for name in names):
        return None
    calls: list[BlockCall] = []
    for name, rank in names.items():
        for layer, block in enumerate(found.stacks[name]):
            slots = block.slots.get("block_input"), block.slots.get("block_output")
            if slots[0] is None or slots[1] is None or slots[0].side != "input" or slots[1].side != "output":
                return None
            calls.append(BlockCall(len(calls), rank, layer, slots[0], slots[1]))
    return Blocks(calls) if len({id(call.module) for call in calls}) == len(calls) else None


def depths_of(slots: Mapping[Site, Slot], blocks: Blocks | None) -> dict[Site, Depth | None]:
    """Return how deep some sites are in a model; `None` where that is not known.

    Args:
        slots: where each site's tensor is.
        blocks: of the model.
    """
    return {site: _depth(site, slot, blocks) for site, slot in slots.items()}


def _depth(site: Site, slot: Slot, blocks: Blocks | None) -> Depth | None:
    if blocks is None or slot.call is not None:
        return None
    if site.path is not None:
        return blocks.depth_at(slot) if site.call is None else None
    depth = depth_of(site)
    return depth if depth is None or blocks.knows(depth) else None
