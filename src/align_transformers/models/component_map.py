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
        ends: `embedding_output`, `final_norm_output` and `logits`, as far as they were found.
        missing: why there is nothing, or which ends were not found.
    """

    model_class: str
    stacks: Mapping[str, tuple[Block, ...]]
    ends: Mapping[str, Slot] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)

    def slot(self, site: Site) -> Slot:
        """Return where a named site's tensor is.

        Args:
            site: a named component; dotted paths need no map.

        Raises:
            SiteError: the stack, the layer or the component does not exist here, with the reason.
        """
        name = str(site.name)
        if site.layer is None:
            if site.stack:
                raise SiteError(
                    f"{site}: an end belongs to the whole model, so no stack stands in front of it; "
                    "give the module's dotted path for another stack's"
                )
            found = self.ends.get(name)
            reason = self.missing.get(name, "it was not found")
        else:
            block = self._block(site.layer, site.stack, str(site))
            found = block.slots.get(name)
            reason = block.missing.get(name, "this kind of block has none")
        if found is None:
            raise SiteError(f"{site} is not to be had in {self.model_class}: {reason}")
        return found if site.call is None else replace(found, call=site.call)

    def why(self, component: str, layer: int | None = None, stack: str = "") -> str:
        """Tell how a component was found, or why not.

        Args:
            component: its name without a stack's prefix.
            layer: block number; `None` for the ends of the model.
            stack: name of the stack.
        """
        if layer is None:
            if component in self.missing:
                return self.missing[component]
            if component not in self.ends:
                known = near_misses(component, [name for name in (*self.ends, *self.missing) if name])
                raise SiteError(
                    f"{component!r} is no end of {self.model_class}: {known} What is in a block needs a layer"
                )
            return f"{self.ends[component].path}.{self.ends[component].side}"
        block = self._block(layer, stack, component)
        if component in block.slots:
            slot = block.slots[component]
            return f"{slot.path}.{slot.side}: {block.how.get(component, 'found')}"
        return block.missing.get(component, f"blocks like {block.path} have none")

    def _block(self, layer: int, stack: str, what: str) -> Block:
        if not self.stacks:
            reason = self.missing.get("", "no stack of blocks was found in it")
            raise SiteError(
                f"{what!r} has no meaning in {self.model_class}: {reason}. Give a module's dotted path, such as "
                "'layers[0].mlp.output', or resolve(model, overrides=...)"
            )
        if stack not in self.stacks:
            names = [name or "(no prefix)" for name in self.stacks]
            raise SiteError(f"{self.model_class} has several stacks: {near_misses(stack or '(no prefix)', names)}")
        blocks = self.stacks[stack]
        if not 0 <= layer < len(blocks):
            raise SiteError(f"layer {layer} does not exist: {self.model_class} has {len(blocks)} blocks, from 0")
        return blocks[layer]
