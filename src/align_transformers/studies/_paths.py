"""The runs of path patching: what is sent, what is frozen, and how it is carried from node to node."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from .._errors import SpecError
from ..models.component_map import ComponentMap
from ..plan import Edit, Read, Run
from ..positions import EVERYWHERE, Positions
from ..sites import Site
from ._cell_run import CellRun
from ._nodes import Node, carries, group_size, kv_head, others
from ._pairs import PairPlace, Pairs, Place

Freeze = Literal["attention", "all", "none"]


@dataclass(frozen=True)
class Sending:
    """A cell: who sends, in which pair, at which places of base and source."""

    senders: tuple[Node, ...]
    pair: int
    place: PairPlace


@dataclass(frozen=True, eq=False)
class Paths:
    """Makes the runs.

    Args:
        found: in the model.
        pairs: of prompts.
        hops: what is on the way, the receivers last.
        freeze: what does not pass anything on.
        columns: of each pair, where hops and receivers get something; `None`: everywhere.
        ends: the column of each pair whose logits are measured.
        per_query_head: keys and values are put in for one head of those that share them.
    """

    found: ComponentMap
    pairs: Pairs
    hops: Sequence[tuple[Node, ...]]
    freeze: Freeze
    columns: Sequence[tuple[int, ...]] | None
    ends: Sequence[int]
    per_query_head: bool

    def runs(self, senders: Sequence[tuple[Node, ...]]) -> Iterator[CellRun]:
        """Yield a run for the senders of each site; its cells are these, at their places, in all pairs.

        Raises:
            SpecError: no sender comes before the first hop.
        """
        reached = max(node.reads_at for node in self.hops[0])
        groups: dict[tuple[Site, ...], list[Sending]] = {}
        places = self.pairs.places("")
        for several in senders:
            if min(node.writes_at for node in several) < reached:
                groups.setdefault(tuple(node.site for node in several), []).extend(
                    Sending(several, pair, place) for pair, own in enumerate(places) for place in own
                )
        if not groups:
            raise SpecError(f"no sender comes before {' and '.join(map(str, self.hops[0]))}, so there is no path")
        yield from (self._run(lines) for lines in groups.values())

    def _run(self, lines: Sequence[Sending]) -> CellRun:
        """Return the run whose logits are measured, with those that lead to it."""
        runs = _Runs(self, lines, "+".join(map(str, lines[0].senders)))
        sent = runs.sent(self.reads(self.hops[0]))
        for number, hop in enumerate(self.hops):
            stream = _Stream(runs, number, sent, hop)
            if [node.kind for node in hop] == ["logits"]:
                return runs.cells(stream.towards(hop))
            carried = stream.read()
            through = number + 1 < len(self.hops) and self.freeze != "none"
            sent = runs.passed_on(number, hop, carried) if through else runs.arrived(number, hop, carried)
        return runs.cells(sent.edits)

    def reads(self, hop: Sequence[Node]) -> Sequence[tuple[int, ...]] | None:
        """Return the columns of each pair that nodes read, where no other column matters to them; `None`: all.

        With attention frozen nothing passes from one token to another: what is sent and frozen elsewhere is not seen.
        """
        at_end = [(column,) for column in self.ends]
        apart = all(
            block.flags.get("mixer") in ("softmax", "none") and block.flags.get("mlp") in ("dense", "experts", "none")
            for block in self.found.stacks[""]
        )
        if self.freeze == "none" or not apart:
            return None
        if all(node.kind == "logits" for node in hop):
            return at_end
        if self.columns is None or all(node.kind != "logits" for node in hop):
            return self.columns
        return [tuple(sorted({*one, *other})) for one, other in zip(self.columns, at_end, strict=True)]

    @property
    def depth(self) -> int:
        """How many blocks there are."""
        return len(self.found.stacks[""])


@dataclass(frozen=True)
class _Sent:
    """Edits that exchange what nodes give.

    Args:
        edits: all of them.
        nodes: whose outputs they are.
        at: where something is exchanged; everywhere else these outputs are the base's.
    """

    edits: tuple[Edit, ...]
    nodes: tuple[Node, ...]
    at: Positions = EVERYWHERE

    @property
    def begins(self) -> float:
        """When the first node writes."""
        return min(node.writes_at for node in self.nodes)

    @property
    def layer(self) -> int:
        """The last block that a node writes in; -1: all write in front of the first."""
        return max(-1 if node.layer is None else node.layer for node in self.nodes)


@dataclass(eq=False)
class _Runs:
    """The runs of some lines: those that lead to the cells, as they are made."""

    paths: Paths
    lines: Sequence[Sending]
    name: str
    made: list[Run] = field(default_factory=list)

    @property
    def pairs(self) -> tuple[int, ...]:
        """The pair of each line."""
        return tuple(line.pair for line in self.lines)

    def add(self, name: str, edits: Sequence[Edit]) -> str:
        """Make a run that leads to the cells, and return its name."""
        self.made.append(Run(f"{self.name} {name}", "base", tuple(edits), self.pairs))
        return self.made[-1].name

    def cells(self, edits: Sequence[Edit]) -> CellRun:
        """Return the run of the cells."""
        run = Run(self.name, "base", tuple(edits), self.pairs)
        return CellRun(run, tuple(map(self._cell, self.lines)), tuple(self.made))

    def sent(self, reads: Sequence[tuple[int, ...]] | None) -> _Sent:
        """Return what puts into the base's run what the senders give in the source's.

        Args:
            reads: the columns of each pair that matter; `None`: all.
        """
        starts = [side.starts for side in (self.paths.pairs.base.tokens(""), self.paths.pairs.source.tokens(""))]
        some = [line.place.places if reads is None else _within(line, starts[0], reads) for line in self.lines]
        into, out_of = (
            tuple(
                tuple(of[line.pair] + place[side] for place in places)
                for line, places in zip(self.lines, some, strict=True)
            )
            for side, of in enumerate(starts)
        )
        edits = []
        for number, node in enumerate(self.lines[0].senders):
            several = [line.senders[number].head for line in self.lines]
            heads = None if node.head is None else tuple((head,) for head in several if head is not None)
            read = Read("source", node.site, Positions(out_of, heads), self.pairs)
            edits.append(Edit(f"{self.name} send {number}", node.site, "swap", Positions(into, heads), source=read))
        return _Sent(tuple(edits), self.lines[0].senders, Positions(into))

    def frozen(self, name: str, after: float, before: float, hop: Sequence[Node]) -> Iterator[Edit]:
        """Yield the edits that hold all that writes between two places at its base value, as far as nodes see it."""
        if self.paths.freeze == "none":
            return
        reads = self.paths.reads(hop)
        at = EVERYWHERE if reads is None else Positions(tuple(reads[pair] for pair in self.pairs))
        for layer, block in enumerate(self.paths.found.stacks[""]):
            for site, when in others(block, layer, self.paths.freeze == "all"):
                if after < when < before:
                    read = Read("base", site, at, self.pairs)
                    yield Edit(f"{self.name} freeze {name} {site}", site, "swap", at, source=read)

    def without_base(self, name: str, site: Site, at: Positions) -> Edit:
        """Return the edit that leaves of the stream at a place what was sent along it, and takes off the base's."""
        return Edit(f"{self.name} {name}", site, "subtract", at, source=Read("base", site, at, self.pairs))

    def arrived(self, number: int, hop: Sequence[Node], carried: Mapping[Node, str]) -> _Sent:
        """Return what puts what was carried into the inputs of a hop's nodes; what they do is free."""
        edits: list[Edit] = []
        put: dict[str, Node] = {}
        for node in sorted(hop, key=lambda node: node.reads_at):
            label = f"{self.name} hop {number} {node}"
            if node.kind == "logits":
                edits.append(self._into_logits(label, carried[node]))
            elif self._is_shared(node):
                same = [one for one in hop if (one.kind, one.layer, one.head) == (node.kind, node.layer, node.head)]
                before = [replace(e, name=f"{label}: {e.name}") for e in edits if put[e.name].reads_at < node.reads_at]
                own = self.add(label, (*before, *(self._input(f"{label}: {one}", one, carried[one]) for one in same)))
                edits.append(self._output(f"{label} output", replace(node, reads=""), own))
            else:
                edits.append(self._input(label, node, carried[node]))
            put[edits[-1].name] = node
        return _Sent(tuple(edits), tuple(hop))

    def passed_on(self, number: int, hop: Sequence[Node], carried: Mapping[Node, str]) -> _Sent:
        """Return what puts in what a hop's nodes make of what was carried to them, and else of the base."""
        edits = []
        for writer in dict.fromkeys(writer for node in hop for writer in self._writers(node)):
            label = f"{self.name} hop {number} {writer}"
            reads = [node for node in hop if writer in self._writers(node)]
            inputs = [self._input(f"{label}: {node}", node, carried[node]) for node in reads]
            edits.append(self._output(f"{label} output", writer, self.add(f"hop {number} {writer}", inputs)))
        return _Sent(tuple(edits), tuple(hop))

    @property
    def last(self) -> Site:
        """Where the stream ends."""
        return Site("block_output", self.paths.depth - 1)

    def _into_logits(self, name: str, carried: str) -> Edit:
        """Return the edit that puts what came along the stream beside what the other receivers make of it."""
        operation = "swap" if self.paths.freeze == "none" else "add"
        return Edit(name, self.last, operation, EVERYWHERE, source=Read(carried, self.last))

    def _input(self, name: str, node: Node, carried: str) -> Edit:
        """Return the edit that puts what a node got in one run into its input."""
        columns, head = self.paths.columns, node.head
        if self._is_shared(node):
            head = kv_head(node, self.paths.found)
        rows = None if columns is None else tuple(columns[pair] for pair in self.pairs)
        at = Positions(rows, None if head is None else ((head,),) * len(self.lines))
        return Edit(name, node.goes_into, "swap", at, source=Read(carried, node.goes_into, at))

    def _output(self, name: str, node: Node, run: str) -> Edit:
        """Return the edit that puts in what a node gives in another run."""
        at = Positions(heads=None if node.head is None else ((node.head,),) * len(self.lines))
        return Edit(name, node.site, "swap", at, source=Read(run, node.site, at))

    def _is_shared(self, node: Node) -> bool:
        """Whether one head is meant of several that read this key or value."""
        return self.paths.per_query_head and node.reads in ("k", "v") and group_size(node, self.paths.found) > 1

    def _writers(self, node: Node) -> list[Node]:
        """Return the nodes whose outputs depend on what goes into a node."""
        size = group_size(node, self.paths.found) if node.reads in ("k", "v") and not self.paths.per_query_head else 1
        if node.head is None:
            return [node]
        return [Node("head", node.layer, head) for head in range(node.head * size, (node.head + 1) * size)]

    def _cell(self, line: Sending) -> dict[str, Any]:
        """Return the columns that say which cell it is."""
        one = line.senders[0] if len(line.senders) == 1 else None
        return {
            "sender": "+".join(map(str, line.senders)),
            "component": None if one is None else one.site.component,
            "layer": None if one is None else one.layer,
            "head": None if one is None else one.head,
            **self.paths.pairs.cell("", line.pair, line.place),
            "pair": line.pair,
        }


