"""A circuit as a drawing: which nodes and edges are shown, and where. Figure and page say how.

Information enters at the bottom and leaves at the top, as in all pictures here. Where the program `dot` (graphviz) is
installed it places nodes and leads edges around them; otherwise nodes of a row are put below what they are read by,
sweep after sweep, as such programs begin (Sugiyama et al. 1981, doi:10.1109/TSMC.1981.4308636).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .circuit_layout import Dots, Link, Pixel, by_dot, by_sweeps
from .words import precise

MOST = 300
"""Edges that are drawn; of a larger circuit the strongest."""
_THIN, _THICK = 0.7, 5.0


@dataclass(frozen=True)
class CircuitEdge:
    """An edge of a circuit.

    Args:
        sender: its name.
        receiver: likewise, such as `a9.h6<q>`.
        owners: the nodes that the receiver is a part of: of grouped heads all that read the key or value.
        score: signed; `None` where there is none.
    """

    sender: str
    receiver: str
    owners: tuple[str, ...]
    score: float | None = None

    @property
    def letter(self) -> str:
        """What a head reads with: q, k or v; nothing of other nodes."""
        return self.receiver.partition("<")[2][:1]


@dataclass(frozen=True)
class CircuitNode:
    """A node of a circuit.

    Args:
        name: as the literature writes it.
        kind: `head`, `mlp`, `input`, `logits`, ...
        layer: its block; `None` for the ends.
        note: what is to be known of it.
    """

    name: str
    kind: str
    layer: int | None = None
    note: str = ""


@dataclass(frozen=True)
class DrawnEdge:
    """An edge and its way.

    Args:
        edge: which.
        owner: the node that it ends at.
        width: of its line, in pixels.
        dots: of Bezier curves: a start and three for each curve.
    """

    edge: CircuitEdge
    owner: str
    width: float
    dots: Dots

    @property
    def says(self) -> str:
        """What pointing at it shows."""
        value = "" if self.edge.score is None else f": {precise(self.edge.score)}"
        return f"{self.edge.sender} \N{RIGHTWARDS ARROW} {self.edge.receiver}{value}"


@dataclass(frozen=True)
class CircuitDrawing:
    """A circuit as it is drawn, in pixels from the left and from the top.

    Args:
        title: a sentence.
        nodes: that are shown.
        spots: the middle of each.
        edges: that are shown, the weakest first, so that strong ones lie on top.
        every: all edges of the circuit, the strongest first.
        rows: what stands at the left of a row, and how far down.
        wide: of the whole.
        tall: likewise.
        scored: edges have scores.
        facts: by name, in words.
    """

    title: str
    nodes: tuple[CircuitNode, ...]
    spots: Mapping[str, Pixel]
    edges: tuple[DrawnEdge, ...]
    every: tuple[CircuitEdge, ...]
    rows: tuple[tuple[str, float], ...]
    wide: float
    tall: float
    scored: bool
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def shown(self) -> int:
        """How many edges are shown."""
        return len({(one.edge.sender, one.edge.receiver) for one in self.edges})

    @property
    def caption(self) -> str:
        """What is seen and how it is read."""
        total = len(self.every)
        cut = f"Shown are the {self.shown} strongest of {total} edges. " if self.shown < total else ""
        scale = "The wider, the larger its score; blue: above 0, orange: below 0. " if self.scored else ""
        return (
            f"{cut}Each line leads from what writes into the residual stream, below, to what reads it, above. {scale}"
            "Queries end at q (dashed), keys at k (dotted), values at v (solid)."
        )

    @property
    def summary(self) -> tuple[str, ...]:
        """The circuit in words, a line each."""
        heads = [node.name for node in self.nodes if node.kind == "head"]
        others = [node.name for node in self.nodes if node.kind not in ("head", "input", "logits")]
        lines = [f"{len(self.every)} edges; shown: {self.shown}, between {len(self.nodes)} nodes."]
        for what, names in (("Heads", heads), ("Others", others)):
            if names:
                more = f" and {len(names) - 24} more" if len(names) > 24 else ""
                lines.append(f"{what}: {', '.join(names[:24])}{more}.")
        if self.scored:
            best = "; ".join(f"{e.sender} to {e.receiver} ({precise(e.score)})" for e in self.every[:5])
            lines.append(f"Strongest: {best}.")
        lines += [f"{node.name}: {node.note}." for node in self.nodes if node.note][:3]
        return tuple(lines)

    def csv(self) -> str:
        """Return all edges of the circuit as a table, the strongest first."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(("sender", "receiver", "score"))
        table.writerows((one.sender, one.receiver, "" if one.score is None else one.score) for one in self.every)
        return text.getvalue()


def drawing_of(
    title: str,
    nodes: Sequence[CircuitNode],
    edges: Iterable[CircuitEdge],
    *,
    most: int = MOST,
    facts: Mapping[str, Any] | None = None,
) -> CircuitDrawing:
    """Return a circuit's drawing.

    Args:
        title: a sentence.
        nodes: of the circuit, in the order in which they write.
        edges: of the circuit.
        most: how many edges are drawn; of more than these the strongest.
        facts: what is known of it.
    """
    every = sorted(edges, key=lambda one: -abs(one.score or 0.0))
    scored = any(one.score is not None for one in every)
    chosen = every[:most]
    sends = {one.sender for one in chosen}
    ends = [(one, owner) for one in chosen for owner in _drawn_owners(one, sends)]
    used = sends | {owner for _, owner in ends} | {"logits"}
    shown = tuple(node for node in nodes if node.name in used)
    levels = _levels(shown)
    links = [Link(one.sender, owner, one.letter, abs(one.score or 1.0)) for one, owner in ends]
    letters = {node.name for node in shown if node.kind == "head"}
    layout = by_dot(levels, links, letters) or by_sweeps(levels, links, letters)
    largest = max((abs(one.score or 0.0) for one in chosen), default=0.0) or 1.0
    widths = [0.25 * (not scored) if one.score is None else abs(one.score) / largest for one, _ in ends]
    lines = [
        DrawnEdge(one, owner, _THIN + (_THICK - _THIN) * width, dots)
        for (one, owner), width, dots in zip(ends, widths, layout.ways, strict=True)
    ]
    words = {name: str(value) for name, value in (facts or {}).items() if value not in (None, "", {})}
    kinds = {node.name: node for node in shown}
    rows: dict[str, float] = {}
    for level in levels:
        layer = kinds[level[0]].layer
        rows.setdefault("" if layer is None else str(layer), layout.spots[level[0]][1])
    rows.pop("", None)
    return CircuitDrawing(
        title, shown, layout.spots, tuple(reversed(lines)), tuple(every), tuple(rows.items()), layout.wide,
        layout.tall, scored, words,
    )  # fmt: skip


def _drawn_owners(edge: CircuitEdge, sends: set[str]) -> list[str]:
    """Return the nodes that an edge is drawn to: of those that share a key or value the ones that pass something on."""
    passing = [owner for owner in edge.owners if owner in sends]
    return passing or list(edge.owners[:1])


def _levels(nodes: Sequence[CircuitNode]) -> list[list[str]]:
    """Return the rows from bottom to top: of each layer heads, then what reads them."""
    found: dict[tuple[int, int], list[str]] = {}
    for node in nodes:
        late = int(node.kind not in ("head", "attention"))
        key = (-1, 0) if node.kind == "input" else (10**6, 0) if node.layer is None else (node.layer, late)
        found.setdefault(key, []).append(node.name)
    return [found[key] for key in sorted(found)]
