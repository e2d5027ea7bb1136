"""`describe(model)`: what was found in a model, as a value that a terminal, a notebook or plain text can show."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from torch import nn

from .._checked import checked
from ..sites import ADDENDS, COMPONENTS
from .component_map import Block, ComponentMap
from .contributions import BY_THE_SUM, CONTRIBUTIONS
from .resolve import resolve
from .slot import Slot
from .tree import Tree, TreeRow, html_of, rich_of, text_of


@dataclass(frozen=True)
class Whereabouts:
    """Where one component is.

    Args:
        name: the component.
        module: the module's path from the block on, empty for the block itself; for an end of the model its whole path.
        side: `input` or `output`, or `inside` where transformers' attention or experts interface shows it.
        width: number of coordinates; `None` where it depends on the input.
        heads: number of heads, 0 where there are none.
        head_dim: coordinates of a head, 0 where that depends on the input.
        note: how heads are shared, that only some coordinates of the module are meant, or what is added of which part.
    """

    name: str
    module: str
    side: str
    width: int | None
    heads: int = 0
    head_dim: int = 0
    note: str = ""

    @property
    def size(self) -> str:
        """The width, and how it divides into heads."""
        if self.heads and self.head_dim:
            return f"{self.width} = {self.heads} x {self.head_dim}"
        return f"{self.heads} heads" if self.heads else "" if self.width is None else str(self.width)


@dataclass(frozen=True)
class BlockKind:
    """Blocks of a stack that are equal in all that is said here.

    Args:
        layers: their numbers.
        block: the class of the block's module.
        path: dotted path of the blocks; `{n}` stands for what differs.
        places: the components that were found.
        unavailable: reasons, each with the components that are not to be had for it.
        facts: what else is known, in sentences.
    """

    layers: tuple[int, ...]
    block: str
    path: str
    places: tuple[Whereabouts, ...]
    unavailable: tuple[tuple[str, tuple[str, ...]], ...]
    facts: tuple[str, ...]


@dataclass(frozen=True, repr=False)
class Description:
    """What was found in a model. `print` it, `rich.print` it, or let a notebook show it.

    Args:
        model: name of the model's class.
        stacks: the kinds of blocks of each stack; the only or the main stack is named `""`.
        ends: `logits`, and of each stack `embedding_output` and `final_norm_output`, as far as they were found.
        missing: the ends that were not found, or `""` for the blocks as a whole; each with the reason.
        note: what is to be known of all of this; mostly empty.
    """

    model: str
    stacks: Mapping[str, tuple[BlockKind, ...]]
    ends: tuple[Whereabouts, ...]
    missing: Mapping[str, str]
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        return asdict(self)

    def __repr__(self) -> str:
        kinds = [(name, kind) for name, listed in self.stacks.items() for kind in listed]
        said = [f"{name} {len(kind.layers)} x {kind.block}".strip() for name, kind in kinds]
        names = len({place.name for _, kind in kinds for place in kind.places} | {end.name for end in self.ends})
        return f"Description of {self.model}: {', '.join(said) or 'no blocks'}, {names} components; print() shows them"

    def __str__(self) -> str:
        return text_of(_tree(self))

    def __rich__(self) -> Any:
        return rich_of(_tree(self))

    def _repr_html_(self) -> str:
        return html_of(_tree(self))


@checked
def describe(model: nn.Module | ComponentMap) -> Description:
    """Return what was found in a model: stacks, blocks, components, sizes, heads, and what is unavailable and why.

    Args:
        model: a model, or the map that `resolve` made of one.

    >>> print(describe(nn.Linear(2, 3)))
    Linear
    └── no blocks: no stack of blocks was found in it
    """
    found = model if isinstance(model, ComponentMap) else resolve(model)
    stacks = {name: tuple(_kinds(blocks)) for name, blocks in found.stacks.items()}
    ends = tuple(_place(name, slot, "") for name, slot in found.ends.items())
    return Description(found.model_class, stacks, ends, dict(found.missing), found.note)


def _kinds(blocks: tuple[Block, ...]) -> Iterable[BlockKind]:
    members: dict[Any, list[int]] = {}
    for number, block in enumerate(blocks):
        order = sorted(block.slots, key=list(COMPONENTS).index)
        places = tuple(_place(name, block.slots[name], block.path, block.how.get(name, "")) for name in order)
        reasons: dict[str, list[str]] = {}
        for name in sorted(block.missing, key=list(COMPONENTS).index):
            reasons.setdefault(block.missing[name].replace(f"{block.path}.", ""), []).append(name)
        unavailable = tuple((reason, tuple(names)) for reason, names in reasons.items())
        slot = block.slots.get("block_output")
        kind = "" if slot is None else type(slot.module).__name__
        members.setdefault((kind, places, unavailable, tuple(_facts(block))), []).append(number)
    for (kind, places, unavailable, facts), layers in members.items():
        paths = [blocks[layer].path for layer in layers]
        said = tuple(facts)
        if len(layers) > 1 and len(set(paths)) == 1:
            said = (f"one module, called {len(layers)} times", *said)
        yield BlockKind(tuple(layers), kind, _pattern(paths), places, unavailable, said)


def _place(name: str, slot: Slot, root: str, how: str = "") -> Whereabouts:
    module = slot.path[len(root) :].lstrip(".") if root and (slot.path + ".").startswith(root + ".") else slot.path
    heads, head_dim = (slot.n_heads, 0) if slot.heads is None else (len(slot.heads), int(slot.heads.shape[1]))
    part = "" if slot.channels is None else how.removeprefix("by gradient: ").replace(slot.path, "it")
    part = how.removeprefix(BY_THE_SUM).replace(f"{root}.", "") if how.startswith(BY_THE_SUM) else part
    note = "; ".join(filter(None, [part, slot.grouping]))
    side = slot.side if slot.via == "module" else "inside"
    return Whereabouts(name, module, side, slot.width, heads, head_dim, note)


def _facts(block: Block) -> Iterable[str]:
    flags, present = block.flags, [name for name in ADDENDS if name in block.slots]
    added = [CONTRIBUTIONS[name] for name in present if CONTRIBUTIONS[name] in block.slots]
    if flags.get("additive"):
        yield f"additive: block_output = {' + '.join(['block_input', *present])}"
    elif added:
        yield f"block_output = {' + '.join(['block_input', *added])}"
    elif present:
        yield "not additive: block_output is not block_input + " + " + ".join(present)
    mixer = flags.get("mixer", "softmax")
    words = {"other": "a mixer that is not softmax attention", "none": "no mixing of positions was seen"}
    if mixer != "softmax":
        yield f"mixer: {words.get(mixer, mixer)}"
    for prefix in ("", "cross_"):
        if flags.get(f"{prefix}z_exact") is False:
            local = flags.get(f"{prefix}z_head_local")
            heads = "head by head" if local else "across heads"
            yield f"{prefix}attention_value_output is not the heads' output as it is: gated or normed {heads}"
        for role in ("query", "key", "value"):
            part = flags.get(f"{prefix}{role}_part")
            if part:
                yield (
                    f"{prefix}{role}_output makes {part[0]} of a head's {part[1]} coordinates; "
                    "the others have no head of their own"
                )
    if flags.get("experts"):
        kept = {"stacked": "in one tensor", "list": "as a list of modules"}
        yield f"the MLP is experts, kept {kept.get(flags['experts'], flags['experts'])}"
    if flags.get("mlp_output_is_down") is False:
        yield "mlp_output is not the down projection's output as it is: something follows"


def _pattern(paths: list[str]) -> str:
    """Return one path for all, with `{n}` where they differ.

    >>> _pattern(["model.layers.0", "model.layers.1"]), _pattern(["h.0"])
    ('model.layers.{n}', 'h.0')
    """
    split = [path.split(".") for path in paths]
    if len({len(parts) for parts in split}) > 1:
        return ", ".join(paths)
    return ".".join(parts[0] if len(set(parts)) == 1 else "{n}" for parts in zip(*split, strict=True))


def _tree(found: Description) -> Tree:
    branches = [
        Tree(_title(name, kinds), children=tuple(map(_kind_tree, kinds))) for name, kinds in found.stacks.items()
    ]
    if found.ends or (found.stacks and found.missing):
        gone = [Tree(f"{name}: {reason}", faint=True) for name, reason in found.missing.items() if name]
        branches.append(Tree("ends", rows=tuple(map(_row, found.ends)), children=tuple(gone)))
    if "" in found.missing:
        branches.append(Tree(f"no blocks: {found.missing['']}"))
    return Tree(found.model, found.note, children=tuple(branches))


def _title(stack: str, kinds: tuple[BlockKind, ...]) -> str:
    count = sum(len(kind.layers) for kind in kinds)
    return f"{f'stack {stack!r}' if stack else 'blocks'}: {count}"


def _kind_tree(kind: BlockKind) -> Tree:
    title = f"{'layers' if len(kind.layers) > 1 else 'layer'} {_ranges(kind.layers)}: {kind.block}"
    facts = [Tree(fact) for fact in kind.facts]
    gone = [Tree(f"{', '.join(names)}: {reason}", faint=True) for reason, names in kind.unavailable]
    unavailable = [Tree("not to be had", faint=True, children=tuple(gone))] if gone else []
    return Tree(title, kind.path, tuple(map(_row, kind.places)), (*facts, *unavailable))


def _row(place: Whereabouts) -> TreeRow:
    where = f"{place.module}.{place.side}" if place.module and place.side != "inside" else place.side
    if place.side == "inside":
        where = f"inside {place.module or 'the block'}"
    return place.name, where, place.size, re.sub(r"\d+ query heads share .* heads: ", "", place.note)


def _ranges(layers: tuple[int, ...]) -> str:
    spans = [[n for _, n in run] for _, run in groupby(enumerate(layers), key=lambda pair: pair[1] - pair[0])]
    return ", ".join(str(span[0]) if len(span) == 1 else f"{span[0]}-{span[-1]}" for span in spans)