@dataclass(frozen=True, eq=False)
class _Stream:
    """Carries what was sent along the residual stream, to nodes that read it.

    Args:
        runs: that lead there.
        number: of the hop.
        sent: what was.
        hop: the nodes.
    """

    runs: _Runs
    number: int
    sent: _Sent
    hop: Sequence[Node]

    def read(self) -> dict[Node, str]:
        """Return for each node the run in which it gets what was sent: where one is made by itself, one for a layer."""
        groups: dict[int | None, list[Node]] = {}
        for node in self.hop:
            groups.setdefault(self._layer(node) if self._leaps(node) else None, []).append(node)
        found: dict[Node, str] = {}
        for layer, nodes in groups.items():
            edits = self.towards(nodes)
            if self.runs.paths.freeze != "none" and any(node.kind == "logits" for node in nodes):
                edits = (*edits, self.runs.without_base(f"difference {self.number}", self.runs.last, EVERYWHERE))
            run = self.runs.add(f"to hop {self.number}" + ("" if layer is None else f" {layer}"), edits)
            found |= dict.fromkeys(nodes, run)
        return found

    def towards(self, nodes: Sequence[Node]) -> tuple[Edit, ...]:
        """Return the edits with which nodes get what was sent: all of one layer, or all that it is carried to."""
        until, name = max(node.reads_at for node in nodes), f"{self.number}"
        if not self._leaps(nodes[0]):
            return (*self.runs.frozen(name, self.sent.begins, until, self.hop), *self.sent.edits)
        layer = self._layer(nodes[0])
        name += f" {layer}"
        site = Site("block_output", layer - 1)
        leap = Edit(f"{self.runs.name} leap {name}", site, "add", self.sent.at, source=self._change)
        return (leap, *self.runs.frozen(name, float(layer), until, self.hop))

    @cached_property
    def _change(self) -> Read:
        """What was sent changes of the stream, behind the last block that it was written in."""
        layer, at = self.sent.layer, self.sent.at
        site = Site("block_input", 0) if layer < 0 else Site("block_output", layer)
        frozen = self.runs.frozen(f"{self.number} change", self.sent.begins, layer + 1.0, self.hop)
        sent = (replace(edit, name=f"{edit.name} for a leap") for edit in self.sent.edits)
        off = self.runs.without_base(f"change {self.number}", site, at)
        return Read(self.runs.add(f"change {self.number}", (*frozen, *sent, off)), site, at)

    def _leaps(self, node: Node) -> bool:
        """Whether blocks between need not be run: with all frozen, they hand on the change as it is."""
        between = range(self.sent.layer + 1, self._layer(node))
        blocks = self.runs.paths.found.stacks[""]
        return self.runs.paths.freeze == "all" and bool(between) and all(carries(blocks[n]) for n in between)

    def _layer(self, node: Node) -> int:
        return self.runs.paths.depth if node.layer is None else node.layer


def _within(line: Sending, starts: Sequence[int], reads: Sequence[tuple[int, ...]]) -> tuple[Place, ...]:
    """Return the places of a line that matter; all, where none does."""
    return tuple(p for p in line.place.places if starts[line.pair] + p[0] in reads[line.pair]) or line.place.places
