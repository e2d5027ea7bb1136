"""The chain of blocks of a model in the order in which they are called, and runs of a part of it.

The model's own `forward` makes embeddings, masks and position tables as ever. A block that is left out gets, for the
time of a pass, a `forward` of its own on the instance that hands on what is known; hooks, attributes, weights stay.
Slicing the list of blocks would be simpler and silently wrong: models count in it, and add things between blocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from ..models import ComponentMap, Slot
from ..models.slot import Leaf
from .schedule import END, INSIDE, OUTPUT, Depth


@dataclass(frozen=True, eq=False)
class Link:
    """One block.

    Args:
        number: place in the chain, from 0.
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


class Chain:
    """The blocks of a model in the order of their calls.

    Args:
        links: one a call.
    """

    def __init__(self, links: Sequence[Link]) -> None:
        self.links = tuple(links)
        self._at = {(link.rank, link.layer): link.number for link in links}
        inside = Counter(module for link in links for module in link.module.modules())
        self._shared = {module for module, count in inside.items() if count > 1}

    def __len__(self) -> int:
        return len(self.links)

    def knows(self, depth: Depth) -> bool:
        """Whether the chain has such a block, or the depth is outside the blocks."""
        return depth.rank not in (0, 1) or (depth.rank, depth.layer) in self._at

    def find(self, depth: Depth) -> tuple[int, bool]:
        """Return the number of the link, and whether its output is meant rather than its input."""
        if depth >= END:
            return len(self.links) - 1, True
        return self._at[depth.rank, depth.layer], depth.point == OUTPUT

    def depth_of(self, path: str) -> Depth | None:
        """Return how deep a module's dotted path is; `None` if it lies in no block, or in several."""
        inside = [link for link in self.links if path == link.output.path or path.startswith(link.output.path + ".")]
        if len(inside) != 1:
            return None
        link, rest = inside[0], path.removeprefix(inside[0].output.path).lstrip(".")
        if link.module.get_submodule(rest) in self._shared:
            return None  # it is called in other blocks, too
        return Depth(link.rank, link.layer, INSIDE)


_chains: WeakKeyDictionary[ComponentMap, Chain | None] = WeakKeyDictionary()


def find_chain(found: ComponentMap) -> Chain | None:
    """Return the chain of a model's blocks; `None` where they are not known, or one of them is called twice.

    Args:
        found: the model's components.
    """
    if found not in _chains:
        _chains[found] = _make_chain(found)
    return _chains[found]


def _make_chain(found: ComponentMap) -> Chain | None:
    names = {"": 1} if "" in found.stacks else {"encoder": 0, "decoder": 1}
    if not all(name in found.stacks for name in names):
        return None
    links: list[Link] = []
    for name, rank in names.items():
        for layer, block in enumerate(found.stacks[name]):
            slots = block.slots.get("block_input"), block.slots.get("block_output")
            if slots[0] is None or slots[1] is None or slots[0].side != "input" or slots[1].side != "output":
                return None
            links.append(Link(len(links), rank, layer, slots[0], slots[1]))
    return Chain(links) if len({id(link.module) for link in links}) == len(links) else None


Forward = Callable[..., Any]


@contextmanager
def forwards(stand_ins: Mapping[nn.Module, Callable[[Forward], Forward]]) -> Iterator[None]:
    """Give modules another `forward` while the context is open.

    Args:
        stand_ins: for each module a function from its `forward` to the one that takes its place.
    """
    before: list[tuple[nn.Module, Any]] = []
    try:
        for module, make in stand_ins.items():
            before.append((module, module.__dict__.get("forward")))
            module.__dict__["forward"] = make(module.forward)
        yield
    finally:
        for module, own in reversed(before):
            if own is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = own


class Stopped(BaseException):
    """Raised inside a pass that has gone as far as it needs to; never seen by a user."""


def by_batch(
    value: Any, batch: int, pick: Callable[[Tensor], Tensor], fixed: Collection[Leaf] = (), at: Leaf = ()
) -> Any:
    """Return a nested container with `pick` applied to every tensor that has a first axis of `batch` examples.

    Args:
        value: tuples, lists, dicts and tensors; anything else is handed on as it is.
        batch: length of the first axis.
        pick: from such a tensor to another.
        fixed: where in the container tensors are whose first axis is that long by chance.
        at: the way to `value`.
    """
    if isinstance(value, Tensor):
        return pick(value) if value.ndim >= 2 and value.shape[0] == batch and at not in fixed else value
    if isinstance(value, tuple | list):
        items = [by_batch(item, batch, pick, fixed, (*at, number)) for number, item in enumerate(value)]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if type(value) is dict:
        return {key: by_batch(item, batch, pick, fixed, (*at, key)) for key, item in value.items()}
    return value


def not_by_batch(value: Any, batch: int, at: Leaf = ()) -> Iterator[Leaf]:
    """Yield where in a nested container tensors are whose first axis is neither the examples' nor one for all.

    >>> import torch
    >>> list(not_by_batch((torch.ones(2, 3), {"bias": torch.ones(4, 1, 3)}), 2))
    [(1, 'bias')]
    """
    if isinstance(value, Tensor):
        if value.ndim >= 2 and value.shape[0] not in (1, batch):
            yield at
    elif isinstance(value, tuple | list):
        for number, item in enumerate(value):
            yield from not_by_batch(item, batch, (*at, number))
    elif type(value) is dict:
        for key, item in value.items():
            yield from not_by_batch(item, batch, (*at, key))
