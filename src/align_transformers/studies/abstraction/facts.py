"""What the table of a search says of the whole of it, as JSON-able data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...causal import CausalModel
from .finding import Finding

if TYPE_CHECKING:
    from .search import Search


def facts_of(search: Search, findings: Sequence[Finding], chosen: Sequence[Finding]) -> dict[str, Any]:
    """Return what a table says of the whole search."""
    task = search.task
    data: dict[str, Any] = {}
    for name, pairs in task.parts.items():
        entities = {*pairs.entities[0].tolist(), *(n for of in pairs.entities[1].values() for n in of.tolist())}
        data[name] = {"pairs": len(pairs), "entities": len(entities)}
    test = task.parts["test"]
    counts = Counter(test.labels.tolist())
    data["trivial"] = float((test.labels == test.base_labels).double().mean())
    data["chance"] = max(counts.values()) / len(test)
    data |= {**search.kept}
    data["trivial_left_out"] = search.facts["train"].get("trivial_left_out")
    said = {id(one): ", ".join(one.hypothesis.variables) for one in findings}
    steps = {status: sum(one.steps for one in findings if one.status == status) for status in ("fitted", "dropped")}
    return {
        "causal_model": _described(task.causal_model),
        "data": data,
        "made": {name: dict(facts) for name, facts in search.facts.items()},
        "examples": _examples(search),
        "settings": {
            **search.settings.to_dict(),
            **{name: getattr(search, name) for name in ("batch_size", "draws", "only_solved", "memory", "order")},
        },
        "search": {"hypotheses": len(findings), "steps": steps, **_audit(findings)},
        "selection": [
            {
                "variables": said[id(one)],
                "validation": one.mean("validation"),
                "test": one.mean("test"),
                "drop": (one.mean("validation") or 0.0) - (one.mean("test") or 0.0),
                "of": sum("validation" in other.hits for other in findings if said[id(other)] == said[id(one)]),
            }
            for one in chosen
        ],
        "self_swap": min((one.self_swap for one in chosen if one.self_swap is not None), default=None),
        "flags": [
            {
                "variables": said[id(one)],
                "flag": check.flag,
                "explanation": check.explanation,
                **{name: round(value, 4) for name, value in check.numbers.items()},
            }
            for one in chosen
            for check in one.checks
            if check.raised
        ],
        "checks": _checks(findings, chosen),
        "buckets": [{"variables": said[id(one)], **one.regions.summary()} for one in chosen if one.regions is not None],
    }


def _checks(findings: Sequence[Finding], chosen: Sequence[Finding]) -> list[dict[str, Any]]:
    """Return all checks that were made, whether they raise a flag or not."""
    return [
        {
            "variables": ", ".join(one.hypothesis.variables),
            "hypothesis": str(one.hypothesis),
            "chosen": one in chosen,
            "flag": check.flag,
            "raised": check.raised,
            "explanation": check.explanation,
            **check.numbers,
        }
        for one in findings
        for check in one.checks
    ]


def _audit(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return what a search by signatures missed, as far as those tell that were fitted though not nominated."""
    audited = [one for one in findings if one.audited]
    if not audited:
        return {}
    fitted = [one for one in findings if "validation" in one.hits and one.steps]
    best = {one.hypothesis.variables: 0.0 for one in fitted}
    for one in fitted:
        best[one.hypothesis.variables] = max(best[one.hypothesis.variables], one.mean("validation") or 0.0)
    near = [one for one in fitted if (one.mean("validation") or 0.0) >= best[one.hypothesis.variables] - 0.1]
    missed = sum(one.audited for one in near)
    others = len(audited) + sum(one.status == "dropped" for one in findings)
    found = len(near) - missed
    expected = missed * others / len(audited)
    recall = found / (found + expected) if found + expected else None
    return {"not_nominated": others, "audited": len(audited), "audited_near_best": missed, "recall": recall}


def _described(causal_model: CausalModel) -> dict[str, Any]:
    """Return a causal model as plain data."""
    values = causal_model.values
    return {
        "text": repr(causal_model),
        "inputs": list(causal_model.inputs),
        "outputs": list(causal_model.outputs),
        "variables": {
            name: {
                "parents": list(causal_model.parents[name]),
                "values": len(values[name]) if isinstance(values[name], tuple) else None,
            }
            for name in causal_model.variables
        },
    }


def _examples(search: Search) -> list[dict[str, Any]]:
    """Return some test pairs in words."""
    task, test = search.task, search.task.parts["test"]

    def said(number: int) -> str:
        if task.prompts is not None:
            return task.prompts.texts[number]
        return ", ".join(f"{name}={value}" for name, value in task.settings[number].items())

    return [
        {
            "base": said(int(test.base[n])),
            "sources": {name: said(int(test.sources[name][n])) for name in test.sources if name in test.sets[n]},
            "label": int(test.labels[n]),
            "base_label": int(test.base_labels[n]),
        }
        for n in range(min(5, len(test)))
    ]
