"""Ways to run a step: in full, from the first edit on, several runs together, and only the tails of their copies.

Each says why it is refused; the best that is not is taken.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from .._errors import SiteError
from ..engine import Bound, Inputs, batch_size, token_axis, without_cache
from ..engine.bind import BoundEdit
from ..engine.edits import Record, apply_edits
from ..engine.hooks import stopping
from ..engine.inputs import CACHES, examples_of, logits_stack, own_caches
from ..engine.step import Inheritance, Part, Pass, Step, Way
from ..models import Slot, find_slot
from ..models.modules import every_module
from ..models.resolve import known_map
from ..plan import Run
from ..sites import Site
from .depth import END, INSIDE, OUTPUT, Blocks, Depth
from .last_block import LastBlock
from .partial import Join, PartialPass
from .schedule import Stage
from .states import Recorder, States, is_causal
from .tails import Copies, Layout, lay_out
from .unembedding import FewerLogits, can_narrow

_TEXTS = tuple(
    f"{stack}{name}"
    for stack in ("", "encoder_", "decoder_")
    for name in ("input_ids", "attention_mask", "position_ids", "inputs_embeds", "token_type_ids")
)
_SETTINGS = ("use_cache", "return_dict")
_PACKED_INPUTS = {"input_ids", "inputs_embeds", "attention_mask", "position_ids", *_SETTINGS}
_RECORDS = ("output_hidden_states", "output_attentions", "output_router_logits")
_RECORDER = "transformers.utils.output_capturing"


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
    name: ClassVar[str] = "full"

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
        columns = bound.columns(run)
        if lines is not None:
            edits = [replace(edit, places=edit.places.of(lines), lines=lines) for edit in edits]
            columns = None if columns is None else columns[lines.start : lines.stop]
        at = None if columns is None else (torch.arange(len(columns)), columns)
        tokens = token_axis(inputs)
        shape = batch_size(inputs), 0 if tokens is None else int(tokens.shape[1])
        made = Pass(_lean(bound, inputs, step), edits, shape, at)
        if self.leaving is not None:
            made = self.leaving.left(made, States(batch_size(inputs)))
        return _ended(_narrowed(made, self.unembedding, None), self.stop)


def _lean(bound: Bound, inputs: Inputs, step: Step) -> Inputs:
    """Return an input with which the model makes no cache and no loss where nobody wants them."""
    if bound.generates or (step.wanted and bound.plan.logits is None):
        return inputs
    if not isinstance(inputs, Tensor) and not _labels_are_input(bound, inputs) and not _loss_is_seen(bound, step):
        inputs = {name: value for name, value in inputs.items() if name != "labels"}
    return without_cache(bound.model, inputs)


def _loss_is_seen(bound: Bound, step: Step) -> bool:
    """Whether all that the model returns is edited or read, of which a loss is the first."""
    slots = [bound.edits[edit.name].slot for run in step.runs for edit in run.edits]
    slots += [bound.reads[read].slot for read in step.reads]
    return any(slot.module is bound.model and slot.side == "output" for slot in slots)


def _labels_are_input(bound: Bound, inputs: Mapping[str, Any]) -> bool:
    """Whether a decoder's input is made of labels."""
    said = any(name.startswith("decoder_input") for name in inputs)
    return (
        "labels" in inputs and not said and getattr(getattr(bound.model, "config", None), "is_encoder_decoder", False)
    )


def _ended(made: Pass, stop: Stop | None) -> Pass:
    """Return a pass that ends at a module."""
    return made if stop is None else replace(made, within=[*made.within, stopping(stop.module, before=stop.before)])


def _narrowed(made: Pass, unembedding: nn.Module | None, tokens: tuple[int, ...] | None) -> Pass:
    """Return a pass of which the model computes only the logits that are read.

    Args:
        made: the pass.
        unembedding: the layer that gives them; `None`: it is left alone.
        tokens: ids of the tokens whose logits are computed; `None` for all.
    """
    sequence = token_axis(made.inputs, logits_stack(made.inputs))
    if unembedding is None or made.at is None or sequence is None:
        return made
    fewer = FewerLogits(unembedding, *made.at, tokens, (int(sequence.shape[0]), int(sequence.shape[1])))
    return replace(made, within=[*made.within, fewer.context()], narrowed=fewer.were_given)


