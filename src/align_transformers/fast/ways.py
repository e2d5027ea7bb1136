"""Ways to run a step: in full, from the first edit on, several runs together, and only the tails of their copies.

Each says why it is refused; the best that is not is taken.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor, nn

from ..engine import Bound, Inputs, batch_size, token_axis
from ..engine.edits import Record
from ..engine.hooks import stopping
from ..engine.step import Pass, Step, Way
from ..models.arguments import without_cache
from ..models.cache_copies import own_caches
from ..models.sequence import examples_of
from ..sites import Site
from .depth import OUTPUT, Blocks, Depth
from .joining import Origin, columns_of, copies_of, joining, tails_of
from .reasons import SETTINGS, is_by_example, labels_are_input, why_whole
from .schedule import Stage
from .states import Recorder, States, is_causal
from .tails import lay_out
from .unembedding import narrowed

_PACKED_INPUTS = {"input_ids", "inputs_embeds", "attention_mask", "position_ids", *SETTINGS}


class Trials(ABC):
    """What was found out about partial passes of a model: each way is tried when it is first asked for."""

    @abstractmethod
    def why_not(self, way: str) -> str:
        """Return why a way is not to be taken: `partial`, `together`, `packed`, or `shortened`; empty if it may be.

        `shortened` is packed, with a last block that is run for what is read only.
        """

    @abstractmethod
    def tokens(self) -> bool:
        """Whether the logits of some tokens can be had without the others."""


@dataclass(frozen=True, eq=False)
class Case:
    """What a way looks at before it is refused.

    Args:
        bound: the plan.
        blocks: of the model; `None` where they are not known.
        stage: what is to be run.
        states: what its runs may start from; `None` if nothing was left for them.
        depths: of the plan's sites.
        trials: of the model.
        never: why no pass of the model may leave out blocks now; empty if one may.
    """

    bound: Bound
    blocks: Blocks | None
    stage: Stage
    states: States | None
    depths: Mapping[Site, Depth | None]
    trials: Trials
    never: str

    @property
    def inputs(self) -> Inputs:
        """The input of the runs."""
        return self.bound.inputs[self.stage.runs[0].input]


@dataclass(frozen=True, eq=False)
class Leaving:
    """What a pass leaves for others.

    Args:
        blocks: of the model.
        places: number of a block, and whether its output is kept rather than its input.
        heads: keep all keys and values, too.
    """

    blocks: Blocks
    places: frozenset[tuple[int, bool]]
    heads: bool

    def left(self, made: Pass, states: States, first: int = 0) -> Pass:
        """Return a pass that fills some states, and leaves them.

        Args:
            made: the pass.
            states: what is known of the blocks that it does not run.
            first: number of the first block that it does.
        """
        recorder = Recorder(states, self.blocks, self.places, first=first, heads=self.heads)
        around, within = [*made.around, recorder.around()], [*made.within, recorder.within()]
        return replace(made, around=around, within=within, leaves=lambda: states)


class PlannedWay(Way):
    """Base class of the ways that leave out what need not be computed."""

    @staticmethod
    @abstractmethod
    def refuses(case: Case) -> str:
        """Return why a stage is not run in this way; empty if it may be."""

    @abstractmethod
    def of(self, numbers: Sequence[int]) -> PlannedWay:
        """Return the way of some of a step's parts."""


# --- from the first block on ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stop:
    """Where a pass ends, since nobody needs more of it.

    Args:
        module: no further than this.
        before: before it is called rather than after.
    """

    module: nn.Module
    before: bool


@final
@dataclass(frozen=True, eq=False)
class Full(PlannedWay):
    """One run from the first block on.

    Args:
        stop: where it ends; `None`: at the end.
        leaving: what it leaves for others.
        unembedding: the layer that is let compute only the logits that are read.
    """

    stop: Stop | None = None
    leaving: Leaving | None = None
    unembedding: nn.Module | None = None
    name = "full"

    @staticmethod
    def refuses(case: Case) -> str:
        """Return nothing: every run can be run in full."""
        return ""

    def of(self, numbers: Sequence[int]) -> Full:
        """Return the way of the only part."""
        return self

    def prepare(self, bound: Bound, step: Step, record: Record) -> Pass:
        """Return the pass, ready to run."""
        (part,) = step.parts
        run, lines = part.run, part.lines
        inputs = examples_of(own_caches(bound.inputs[run.input]), part.examples)
        edits = [bound.edits[edit.name] for edit in run.edits]
        columns = columns_of(bound, part)
        if lines is not None:
            edits = [replace(edit, places=edit.places.of(lines), lines=lines) for edit in edits]
        at = None if columns is None else (torch.arange(len(columns)), columns)
        tokens = token_axis(inputs)
        shape = batch_size(inputs), 0 if tokens is None else int(tokens.shape[1])
        made = Pass(_lean(bound, inputs, step), edits, shape, at)
        if self.leaving is not None:
            made = self.leaving.left(made, States(batch_size(inputs)))
        return _ended(narrowed(made, self.unembedding, None), self.stop)


