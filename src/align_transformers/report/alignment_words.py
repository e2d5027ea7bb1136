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
    "trivial": "of the pairs were trivial: the interchange does not change the answer",
    "chance": "of the labels are the most frequent one: chance",
}
_TOLD = ("settings", "identity", "versions")
"""Mapping[str, Any] that have a section each."""


def sections_of(meta: Mapping[str, Any], chosen: Sequence[Row]) -> Iterator[Section]:
    """Yield the parts of the page, of what the meta tells.

    Args:
        meta: of a table of `align`.
        chosen: the chosen hypothesis of each set of variables.
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
    facts = {name: ", ".join(f"{said(count)} {of}" for of, count in one.items()) for name, one in parts.items()}
    lines = [f"{rate(data[name])} {words}." for name, words in _SHARES.items() if data.get(name) is not None]
    if data.get("trivial_left_out") is not None:
        lines.append(f"{data['trivial_left_out']} trivial pairs are left out.")
    if meta.get("self_swap") is not None:
        lines.append(f"{rate(meta['self_swap'])} of the test pairs keep their answer when an input is its own source.")
    known = {*parts, *_SHARES, "trivial_left_out"}
    facts |= {str(name): said(value) for name, value in data.items() if name not in known}
    if lines or facts:
        yield Section("Data", tuple(lines), facts, opens=True)
    yield from _examples(meta.get("examples") or ())


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
        "Chosen on validation pairs; the IIA is that of test pairs, with its 95 % interval.",
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
    if flags:
        lines = []
        for one in flags:
            numbers = {k: v for k, v in one.items() if k not in ("variables", "flag", "explanation")}
            told = f" ({said(numbers)})" if numbers else ""
            lines.append(f"{one.get('variables', '')}: {one.get('flag', '')}: {one.get('explanation', '')}{told}")
        yield Section("Flags", ("A flag is a reason to look closer, not a verdict.", *lines))
    else:
        yield Section("Flags", ("No flag was raised.",))


def _selection(selection: Sequence[Mapping[str, Any]]) -> Iterator[Section]:
    if selection:
        names = ("validation", "test", "drop")
        rows = tuple((str(one["variables"]), *(_signed(one.get(name)) for name in names)) for one in selection)
        line = "The best of many on validation pairs is in part the luckiest: by so much it drops on test pairs."
        head = ("Variables", "Validation", "Test", "Drop")
        yield Section("Selection", (line,), head=head, rows=rows)


def _signed(value: float | int | None) -> str:
    return f"-{rate(-value)}" if value is not None and value < 0 else rate(value)


def _buckets(buckets: Sequence[Mapping[str, Any]]) -> Iterator[Section]:
    if buckets:
        lines = (
            "Inputs are parted into those whose interchanges with each other agree with the causal model, and others.",
            "Ratio: of the likelihoods with and without the parting; beside it that of shuffled results.",
        )
        names = ("variables", "well", "badly", "ratio", "null_ratio", "common")
        head = ("Variables", "Well explained", "Badly explained", "Ratio", "Shuffled", "In common")
        rows = tuple(tuple(said(one.get(name)) for name in names) for one in buckets)
        yield Section("Where it fails", lines, head=head, rows=rows)