def unembedding_of(bound: Bound, stage: Stage, blocks: Blocks | None) -> nn.Module | None:
    """Return the layer that gives a stage's logits, where it can give some without the others and nobody notices."""
    unknown = known_map(bound.model) is None  # to find out would take a pass
    if not stage.wanted or bound.plan.logits is None or bound.generates or unknown:
        return None
    try:
        slot = find_slot(bound.model, Site("logits"))
    except SiteError:
        return None
    if not can_narrow(slot) or has_hooks(slot.module) or bound.model._forward_hooks:
        return None
    used = [(edit.site, bound.edits[edit.name].slot) for run in stage.runs for edit in run.edits]
    used += [(read.site, bound.reads[read].slot) for read in stage.reads]
    return None if any(_sees_logits(one, site, slot.module, blocks) for site, one in used) else slot.module


def _sees_logits(slot: Slot, site: Site, unembedding: nn.Module, blocks: Blocks | None) -> bool:
    """Whether a place may be at the unembedding or behind it, so that it would miss logits that are not computed."""
    if slot.module is unembedding:
        return True
    return site.path is not None and (blocks is None or blocks.depth_of(slot.path) is None)


# --- from known states on ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Origin:
    """What a pass starts from.

    Args:
        blocks: of the model.
        depths: of the plan's sites.
        states: those of the donor.
        starts: for each part how deep it starts.
        inherited: for each part the edits that the donor made in its place, each with the donor's own.
    """

    blocks: Blocks
    depths: Mapping[Site, Depth | None]
    states: States
    starts: tuple[Depth, ...]
    inherited: tuple[tuple[tuple[str, str], ...], ...]

    def of(self, numbers: Sequence[int]) -> Origin:
        """Return what some of the parts start from."""
        starts = tuple(self.starts[number] for number in numbers)
        return replace(self, starts=starts, inherited=tuple(self.inherited[number] for number in numbers))

    def edits(self, bound: Bound, number: int, run: Run) -> list[BoundEdit]:
        """Return the edits of a part that are still to be made."""
        done = {name for name, _ in self.inherited[number]}
        return [bound.edits[edit.name] for edit in run.edits if edit.name not in done]


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
    name: ClassVar[str] = "partial"

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
        made, first = _joining(bound, step, record, self.origin, layout, moved=part.lines is not None)
        inputs = _lean(bound, examples_of(bound.inputs[part.run.input], part.examples), step)
        made = replace(made, inputs=inputs)
        if self.leaving is not None:
            made = self.leaving.left(made, self.origin.states.below(first), first)
        tokens = record.tokens if self.fewer_tokens else None
        return _ended(_narrowed(made, self.unembedding, tokens), self.stop)


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
    name: ClassVar[str] = "together"

    @staticmethod
    def refuses(case: Case) -> str:
        """Return why the copies of several runs cannot be rows of one pass; empty if they can."""
        stage, bound, inputs = case.stage, case.bound, case.inputs
        if bound.plan.logits is None or stage.reads or stage.keep:
            return "whole outputs are wanted, or others need its states"
        for name, value in ({} if isinstance(inputs, Tensor) else inputs).items():
            if name not in (*_SETTINGS, "labels") and not _by_example(name, value, batch_size(inputs)):
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
        made, _ = _joining(bound, step, record, self.origin, layout, moved=True)
        made = replace(made, inputs=_lean(bound, examples_of(inputs, layout.example[:, 0].tolist()), step))
        return _narrowed(made, self.unembedding, record.tokens if self.fewer_tokens else None)


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
    name: ClassVar[str] = "packed"

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

    def prepare(self, bound: Bound, step: Step, record: Record) -> Pass:
        """Return the pass, ready to run."""
        origin, inputs = self.origin, bound.inputs[step.runs[0].input]
        copies = [
            copies_of(bound, part, origin.states.batch, origin.edits(bound, number, part.run), tails=True)
            for number, part in enumerate(step.parts)
        ]
        layout = lay_out(copies, int(origin.states.main.shape[1]), packed=True)
        made, _ = _joining(bound, step, record, origin, layout, moved=True, shortens=self.shortens)
        made = replace(made, inputs=_lean(bound, _tails(inputs, layout), step))
        return _narrowed(made, self.unembedding, record.tokens if self.fewer_tokens else None)


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


