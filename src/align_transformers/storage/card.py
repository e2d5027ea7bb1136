"""The model card: what an artifact is, on which model, with which scores, and how to load it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..hub import is_hub_name
from .types import OF_THE_CALLER, OWN


def write_card(record: Mapping[str, Any], *, name: str) -> str:
    """Return the text of `README.md`.

    Args:
        record: what `intervention.json` says.
        name: the folder, or the name on the hub, from which it will be loaded.
    """
    title = name.rstrip("/\\").replace("\\", "/").rpartition("/")[2] or name
    model = record["model"]
    parts = [
        _front_matter(model),
        f"# {_line(title)}",
        f"{_what(record)}, made with align-transformers {_line(record['library_version'])}.",
        "## Where and what\n\n" + _table(("site", "unit", "intervention", "arguments"), _rows(record)),
        "## The model\n\n" + _model(model, record["tokenizer"]),
        "## Scores\n\n" + (_table(("score", "value"), _scores(record["metrics"])) or "None were saved."),
        "## Load it\n\n```python\n" + "\n".join(_code(record, name)) + "\n```",
        "Loading runs no code from this repository. The weights of the model are not part of it.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(model: Mapping[str, Any]) -> str:
    lines = ["---", "library_name: align-transformers", "tags:", "- interpretability", "- intervention"]
    if model["name"] and is_hub_name(model["name"]):
        lines.append(f"base_model: {json.dumps(model['name'])}")
    return "\n".join([*lines, "---"])


def _what(record: Mapping[str, Any]) -> str:
    count = len(record["config"]["representations"])
    what = "1 intervention" if count == 1 else f"{count} interventions ({record['config']['mode']})"
    return f"{what} on the activations of a `{_line(record['model']['class'])}`"


def _rows(record: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for one in record["config"]["representations"]:
        made = record["interventions"][one["intervention"]]
        site = one["component"] if one["layer"] is None else f"layer {one['layer']} {one['component']}"
        units = one["unit"] if one["max_number_of_units"] == 1 else f"{one['max_number_of_units']} x {one['unit']}"
        said = {key: value for key, value in made["arguments"].items() if value not in (None, False)}
        kind = made["class"].removeprefix(OF_THE_CALLER)
        yield f"`{site}`", f"`{units}`", f"`{kind}`", ", ".join(_said(*item) for item in said.items()) or "-"


def _said(name: str, value: Any) -> str:
    text = json.dumps(value)
    return f"{name}={text if len(text) <= 40 else text[:37] + '...'}"


def _model(model: Mapping[str, Any], tokenizer: Mapping[str, Any] | None) -> str:
    facts = {
        "class": model["class"],
        "name": model["name"],
        "revision": model["revision"],
        "dtypes": ", ".join(model["dtypes"]),
        "configuration (hash)": model["config_hash"],
        "shapes (hash)": model["shapes_hash"],
        "tokenizer": tokenizer and f"{tokenizer['class']} {tokenizer['name'] or ''} ({tokenizer['vocabulary_hash']})",
    }
    return _table(("", ""), ((name, f"`{_line(value)}`") for name, value in facts.items() if value))


def _scores(metrics: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _scores(value, f"{above}{name}.")
        else:
            yield above + name, f"{value:.4g}" if isinstance(value, float) else json.dumps(value)


def _code(record: Mapping[str, Any], name: str) -> list[str]:
    """Return the three lines that load it, and those that import your own classes."""
    model = record["model"]
    named = dict.fromkeys(one["class"] for one in record["interventions"] if one["class"] not in OWN)
    own = [name.removeprefix(OF_THE_CALLER) for name in named]
    classes = f", classes=[{', '.join(own)}]" if own else ""
    revision = f", revision={model['revision']!r}" if model["revision"] else ""
    if model["name"]:
        get = f"model, tokenizer = load_model({model['name']!r}{revision}, dtype={_dtype(model)!r})"
    else:
        get = f"model = ...  # the {_line(model['class'])} that this was made with: it has no name"
    return [
        "from align_transformers import IntervenableModel, load_model",
        *([f"from ... import {', '.join(own)}  # classes of your own"] if own else []),
        get,
        f"intervenable = IntervenableModel.load({name!r}, model=model{classes})",
    ]


def _dtype(model: Mapping[str, Any]) -> str:
    return model["dtypes"][0] if len(model["dtypes"]) == 1 else "auto"


def _table(head: tuple[str, ...], rows: Any) -> str:
    lines = [tuple(_line(cell) for cell in row) for row in rows]
    if not lines:
        return ""
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *lines))


def _line(value: Any) -> str:
    """Return a text as part of one line of a table: what a file says opens no new block and no HTML."""
    return re.sub(r"[\s|<>]+", " ", str(value)).strip()
