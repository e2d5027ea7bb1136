"""`ComponentMap`: what was found in a model, where, how, and what was refused and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .._errors import SiteError, near_misses
from ..sites import Site
from .slot import Slot


@dataclass(frozen=True, eq=False)
class Block:
    """One call of one block.

    Args:
        path: dotted path of the block.
        call: which call of it in a forward pass, from 0.
        slots: the components that were found.
        how: for each of these, how.
        missing: for each component that was refused or does not exist, why.
        flags: facts about the block: `mixer` (softmax, other, none), `additive`, `z_exact`, `experts`, ...
    """

    path: str
    call: int
    slots: Mapping[str, Slot]
    how: Mapping[str, str]
    missing: Mapping[str, str]
    flags: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class ComponentMap:
    """Every named component of a model.

    Args:
        model_class: name of the model's class, for messages.
        stacks: the blocks of each stack; the only or the main stack is named `""`, others `encoder`, `decoder`, ...
        ends: `logits`, and for each stack its `embedding_output` and `final_norm_output`, with the stack's name and a
            dot in front where it has one; as far as they were found.
        missing: why there is nothing (`""`), or which ends were not found.
        note: what is to be known of all that the map says; mostly empty.
        widths: of what modules got (`input`) and gave (`output`), by path and side, in the forward pass that was
            watched; without those that may be the length of the sequence.
    """

    model_class: str
    stacks: Mapping[str, tuple[Block, ...]]
    ends: Mapping[str, Slot] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    widths: Mapping[tuple[str, str], int] = field(default_factory=dict)

    def find(self, site: Site) -> tuple[Slot, str] | None:
        """Return where a named site's tensor is, and the path of its block (empty for an end); `None` if it is not had.

        Args:
            site: a named component.
        """
        name, stack = str(site.name), site.stack
        if site.layer is None:
            found, home = self.ends.get(f"{stack}.{name}" if stack else name), ""
        else:
            blocks = self.stacks.get(stack, ())
            if site.layer >= len(blocks):
                return None
            block = blocks[site.layer]
            found, home = block.slots.get(name), block.path
        if found is None:
            return None
        return (found if site.call is None else replace(found, call=site.call)), home

    def slot(self, site: Site) -> Slot:
        """Return where a named site's tensor is.

        Args:
            site: a named component; dotted paths need no map.

        Raises:
            SiteError: the stack, the layer or the component does not exist here, with the reason.
        """
        found = self.find(site)
        if found is not None:
            return found[0]
        name = str(site.name)
        if site.layer is None:
            reason = self._end_missing(name, site.stack, str(site))
        else:
            reason = self._block(site.layer, site.stack, str(site)).missing.get(name, "this kind of block has none")
        raise SiteError(f"{site} is not to be had in {self.model_class}: {reason}")

    def _end_missing(self, name: str, stack: str, what: str) -> str:
        """Return why an end is missing; refuse a stack that there is not, or none where there are several."""
        if name == "logits" and stack:
            return "the logits belong to the whole model, so no stack stands in front of them"
        if name != "logits" and self.stacks:
            self._blocks(stack, what)
        return self.missing.get(f"{stack}.{name}" if stack else name, self.missing.get("", "it was not found"))

    def why(self, component: str, layer: int | None = None, stack: str = "") -> str:
        """Tell how a component was found, or why not.

        Args:
            component: its name without a stack's prefix.
            layer: block number; `None` for the ends of the model.
            stack: name of the stack.
        """
        if layer is None:
            end = f"{stack}.{component}" if stack else component
            if end in self.missing:
                return self.missing[end]
            if end not in self.ends:
                known = near_misses(end, [name for name in (*self.ends, *self.missing) if name])
                raise SiteError(f"{end!r} is no end of {self.model_class}: {known} What is in a block needs a layer")
            return self._noted(f"{self.ends[end].path}.{self.ends[end].side}")
        block = self._block(layer, stack, component)
        if component in block.slots:
            slot = block.slots[component]
            return self._noted(f"{slot.path}.{slot.side}: {block.how.get(component, 'found')}")
        return block.missing.get(component, f"blocks like {block.path} have none")

    def _noted(self, words: str) -> str:
        return f"{words} ({self.note})" if self.note else words

    def _block(self, layer: int, stack: str, what: str) -> Block:
        blocks = self._blocks(stack, what)
        if not 0 <= layer < len(blocks):
            raise SiteError(f"layer {layer} does not exist: {self.model_class} has {len(blocks)} blocks, from 0")
        return blocks[layer]

    def _blocks(self, stack: str, what: str) -> tuple[Block, ...]:
        if not self.stacks:
            reason = self.missing.get("", "no stack of blocks was found in it")
            raise SiteError(
                f"{what!r} has no meaning in {self.model_class}: {reason}. Give a module's dotted path, such as "
                "'layers[0].mlp.output', or resolve(model, overrides=...)"
            )
        if stack not in self.stacks:
            names = [name or "(no prefix)" for name in self.stacks]
            raise SiteError(f"{self.model_class} has several stacks: {near_misses(stack or '(no prefix)', names)}")
        return self.stacks[stack]
