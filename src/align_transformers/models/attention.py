"""The attention of a block: its input, its projections head by head, the heads' output, the output projection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .findings import Findings, common_ancestor, reached, same_values
from .heads import HeadMap, gradients_by_head, heads_used, map_heads, split_heads
from .probing import follow
from .slot import find_leaf
from .trace import Attention, ModuleCall

ROLES = ("query", "key", "value")
INTERFACE = ("query_rotary", "key_rotary", "attention_score", "attention_pattern", "head_output")
"""What only transformers' attention interface shows."""


def find_attention(found: Findings, linears: Sequence[ModuleCall]) -> None:
    """Note the attention components of a block, self-attention and cross-attention apart.

    Args:
        found: the block.
        linears: the linear layers called in it, in order.
    """
    events = _usable(found)
    found.flags["mixer"] = "softmax" if events else "none"
    kinds: dict[str, list[Attention]] = {"": [], "cross_": []}
    for event in events:
        here, elsewhere = _key_sources(found, event, linears)
        if here and elsewhere:
            found.refuse([*names(""), *names("cross_")], "one attention reads keys of this sequence and of another")
            found.take(event.owner, linears)
        else:
            kinds["cross_" if elsewhere else ""].append(event)
    for prefix, seen in kinds.items():
        if len(seen) == 1 or (seen and _is_joint(seen)):
            _find_one(found, prefix, seen, linears)
        elif seen:
            found.refuse(names(prefix), f"{len(seen)} attention calls of a kind in one block")
            for event in seen:
                found.take(event.owner, linears)
    if not events:
        found.refuse(names(""), "no softmax attention was seen in this block")
    elif not kinds[""] and kinds["cross_"]:
        found.refuse(names(""), "this block only attends to another sequence: see cross_attention_output and so on")


def names(prefix: str) -> list[str]:
    """Return the names of all components of one kind of attention; `prefix` is empty or `cross_`.

    >>> names("cross_")[:2]
    ['cross_attention_input', 'cross_attention_value_output']
    """
    parts = [f"{prefix}attention_{part}" for part in ("input", "value_output", "output")]
    return parts + [f"{prefix}{role}_output" for role in ROLES] + [f"{prefix}{name}" for name in INTERFACE]


def block_axes(block: ModuleCall, events: Sequence[Attention], batch: int) -> tuple[int, int]:
    """Return how many examples and positions a block works on.

    Args:
        block: its call; packed inputs `(tokens, width)` are one example.
        events: the attentions seen in it: transformers' interface tells exactly.
        batch: examples in the traced input.
    """
    for event in events:
        if event.source == "interface" and event.query is not None:
            return int(event.query.shape[0]), int(event.query.shape[2])
    assert block.input is not None
    shape = block.input.shape
    if len(shape) == 2:
        return 1, int(shape[0])
    if len(shape) == 3 and shape[0] != batch and shape[1] == batch:
        return batch, int(shape[0])
    if len(shape) == 4:  # several streams: (batch, length, streams, width) or (streams, batch, length, width)
        return batch, int(shape[1] if shape[0] == batch else shape[2])
    return batch, int(shape[-2])


def _usable(found: Findings) -> list[Attention]:
    """Return the attentions seen in the block; those of transformers' interface alone if there are any."""
    events = [event for event in found.trace.attentions_during(found.block) if event.core is not None]
    if any(event.source == "interface" for event in events):
        return [event for event in events if event.source == "interface"]
    return [e for e in events if e.source == "sdpa" or (e.pattern is not None and e.pattern.shape[-2] == found.length)]


def _key_length(event: Attention) -> int | None:
    if event.pattern is not None:
        return int(event.pattern.shape[-1])
    return None if event.key is None else int(event.key.shape[-2])


def _key_sources(found: Findings, event: Attention, linears: Sequence[ModuleCall]) -> tuple[bool, bool]:
    """Return whether keys come from this block's sequence, and whether from another, handed to it ready-made."""
    before = [call for call in linears if call.end < event.time and call.cut is not None]
    leaves = [call.cut for call in before if call.cut is not None]
    key = event.key
    sources = [call.input for call, yes in zip(before, reached(key, leaves), strict=True) if yes]
    if not sources:
        other = _key_length(event) not in (None, found.length, found.length + 1)
        return not other, other
    own = find_leaf(found.block.arguments, found.block.input_leaf, found.block.path)[1]
    handed = [tensor for tensor in _tensors(found.block.arguments) if tensor is not own]
    foreign = [any(same_values(source, tensor) for tensor in handed) for source in sources]
    return not all(foreign), any(foreign)