# --- why not ----------------------------------------------------------------------------------------------------------


def why_never(bound: Bound, blocks: Blocks | None) -> str:
    """Return why no pass of a model may leave out blocks now; empty if one may."""
    if blocks is None:
        return "the order of its blocks is not known"
    for module in every_module(bound.model):
        if module.training:
            return "it is in training mode: dropout may be on"
        if module is not bound.model and has_hooks(module):
            return "somebody else's hooks stand in it"
    return ""


def has_hooks(module: nn.Module) -> bool:
    """Whether hooks of others stand on a module: they may rest on the shapes or the calls of a pass as it was."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return any(getattr(hook, "__module__", "") != _RECORDER for hook in hooks)


def why_whole(bound: Bound, inputs: Inputs, whole: bool) -> str:
    """Return why a pass over an input has to run from the first block on; empty if it has not.

    Args:
        bound: the plan.
        inputs: the model's.
        whole: all that the model returns is wanted, with a cache if it makes one.
    """
    if isinstance(inputs, Tensor):
        return ""
    config = getattr(bound.model, "config", None)
    for name in CACHES:
        if inputs.get(name) is not None:
            return f"{name} is handed in"
    for name in _RECORDS:
        value = inputs.get(name, getattr(config, name, False))
        if value is not None and value is not False:
            return f"{name} is asked for"
    if _labels_are_input(bound, inputs):
        return "the decoder's input is made of labels"
    if whole and inputs.get("use_cache", getattr(config, "use_cache", False)):
        return "its output holds a cache of all blocks (use_cache=False would do without)"
    return ""


def _by_example(name: str, value: Any, batch: int) -> bool:
    """Whether the first axis of an input is that of the examples, or one for all."""
    if value is None:
        return True
    if name not in _TEXTS or not isinstance(value, Tensor) or (name.endswith("position_ids") and value.ndim != 2):
        return False
    return value.ndim > 1 and value.shape[0] in (1, batch)


# --- where memory runs out --------------------------------------------------------------------------------------------


def halves(bound: Bound, step: Step) -> tuple[Step, ...]:
    """Return two steps that do what one does; none if it cannot be divided.

    Args:
        bound: the plan.
        step: in a way of this file.
    """
    way, parts = step.way, step.parts
    assert isinstance(way, PlannedWay)
    middle = len(parts) // 2
    pieces = [([*range(middle)], parts[:middle]), ([*range(middle, len(parts))], parts[middle:])]
    if len(parts) == 1:
        run, lines = parts[0].run, parts[0].lines or range(bound.count(parts[0].run))
        middle = lines.start + len(lines) // 2
        whole = bound.plan.logits is None or bound.generates or step.reads or step.twins
        whole = whole or any(edit.site.path is not None and edit.positions.rows is None for edit in run.edits)
        if whole or len(lines) < 2 or getattr(way, "leaving", None) is not None:
            return ()
        halved = Part(run, range(lines.start, middle)), Part(run, range(middle, lines.stop))
        pieces = [([0], (half,)) for half in halved]
    return tuple(replace(step, parts=tuple(some), way=way.of(numbers)) for numbers, some in pieces)


# --- copies -----------------------------------------------------------------------------------------------------------


def copies_of(bound: Bound, part: Part, batch: int, edits: Sequence[BoundEdit] = (), *, tails: bool = False) -> Copies:
    """Return the copies of a part, with the first position of each that is worked on.

    Args:
        bound: the plan.
        part: some examples of a run.
        batch: examples of its input.
        edits: those that are still to be made.
        tails: only what follows the first position that is edited or read is worked on.
    """
    examples = tuple(range(batch)) if part.examples is None else part.examples
    if not tails:
        return Copies(examples, (0,) * len(examples))
    lines = range(len(examples)) if part.lines is None else part.lines
    columns = bound.columns(part.run)
    read = [None] * len(lines) if columns is None else columns[lines.start : lines.stop].tolist()
    starts = []
    for line, column in zip(lines, read, strict=True):
        first = [] if column is None else [column]
        for edit in edits:
            rows = edit.edit.positions.rows or ((0,),)
            first += rows[line if len(rows) > 1 else 0]
        starts.append(min(first, default=0))
    return Copies(examples, tuple(starts))


def _joining(
    bound: Bound,
    step: Step,
    record: Record,
    origin: Origin,
    layout: Layout,
    *,
    moved: bool = False,
    shortens: bool = False,
) -> tuple[Pass, int]:
    """Return a pass in which parts join where their first edit is, and the number of the first block that it runs.

    Args:
        bound: the plan.
        step: the parts, ordered by depth.
        record: takes what comes by.
        origin: what they start from.
        layout: where their copies lie.
        moved: they lie elsewhere than in a batch of their own.
        shortens: of the last block, run only what is read, if no edit needs more.
    """
    joins: list[Join] = []
    hooked: list[BoundEdit] = []
    inherited: list[Inheritance] = []
    joined: list[str] = []
    for number, (part, start) in enumerate(zip(step.parts, origin.starts, strict=True)):
        block, output = origin.blocks.find(start)
        edits, rows = origin.edits(bound, number, part.run), layout.rows[number]
        here = [e for e in edits if origin.depths[e.edit.site] == start and start.point != INSIDE and start < END]
        at_join = [_moved(edit, layout, number, part, rows.start) if moved else edit for edit in here]
        joins.append(Join(block, output, rows, partial(apply_edits, record, at_join)))
        joined += [edit.edit.name for edit in here]
        hooked += [_moved(edit, layout, number, part, 0) if moved else edit for edit in edits if edit not in here]
        inherited += [
            Inheritance(name, made, part.examples or tuple(range(origin.states.batch)))
            for name, made in origin.inherited[number]
        ]
    at = _read_at(bound, step.parts, layout)
    last = None
    if at is not None and shortens and _can_be_shortened(origin, hooked, layout):
        last = LastBlock(origin.blocks.calls[-1], *at)
    parts = PartialPass(origin.blocks, origin.states, layout, joins, last)
    shape = int(layout.example.shape[0]), int(layout.example.shape[1])
    made = Pass({}, hooked, shape, at, [parts.around()], [parts.within()], inherited, joined)
    return made, parts.first


def _read_at(bound: Bound, parts: Sequence[Part], layout: Layout) -> tuple[Tensor, Tensor] | None:
    """Return the row and the column at which each copy is read; `None` where whole outputs are wanted."""
    columns = []
    for part in parts:
        known = bound.columns(part.run)
        if known is None:
            return None
        columns.append(known if part.lines is None else known[part.lines.start : part.lines.stop])
    return layout.ends(torch.cat(columns))


def _can_be_shortened(origin: Origin, edits: Sequence[BoundEdit], layout: Layout) -> bool:
    """Whether the last block can be cut down: it attends once, and nothing is done in it or behind it."""
    last, attended = len(origin.blocks) - 1, origin.states.attended
    depths = [origin.depths[edit.edit.site] for edit in edits]
    early = all(depth is not None and depth < END and origin.blocks.find(depth)[0] < last for depth in depths)
    return early and layout.position.shape[1] > 1 and (last, 0) in attended and (last, 1) not in attended


def _moved(edit: BoundEdit, layout: Layout, number: int, part: Part, first_row: int) -> BoundEdit:
    places = edit.places if part.lines is None else edit.places.of(part.lines)
    if len(layout.copies) == 1 and not layout.packed:  # all rows are its own
        return replace(edit, places=places, lines=part.lines)
    return replace(edit, places=layout.places(places, number, first_row), lines=part.lines)


def _tails(inputs: Inputs, layout: Layout) -> Inputs:
    """Return what the model is called with where only tails are run: the input's tokens where the layout has them."""
    assert isinstance(inputs, Mapping)
    name = "input_ids" if inputs.get("input_ids") is not None else "inputs_embeds"
    tokens, positions = inputs[name], inputs.get("position_ids")
    at = layout.example.to(tokens.device), layout.position.to(tokens.device)
    placed = at[1] if positions is None else positions.expand(batch_size(inputs), -1)[at]
    others = {setting: value for setting, value in inputs.items() if setting in _SETTINGS}
    if "attention_mask" in inputs:  # who sees whom is settled where attention is computed
        others["attention_mask"] = torch.ones_like(layout.position, device=tokens.device)
    return {name: tokens[at], "position_ids": placed, **others}
