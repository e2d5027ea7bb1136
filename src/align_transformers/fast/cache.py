"""What the unedited model makes of the examples of a data set, kept from one batch to the next.

A fit meets every example again in each epoch, and what the frozen model makes of it below the edit never changes. So
source activations are computed once, and the base's pass starts at the edit. An example is known by its contents: its
row in every tensor of the input.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final
from uuid import uuid4

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from .._checked import checked
from .._errors import PlanError
from .._files import write_atomically
from ..engine import Inputs, batch_size, bind
from ..engine.run import Results, execute, run_step
from ..engine.step import OutOfMemory, Part, Step
from ..models import evaluating, find_slot
from ..models.detours import is_detoured
from ..models.devices import input_device
from ..models.fingerprint import digest, fingerprint
from ..models.sequence import examples_of
from ..plan import Constant, Logits, Plan, Read, Run
from ..positions import Positions
from .contents import tensor_bytes
from .depth import Blocks, Depth, blocks_of, depths_of
from .planned import planned
from .schedule import Facts, schedule
from .states import Attended, States
from .trial import trials_of
from .ways import Full, Leaving, Stop

Parts = dict[str, Tensor]
"""What is kept of one example, by name."""


@final
class ActivationCache:
    """States of examples in eval mode, in memory up to a budget, behind that in files that are mapped into memory.

    Args:
        budget: bytes that are held in memory.
        folder: where the files go that hold what is more; `None`: nothing more is kept, but computed again.
        alone: compute every example by itself, so that what is kept of it does not depend, in the last bits, on the
            others that it was met with. Slower the first time.

    Attributes:
        keeps_states: False once it was found that the model's blocks return more than the residual stream, or hand each
            other dictionaries: then only source activations are kept.

    >>> ActivationCache(budget=1024).bytes
    0
    """

    @checked
    def __init__(
        self, budget: int = 2**31, folder: str | os.PathLike[str] | None = None, *, alone: bool = False
    ) -> None:
        self.budget = budget
        self.alone = alone
        self.folder = None if folder is None else Path(folder)
        self.keeps_states = True
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self._held: dict[bytes, Parts] = {}
        self._filed: dict[bytes, Path] = {}
        self._model: weakref.ref[nn.Module] | None = None
        self._digest: str | None = None

    def take_up(self, model: nn.Module) -> None:
        """Go on with a model that computes what the first one did: it is looked at anew, weight by weight.

        Weights that are not at hand cannot be looked at: then it has to be the same object.

        Raises:
            PlanError: it has other weights or settings than the first, or edits are applied to it here.
        """
        _check_plain(model)
        found = None
        if not any(weight.is_meta for weight in (*model.parameters(), *model.buffers())):
            with evaluating(model):
                found = f"{fingerprint(model)['digest']} {input_device(model)}"
        if found is None or self._digest is None:
            self.check(model)
        elif found != self._digest:
            raise PlanError(
                "this cache holds what a model with other weights or settings, or on another device, made of its "
                "examples: give this one its own"
            )
        self._model, self._digest = weakref.ref(model), found

    def check(self, model: nn.Module) -> None:
        """Refuse any model but the first, and one to which edits are applied here.

        Raises:
            PlanError: the memory holds states of another model object, or of the model without such edits.
        """
        _check_plain(model)
        if self._model is None:
            self._model = weakref.ref(model)
        elif self._model() is not model:
            raise PlanError("this cache holds what another model object made of its examples: give each its own")

    def recall(self, key: bytes) -> Parts | None:
        """Return what is kept under a key, `None` if nothing is."""
        found = self._held.get(key)
        if found is None and key in self._filed:
            with safe_open(self._filed[key], framework="pt") as file:
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        self.hits += found is not None
        self.misses += found is None
        return found

    def keep(self, key: bytes, parts: Parts) -> None:
        """Keep the parts of one example."""
        size = sum(part.numel() * part.element_size() for part in parts.values())
        if self.bytes + size <= self.budget:
            self._held[key] = parts
            self.bytes += size
        elif self.folder is not None:
            path = self.folder / f"{uuid4().hex}.safetensors"  # others may keep theirs in the same folder
            self._filed[key] = write_atomically(path, save({name: part.contiguous() for name, part in parts.items()}))


Memory = ActivationCache
"""The name that this had first."""


def _check_plain(model: nn.Module) -> None:
    """Refuse a model to which edits are applied here."""
    if is_detoured(model, "forward"):
        raise PlanError(
            "a cache keeps what the model makes of its examples without edits, and some are applied to it here: "
            "memory=False, or leave the context of `applied` first"
        )


def recall_all(
    cache: ActivationCache, keys: Sequence[bytes], compute: Callable[[list[int]], Sequence[Parts]]
) -> list[Parts]:
    """Return the parts of some examples; those that are not known are computed, together, and kept.

    Args:
        cache: what is known.
        keys: of the examples.
        compute: from numbers of examples to their parts.
    """
    found = [cache.recall(key) for key in keys]
    first = {key: number for number, key in reversed(list(enumerate(keys))) if found[number] is None}
    missing = sorted(first.values())
    if missing:
        groups = [[number] for number in missing] if cache.alone else [missing]
        computed = [parts for group in groups for parts in compute(group)]
        new = dict(zip((keys[number] for number in missing), computed, strict=True))
        for key, parts in new.items():
            cache.keep(key, parts)
        found = [new[key] if parts is None else parts for key, parts in zip(keys, found, strict=True)]
    return [parts for parts in found if parts is not None]


def row_keys(inputs: Inputs, tail: str) -> list[bytes]:
    """Return a key for each example of an input: its row in every tensor, and all of what is not by example.

    Args:
        inputs: the model's.
        tail: what else the key stands for.
    """
    batch = batch_size(inputs)
    named = {"": inputs} if isinstance(inputs, Tensor) else inputs
    autocast = [torch.get_autocast_dtype(kind) for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    keys = [f"{tail} {autocast}".encode()] * batch
    for name, value in sorted(named.items()):
        if isinstance(value, Tensor):
            by_example = value.ndim > 0 and value.shape[0] == batch
            kind = f"{name}{tuple(value.shape[by_example:])}{value.dtype}".encode()
            rows = [tensor_bytes(row) for row in value] if by_example else [tensor_bytes(value)] * batch
            keys = [key + kind + row for key, row in zip(keys, rows, strict=True)]
        else:
            told = digest(value, f"the input {name!r}")
            keys = [key + f"{name}={told}".encode() for key in keys]
    return keys


@dataclass(frozen=True, eq=False)
class Remembered:
    """A plan in which what is known stands in the place of what would be computed.

    Args:
        plan: reads of unedited runs are constants in it.
        constants: of the plan.
        known: by name of an input the states of its unedited run.
    """

    plan: Plan
    constants: Mapping[str, Tensor]
    known: Mapping[str, States]


def remembered(
    model: nn.Module, plan: Plan, inputs: Mapping[str, Inputs], constants: Mapping[str, Tensor], cache: ActivationCache
) -> Remembered:
    """Return the same plan with what is remembered in the place of what would be computed.

    Reads of unedited runs become constants. Where the plan wants logits only, inputs whose runs are edited come with
    their unedited states.

    Args:
        model: the user's; its weights must be as they were when the cache was filled.
        plan: what is to happen.
        inputs: of the plan.
        constants: of the plan.
        cache: is read and filled.

    Raises:
        PlanError: the cache was filled with another model.
    """
    cache.check(model)
    values = dict(constants)
    runs = []
    for run in plan.runs:
        edits = []
        for edit in run.edits:
            source = edit.source
            if isinstance(source, Read) and not plan.run(source.run).edits and source.positions.rows is not None:
                name = f"{edit.name} (remembered)"
                values[name] = _read(model, source, plan.run(source.run), inputs, cache)
                edit = replace(edit, source=Constant(name))
            edits.append(edit)
        runs.append(replace(run, edits=tuple(edits)))
    plan = replace(plan, runs=tuple(runs))
    sites = {edit.site for edit in plan.edits()} | {read.site for read in plan.reads()}
    slots = {site: find_slot(model, site) for site in sites}  # the model is resolved now, if it has to be
    blocks = blocks_of(model)
    if plan.logits is None or blocks is None or not cache.keeps_states or trials_of(model).why_not("packed"):
        return Remembered(plan, values, {})
    starts: dict[str, set[Depth]] = {}
    facts = Facts(depths_of(slots, blocks).__getitem__, {run.input for run in plan.runs})
    for stage in schedule(plan, plan.order(), facts):
        starts.setdefault(stage.runs[0].input, set()).update(stage.starts)
    known = {name: _states(model, blocks, inputs[name], depths, cache) for name, depths in starts.items() if depths}
    return Remembered(plan, values, {name: states for name, states in known.items() if states is not None})


# --- source activations ----------------------------------------------------------------------------------------------


def _read(model: nn.Module, read: Read, run: Run, inputs: Mapping[str, Inputs], cache: ActivationCache) -> Tensor:
    """Return what a read of an unedited run has, `(lines, units, width)`; zeros at padding."""
    source = examples_of(inputs[run.input], run.examples)
    rows, heads, batch = read.positions.rows or (), read.positions.heads, batch_size(source)
    lines = read.examples or (range(batch) if batch > 1 else [0] * len(rows))
    by_example = row_keys(source, f"{read.site}")
    keys = []
    for line, (example, row) in enumerate(zip(lines, rows * len(lines) if len(rows) == 1 else rows, strict=False)):
        at = heads[line if len(heads) > 1 else 0] if heads is not None else None
        keys.append(by_example[example] + f"{row}{at}".encode())

    def compute(missing: list[int]) -> list[Parts]:
        picked = [lines[line] for line in missing]
        there = Positions(
            tuple(rows[line if len(rows) > 1 else 0] for line in missing),
            None if heads is None else tuple(heads[line if len(heads) > 1 else 0] for line in missing),
        )
        wanted = Read("run", read.site, there)
        plan = Plan((Run("run", "inputs"),), (), None, (wanted,))
        with torch.no_grad(), evaluating(model):
            bound = bind(model, plan, {"inputs": examples_of(source, picked)}, {})
            values = execute(bound, planned).values[wanted]
        return [{"value": value[: len(row)].clone()} for value, row in zip(values, there.rows or (), strict=True)]

    found = [parts["value"] for parts in recall_all(cache, keys, compute)]
    return torch.nn.utils.rnn.pad_sequence(found, batch_first=True)


# --- states of the base ----------------------------------------------------------------------------------------------


class _Unfit(Exception):
    """What blocks hand on besides the residual stream is not kept by example; never seen by a user."""


def _states(
    model: nn.Module, blocks: Blocks, inputs: Inputs, depths: Collection[Depth], cache: ActivationCache
) -> States | None:
    """Return the unedited states of an input at some depths; `None` where they cannot be told apart by example."""
    places = sorted({blocks.find(depth) for depth in depths})

    def compute(missing: list[int]) -> list[Parts]:
        kept = _states_of(model, blocks, examples_of(inputs, missing), places)
        if kept.shells or kept.sides:
            raise _Unfit
        return [_taken_apart(kept, example, places[0][0]) for example in range(len(missing))]

    try:
        return _put_together(recall_all(cache, row_keys(inputs, f"{places}"), compute), blocks)
    except _Unfit:
        cache.keeps_states = False
        return None


@torch.no_grad()
def _states_of(model: nn.Module, blocks: Blocks, inputs: Inputs, places: Collection[tuple[int, bool]]) -> States:
    """Return the unedited states of an input at some places, with all keys and values; no more is run than that."""
    bound = bind(model, Plan((Run("base", "base"),), ("base",), Logits()), {"base": inputs}, {})
    way = Full(Stop(blocks.calls[-1].module, before=False), Leaving(blocks, frozenset(places), heads=True))
    with evaluating(model):
        states = run_step(Results(bound), Step((Part(bound.order[0]),), way=way), None)
    if isinstance(states, OutOfMemory):
        raise states.error
    assert isinstance(states, States)
    return states


def _taken_apart(kept: States, example: int, first: int) -> Parts:
    """Return the part of one example, from a block on; layers that share a mask share it here."""
    parts = {f"input.{block}": state[example].clone() for block, state in kept.inputs.items()}
    parts |= {f"output.{block}": state[example].clone() for block, state in kept.outputs.items()}
    masks: dict[int, int] = {}
    table = []
    for (block, number), seen in sorted(kept.attended.items()):
        if block >= first:
            mask = masks.setdefault(id(seen.allowed), len(masks))
            parts[f"allowed.{mask}"] = seen.allowed[example if len(seen.allowed) > 1 else 0].clone()
            parts[f"key.{block}.{number}"] = seen.key[example].clone()
            parts[f"value.{block}.{number}"] = seen.value[example].clone()
            table.append((block, number, mask))
    attended = torch.tensor(table, dtype=torch.long).view(-1, 3)
    return parts | {"attended": attended, "bytes": torch.tensor(kept.bytes)}


def _put_together(parts: Sequence[Parts], blocks: Blocks) -> States:
    """Return the states of a batch from those of its examples."""
    kept = States(len(parts), bytes=float(parts[0]["bytes"]))
    batch = {name: torch.stack([one[name] for one in parts]) for name in parts[0] if name not in ("attended", "bytes")}
    for name, value in batch.items():
        kind, _, block = name.partition(".")
        if kind in ("input", "output"):
            (kept.inputs if kind == "input" else kept.outputs)[int(block)] = value
            kept.samples[blocks.calls[int(block)].rank] = value
    for block, number, mask in parts[0]["attended"].tolist():
        at = f"{block}.{number}"
        kept.attended[block, number] = Attended(batch[f"key.{at}"], batch[f"value.{at}"], batch[f"allowed.{mask}"])
    return kept