def _lean(bound: Bound, inputs: Inputs, step: Step) -> Inputs:
    """Return an input with which the model makes no cache and no loss where nobody wants them."""
    if bound.generates or (step.wanted and bound.plan.logits is None):
        return inputs
    given = {} if isinstance(inputs, Tensor) else inputs
    if "labels" in given and not labels_are_input(bound, given) and not _loss_is_seen(bound, step):
        inputs = {name: value for name, value in given.items() if name != "labels"}
    return without_cache(bound.model, inputs)


def _loss_is_seen(bound: Bound, step: Step) -> bool:
    """Whether all that the model returns is edited or read, of which a loss is the first."""
    slots = [bound.edits[edit.name].slot for run in step.runs for edit in run.edits]
    slots += [bound.reads[read].slot for read in step.reads]
    return any(slot.module is bound.model and slot.side == "output" for slot in slots)


def _ended(made: Pass, stop: Stop | None) -> Pass:
    """Return a pass that ends at a module."""
    return made if stop is None else replace(made, within=[*made.within, stopping(stop.module, before=stop.before)])


# --- from known states on ---------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, eq=False)
class Partial(PlannedWay):
    """One run from its first edit on, in its own batch.

    Args:
        origin: what it starts from.
        stop: where it ends; `None`: at the end.
        leaving: what it leaves for others.
        unembedding: the layer that is let compute only the logits that are read.
        fewer_tokens: it may compute those of the tokens that are wanted only.
    """

    origin: Origin
    stop: Stop | None = None
    leaving: Leaving | None = None
    unembedding: nn.Module | None = None
    fewer_tokens: bool = False
    name = "partial"

    @staticmethod
    def refuses(case: Case) -> str:
        """Return why no pass of a stage can start from known states."""
        if case.bound.generates and case.stage.wanted:
            return "it generates"
        whole = case.stage.wanted and case.bound.plan.logits is None
        why = case.never or why_whole(case.bound, case.inputs, whole) or case.trials.why_not(Partial.name)
        return why or ("" if case.states is not None else "the run it could start from left no states")

    def of(self, numbers: Sequence[int]) -> Partial:
        """Return the way of some of a step's parts."""
        return replace(self, origin=self.origin.of(numbers))

    def prepare(self, bound: Bound, step: Step, record: Record) -> Pass:
        """Return the pass, ready to run."""
        (part,) = step.parts
        copies = copies_of(bound, part, self.origin.states.batch)
        layout = lay_out([copies], int(self.origin.states.main.shape[1]), packed=False)
        made, first = joining(bound, step, record, self.origin, layout, moved=part.lines is not None)
        inputs = _lean(bound, examples_of(bound.inputs[part.run.input], part.examples), step)
        made = replace(made, inputs=inputs)
        if self.leaving is not None:
            made = self.leaving.left(made, self.origin.states.below(first), first)
        tokens = record.tokens if self.fewer_tokens else None
        return _ended(narrowed(made, self.unembedding, tokens), self.stop)


@final
@dataclass(frozen=True, eq=False)
class Together(PlannedWay):
    """Copies of several runs, each from its first edit on, below each other.

    Args:
        origin: what they start from.
        unembedding: the layer that is let compute only the logits that are read.
        fewer_tokens: it may compute those of the tokens that are wanted only.
    """

    origin: Origin
    unembedding: nn.Module | None = None
    fewer_tokens: bool = False
    name = "together"

    @staticmethod
    def refuses(case: Case) -> str:
        """Return why the copies of several runs cannot be rows of one pass; empty if they can."""
        stage, bound, inputs = case.stage, case.bound, case.inputs
        if bound.plan.logits is None or stage.reads or stage.keep:
            return "whole outputs are wanted, or others need its states"
        if case.states is not None and case.states.main.ndim < 3:
            return "its blocks have one vector an example, without places"
        for name, value in ({} if isinstance(inputs, Tensor) else inputs).items():
            if name not in (*SETTINGS, "labels") and not is_by_example(name, value, batch_size(inputs)):
                return f"its input has {name}, which may not be by example"
        for edit in (edit for run in stage.runs for edit in run.edits):
            if edit.site.path is not None and edit.positions.rows is None:
                return f"{edit.site} is edited as a whole, and may not be by example"
            depth = case.depths[edit.site]
            encoder = edit.site.stack == "encoder" or (depth is not None and depth.rank == 0)
            if encoder or edit.site.sequence != edit.site.stack:
                return f"{edit.site} is not in the main stack's own sequence"
            if bound.edits[edit.name].slot.fused is not None:
                return f"{edit.site} is run step by step"
        return case.trials.why_not(Together.name)

    def of(self, numbers: Sequence[int]) -> Together:
        """Return the way of some of a step's parts."""
        return replace(self, origin=self.origin.of(numbers))

    def prepare(self, bound: Bound, step: Step, record: Record) -> Pass:
        """Return the pass, ready to run."""
        states, inputs = self.origin.states, bound.inputs[step.runs[0].input]
        copies = [copies_of(bound, part, states.batch) for part in step.parts]
        layout = lay_out(copies, int(states.main.shape[1]), packed=False)
        made, _ = joining(bound, step, record, self.origin, layout, moved=True)
        made = replace(made, inputs=_lean(bound, examples_of(inputs, layout.example[:, 0].tolist()), step))
        return narrowed(made, self.unembedding, record.tokens if self.fewer_tokens else None)


