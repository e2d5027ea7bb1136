"""The graph that a model's residual stream makes of it: what writes into the stream, what reads it, who reads whom.

Elhage et al. 2021, "A mathematical framework for transformer circuits"; Mueller et al. 2025, arXiv:2504.13151 (MIB).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .._checked import checked
from .._errors import SpecError
from ..models import find_slot, uncompiled
from ..models.component_map import Block, ComponentMap
from ..models.dummy import dummy_inputs
from ..sites import ADDENDS, Site
from ._experts import ExpertCalls, expert_modules
from ._module_kinds import is_norm
from ._nodes import heads_at, one_stack
from ._taped import Tape, record
from .circuit_graph import CircuitGraph, GraphNode, GraphNodeKind

_LETTERS = {"q": "query", "k": "key", "v": "value"}
MIXERS = {"mixer_output": "s", "moe_output": "e", "per_layer_mlp_output": "p", "cross_attention_output": "c"}


@checked
def graph(model: nn.Module, *, heads: bool = True, per_query_head: bool = False, experts: bool = True) -> CircuitGraph:
    """Return the nodes and edges of a model, from the map of its components; no list of architectures is asked.

    Senders are the embeddings, each head (its z through its slice of the output projection), each MLP or each expert,
    other mixers. Receivers are queries, keys and values of each head, inputs of MLPs, experts and routers, and the
    final norm. Who reads whom within a block is measured, in one forward pass: so parallel blocks are told apart.

    Args:
        model: a language model with one residual stream; not changed.
        heads: each head is a node; `False`: those of a block are one, which can be run exactly in every model.
        per_query_head: keys and values are told for each head, also where several share them.
        experts: each expert is a node; `False`: all of a block are one.

    Returns:
        A `CircuitGraph`. What cannot be told apart exactly is one coarser node, with the reason in its `note`.

    Raises:
        SpecError: the model has several stacks of blocks, or none that is known.

    Example:
        >>> import transformers
        >>> sizes = dict(vocab_size=50, n_embd=16, n_head=2, n_layer=2, n_positions=8)
        >>> model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))
        >>> made = graph(model)
        >>> len(made), [str(node) for node in made.senders]
        (46, ['input', 'a0.h0', 'a0.h1', 'm0', 'a1.h0', 'a1.h1', 'm1'])
    """
    found = one_stack(model)
    maker = _GraphMaker(model, found, heads, per_query_head, experts)
    for layer, block in enumerate(found.stacks[""]):
        maker.add(layer, block)
    maker.receivers.append(GraphNode("logits", "logits", owner=("logits",)))
    maker.visible.append(tuple(maker.open))
    counts = [heads_at(Site("attention_value_output", n), found) for n, b in enumerate(found.stacks[""]) if _heads(b)]
    facts = {
        "model": found.model_class,
        "n_layers": len(found.stacks[""]),
        "n_heads": max(counts, default=0),
        "parallel_attn_mlp": maker.parallel,
        "d_model": find_slot(model, Site("embedding_output")).width if "embedding_output" in found.ends else None,
    }
    return CircuitGraph(tuple(maker.senders), tuple(maker.receivers), tuple(maker.visible), facts)


def _heads(block: Block) -> bool:
    slot = block.slots.get("attention_value_output")
    return slot is not None and slot.heads is not None


class _GraphMaker:
    """Adds block after block.

    Args:
        model: the user's.
        found: in it.
        heads: as for `graph`.
        per_query_head: likewise.
        experts: likewise.
    """

    def __init__(self, model: nn.Module, found: ComponentMap, heads: bool, per_query_head: bool, experts: bool) -> None:
        self._model, self._found, self._per_query_head, self._split = model, found, per_query_head, experts
        self._heads = heads
        self.senders = [GraphNode("input", "input")]
        self.receivers: list[GraphNode] = []
        self.visible: list[tuple[int, ...]] = []
        self.open = [0]
        """The senders whose values are summands of the stream, as it is now."""
        self.parallel = False
        self._calls = ExpertCalls(expert_modules(found.stacks[""] if experts else ()))
        self._tape = self._watched()

    def add(self, layer: int, block: Block) -> None:
        """Add the nodes of a block."""
        parts = parts_of(block)
        why = _whole(block, parts)
        if why:
            name = f"b{layer}"
            self._read([GraphNode(name, "block", layer, owner=(name,), note=why)], self.open)
            self.senders.append(GraphNode(name, "block", layer, note=why))
            self.open = [len(self.senders) - 1]
            return
        before, written = list(self.open), {}
        readings = []
        for part in parts:
            first = len(self.senders)
            made, reading = self._nodes(layer, block, part)
            self.senders += made
            written[part] = list(range(first, len(self.senders)))
            readings.append((part, reading))
        for part, reading in readings:
            seen = [other for other in parts if other != part and self._depends(layer, block, part, other)]
            if part == "mlp_output" and "attention_output" in parts:
                self.parallel = self.parallel or "attention_output" not in seen
            self._read(reading, [*before, *(number for other in seen for number in written[other])])
        self.open = [*before, *(number for part in parts for number in written[part])]

    def _read(self, receivers: Sequence[GraphNode], numbers: Sequence[int]) -> None:
        self.receivers += receivers
        self.visible += [tuple(sorted(numbers))] * len(receivers)

    def _nodes(self, layer: int, block: Block, part: str) -> tuple[list[GraphNode], list[GraphNode]]:
        """Return what a part of a block writes, and what of it reads."""
        if part == "attention_output":
            return self._attention(layer, block)
        if part == "mlp_output" and block.flags.get("experts") and self._split:
            return self._experts(layer, block)
        name = f"{MIXERS.get(part, 'm')}{layer}"
        kind: GraphNodeKind = "mlp" if part in ("mlp_output", "per_layer_mlp_output") else "mixer"
        return _alone(name, kind, layer, "experts beside an MLP, told as one" if part == "moe_output" else "")

    def _attention(self, layer: int, block: Block) -> tuple[list[GraphNode], list[GraphNode]]:
        name = f"a{layer}"
        if not self._heads:
            return _alone(name, "attention", layer, "attention as one node, as asked")
        split = _heads(block) and all(f"{what}_output" in block.slots for what in _LETTERS.values())
        counts = {w: heads_at(Site(f"{w}_output", layer), self._found) for w in _LETTERS.values()} if split else {}
        if not split or not all(counts.values()):
            why = next(
                (block.missing[w] for w in ("attention_value_output", "query_output") if w in block.missing),
                "its heads are not known",
            )
            return _alone(name, "attention", layer, f"attention as one node: {why}")
        count = counts["query"]
        tied = block.missing.get("head_contribution", "")
        note = f"tied to the other heads of the layer: {tied}" if tied else ""
        senders = [GraphNode(f"{name}.h{n}", "head", layer, n, note=note) for n in range(count)]
        receivers: list[GraphNode] = []
        for letter, what in _LETTERS.items():
            own, why = counts[what], self._mixed(layer, block, what)
            if why:
                every = tuple(sender.name for sender in senders)
                receivers.append(GraphNode(f"{name}<{letter}>", "attention", layer, owner=every, note=why))
                continue
            shared = count // own
            for n in range(count if self._per_query_head else own):
                makes = (n,) if self._per_query_head else range(n * shared, (n + 1) * shared)
                owner = tuple(senders[head].name for head in makes)
                receivers.append(GraphNode(f"{name}.h{n}<{letter}>", "head", layer, n, owner))
        return senders, receivers

    def _experts(self, layer: int, block: Block) -> tuple[list[GraphNode], list[GraphNode]]:
        name, why = f"m{layer}", self._tied(layer, block)
        if why:
            return _alone(name, "mlp", layer, f"experts as one node: {why}")
        router, experts = (block.slots[name] for name in ("router_output", "expert_activation"))
        count = int(router.width or 0)
        names = [f"{name}.e{n}" for n in range(count)]
        home, known = block.slots["mlp_output"].module, {experts.module, router.module}
        if any(child not in known and any(True for _ in child.parameters()) for child in home.children()):
            names.append(f"{name}.shared")
        nodes = [GraphNode(one, "expert", layer, n if n < count else None) for n, one in enumerate(names)]
        reading = [GraphNode(node.name, node.kind, layer, node.number, (node.name,)) for node in nodes]
        return nodes, [*reading, GraphNode(f"{name}<router>", "router", layer, owner=tuple(names[:count]))]

    def _tied(self, layer: int, block: Block) -> str:
        """Return why it is not known what each expert reads of the stream and adds to it; nothing where it is."""
        for name in ("expert_activation", "router_output"):
            if name not in block.slots:
                return block.missing.get(name, "they were not found")
        if block.slots["router_output"].width is None:
            return "it is not known how many there are"
        read, added = (self._tape.nodes[Site(f"mlp_{what}", layer)] for what in ("input", "contribution"))
        number = self._calls.scale(layer, read, added)
        return "" if number is not None else "something stands between what each of them gives and the stream"

    def _mixed(self, layer: int, block: Block, what: str) -> str:
        """Return why queries or keys of one head depend on what another head reads; nothing if they do not."""
        owner = uncompiled(self._model).get_submodule(str(block.flags.get("attention_owner", "")))
        slot = block.slots[f"{what}_output"]
        width = 0 if slot.heads is None else slot.heads.numel()
        wide = [module for module in owner.modules() if is_norm(module, width)] if what != "value" else []
        if not wide or f"{what}_rotary" not in block.slots:
            return f"a norm over all heads, and it is not known where {what} vectors go" if wide else ""
        before, after = (Site(f"{what}_{name}", layer) for name in ("output", "rotary"))
        assert slot.heads is not None
        node = self._tape.nodes[after]
        first = torch.zeros_like(node)
        size = node.shape[-1] // len(slot.heads)
        first[..., :size] = _noise(node[..., :size])
        (moved,) = torch.autograd.grad(node, [self._tape.nodes[before]], first, retain_graph=True, allow_unused=True)
        others = None if moved is None else moved[..., slot.heads[1:].flatten().to(moved.device)]
        mixed = others is not None and bool(others.abs().max() > 0)
        return f"{what} vectors of all heads share one norm ({type(wide[0]).__name__})" if mixed else ""

    def _depends(self, layer: int, block: Block, part: str, other: str) -> bool:
        """Whether what a part of a block reads depends on what another part of it adds."""
        reader = Site(reads_at(block, part), layer)
        writer = Site(other.replace("_output", "_contribution"), layer)
        node = self._tape.nodes[reader]
        (moved,) = torch.autograd.grad(
            node, [self._tape.nodes[writer]], _noise(node), retain_graph=True, allow_unused=True
        )
        return moved is not None and bool(moved.abs().max() > 0)

    def _watched(self) -> Tape:
        """Return a tape of all that is read and written, of a dummy input."""
        sites = []
        for layer, block in enumerate(self._found.stacks[""]):
            parts = parts_of(block)
            if not _whole(block, parts):
                sites += [Site(part.replace("_output", "_contribution"), layer) for part in parts]
                sites += [Site(reads_at(block, part), layer) for part in parts]
                rotary = [f"{what}_{name}" for what in ("query", "key") for name in ("output", "rotary")]
                sites += [Site(name, layer) for name in rotary if name in block.slots]
        inputs = dict(next(dummy_inputs(uncompiled(self._model))))
        try:
            return record(self._model, inputs, list(dict.fromkeys(sites)), graph=True, within=self._calls.watched)
        except (TypeError, ValueError, RuntimeError) as error:
            raise SpecError(f"{self._found.model_class} takes no dummy input, so its graph is not known") from error


def _alone(name: str, kind: GraphNodeKind, layer: int, note: str) -> tuple[list[GraphNode], list[GraphNode]]:
    """Return one node that writes, and reads as a whole."""
    return [GraphNode(name, kind, layer, note=note)], [GraphNode(name, kind, layer, owner=(name,), note=note)]


def parts_of(block: Block) -> list[str]:
    """Return what writes into the stream in a block, in the order in which blocks add it."""
    return [name for name in ADDENDS if name in block.slots]


def _whole(block: Block, parts: Sequence[str]) -> str:
    """Return why a block is one node; nothing where its parts are known."""
    if not parts:
        return "no part of the block is known"
    for part in parts:
        name = part.replace("_output", "_contribution")
        if name not in block.slots:
            return block.missing.get(name, f"what {part} adds to the stream is not known")
        if reads_at(block, part) not in block.slots:
            return block.missing.get(reads_at(block, part), f"what {part} reads is not known")
    return ""


def reads_at(block: Block, part: str) -> str:
    """Return the component that a part of a block reads the stream with."""
    name = part.replace("_output", "_input")
    return "query_output" if name == "attention_input" and name not in block.slots else name


def _noise(tensor: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(tensor.shape, generator=generator).to(tensor)
