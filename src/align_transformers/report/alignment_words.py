"""What the page of an alignment search says beside its pictures: hypothesis, data, numbers, flags, where it fails."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .layer_map import Row
from .panels import Section
from .verdicts import flags_of, method_of, place_of, rate, rate_with_interval
from .words import precise

_COLUMNS = ("train", "validation", "full", "random", "permuted", "reinitialised")
_HEADS: Mapping[str, str] = {
    "train": "Fit", "validation": "Validation", "full": "Full vector", "random": "Random subspaces",
    "permuted": "Permuted labels", "reinitialised": "New weights",
}  # fmt: skip
_SHARES: Mapping[str, str] = {
    "base_accuracy": "of the prompts the model answers as the causal model does",
    "kept": "of the pairs are kept, since the model answers them rightly",
    "trivial": "of the test pairs are trivial: the interchange does not change the answer",
    "chance": "of the test labels are the most frequent one: chance",
}
_TOLD = ("search", "settings", "identity", "versions")
_CHECKS = 40
"""Facts that have a section each, and how many checks are shown."""


def sections_of(meta: Mapping[str, Any], chosen: Sequence[Row]) -> Iterator[Section]:
    """Yield the parts of the page, of what the meta tells.

    Args:
        meta: of a table of `align`.
        chosen: the chosen hypothesis of each set of variables, and that which is judged in its stead.
    """
    yield from _hypothesis(meta.get("causal_model") or {})
    yield from _data(meta)
    if chosen:
        yield _numbers(chosen)
    yield from _flags(meta.get("flags") or ())
    yield from _selection(meta.get("selection") or ())
    yield from _buckets(meta.get("buckets") or ())
    for name in _TOLD:
        facts = meta.get(name)
        if facts:
            told = facts if isinstance(facts, Mapping) else {name: facts}
            yield Section(name.capitalize(), facts={str(key): said(value) for key, value in told.items()})
    cost = {"passes": said(meta.get("passes") or None), "seconds": said(meta.get("seconds"))}
    if any(value != "-" for value in cost.values()):
        yield Section("Cost", facts={key: value for key, value in cost.items() if value != "-"})


def said(value: Any) -> str:
    """Return a fact in words.

    >>> said({"das": [1, 4], "seed": 0}), said(0.123456), said(None), said(True)
    ('das: 1, 4; seed: 0', '0.123', '-', 'yes')
    """
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return precise(value)
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {said(one)}" for key, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(said, value)) or "none"
    return str(value)


def _hypothesis(model: Mapping[str, Any]) -> Iterator[Section]:
    variables: Mapping[str, Mapping[str, Any]] = model.get("variables") or {}
    if not variables:
        return
    parents = {name: tuple(map(str, facts.get("parents") or ())) for name, facts in variables.items()}
    lines = [str(model["text"])] if model.get("text") else []
    lines += [
        f"{name} is made of {', '.join(of)}{_values(variables[name])}." for name, of in parents.items() if of
    ]  # fmt: skip
    inputs = [f"{name}{_values(variables[name])}" for name, of in parents.items() if not of]
    lines.append(f"Inputs: {', '.join(inputs)}.")
    if model.get("outputs"):
        lines.append(f"Output: {said(model['outputs'])}.")
    yield Section("Hypothesis: the causal model", tuple(lines), parents=parents, opens=True)


def _values(facts: Mapping[str, Any]) -> str:
    return "" if facts.get("values") is None else f" ({facts['values']} values)"


def _data(meta: Mapping[str, Any]) -> Iterator[Section]:
    data: Mapping[str, Any] = meta.get("data") or {}
    parts = {name: one for name, one in data.items() if isinstance(one, Mapping)}
    facts = {name: _part(one) for name, one in parts.items()}
    shares = {name: data.get(name, meta.get(name)) for name in _SHARES}
    lines = [f"{rate(share)} {_SHARES[name]}." for name, share in shares.items() if share is not None]
    if data.get("trivial_left_out") is not None:
        lines.append(f"{data['trivial_left_out']} trivial pairs are left out.")
    swaps = meta.get("self_swap")
    for name, kept in (swaps if isinstance(swaps, Mapping) else {"": swaps}).items():
        if kept is not None:
            of = f"{name}: " if name else ""
            lines.append(f"{of}{rate(kept)} of the test pairs keep their answer when an input is its own source.")
    known = {*parts, *_SHARES, "trivial_left_out"}
    facts |= {str(name): said(value) for name, value in data.items() if name not in known}
    if lines or facts:
        yield Section("Data", tuple(lines), facts, opens=True)
    yield from _examples(meta.get("examples") or ())


def _part(facts: Mapping[str, Any]) -> str:
    counts = [f"{facts[of]} {of}" for of in ("pairs", "entities") if facts.get(of) is not None]
    others = {name: value for name, value in facts.items() if name not in ("pairs", "entities") and value is not None}
    return "; ".join([", ".join(counts), *([said(others)] if others else [])])


def _examples(examples: Sequence[Any]) -> Iterator[Section]:
    if examples and all(isinstance(one, Mapping) for one in examples):
        head = list(dict.fromkeys(name for one in examples for name in one))
        rows = tuple(tuple(said(one.get(name)) for name in head) for one in examples)
        yield Section("Examples", head=tuple(map(str, head)), rows=rows, opens=True)
    elif examples:
        yield Section("Examples", tuple(map(said, examples)), opens=True)


def _numbers(chosen: Sequence[Row]) -> Section:
    """Return the table of the chosen hypotheses with their controls."""
    columns = [name for name in _COLUMNS if any(row.get(name) is not None for row in chosen)]
    tested = any(_p(row) is not None for row in chosen)
    head = ["Variables", "Where", "Method", "IIA (test)", "Pairs", *(_HEADS[name] for name in columns)]
    rows = []
    for row in chosen:
        cells = [str(row["variables"]), place_of(row), method_of(row), rate_with_interval(row), said(row.get("n"))]
        cells += [_control(row, name) for name in columns]
        rows.append((*cells, *([precise(_p(row))] if tested else []), ", ".join(flags_of(row)) or "none"))
    lines = (
        "Chosen on validation pairs; the IIA is that of test pairs, with its 95 % interval. Below a chosen one "
        "without controls stands the best that has.",
        *(["p: against random subspaces of the same rank."] if tested else []),
    )
    return Section(
        "The chosen hypotheses and their controls",
        lines,
        head=(*head, *(["p"] if tested else []), "Flags"),
        rows=tuple(rows),
        opens=True,
    )


def _control(row: Row, name: str) -> str:
    if name == "random" and row.get("random_high") is not None:
        return f"{rate(row['random'])} (up to {rate(row['random_high'])})"
    if name == "reinitialised" and row.get("reinitialised_train") is not None:
        return f"{rate(row[name])} (fit: {rate(row['reinitialised_train'])})"
    return rate(row.get(name))


def _p(row: Row) -> float | None:
    """Return the p-value: the corrected one, where there is one."""
    p: float | None = row.get("p") if row.get("p_corrected") is None else row["p_corrected"]
    return p


def _flags(flags: Sequence[Mapping[str, Any]]) -> Iterator[Section]:
    """Yield the checks that were made, first those that raised a flag."""
    ordered = sorted(flags, key=lambda one: (not one.get("raised", True), not one.get("chosen", True)))
    lines = ["A flag is a reason to look closer, not a verdict."]
    if not any(one.get("raised", True) for one in flags):
        lines.append("No flag was raised.")
    if len(ordered) > _CHECKS:
        lines.append(f"The first {_CHECKS} of {len(ordered)} checks.")
    head = ("Hypothesis", "Chosen", "Check", "Flag", "What was found", "Numbers")
    yield Section("Flags", tuple(lines), head=head if flags else (), rows=tuple(map(_check, ordered[:_CHECKS])))


def _check(one: Mapping[str, Any]) -> tuple[str, ...]:
    words = ("variables", "hypothesis", "chosen", "flag", "raised", "explanation")
    numbers = {name: value for name, value in one.items() if name not in words}
    about = said(one.get("hypothesis") or one.get("variables"))
    answers = said(bool(one.get("chosen", True))), said(one.get("flag")), said(bool(one.get("raised", True)))
    return (about, *answers, said(one.get("explanation")), said(numbers) if numbers else "")


def _selection(selection: Sequence[Mapping[str, Any]]) -> Iterator[Section]:
    if selection:
        names = ("validation", "test", "drop")
        rows = tuple(
            (str(one["variables"]), said(one.get("of")), *(_signed(one.get(name)) for name in names))
            for one in selection
        )
        line = "The best of many on validation pairs is in part the luckiest: by so much it drops on test pairs."
        head = ("Variables", "Chosen among", "Validation", "Test", "Drop")
        yield Section("Selection", (line,), head=head, rows=rows)


def _signed(value: float | int | None) -> str:
    return f"-{rate(-value)}" if value is not None and value < 0 else rate(value)


def _buckets(buckets: Sequence[Mapping[str, Any]]) -> Iterator[Section]:
    if not buckets:
        return
    lines = [
        "Inputs are parted into bases and sources between which the interchange works, and the rest. Ratio: the "
        "log-likelihood that the parting gains; beside it the most that it gains on shuffled results.",
    ]
    rows = []
    for one in buckets:
        name, parts = str(one.get("variables", "")), [one.get(side) or {} for side in ("well", "badly")]
        rows.append((name, *map(_bucket, parts), said(one.get("ratio")), said(one.get("null_ratio"))))
        if one.get("found") is False:
            lines.append(f"{name}: the parting is no better than that of shuffled results, so it says nothing.")
        lines += [f"{name}: {_shared(value)}" for value in one.get("common") or ()]
    head = ("Variables", "Works", "Does not", "Ratio", "Shuffled")
    yield Section("Where it fails", tuple(lines), head=head, rows=tuple(rows))


def _bucket(facts: Mapping[str, Any]) -> str:
    """Return a bucket in words: its score, its pairs, and how many bases and sources make it up."""
    told = [f"IIA {rate(facts['iia'])}"] if "iia" in facts else []
    told += [f"{facts['n']} pairs"] if "n" in facts else []
    told += [f"{facts[side]} {side}" for side in ("bases", "sources") if side in facts]
    return ", ".join(told) or said(facts)


def _shared(value: Any) -> str:
    """Return what entities of a bucket have in common."""
    if not isinstance(value, Mapping) or "of_inside" not in value:
        return said(value)
    where = "where it works" if value["bucket"] == "well" else "where it does not"
    return (
        f"{where}, {value['inside']} of {value['of_inside']} {value['side']}s have {value['variable']} = "
        f"{said(value['value'])}; elsewhere {value['outside']} of {value['of_outside']} (p {precise(value['p'])})."
    )