def _tensors(arguments: tuple[tuple[object, ...], dict[str, object]]) -> list[Tensor]:
    args, kwargs = arguments
    return [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.is_floating_point()]


def _is_joint(events: Sequence[Attention]) -> bool:
    """Whether several attention calls are one attention's: the same queries and keys, on other values each."""
    one = events[0]
    same = (e.owner is one.owner and same_values(e.query, one.query) and same_values(e.key, one.key) for e in events)
    return one.query is not None and one.key is not None and all(same)


def _find_one(found: Findings, prefix: str, events: Sequence[Attention], linears: Sequence[ModuleCall]) -> None:
    """Note one attention, which may consist of several calls with the same queries and keys."""
    rows, length, event = found.batch, found.length, events[0]
    before = [call for call in linears if call.end < event.time]
    projections = _projections(found, prefix, events, before, rows, length)
    if len(events) == 1:
        _note_interface(found, prefix, event)
        output = _output_projection(found, prefix, event, linears, rows, length)
    else:
        found.refuse([prefix + name for name in INTERFACE], f"{len(events)} attention calls make one attention here")
        output = _joint_output(found, prefix, events, linears)
    parts = [*{head_map.call for head_map in projections.values()}, *([output] if output else [])]
    found.taken.update(parts)
    if not parts:
        found.take(event.owner, linears)
        found.refuse([f"{prefix}attention_input"], "no linear layer of the attention is known")
        return
    home = common_ancestor(parts, found.block) if len(parts) > 1 else None
    root = home if home is not None else event.owner if event.owner is not found.block else None
    if root is not None:
        found.take(root, linears)
    found.flags[f"{prefix}attention_owner"] = event.owner.path
    _find_input(found, prefix, event, [call for call in before if call in found.taken], projections)


def _note_interface(found: Findings, prefix: str, event: Attention) -> None:
    """Note what attention gets and gives, head by head, where it goes through transformers' interface."""
    query, key, core = event.query, event.key, event.core
    if event.source != "interface" or query is None or key is None or core is None:
        found.refuse(
            [prefix + name for name in INTERFACE], "attention does not go through transformers' interface here"
        )
        return
    how = "an argument or the result of transformers' attention interface"
    for name, heads, size in (
        ("query_rotary", query.shape[1], query.shape[3]),
        ("key_rotary", key.shape[1], key.shape[3]),
        ("head_output", core.shape[2], core.shape[3]),
    ):
        channels = torch.arange(heads * size).view(heads, size)
        found.note_via(prefix + name, event.owner, name, how, heads=channels, width=heads * size)
    for name in ("attention_score", "attention_pattern"):
        found.note_via(prefix + name, event.owner, name, how, n_heads=int(query.shape[1]))


def _projections(
    found: Findings, prefix: str, events: Sequence[Attention], before: Sequence[ModuleCall], rows: int, length: int
) -> dict[str, HeadMap]:
    """Note query, key and value with the channels of each head; return those that were found."""
    event = events[0]
    key_length = _key_length(event) or length
    roles: dict[str, dict[ModuleCall, Tensor]] = {}
    sizes: dict[str, int | None] = {}
    for role, seen, size in zip(
        ROLES, (event.query, event.key, event.value), (length, key_length, key_length), strict=True
    ):
        split = split_heads(seen, event, rows, size, key=role == "key")
        roles[role] = {} if split is None else gradients_by_head(split, before)
        if role == "value" and len(events) > 1:  # the heads of all calls side by side
            more = [split_heads(e.value, e, rows, size, key=False) for e in events[1:]]
            reaches = [roles[role], *({} if s is None else gradients_by_head(s, before) for s in more)]
            shared = [call for call in reaches[0] if all(call in reach for reach in reaches)]
            roles[role] = {call: torch.cat([reach[call] for reach in reaches], 1) for call in shared}
        sizes[role] = int(split.shape[-1]) if split is not None and event.source == "interface" else None
    maps: dict[str, HeadMap] = {}
    for role in ROLES:
        head_map = map_heads(roles, role, sizes[role], event.source == "interface")
        if isinstance(head_map, str):
            found.refuse([f"{prefix}{role}_output"], head_map)
            continue
        maps[role] = head_map
        whole, own = sizes[role], int(head_map.channels.shape[1])
        if whole is not None and own < whole:  # the rest of a head is shared, or comes otherwise
            found.flags[f"{prefix}{role}_part"] = (own, whole)
        found.note(
            f"{prefix}{role}_output",
            head_map.call,
            "output",
            head_map.how,
            channels=_channels(head_map),
            heads=head_map.channels,
        )
    _note_groups(found, prefix, maps, events, key_length)
    return maps


