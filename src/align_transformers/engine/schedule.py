"""From a plan to passes: which runs happen, in which order, what each may leave out. No model is needed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter

from ..plan import Plan, Read, Run
from ..sites import Site

INPUT, INSIDE, OUTPUT = 0, 1, 2
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


START, END = Depth(-1, 0, INPUT), Depth(2, 0, INPUT)
_END_DEPTHS = {("", True): START, ("", False): END, ("encoder", True): START, ("decoder", False): END}
"""Of the ends of a model: stack, and whether it is the embeddings. What lies between two stacks has no depth."""


@dataclass(frozen=True)
class Start:
    """Where a pass may start, since what lies below is known.

    Args:
        donor: the run whose unedited states are taken; `None`: they are handed in with the input.
        depths: for each run of the pass how deep its first edit is.
    """

    donor: str | None
    depths: tuple[Depth, ...]


@dataclass(frozen=True)
class Pass:
    """One forward pass.

    Args:
        runs: the runs it carries out, their examples below each other; more than one only where it starts late.
        reads: the values that later passes need of it, each once.
        wanted: whether the runs' outputs are asked for.
        start: where it may start; `None`: at the beginning.
        stop: how far it has to go; `None`: to the end.
        keep: the depths at which others start from its states.
    """

    runs: tuple[Run, ...]
    reads: tuple[Read, ...] = ()
    wanted: bool = False
    start: Start | None = None
    stop: Depth | None = None
    keep: tuple[Depth, ...] = ()


def depth_of(site: Site) -> Depth | None:
    """Return how deep a site is, as far as its name tells.

    >>> depth_of(Site("mlp_output", 3)) < depth_of(Site("block_output", 3)) < depth_of(Site("logits"))
    True
    """
    if site.name is None or site.call is not None or site.stack not in _RANKS:
        return None
    if site.layer is None:
        return _END_DEPTHS.get((site.stack, site.name == "embedding_output"))
    point = {"block_input": INPUT, "block_output": OUTPUT}.get(site.name, INSIDE)
    return Depth(_RANKS[site.stack], site.layer, point)


def schedule(
    plan: Plan, *, known: Collection[str] = (), depth: Callable[[Site], Depth | None] = depth_of
) -> tuple[Pass, ...]:
    """Return the passes a plan needs, each after those that it reads or starts from; idle runs are left out.

    - A run that is only read stops after the last of its edits and of what is read of it.
    - A run starts at its first edit, if another run of the same input comes by there unedited.
    - Where only logits are wanted, the runs that start from one donor, and are not read, are one pass.

    Args:
        plan: what is to happen.
        known: names of inputs whose unedited states are handed in.
        depth: how deep a site is; `None` where that is not known.

    >>> from align_transformers import Edit, Plan, Read, Run, Site
    >>> site = Site("block_output", 1)
    >>> swap = Edit("swap", site, "vanilla", source=Read("source", site))
    >>> runs = (Run("base", "b", (swap,)), Run("source", "s"), Run("idle", "i"))
    >>> [([run.name for run in p.runs], p.wanted, p.stop) for p in schedule(Plan(runs, outputs=("base",)))]
    [(['source'], False, Depth(rank=1, layer=1, point=2)), (['base'], True, None)]
    """
    runs = {run.name: run for run in plan.order()}
    needs = {name: {e.source.run for e in run.edits if isinstance(e.source, Read)} for name, run in runs.items()}
    first = {name: _first([depth(edit.site) for edit in run.edits]) for name, run in runs.items()}
    reads: dict[str, list[Read]] = {name: [] for name in runs}
    for read in (edit.source for run in runs.values() for edit in run.edits if isinstance(edit.source, Read)):
        if read not in reads[read.run]:
            reads[read.run].append(read)
    begin = {name: _first([first[name], *(depth(read.site) for read in reads[name])]) for name in runs}
    starts = _starts(runs, first, begin, needs, known)
    together: dict[str | None, list[str]] = {}
    passes: list[Pass] = []
    for name in TopologicalSorter(needs).static_order():
        run, wanted = runs[name], name in plan.outputs
        if plan.logits is not None and name in starts and wanted and not reads[name] and run.input not in known:
            together.setdefault(starts[name], []).append(name)
            continue
        keep = tuple(sorted({d for other, donor in starts.items() if donor == name and (d := begin[other])}))
        start = Start(starts[name], (_known(begin[name]),)) if name in starts else None
        places = [*(read.site for read in reads[name]), *(edit.site for edit in run.edits)]
        whole = wanted or (plan.logits is not None and keep and not run.edits)  # its keys and values are wanted, too
        stop = None if whole else _stop([*map(depth, places), *keep])
        passes.append(Pass((run,), tuple(reads[name]), wanted, start, stop, keep))
    for donor, names in together.items():
        names.sort(key=lambda name: _known(begin[name]))
        start = Start(donor, tuple(_known(begin[name]) for name in names))
        passes.append(Pass(tuple(runs[name] for name in names), wanted=True, start=start))
    return tuple(passes)


def _first(depths: list[Depth | None]) -> Depth | None:
    """Return the smallest depth, `END` if there is none; `None` if one is not known."""
    return None if None in depths else min((d for d in depths if d is not None), default=END)


def _known(depth: Depth | None) -> Depth:
    return START if depth is None else depth


def _starts(
    runs: Mapping[str, Run],
    first: Mapping[str, Depth | None],
    begin: Mapping[str, Depth | None],
    needs: dict[str, set[str]],
    known: Collection[str],
) -> dict[str, str | None]:
    """Return for each run that may start late the run it starts from, and add these to what the runs need.

    Args:
        runs: by name.
        first: how deep the first edit of each is: so far others may start from it.
        begin: how deep the first edit or read of each is: so far it needs nothing but the unedited states.
        needs: the runs that each needs.
        known: names of inputs whose unedited states are handed in.
    """
    starts: dict[str, str | None] = {}
    donors: dict[str, list[str]] = {}
    places = {name: place for place, name in enumerate(runs)}
    for name, run in runs.items():
        if run.examples is None and first[name] is not None:
            donors.setdefault(run.input, []).append(name)
    for name, run in runs.items():
        depth = begin[name]
        if depth is None or depth <= START or not run.edits:
            continue
        if run.input in known:
            starts[name] = None
            continue

        def order(other: str) -> tuple[Depth, int]:
            return _known(first[other]), -places[other]

        own = depth, -places[name]
        fit = [other for other in donors.get(run.input, ()) if other != name and order(other) > own]
        for donor in sorted(fit, key=order, reverse=True):
            if not _reaches(donor, name, needs):
                starts[name] = donor
                needs[name].add(donor)
                break
    return starts


def _reaches(origin: str, target: str, needs: Mapping[str, set[str]]) -> bool:
    """Whether a run needs another, directly or not."""
    waiting, seen = [origin], {origin}
    while waiting:
        for name in needs[waiting.pop()] - seen:
            if name == target:
                return True
            seen.add(name)
            waiting.append(name)
    return False


def _stop(depths: list[Depth | None]) -> Depth | None:
    """Return the largest depth; `None`, the end, if one is not known or lies after the blocks."""
    if not depths or None in depths:
        return None
    last = max(d for d in depths if d is not None)
    return None if last >= END else last
