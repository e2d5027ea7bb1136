"""`Circuit`: edges of a model's graph that are kept, with what they were chosen by."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..._checked import checked, checked_class
from ..._errors import SpecError, UnknownNameError, near_misses
from ..._files import write_atomically
from ..circuit_graph import CircuitGraph

if TYPE_CHECKING:
    import networkx
    from matplotlib.figure import Figure

    from ...report.circuit_drawing import CircuitDrawing


@checked_class
@dataclass(frozen=True, eq=False)
class Circuit:
    """Edges of a model's graph that are kept; all others are absent.

    Args:
        graph: of the model.
        kept: `(edges,)` booleans, in the order of `graph.edges()`.
        scores: `(edges,)` what they were chosen by, signed; `None` where there is nothing of the kind.
        facts: JSON-able: how it was found.

    Raises:
        SpecError: there are not as many as the graph has edges.

    Example:
        >>> import transformers
        >>> from align_transformers import graph
        >>> sizes = dict(vocab_size=50, n_embd=16, n_head=2, n_layer=1, n_positions=8)
        >>> made = graph(transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)))
        >>> small = Circuit.of(made, [("input", "a0.h1<v>"), ("a0.h1", "logits"), ("m0", "logits")])
        >>> small
        Circuit(3 of 13 edges)
        >>> list(small.connected().edges())
        [('input', 'a0.h1<v>'), ('a0.h1', 'logits')]
    """

    graph: CircuitGraph
    kept: Tensor
    scores: Tensor | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in (("kept", self.kept), ("scores", self.scores)):
            if value is not None and value.shape != (len(self.graph),):
                raise SpecError(f"{name} has shape {tuple(value.shape)}, but the graph has {len(self.graph)} edges")
        if self.kept.dtype != torch.bool:
            raise SpecError(f"kept is booleans, True for the edges of the circuit; found {self.kept.dtype}")

    @classmethod
    @checked
    def of(
        cls, graph: CircuitGraph, edges: Collection[tuple[str, str]], facts: Mapping[str, Any] | None = None
    ) -> Circuit:
        """Return the circuit of some edges.

        Args:
            graph: of the model.
            edges: names of sender and receiver of each that is kept.
            facts: JSON-able: how it was found.

        Raises:
            UnknownNameError: there is no such edge.
        """
        wanted = set(map(tuple, edges))
        known = list(graph.edges())
        for edge in wanted.difference(known):
            names = [f"{a}->{b}" for a, b in known]
            raise UnknownNameError(f"the graph has no edge {edge!r}; {near_misses('->'.join(edge), names)}")
        return cls(graph, torch.tensor([edge in wanted for edge in known]), facts=facts or {})

    def __len__(self) -> int:
        """Return the number of edges that are kept."""
        return int(self.kept.sum())

    def __repr__(self) -> str:
        return f"Circuit({len(self)} of {len(self.graph)} edges)"

    def edges(self) -> Iterator[tuple[str, str]]:
        """Yield sender and receiver of each edge that is kept."""
        yield from (edge for edge, kept in zip(self.graph.edges(), self.kept.tolist(), strict=True) if kept)

    @property
    def nodes(self) -> list[str]:
        """The names of the nodes at kept edges: those that write, in their order, and `logits`."""
        senders = {sender for sender, _ in self.edges()}
        owners = {receiver.name: receiver.owner for receiver in self.graph.receivers}
        made = {name for _, receiver in self.edges() for name in owners[receiver]}
        names = [*(node.name for node in self.graph.senders), "logits"]
        return [name for name in names if name in senders | made]

    def connected(self) -> Circuit:
        """Return it without edges that lie on no path from the embeddings to the logits.

        With resampling these change nothing: what no kept edge leads to is as in the other run, and what leads nowhere
        is read by nobody.
        """
        return replace(self, kept=connected(self.graph, self.kept))

    def without(self) -> Circuit:
        """Return the complement: the model with the circuit removed."""
        return replace(self, kept=~self.kept)

    def to_networkx(self) -> networkx.DiGraph:
        """Return the kept edges as a graph of networkx, with the nodes that they touch; edges have `score`."""
        made = self.graph.to_networkx()
        kept = set(self.edges())
        owned = {(receiver.name, owner) for receiver in self.graph.receivers for owner in receiver.owner}
        made.remove_edges_from([edge for edge in list(made.edges) if edge not in kept and edge not in owned])
        touched = {name for edge in kept for name in edge} | set(self.nodes)
        made.remove_nodes_from([name for name in list(made) if name not in touched])
        if self.scores is not None:
            for edge, score in zip(self.graph.edges(), self.scores.tolist(), strict=True):
                if edge in kept:
                    made.edges[edge]["score"] = score
        return made

    def to_dict(self) -> dict[str, Any]:
        """Return it as the edge lists of the MIB benchmark are, with what is known of it under `facts`."""
        scores = None
        if self.scores is not None:
            scores = dict(zip(self.graph.edges(), self.scores.tolist(), strict=True))
        return {**self.graph.to_dict(scores, set(self.edges())), "facts": dict(self.facts)}

    @checked
    def save(self, path: str | Path) -> None:
        """Write it as JSON, whole or not at all.

        Args:
            path: of the file.
        """
        write_atomically(path, json.dumps(self.to_dict()).encode())

    @classmethod
    @checked
    def load(cls, path: str | Path, graph: CircuitGraph) -> Circuit:
        """Read what `save` wrote, or an edge list of the MIB benchmark.

        Args:
            path: of the file.
            graph: of the model that it is about: `graph(model)`.

        Raises:
            SpecError: the file is no edge list, or its edges are not those of the graph.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            found = {name: (bool(edge["in_graph"]), float(edge["score"])) for name, edge in data["edges"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SpecError(f"{path} is no list of edges as Circuit.save writes it ({error!r})") from error
        names, here = set(graph.to_dict()["edges"]), graph.facts.get("model")
        other = data.get("cfg", {}).get("model", here)
        if set(found) != names or other != here:
            raise SpecError(
                f"{path} is about another graph: {len(found)} edges of {other}; this one has {len(names)}, of {here}"
            )
        each = [found[shared[0]] for shared in graph.unshared()]
        kept, scores = (torch.tensor(values) for values in zip(*each, strict=True))
        return cls(graph, kept, scores if bool(scores.any()) else None, data.get("facts", {}))

    @checked
    def plot(self, *, most: int = 300) -> Figure:
        """Draw it and return matplotlib's figure (pyplot is not touched): layers upwards, the wider the larger a score.

        Where graphviz's program `dot` is installed, it places the nodes.

        Args:
            most: how many edges are drawn; of more than these the strongest, and the caption says so.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from ...report.circuit_figure import figure_of_circuit

        return figure_of_circuit(drawing_of_circuit(self, most))

    @checked
    def page(self, path: str | os.PathLike[str], *, most: int = 300, findings: Sequence[str] = ()) -> Path:
        """Write it as a web page: a threshold to move, what each node hears and tells, all edges as a table.

        The file holds all that it needs.

        Args:
            path: of the HTML file.
            most: as for `plot`.
            findings: what was measured of it, a line each, such as `evaluate_circuit(...)`'s `summary`.

        Returns:
            The path written.
        """
        from ...report.circuit_page import page_of_circuit

        return write_atomically(path, page_of_circuit(drawing_of_circuit(self, most), findings).encode())

    def _repr_html_(self) -> str:
        from ...report.circuit_page import part_of_page

        return part_of_page(drawing_of_circuit(self, 300), name=f"circuit-{id(self):x}")


def connected(graph: CircuitGraph, kept: Tensor) -> Tensor:
    """Return which of the kept edges lie on a path from the embeddings to the logits.

    Args:
        graph: of the model.
        kept: `(edges,)` booleans.
    """
    edges, makes = _layout(graph)
    alive = [node.kind == "input" for node in graph.senders]
    forward = []
    for edge in kept.nonzero()[:, 0].tolist():  # receivers in the order in which they read
        sender, row = edges[edge]
        if alive[sender]:
            forward.append(edge)
            for made in makes[row]:
                alive[made] = True
    wanted = [False] * len(graph.senders)
    found = torch.zeros(len(edges), dtype=torch.bool)
    heard = []
    for edge in reversed(forward):
        sender, row = edges[edge]
        if graph.receivers[row].kind == "logits" or any(wanted[made] for made in makes[row]):
            wanted[sender] = True
            heard.append(edge)
    found[heard] = True
    return found


@lru_cache(maxsize=4)
def _layout(graph: CircuitGraph) -> tuple[list[tuple[int, int]], list[list[int]]]:
    """Return of each edge the numbers of its ends, and of each receiver those of the senders that it makes."""
    numbers = {node.name: n for n, node in enumerate(graph.senders)}
    edges = [(sender, row) for row, senders in enumerate(graph.visible) for sender in senders]
    return edges, [[numbers[name] for name in node.owner if name in numbers] for node in graph.receivers]


def drawing_of_circuit(circuit: Circuit, most: int) -> CircuitDrawing:
    """Return a circuit's drawing.

    Args:
        circuit: as it is.
        most: how many edges are drawn.

    Raises:
        SpecError: it has no edges, or none is to be drawn.
    """
    from ...report.circuit_drawing import CircuitEdge, CircuitNode, drawing_of

    if not len(circuit) or most < 1:
        raise SpecError(f"there is nothing to draw: the circuit has {len(circuit)} edges, and most={most}")
    graph, facts = circuit.graph, circuit.facts
    owners = {receiver.name: receiver.owner for receiver in graph.receivers}
    nodes = [CircuitNode(one.name, one.kind, one.layer, one.note) for one in (*graph.senders, graph.receivers[-1])]
    scores = [None] * len(graph) if circuit.scores is None else circuit.scores.tolist()
    lines = zip(graph.edges(), scores, circuit.kept.tolist(), strict=True)
    edges = [CircuitEdge(*edge, owners[edge[1]], score) for edge, score, kept in lines if kept]
    told = {name: facts[name] for name in ("model", "method", "ablation", "metric", "pairs", "seed") if name in facts}
    title = f"{len(circuit)} of the {len(graph)} edges of {facts.get('model') or graph.facts.get('model', 'a model')}"
    return drawing_of(title, nodes, edges, most=most, facts=told)
