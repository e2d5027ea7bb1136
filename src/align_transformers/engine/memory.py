"""What the unedited model makes of the examples of a data set, kept from one batch to the next.

A fit meets every example again in each epoch, and what the frozen model makes of it below the edit never changes. So
source activations are computed once, and the base's pass starts at the edit. An example is known by its contents: its
row in every tensor of the input.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import final

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from .._errors import PlanError
from .._files import write_atomically
from ..models import uncompiled
from ..plan import Constant, Plan, Read, Run
from ..positions import Positions
from .abilities import abilities
from .bind import starts_of
from .capture import capture
from .chain import Chain
from .inputs import Inputs, batch_size, examples_of
from .kept import Attended, Kept
from .passes import keep_states
from .schedule import Depth

Parts = dict[str, Tensor]
"""What is kept of one example, by name."""


@final
class Memory:
    """States of examples, in memory up to a budget, behind that in files that are mapped into memory.

    Args:
        budget: bytes that are held in memory.
        folder: where the files go that hold what is more; `None`: nothing more is kept, but computed again.
        alone: compute every example by itself, so that what is kept of it does not depend, in the last bits, on the
            others that it was met with. Slower the first time.

    Attributes:
        keeps_states: False once it was found that the model's blocks return more than the residual stream, or hand each
            other dictionaries: then only source activations are kept.

    >>> Memory(budget=1024).bytes
    0
    """

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

    def check(self, model: nn.Module) -> None:
        """Refuse any model but the first.

        Raises:
            PlanError: the memory holds states of another model object.
        """
        if self._model is None:
            self._model = weakref.ref(model)
        elif self._model() is not model:
            raise PlanError("this Memory holds what another model object made of its examples: give each its own")

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
            path = self.folder / f"{len(self._filed):08d}.safetensors"
            self._filed[key] = write_atomically(path, save({name: part.contiguous() for name, part in parts.items()}))


def recall_all(memory: Memory, keys: Sequence[bytes], compute: Callable[[list[int]], Sequence[Parts]]) -> list[Parts]:
    """Return the parts of some examples; those that are not known are computed, together, and kept.

    Args:
        memory: what is known.
        keys: of the examples.
        compute: from numbers of examples to their parts.
    """
    found = [memory.recall(key) for key in keys]
    first = {key: number for number, key in reversed(list(enumerate(keys))) if found[number] is None}
    missing = sorted(first.values())
    if missing:
        groups = [[number] for number in missing] if memory.alone else [missing]
        computed = [parts for group in groups for parts in compute(group)]
        new = dict(zip((keys[number] for number in missing), computed, strict=True))
        for key, parts in new.items():
            memory.keep(key, parts)
        found = [new[key] if parts is None else parts for key, parts in zip(keys, found, strict=True)]
    return [parts for parts in found if parts is not None]


def row_keys(inputs: Inputs, tail: str) -> list[bytes]:
    """Return a key for each example of an input: its row in every tensor.

    Args:
        inputs: the model's.
        tail: what else the key stands for.
    """
    batch = batch_size(inputs)
    named = {"": inputs} if isinstance(inputs, Tensor) else inputs
    autocast = [torch.get_autocast_dtype(kind) for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    end = f"{tail} {autocast}".encode()
    keys = [end] * batch
    for name, value in sorted(named.items()):
        if isinstance(value, Tensor) and value.ndim and value.shape[0] == batch:
            rows = value.detach().cpu().contiguous().view(batch, -1)
            shape = f"{name}{tuple(value.shape[1:])}{value.dtype}".encode()
            keys = [key + shape + row.numpy().tobytes() for key, row in zip(keys, rows, strict=True)]
        else:
            keys = [key + f"{name}={value!r}".encode() for key in keys]
    return keys


def remembered(
    model: nn.Module, plan: Plan, inputs: Mapping[str, Inputs], constants: Mapping[str, Tensor], memory: Memory
) -> tuple[Plan, dict[str, Tensor], dict[str, Kept]]:
    """Return the same plan with what is remembered in the place of what would be computed.

    Reads of unedited runs become constants. Where the plan wants logits only, inputs whose runs are edited come with
    their unedited states.

    Args:
        model: the user's; its weights must be as they were when the memory was filled.
        plan: what is to happen.
        inputs: of the plan.
        constants: of the plan.
        memory: is read and filled.

    Raises:
        PlanError: the memory was filled with another model.
    """
    memory.check(model)
    values = dict(constants)
    runs = []
    for run in plan.runs:
        edits = []
        for edit in run.edits:
            source = edit.source
            if isinstance(source, Read) and not plan.run(source.run).edits and source.positions.rows is not None:
                name = f"{edit.name} (remembered)"
                values[name] = _read(model, source, plan.run(source.run), inputs, memory)
                edit = replace(edit, source=Constant(name))
            edits.append(edit)
        runs.append(replace(run, edits=tuple(edits)))
    plan = replace(plan, runs=tuple(runs))
    chain, starts = starts_of(model, plan)
    if plan.logits is None or chain is None or not memory.keeps_states or abilities(model).why_not("packed"):
        return plan, values, {}
    kept = {name: _states(model, chain, inputs[name], depths, memory) for name, depths in starts.items()}
    return plan, values, {name: states for name, states in kept.items() if states is not None}


# --- source activations ----------------------------------------------------------------------------------------------


def _read(model: nn.Module, read: Read, run: Run, inputs: Mapping[str, Inputs], memory: Memory) -> Tensor:
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
        values = capture(model, examples_of(source, picked), read.site, there)
        return [{"value": value[: len(row)].clone()} for value, row in zip(values, there.rows or (), strict=True)]

    found = [parts["value"] for parts in recall_all(memory, keys, compute)]
    return torch.nn.utils.rnn.pad_sequence(found, batch_first=True)


# --- states of the base ----------------------------------------------------------------------------------------------


class _Unfit(Exception):
    """What blocks hand on besides the residual stream is not kept by example; never seen by a user."""


def _states(model: nn.Module, chain: Chain, inputs: Inputs, depths: Collection[Depth], memory: Memory) -> Kept | None:
    """Return the unedited states of an input at some depths; `None` where they cannot be told apart by example."""
    places = sorted({chain.find(depth) for depth in depths})

    def compute(missing: list[int]) -> list[Parts]:
        kept = keep_states(uncompiled(model), chain, examples_of(inputs, missing), places, heads=True)
        if kept.shells or kept.sides:
            raise _Unfit
        return [_taken_apart(kept, example, places[0][0]) for example in range(len(missing))]

    try:
        return _put_together(recall_all(memory, row_keys(inputs, f"{places}"), compute))
    except _Unfit:
        memory.keeps_states = False
        return None


def _taken_apart(kept: Kept, example: int, first: int) -> Parts:
    """Return the part of one example, from a block on; layers that share a mask share it here."""
    parts = {f"input.{link}": state[example].clone() for link, state in kept.inputs.items()}
    parts |= {f"output.{link}": state[example].clone() for link, state in kept.outputs.items()}
    masks: dict[int, int] = {}
    table = []
    for (link, number), seen in sorted(kept.attended.items()):
        if link >= first:
            mask = masks.setdefault(id(seen.allowed), len(masks))
            parts[f"allowed.{mask}"] = seen.allowed[example if len(seen.allowed) > 1 else 0].clone()
            parts[f"key.{link}.{number}"] = seen.key[example].clone()
            parts[f"value.{link}.{number}"] = seen.value[example].clone()
            table.append((link, number, mask))
    return parts | {"attended": torch.tensor(table, dtype=torch.long).view(-1, 3)}


def _put_together(parts: Sequence[Parts]) -> Kept:
    """Return the states of a batch from those of its examples."""
    kept = Kept(len(parts))
    batch = {name: torch.stack([one[name] for one in parts]) for name in parts[0] if name != "attended"}
    for name, value in batch.items():
        kind, _, link = name.partition(".")
        if kind in ("input", "output"):
            (kept.inputs if kind == "input" else kept.outputs)[int(link)] = value
    for link, number, mask in parts[0]["attended"].tolist():
        at = f"{link}.{number}"
        kept.attended[link, number] = Attended(batch[f"key.{at}"], batch[f"value.{at}"], batch[f"allowed.{mask}"])
    return kept
