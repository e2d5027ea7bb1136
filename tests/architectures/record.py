"""One entry of a mapping, from its name to a verdict: build, resolve, verify. A record is plain JSON-able data."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from align_transformers.models import resolve

from . import finite_difference
from .shrink import hints
from .tiny import NotBuiltError, TinyModel, tiny_model
from .verify import Failure, Verifier, is_absent, representatives

_SECONDS = 90
_INTERFACE = ("query_rotary", "key_rotary", "head_output", "attention_score", "attention_pattern", "router_output")
_ADDED = (
    "attention_contribution",
    "head_contribution",
    "mlp_contribution",
    "mixer_contribution",
    "moe_contribution",
    "per_layer_mlp_contribution",
)
_EXTRA = (*_INTERFACE, *_ADDED)
NOT_BUILT, REFUSED, WRONG, PARTIAL, COMPLETE = "not built", "refused", "wrong", "partial", "complete"
VERDICTS = (COMPLETE, PARTIAL, REFUSED, WRONG, NOT_BUILT)


@dataclass
class Kind:
    """One kind of block in one stack: where its components are (relative to the block), and what it has not got."""

    stack: str
    blocks: int
    slots: dict[str, str]
    missing: dict[str, str]
    facts: dict[str, str]


@dataclass
class Record:
    """What the sweep found out about one entry of a mapping."""

    mapping: str
    model_type: str
    verdict: str = NOT_BUILT
    reason: str = ""
    notes: tuple[str, ...] = ()
    kinds: list[Kind] = field(default_factory=list)
    ends: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    excused: list[str] = field(default_factory=list)
    skipped: tuple[str, ...] = ()
    heads_checked: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.mapping}:{self.model_type}"


def examine(mapping: str, model_type: str) -> Record:
    """Return the record of one entry; whatever goes wrong is in it."""
    record, start = Record(mapping, model_type), time.process_time()
    previous = signal.signal(signal.SIGPROF, _too_long)
    signal.setitimer(signal.ITIMER_PROF, _SECONDS)
    try:
        tiny = tiny_model(mapping, model_type)
        record.notes, record.verdict = tiny.notes, REFUSED
        components = resolve(tiny.model, example_inputs=dict(tiny.inputs))
        _describe(record, tiny, components)
        if record.kinds:
            _judge(record, tiny, components)
        else:
            record.reason = str(getattr(components, "reason", "")) or "no stack of blocks"
    except NotBuiltError as error:
        record.reason = str(error)
    except Exception as error:  # the resolver's refusals, and its bugs
        record.reason = f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)
    record.seconds = round(time.process_time() - start, 2)
    return record


def _too_long(_signal: int, _frame: FrameType | None) -> None:
    raise TimeoutError(f"took more than {_SECONDS} seconds of processor time")


def _describe(record: Record, tiny: TinyModel, components: Any) -> None:
    for stack, blocks in components.stacks.items():
        signatures = [str(block.flags.get("signature", number)) for number, block in enumerate(blocks)]
        for number in representatives(blocks):
            block = blocks[number]
            facts = {k: str(v) for k, v in sorted(block.flags.items()) if k != "signature" and v not in (None, "")}
            slots = {name: _place(slot, block.path) for name, slot in sorted(block.slots.items())}
            count = signatures.count(signatures[number])
            record.kinds.append(Kind(stack, count, slots, dict(sorted(block.missing.items())), facts))
    record.ends = {name: _place(slot, "") for name, slot in sorted(components.ends.items())}


def _place(slot: Any, block: str) -> str:
    """Return a slot in words: relative path, side, and how its heads lie in the channels."""
    inside = slot.path == block or slot.path.startswith(f"{block}.")
    path = (slot.path[len(block) :].lstrip(".") or "(block)") if block and inside else f"/{slot.path}"
    words = [path, "in" if slot.side == "input" else "out"]
    if slot.leaf not in (None, (), (0, 0)):
        words.append("leaf " + ".".join(str(step) for step in slot.leaf))
    if slot.heads is not None:
        words.append(_layout(slot.heads))
    elif slot.channels is not None:
        words.append(f"channels {int(slot.channels.min())}..{int(slot.channels.max())}")
    if slot.scale != 1.0:
        words.append(f"times {slot.scale:.4g}")
    return " ".join(words)


def _layout(heads: Tensor) -> str:
    count, size = heads.shape
    flat, start = heads.flatten(), int(heads.min())
    if torch.equal(flat, torch.arange(start, start + flat.numel())):
        return f"{count}x{size}" + (f" from {start}" if start else "")
    whole = all(torch.equal(head, torch.arange(int(head[0]), int(head[0]) + size)) for head in heads)
    starts = [int(head[0]) for head in heads]
    return f"{count}x{size} at {','.join(map(str, starts))}" if whole else f"{count}x{size} scattered from {start}"


def _judge(record: Record, tiny: TinyModel, components: Any) -> None:
    verifier = Verifier(tiny.model, tiny.inputs)
    failures = verifier.check(components)
    outcome = finite_difference.check(tiny.model, tiny.inputs, components, verifier.skipped)
    failures = failures + outcome.failures
    record.skipped = tuple(verifier.skipped)
    record.heads_checked = outcome.counts
    for failure in failures:
        excuse = _excuse(record, failure)
        if excuse:
            record.excused.append(excuse)
        else:
            record.failures.append(str(failure))
    record.excused = sorted(set(record.excused))
    refused = any(is_refusal(name, why) for kind in record.kinds for name, why in kind.missing.items())
    record.verdict = WRONG if record.failures else PARTIAL if refused else COMPLETE


def is_refusal(component: str, reason: str) -> bool:
    """Return whether an architecture is not complete for this reason: what only interfaces show is an extra."""
    return component.removeprefix("cross_") not in _EXTRA and not is_absent(reason)


def _excuse(record: Record, failure: Failure) -> str:
    """Return the reviewed reason for which a failed check is no fault of the map; "" when there is none."""
    what = f"{failure.stack or 'main'}.{failure.component} {failure.check}"
    for name in (record.model_type, record.name):
        for pattern, reason in hints()["excused"].get(name, {}).items():
            if fnmatchcase(what, pattern):
                return str(reason)
    return ""