@final
@dataclass(frozen=True, eq=False)
class Packed(PlannedWay):
    """The tails of the copies of several runs, each from its first edit on, side by side.

    Args:
        origin: what they start from.
        unembedding: the layer that is let compute only the logits that are read.
        fewer_tokens: it may compute those of the tokens that are wanted only.
        shortens: of the last block, run only what is read, if no edit needs more.
    """

    origin: Origin
    unembedding: nn.Module | None = None
    fewer_tokens: bool = False
    shortens: bool = False
    name = "packed"
    mixes = True

    @staticmethod
    def refuses(case: Case) -> str:
        """Return why only whole copies can be run, not their tails; empty if tails can."""
        states, inputs, config = case.states, case.inputs, getattr(case.bound.model, "config", None)
        assert states is not None
        assert case.blocks is not None
        if states.unpackable:
            return states.unpackable
        if _donor_goes_on(case):
            return "keys and values of the run that it starts from are edited further on"
        if not isinstance(inputs, Mapping) or token_axis(inputs) is None or inputs.keys() - _PACKED_INPUTS:
            return "its input is not a text alone"
        first = min(case.blocks.find(start)[0] + (start.point == OUTPUT) for start in case.stage.starts)
        if not {number for number, _ in states.attended} >= set(range(first, len(case.blocks))):
            return "not every block has an attention of the known kind"
        if getattr(config, "_attn_implementation", None) not in ("sdpa", "eager"):
            return "its attention is neither PyTorch's nor eager"
        masks = {id(seen.allowed): seen.allowed for seen in states.attended.values()}
        if not all(is_causal(mask) for mask in masks.values()):
            return "attention looks ahead"
        for edit in (edit for run in case.stage.runs for edit in run.edits):
            if edit.site.definition is not None and not edit.site.definition.by_token:
                return "scores and patterns are edited"
        return case.trials.why_not(Packed.name)

    def of(self, numbers: Sequence[int]) -> Packed:
        """Return the way of some of a step's parts."""
        return replace(self, origin=self.origin.of(numbers))

    def apart(self) -> Together:
        """Return the way in which each copy has a row of its own."""
        return Together(self.origin, self.unembedding, self.fewer_tokens)

    def prepare(self, bound: Bound, step: Step, record: Record) -> Pass:
        """Return the pass, ready to run."""
        origin, inputs = self.origin, bound.inputs[step.runs[0].input]
        copies = [
            copies_of(bound, part, origin.states.batch, origin.edits(bound, number, part.run), tails=True)
            for number, part in enumerate(step.parts)
        ]
        layout = lay_out(copies, int(origin.states.main.shape[1]), packed=True)
        made, _ = joining(bound, step, record, origin, layout, moved=True, shortens=self.shortens)
        made = replace(made, inputs=_lean(bound, tails_of(inputs, layout), step))
        return narrowed(made, self.unembedding, record.tokens if self.fewer_tokens else None)


BETTER: tuple[type[PlannedWay], ...] = (Partial, Together, Packed)
"""Ways that leave something out, each more than the one before, on which it rests."""


def choose(case: Case) -> tuple[type[PlannedWay], dict[str, str]]:
    """Return the best way that neither is refused nor rests on one that is; and why better ones are not taken."""
    taken: type[PlannedWay] = Full
    for number, way in enumerate(BETTER):
        why = way.refuses(case)
        if why:
            return taken, {better.name: why for better in reversed(BETTER[number:])}
        taken = way
    return taken, {}


def _donor_goes_on(case: Case) -> bool:
    """Whether the donor of a stage has edits that its runs have not, and attends after them."""
    if case.stage.donor is None:
        return False
    made = case.bound.plan.run(case.stage.donor).edits
    attending = [edit.name for edit in made if not _behind_attention(case, edit.site)]
    return any(set(attending) - {name for _, name in inherited} for inherited in case.stage.inherited)


def _behind_attention(case: Case, site: Site) -> bool:
    depth = case.depths[site]
    assert case.blocks is not None
    last = case.blocks.calls[-1]
    return depth is not None and depth >= Depth(last.rank, last.layer, OUTPUT)
