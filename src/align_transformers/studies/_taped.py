"""Passes that leave a tape: what stood at some sites, and where in autograd's graph, so that gradients can be had.

Gradients are taken on the user's own modules. A tap hands on a view of what it sees, so that what stands at a site has
a gradient of its own, apart from what else reads the same tensor before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from .._errors import SiteError, SpecError
from ..engine import Inputs, logits_of
from ..engine.hooks import Tap, tapped
from ..models import Slot, evaluating, find_slot, resolve, uncompiled
from ..models.added_columns import leading_columns
from ..models.cache_copies import own_caches
from ..models.recomputing import computed_once
from ..models.scope import scope
from ..models.sequence import logits_stack
from ..sites import Site
from ._backward_rules import BackwardRules

PutThere = Callable[[Tensor], Tensor]
"""Given what stands at a site, returns what shall stand there."""


@dataclass(frozen=True, eq=False)
class Tape:
    """What a pass left.

    Args:
        model: that was run.
        inputs: of the pass.
        output: the logits as the model gave them, in the graph.
        values: by site what stood there, a copy.
        nodes: by site the same in the graph; empty where no gradients were asked for.
    """

    model: nn.Module
    inputs: Inputs
    output: Tensor
    values: Mapping[Site, Tensor]
    nodes: Mapping[Site, Tensor]

    def lead(self, site: Site) -> int:
        """Return how many columns the model put before the tokens at a site."""
        columns = self.values[site].shape[1]
        return leading_columns(self.model, self.inputs, int(columns), site.sequence)

    def logits(self, columns: Sequence[int]) -> Tensor:
        """Return the logits of each example at one of its columns, `(examples, vocab)`."""
        if self.output.ndim != 3:
            return self.output
        lead = leading_columns(self.model, self.inputs, int(self.output.shape[1]), logits_stack(self.inputs))
        at = torch.tensor([lead + column for column in columns], device=self.output.device)
        return self.output[torch.arange(len(columns), device=self.output.device), at]

    def gradients(self, total: Tensor, sites: Sequence[Site], *, again: bool = False) -> dict[Site, Tensor]:
        """Return the gradient of a number at some sites; zeros where nothing leads from there to it.

        Args:
            total: a number in the graph.
            sites: of this tape.
            again: further gradients are going to be asked for.
        """
        nodes = [self.nodes[site] for site in sites]
        found = torch.autograd.grad(total, nodes, allow_unused=True, retain_graph=again)
        pairs = zip(nodes, found, strict=True)
        each = [torch.zeros_like(node) if gradient is None else gradient for node, gradient in pairs]
        return dict(zip(sites, each, strict=True))


@dataclass(eq=False)
class _SiteTape:
    """Keeps what comes by a site."""

    site: Site
    graph: bool
    change: PutThere | None = None
    value: Tensor | None = None
    node: Tensor | None = field(default=None, repr=False)

    def __call__(self, tensor: Tensor, _call: int, _owned: bool) -> Tensor | None:
        if self.value is not None:
            raise SiteError(f"{self.site} is reached twice in one pass: name one of the calls, Site(..., call=0)")
        if tensor.ndim < 3:
            raise SiteError(f"{self.site} has shape {tuple(tensor.shape)}: no axis of tokens, whose shares are told")
        seen = tensor if self.change is None else self.change(tensor)
        if not self.graph:
            self.value = seen.detach().clone()
            return None if seen is tensor else seen
        self.node = seen.view_as(seen) if seen.requires_grad else seen.detach().clone().requires_grad_()
        self.value = self.node.detach().clone()
        return self.node


def record(
    model: nn.Module,
    inputs: Inputs,
    sites: Sequence[Site],
    *,
    graph: bool,
    rules: BackwardRules | None = None,
    changes: Mapping[Site, PutThere] | None = None,
    within: Callable[[], AbstractContextManager[None]] = nullcontext,
    slots: Mapping[Site, Slot] | None = None,
) -> Tape:
    """Run a model once, in eval mode, and return what stood at some sites.

    Args:
        model: the user's; it is not changed.
        inputs: of the model.
        sites: what is kept.
        graph: gradients are going to be asked for.
        rules: of the backward pass.
        changes: by site what shall stand there instead.
        within: makes a context that is open in the scope of the pass.
        slots: where sites are that are not to be looked up.

    Raises:
        SiteError: a site does not exist, is not reached, or is reached twice.
    """
    ends = embeddings_of(model) if graph else []
    every = dict.fromkeys((*ends, *sites, *(changes or {})))
    recorders = {site: _SiteTape(site, graph, (changes or {}).get(site)) for site in every}
    known = slots or {}
    taps = [Tap(known.get(site) or find_slot(model, site), recorder) for site, recorder in recorders.items()]
    output, inner = tapped_pass(model, inputs, taps, graph=graph, rules=rules, within=within), uncompiled(model)
    missed = [str(site) for site in sites if recorders[site].value is None]
    if missed:
        raise SiteError(f"never reached in the forward pass: {'; '.join(missed)}")
    kept = {site: recorder for site, recorder in recorders.items() if recorder.value is not None}
    values = {site: recorder.value for site, recorder in kept.items() if recorder.value is not None}
    nodes = {site: recorder.node for site, recorder in kept.items() if recorder.node is not None}
    if graph and not output.requires_grad:
        raise SpecError(f"the logits of {type(inner).__name__} have no gradient: nothing in it can be attributed")
    return Tape(inner, inputs, output if graph else output.detach(), values, nodes)


def tapped_pass(
    model: nn.Module,
    inputs: Inputs,
    taps: Sequence[Tap],
    *,
    graph: bool,
    rules: BackwardRules | None = None,
    within: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Tensor:
    """Run a model once, in eval mode, and return its logits as it gives them.

    Args:
        model: the user's; it is not changed.
        inputs: of the model.
        taps: what is done on the way.
        graph: gradients are going to be asked for.
        rules: of the backward pass.
        within: as for `record`.
    """
    inner = uncompiled(model)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(graph))
        stack.enter_context(evaluating(model))
        stack.enter_context(scope())
        before, after = ([], []) if rules is None else rules.taps(model)
        every = [*before, *taps, *after]
        touched = list(inner.modules()) if rules is not None and rules.hooks else [tap.slot.module for tap in every]
        stack.enter_context(computed_once(inner, touched))
        stack.enter_context(tapped(every))
        stack.enter_context(nullcontext() if rules is None else rules.hooked(inner))
        stack.enter_context(within())
        given = own_caches(inputs)
        return logits_of(inner(given) if isinstance(given, Tensor) else inner(**given))


def embeddings_of(model: nn.Module) -> list[Site]:
    """Return where each stack of a model gets its embeddings, as far as it is known."""
    found = resolve(model)
    return [Site(name) for name in found.ends if name.rpartition(".")[2] == "embedding_output"]


def gated(tape_site: Site, model: nn.Module, factor: Callable[[], float]) -> Tap:
    """Return what multiplies the gradient at a site with a number that may change from one backward pass to the next.

    Args:
        tape_site: where.
        model: the user's.
        factor: asked in the backward pass.
    """
    return Tap(find_slot(model, tape_site), partial(_gate, factor))


def _gate(factor: Callable[[], float], tensor: Tensor, _call: int, _owned: bool) -> Tensor | None:
    if not tensor.requires_grad:
        return None
    view = tensor.view_as(tensor)
    view.register_hook(lambda gradient: gradient * factor())
    return view
