"""The frozen picks: which module each component is, for every kind of block of every architecture.

`chosen.json` has four parts: `reviewed` says how it was read; `kinds` are the distinct kinds of block by the name of
the first architecture that has one; `ends` likewise; `models` says which kinds an architecture's stacks consist of, and
whether all was found. Equal picks are so reviewed once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from difflib import unified_diff
from pathlib import Path
from typing import Any

from .record import Record

FILE = Path(__file__).with_name("chosen.json")
Picks = dict[str, list[str]]


def picks_of(record: Record) -> list[str]:
    """Return the picks of one architecture, a line each."""
    lines = []
    for kind in record.kinds:
        lines.append(f"{kind.stack or 'main'}: {kind.blocks} blocks")
        lines += [f"  {name} = {place}" for name, place in kind.slots.items()]
    ends = (f"{name} = {place}" for name, place in record.ends.items())
    return [f"verdict: {record.verdict}", *lines, *ends] if record.kinds else []


def differences(records: Iterable[Record], gone: Iterable[str] = ()) -> list[str]:
    """Return the changed picks as diffs, one text an architecture.

    Args:
        records: what was examined; those not resolved have no picks.
        gone: names in the file that no mapping has any more.
    """
    frozen = load()
    texts = [f"{name}: in the file, but in no mapping any more" for name in gone]
    for record in records:
        old, new = frozen.get(record.name, []), picks_of(record)
        if old != new:
            diff = unified_diff(old, new, "frozen", "picked now", lineterm="", n=1)
            texts.append("\n".join([f"{record.name}:", *("  " + line for line in list(diff)[2:])]))
    return texts


def load() -> Picks:
    """Return the frozen picks by architecture."""
    if not FILE.exists():
        return {}
    data = json.loads(FILE.read_text())
    picks: Picks = {}
    for name, stacks in data["models"].items():
        lines = [f"verdict: {stacks['verdict']}"]
        for stack, kind, blocks in stacks["stacks"]:
            lines.append(f"{stack}: {blocks} blocks")
            lines += [f"  {component} = {place}" for component, place in data["kinds"][kind].items()]
        picks[name] = [*lines, *(f"{end} = {place}" for end, place in data["ends"][stacks["ends"]].items())]
    return picks


def write(records: Iterable[Record]) -> None:
    """Freeze the picks of these records; those of other architectures stay as they are."""
    data: dict[str, Any] = {"kinds": {}, "ends": {}, "models": {}}
    if FILE.exists():
        data = json.loads(FILE.read_text())
    for record in records:
        data["models"].pop(record.name, None)
        if record.kinds:
            stacks = [
                [kind.stack or "main", _named(data["kinds"], kind.slots, record.model_type), kind.blocks]
                for kind in record.kinds
            ]
            ends = _named(data["ends"], record.ends, record.model_type)
            data["models"][record.name] = {"verdict": record.verdict, "stacks": stacks, "ends": ends}
    _drop_unused(data)
    FILE.write_text(_dump(data))


def _named(known: dict[str, dict[str, str]], value: dict[str, str], model_type: str) -> str:
    """Return the name under which a kind is known; give it one if it is new."""
    for name, other in known.items():
        if other == value:
            return name
    name, number = model_type, 1
    while name in known:
        number += 1
        name = f"{model_type}/{number}"
    known[name] = value
    return name


def _drop_unused(data: dict[str, Any]) -> None:
    models = data["models"] = dict(sorted(data["models"].items()))
    used = {kind for model in models.values() for _, kind, _ in model["stacks"]}
    ends = {model["ends"] for model in models.values()}
    data["kinds"] = {name: kind for name, kind in sorted(data["kinds"].items()) if name in used}
    data["ends"] = {name: end for name, end in sorted(data["ends"].items()) if name in ends}


def _dump(data: dict[str, Any]) -> str:
    """Return JSON with a line per component of a kind, and a line per model."""
    kinds = json.dumps(data["kinds"], indent=1, ensure_ascii=False)
    ends = ",\n".join(f"  {json.dumps(name)}: {json.dumps(end)}" for name, end in data["ends"].items())
    models = ",\n".join(f"  {json.dumps(name)}: {json.dumps(model)}" for name, model in data["models"].items())
    reviewed = json.dumps(data.get("reviewed", []), indent=1)
    return f'{{\n"reviewed": {reviewed},\n"kinds": {kinds},\n"ends": {{\n{ends}\n}},\n"models": {{\n{models}\n}}\n}}\n'
