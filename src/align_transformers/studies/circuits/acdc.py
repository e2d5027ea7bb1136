"""ACDC: edge after edge is left out for good if that takes the circuit no further from the whole model.

Conmy et al. 2023, arXiv:2304.14997. Edges are tried as copies of one pass: copy i leaves out the next i together, which
is right up to the first that has to stay. So the result is that of one after the other, in fewer passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..circuit_graph import CircuitGraph

_AHEAD = 8
Order = Literal["backward", "forward", "random"]
"""In which order edges are tried: from the logits down, senders from late to early; the other way round; by chance."""


@runtime_checkable
class RunsCircuits(Protocol):
    """What runs circuits of edges, nodes or neurons."""

    @property
    def count(self) -> int:
        """How many there are of them."""

    @property
    def width(self) -> int:
        """How many circuits are copies of one pass."""

    def measure(self, kept: Tensor) -> Tensor:
        """Return `(circuits, pairs)` of `(circuits, count)`."""


@dataclass
class Trying:
    """Where a run of ACDC stands.

    Args:
        kept: `(count,)` booleans.
        done: how many of the order are decided.
        distance: of the circuit from the whole model.
        passes: how many were made of it.
        ahead: how many are tried in the next one: twice as many after one that went as guessed, else half.
    """

    kept: Tensor
    done: int = 0
    distance: float = 0.0
    passes: int = 0
    ahead: int = _AHEAD


@dataclass(frozen=True)
class _Guess:
    """A number of the order that is left out, with the number of its copy; `None`: nobody reads it any more."""

    unit: int
    copy: int | None


def acdc(
    runner: RunsCircuits,
    order: Sequence[int],
    threshold: float,
    at: Trying,
    *,
    graph: CircuitGraph | None = None,
    after: Callable[[Trying], None] = lambda _: None,
) -> Trying:
    """Try all of an order, one after the other, and return what stays.

    With the mean over pairs of what the runner measures as the distance, each is left out for good if the distance
    grows by less than the threshold.

    Args:
        runner: measures how far circuits are from the whole model.
        order: numbers of what is tried.
        threshold: above 0.
        at: where it begins; it is changed.
        graph: whose edges are tried: those of senders that nobody reads any more go without a pass.
        after: called after each pass.
    """
    while at.done < len(order):
        guesses, kept = _guesses(min(runner.width, at.ahead), order[at.done :], at.kept, graph)
        if kept:
            found = runner.measure(torch.stack(kept)).mean(1).tolist()
            at.passes += 1
        for guess in guesses:
            at.done += 1
            if guess.copy is not None:
                if found[guess.copy] - at.distance >= threshold:
                    at.ahead = max(2, at.ahead // 2)
                    break
                at.distance = found[guess.copy]
            at.kept[guess.unit] = False
        else:
            at.ahead = min(2 * at.ahead, max(2, runner.width))
        after(at)
    return at


def _guesses(
    width: int, order: Sequence[int], kept: Tensor, graph: CircuitGraph | None
) -> tuple[list[_Guess], list[Tensor]]:
    """Return what is tried in a pass if all of it goes, and the circuit of each copy.

    Args:
        width: how many copies there may be.
        order: what is to be tried.
        kept: what is there now.
        graph: as for `acdc`.
    """
    guesses: list[_Guess] = []
    copies: list[Tensor] = []
    kept = kept.clone()
    heard = _heard(graph, kept)
    for unit in order:
        if heard is not None and not heard[unit]:
            guesses.append(_Guess(unit, None))
            kept[unit] = False
            continue
        if len(copies) == width:
            break
        kept[unit] = False
        guesses.append(_Guess(unit, len(copies)))
        copies.append(kept.clone())
        heard = _heard(graph, kept)
    return guesses, copies


def _heard(graph: CircuitGraph | None, kept: Tensor) -> list[bool] | None:
    """Return of each edge whether kept edges lead from its receiver to the logits."""
    if graph is None:
        return None
    numbers = {node.name: number for number, node in enumerate(graph.senders)}
    read, there, edge = [False] * len(numbers), kept.tolist(), len(graph)
    found = [False] * len(graph)
    for receiver, visible in zip(reversed(graph.receivers), reversed(graph.visible), strict=True):
        edge -= len(visible)
        if receiver.kind == "logits" or any(read[numbers[owner]] for owner in receiver.owner):
            for place, sender in enumerate(visible, edge):
                found[place] = True
                read[sender] = read[sender] or there[place]
    return found


def order_of(order: Order, count: int, seed: int) -> list[int]:
    """Return the numbers in an order.

    Args:
        order: its name.
        count: how many there are; they are numbered from the embeddings up.
        seed: of the one by chance.
    """
    if order == "random":
        return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return list(range(count)) if order == "forward" else list(reversed(range(count)))
