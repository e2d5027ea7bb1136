"""Nodes of the graph that a model's residual stream makes of it: what writes into the stream, and what reads it.

A node is named as the literature on circuits names it: `a9.h6` (head 6 of layer 9), `m9` (the MLP of layer 9), `b9`
(the residual stream behind block 9), `input` (the token embeddings), `logits`. Of a head three vectors read the stream:
`a9.h6<q>`, `a9.h6<k>`, `a9.h6<v>`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from .._errors import PositionError, SpecError
from ..models import resolve
from ..models.component_map import Block, ComponentMap
from ..sites import Site

Kind = Literal["input", "head", "mlp", "block", "logits"]
READS = {"q": "query_output", "k": "key_output", "v": "value_output"}
"""What of a head reads the residual stream."""

_NAME = re.compile(
    r"(?P<end>input|logits)|a(?P<a>\d+)\.h(?P<head>\d+)(?:<(?P<reads>[qkv])>)?|(?P<kind>[mb])(?P<layer>\d+)"
)


@dataclass(frozen=True)
class Node:
    """A part of a model that writes into the residual stream, or that reads it.

    Args:
        kind: what it is.
        layer: block number; of an end of the model `None`.
        head: its number; of a key or value the number of the kv head.
        reads: of a head that reads the stream, which of its vectors: `q`, `k` or `v`.

    >>> Node.named("a9.h6<q>").site, Node.named("m3").goes_into
    (Site(component='query_output', layer=9, call=None), Site(component='mlp_input', layer=3, call=None))
    """

    kind: Kind
    layer: int | None = None
    head: int | None = None
    reads: str = ""

    @classmethod
    def named(cls, name: str) -> Node:
        """Return the node of a name.

        Raises:
            SpecError: it is none.
        """
        found = _NAME.fullmatch(name) if isinstance(name, str) else None
        if found is None:
            raise SpecError(
                f"a node is named 'a9.h6' (a head), 'a9.h6<q>' (what of it reads: q, k or v), 'm9' (an MLP), 'b9' (a "
                f"block), 'input' or 'logits'; found {name!r}"
            )
        if found["end"]:
            return cls("input" if found["end"] == "input" else "logits")
        if found["a"] is not None:
            return cls("head", int(found["a"]), int(found["head"]), found["reads"] or "")
        return cls("mlp" if found["kind"] == "m" else "block", int(found["layer"]))

    def __str__(self) -> str:
        if self.kind == "head":
            return f"a{self.layer}.h{self.head}" + (f"<{self.reads}>" if self.reads else "")
        return self.kind if self.layer is None else f"{self.kind[0]}{self.layer}"

    @property
    def site(self) -> Site:
        """What the node gives; of a head that reads, the vector that it reads with."""
        if self.kind == "head":
            return Site(READS[self.reads] if self.reads else "attention_value_output", self.layer)
        return Site({"input": "embedding_output", "mlp": "mlp_output", "block": "block_output"}[self.kind], self.layer)

    @property
    def goes_into(self) -> Site:
        """Where the node gets the residual stream."""
        return self.site if self.kind == "head" else Site(f"{self.kind}_input", self.layer)

    @property
    def writes_at(self) -> float:
        """When it writes into the stream, in order of layers."""
        return -1.0 if self.layer is None else self.layer + {"head": 0.25, "mlp": 0.75, "block": 0.8}[self.kind]

    @property
    def reads_at(self) -> float:
        """When it reads the stream."""
        return float("inf") if self.layer is None else self.layer + {"head": 0.2, "mlp": 0.7, "block": 0.1}[self.kind]


def senders_of(asked: str | Sequence[str | Sequence[str]], found: ComponentMap) -> list[tuple[Node, ...]]:
    """Return the senders, each a node or several that send together.

    Args:
        asked: `"heads"`, `"mlps"`, `"all"` (both, and the embeddings), or names, those in a tuple together.
        found: in the model, as `one_stack` gives it.

    Raises:
        SpecError: a name is no node that sends.
        PositionError: the model has no such layer or head.
    """
    if isinstance(asked, str) and asked in ("heads", "mlps", "all"):
        each = [] if asked != "all" else [Node("input")]
        each += [] if asked == "mlps" else list(_heads(found))
        each += [] if asked == "heads" else list(_mlps(found))
        senders: list[tuple[Node, ...]] = [(node,) for node in each]
    else:
        names = [asked] if isinstance(asked, str) else asked
        senders = [tuple(map(Node.named, [one] if isinstance(one, str) else one)) for one in names]
    if not senders or not all(senders):
        raise SpecError(f"senders are 'heads', 'mlps', 'all' or names of nodes; found {asked!r}")
    for node in (node for several in senders for node in several):
        if node.kind == "logits" or node.reads:
            raise SpecError(f"{node} sends nothing; senders are heads, MLPs, blocks and input")
        _check(node, found)
    return senders


def receivers_of(
    asked: str | Sequence[str], found: ComponentMap, *, per_query_head: bool, what: str
) -> tuple[Node, ...]:
    """Return nodes that read the residual stream.

    Args:
        asked: a name, or several.
        found: in the model, as `one_stack` gives it.
        per_query_head: keys and values are named by the head that reads them, not by the kv head.
        what: the argument, for messages.

    Raises:
        SpecError: a name is no node that reads.
        PositionError: the model has no such layer or head.
    """
    names = [asked] if isinstance(asked, str) else list(asked)
    receivers = tuple(dict.fromkeys(map(Node.named, names)))
    if not receivers:
        raise SpecError(f"{what} names no node")
    for node in receivers:
        if node.kind == "input" or (node.kind == "head" and not node.reads):
            say = "say which of its vectors reads: " + ", ".join(f"'{node}<{r}>'" for r in READS)
            raise SpecError(
                f"{what}: {say if node.kind == 'head' else 'the embeddings read nothing'}; found {str(node)!r}"
            )
        _check(replace(node, reads="q") if per_query_head and node.reads else node, found)
    return receivers


def group_size(node: Node, found: ComponentMap) -> int:
    """Return how many heads read one key or value in the layer of a node."""
    own, read = (heads_at(Site(READS[reads], node.layer), found) for reads in "qk")
    return own // read


def kv_head(node: Node, found: ComponentMap) -> int:
    """Return the number of the kv head that the head of a node reads."""
    return int(node.head or 0) // group_size(node, found)


def heads_at(site: Site, found: ComponentMap) -> int:
    """Return how many heads a site has."""
    slot = found.slot(site)
    return slot.n_heads if slot.heads is None else len(slot.heads)


WRITES_AT = {
    "attention_output": 0.25,
    "mixer_output": 0.25,
    "mlp_output": 0.75,
    "moe_output": 0.75,
    "per_layer_mlp_output": 0.78,
}
"""What writes into the residual stream in a block, and when, as `Node.writes_at` counts."""


def writers(block: Block) -> list[str]:
    """Return what writes into the residual stream in a block: all that is known, and what there is beside it."""
    mixer, mlp = str(block.flags.get("mixer", "softmax")), block.flags.get("mlp") != "none"
    there = {"attention_output": "softmax" in mixer, "mixer_output": "other" in mixer, "mlp_output": mlp}
    return [name for name in WRITES_AT if there.get(name, name in block.slots)]


def carries(block: Block) -> bool:
    """Whether a block hands on whatever is added to the stream, as long as what writes into it stays as it is."""
    return all(name.replace("_output", "_contribution") in block.slots for name in writers(block))


def others(block: Block, layer: int, mlps: bool) -> Iterator[tuple[Site, float]]:
    """Yield what is frozen in a block, and when it writes: attention or another mixer, and all MLPs if asked for."""
    for name in writers(block):
        if mlps or WRITES_AT[name] < 0.5:
            yield Site("attention_value_output" if name == "attention_output" else name, layer), layer + WRITES_AT[name]


def one_stack(model: nn.Module) -> ComponentMap:
    """Return what was found in a model whose paths are defined: one with one stack of blocks.

    Raises:
        SpecError: it has several, or none.
    """
    found = resolve(model)
    if "" in found.stacks:
        return found
    stacks = sorted(found.stacks)
    has = f"{type(model).__name__} has {stacks or 'no known stack of blocks'}"
    why = ", and the encoder's ends in the keys and values of every decoder block" if "encoder" in stacks else ""
    raise SpecError(f"{has}: paths are defined along one residual stream{why}")


def _heads(found: ComponentMap) -> Iterator[Node]:
    for layer, block in enumerate(found.stacks[""]):
        if "softmax" in str(block.flags.get("mixer", "softmax")):
            yield from (Node("head", layer, n) for n in range(heads_at(Site("attention_value_output", layer), found)))


def _mlps(found: ComponentMap) -> Iterator[Node]:
    blocks = found.stacks[""]
    yield from (Node("mlp", layer) for layer, block in enumerate(blocks) if block.flags.get("mlp") != "none")


def _check(node: Node, found: ComponentMap) -> None:
    depth = len(found.stacks[""])
    if node.layer is not None and node.layer >= depth:
        raise PositionError(f"{node}: {found.model_class} has {depth} layers, 0 to {depth - 1}")
    if node.head is not None and node.head >= (count := heads_at(node.site, found)):
        what = " (keys and values are counted by kv head; per_query_head=True counts them by query head)"
        raise PositionError(f"{node}: {node.site} has {count} heads{what if node.reads in ('k', 'v') else ''}")
    if node.kind != "logits":
        found.slot(node.goes_into if node.reads else node.site)