def _channels(head_map: HeadMap) -> Tensor | None:
    """Return the projection's channels in the order of the heads; `None` if that is simply all of them."""
    flat = head_map.channels.flatten()
    width = 0 if head_map.call.output is None else head_map.call.output.shape[-1]
    return None if torch.equal(flat, torch.arange(width)) else flat


def _note_groups(
    found: Findings, prefix: str, maps: dict[str, HeadMap], events: Sequence[Attention], key_length: int
) -> None:
    """Note which head of the keys and values each query head uses, where there are fewer of these."""
    event = events[0]
    for role, seen in (("key", event.key), ("value", event.value)):
        if "query" in maps and role in maps and len(maps["query"].channels) != len(maps[role].channels):
            queries, name = len(maps["query"].channels), f"{prefix}{role}_output"
            used = None
            if seen is not None and (role == "key" or len(events) == 1):
                sizes = queries, key_length
                used = heads_used(event, seen, found.batch, found.length, sizes, key=role == "key")
            note = _sharing(queries, maps[role].feeds, used)
            found.slots[name] = replace(found.slots[name], grouping=note)
    for role, head_map in maps.items():
        found.flags[f"{prefix}{role}_heads"] = tuple(head_map.channels.shape)


def _sharing(queries: int, feeds: Sequence[Sequence[int]], used: Sequence[int] | None) -> str:
    """Return in words which of the rows of key/value heads each query head uses.

    Args:
        queries: number of query heads.
        feeds: for each row the heads that it makes, as attention saw them.
        used: which head that attention saw each query head used; `None`: not known unless there is one for each.

    >>> _sharing(4, [(0,), (1,)], [0, 0, 1, 1])
    '4 query heads share 2 key/value heads: query head h uses key/value head h // 2'
    >>> _sharing(4, [(0, 2), (1, 3)], None)
    '4 query heads share 2 key/value heads: query heads 0 to 3 use key/value heads 0, 1, 0, 1'
    """
    shared = f"{queries} query heads share {len(feeds)} key/value heads"
    row = {head: number for number, heads in enumerate(feeds) for head in heads}
    used = list(range(queries)) if used is None and len(row) == queries else used
    if used is None or not set(used) <= set(row):
        return f"{shared}: which uses which was not seen"
    rows = [row[head] for head in used]
    if rows == [head * len(feeds) // queries for head in range(queries)]:
        return f"{shared}: query head h uses key/value head h // {queries // len(feeds)}"
    return f"{shared}: query heads 0 to {queries - 1} use key/value heads {', '.join(map(str, rows))}"


def split_core(core: Tensor, batch: int, length: int) -> Tensor | None:
    """Return the heads' output as `(batch, length, heads, head_dim)`; `None` if its layout is not known."""
    shape = core.shape
    if core.ndim == 4 and shape[0] == batch:
        if shape[1] == length:
            return core
        return core.transpose(1, 2) if shape[2] == length else None
    if core.ndim == 4 and shape[0] == length and shape[1] == batch:
        return core.transpose(0, 1)
    if core.ndim == 3 and shape[1] == length and shape[0] % batch == 0:
        return core.reshape(batch, shape[0] // batch, length, shape[2]).transpose(1, 2)
    return None


def _output_projection(
    found: Findings, prefix: str, event: Attention, linears: Sequence[ModuleCall], rows: int, length: int
) -> ModuleCall | None:
    """Note the heads' output and the output projection; return the projection."""
    both = [f"{prefix}attention_value_output", f"{prefix}attention_output"]
    assert event.core is not None
    seen = event.core if event.source != "sdpa" else event.core.transpose(-2, -3)
    unclear = event.source == "softmax" and seen.ndim == 4 and seen.shape[1] == seen.shape[2]  # heads or positions?
    core = None if unclear else split_core(seen, rows, length)
    if core is None:
        found.refuse(both, f"the heads' output has the unknown layout {tuple(event.core.shape)}")
        return None
    heads, size = int(core.shape[2]), int(core.shape[3])
    after = [c for c in linears if c.start > event.time and c.input is not None and c.input.shape[-1] == heads * size]
    flat = core.reshape(rows, length, heads * size)
    exact = next((c for c in after if _holds(c.input, flat)), None)
    home = event.owner.parent if event.owner.parent is not found.block else event.owner
    near = [c for c in after if home is not None and home is not found.block and c.inside(home)]
    chosen = exact or next((c for c in near if any(reached(c.input, [event.core]))), None)
    if chosen is None:
        found.refuse(both, "no linear layer reads the heads' output side by side")
        return None
    local = exact is not None or _head_local(chosen.input, event.core, heads, size)
    found.flags[f"{prefix}z_exact"], found.flags[f"{prefix}z_head_local"] = exact is not None, local
    how = (
        "its input is the heads' output side by side"
        if exact
        else "its input depends on the heads' output (gate or norm)"
    )
    channels = torch.arange(heads * size).view(heads, size) if local else None
    found.note(both[0], chosen, "input", how, heads=channels)
    found.note(both[1], chosen, "output", how)
    return chosen


def _joint_output(
    found: Findings, prefix: str, events: Sequence[Attention], linears: Sequence[ModuleCall]
) -> ModuleCall | None:
    """Note what the output projection reads and gives where several attention calls lead to it; return it."""
    both = [f"{prefix}attention_value_output", f"{prefix}attention_output"]
    cores = [event.core for event in events if event.core is not None]
    after = [c for c in linears if c.start > events[-1].time and c.inside(events[0].owner)]
    chosen = next((c for c in after if all(reached(c.input, cores))), None)
    if chosen is None:
        found.refuse(both, f"no linear layer reads what all {len(events)} attention calls give")
        return None
    found.flags[f"{prefix}z_exact"] = found.flags[f"{prefix}z_head_local"] = False
    found.note(both[0], chosen, "input", f"its input depends on all {len(events)} attention calls; no head is its own")
    found.note(both[1], chosen, "output", "the output projection")
    return chosen


def _holds(tensor: Tensor | None, flat: Tensor) -> bool:
    if tensor is None or tensor.numel() != flat.numel():
        return False
    if torch.equal(tensor.reshape(flat.shape), flat):
        return True
    return tensor.ndim == 3 and torch.equal(tensor.transpose(0, 1).reshape(flat.shape), flat)


def _head_local(inputs: Tensor | None, core: Tensor, heads: int, size: int) -> bool:
    """Whether each head's slice of the projection's input depends mostly on that head alone."""
    assert inputs is not None
    generator = torch.Generator().manual_seed(0)
    for head in range(heads):
        own = inputs[..., head * size : (head + 1) * size]
        weights = torch.randn(own.shape, generator=generator).to(own)
        (gradient,) = torch.autograd.grad((own * weights).sum(), [core], retain_graph=True)
        axis = next(a for a in range(1, core.ndim) if core.shape[a] == heads)
        reach = gradient.abs().sum([a for a in range(core.ndim) if a != axis])
        if (reach > 0.3 * reach.max()).nonzero().flatten().tolist() != [head]:
            return False
    return True


def _find_input(
    found: Findings, prefix: str, event: Attention, before: Sequence[ModuleCall], projections: dict[str, HeadMap]
) -> None:
    """Note what all projections read: a module's input where there is a module, else their only linear layer's."""
    name = f"{prefix}attention_input"
    if not projections:
        found.refuse([name], "no projection is known")
        return
    wanted = (
        [projections["query"].call] if prefix and "query" in projections else [m.call for m in projections.values()]
    )
    entries = [call for call in before if call.end < event.time]
    ancestor = wanted[0].parent
    while ancestor is not None and ancestor is not found.block:
        reads = any(same_values(ancestor.input, entry.input) for entry in entries if entry.inside(ancestor))
        if all(call.inside(ancestor) for call in wanted) and reads:
            if not all(follow(ancestor, [call.module for call in wanted]) or [False]):
                found.refuse([name], f"not every projection follows from what {ancestor.path} is given first")
                return
            found.note(name, ancestor, "input", "the module that holds the projections, and reads what they read")
            return
        ancestor = ancestor.parent
    if len(set(wanted)) == 1:
        found.note(name, wanted[0], "input", "the one linear layer that all projections share")
        return
    found.refuse([name], "the projections have no module of their own, so none of their inputs stands for all")
