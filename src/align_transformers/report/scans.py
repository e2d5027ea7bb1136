"""The report of `scan`: the tables of several studies about one prompt, or two, in words for newcomers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from .attributions import part_name
from .chapters import Chapter, Chapters
from .kinds import facts, picture
from .layer_map import Row, largest
from .pair_summary import ranges
from .panels import Bar, Bars, Curve, CurveLine, CurvePoint, Picture
from .tabular import Tabular
from .words import spoken, visible

_MOST = 10  # bars
_SHOWN = 0.1  # of the way to the other answer: a token whose swap never does more has no line of its own
SECTIONS: Mapping[str, str] = {
    "says": "What does the model say next?",
    "lens": "At which layer does the answer appear?",
    "parts": "Which parts of the model speak for the answer?",
    "swaps": "Where is what differs between the two prompts?",
    "route": "Through which tokens does it travel?",
    "carriers": "Which heads and MLPs carry it?",
    "attention": "Where do these heads look?",
}
"""The sections of a scan; `swaps`, `route` and `carriers` compare two prompts."""

Tables = Mapping[str, Tabular]


def chapters_of_scan(tables: Tables, code: Mapping[str, str], missing: Mapping[str, str]) -> Chapters:
    """Return the report of a scan.

    Args:
        tables: by name of a section; those that could not be had are missing.
        code: by name of a section, the line that repeats it.
        missing: by name of a section, why it could not be had.
    """
    says = tables["says"]
    chapters = []
    for name in code:
        words: tuple[str, ...] = ()
        drawn = None
        if name in tables:
            words, drawn = _MAKERS[name](tables)
        chapters.append(Chapter(name, SECTIONS[name], words, drawn, code[name], missing.get(name, "")))
    texts, answers = list(says.meta["prompts"]), [spoken(one) for one in says.meta["answers"]]
    names = ("prompt", "against")
    model = str(says.meta.get("model", ""))
    title = f"What {model or 'the model'} does with “{_cut(texts[0])}”"
    return Chapters(
        title if len(texts) == 1 else f"{title} and “{_cut(texts[1])}”",
        (
            "A language model reads a text in pieces, called tokens (a “·” stands for a space), and gives every token "
            "that might come next a probability. It works in layers, one after the other. In each layer attention "
            "heads copy information from earlier tokens to later ones, and an MLP works on each token by itself. Both "
            "add what they find to a running sum for each token, the residual stream; at the end it is turned into a "
            "score for every possible next token, its logit, and the scores into probabilities.",
        ),
        tuple(zip(names, texts, answers, strict=False)),
        tuple(chapters),
        _before(model, code),
        {"model": model, "seed": str(_seed(tables))} if _seed(tables) is not None else {"model": model},
    )


def heads_that_matter(tables: Tables, most: int = 3) -> list[tuple[int, int]]:
    """Return the heads that add or take off most of the answer's logit, then those that carry the difference.

    Args:
        tables: with `parts`, and `carriers` where there are two prompts.
        most: so many of each.

    Returns:
        Layer and head of each.
    """
    found: list[tuple[int, int]] = []
    if "parts" in tables:
        by_head = [row for row in tables["parts"].rows() if row["head"] is not None]
        found += [(row["layer"], row["head"]) for row in largest(by_head, "contribution", most)]
    if "carriers" in tables:
        swapped = [row for row in tables["carriers"].rows() if row["head"] is not None]
        found += [(row["layer"], row["head"]) for row in _by_strength(swapped)[:most]]
    return list(dict.fromkeys(found))


def route_of(swaps: Tabular) -> list[dict[str, Any]]:
    """Return for each layer the token whose swap moves the answer most, as rows of a table.

    Args:
        swaps: of the residual stream, at all layers and tokens of one pair.
    """
    names = ("layer", "position", "token", "source_token", "recovered")
    known = sorted((row for row in swaps.rows() if row["recovered"] is not None), key=lambda row: row["layer"])
    best = [max(own, key=lambda row: row["recovered"]) for _, own in groupby(known, key=lambda row: row["layer"])]
    return [{name: row[name] for name in names} for row in best]


def _before(model: str, code: Mapping[str, str]) -> tuple[str, ...]:
    """Return the lines that those of the sections rest on."""
    words = ("Table", "attention_patterns", "attribution", "direct_logit_attribution", "grid", "logit_lens")
    used = [word for word in words if any(f"{word}(" in line or f"{word}." in line for line in code.values())]
    said = f"from align_transformers import {', '.join([*used, 'load_model'])}"
    return said, f"model, tokenizer = load_model({json.dumps(model)})"


def _seed(tables: Tables) -> Any:
    return tables["carriers"].meta["tables"][0]["seed"] if "carriers" in tables else None


def _says(tables: Tables) -> tuple[tuple[str, ...], Picture]:
    table = tables["says"]
    rows, texts = list(table.rows()), table.meta["prompts"]
    panels, findings = [], []
    for row in rows:
        text = f"after “{_cut(texts[row['prompt']], 60)}”"
        pairs = list(zip(row["top_tokens"], row["top_probabilities"], strict=True))
        bars = tuple(Bar(visible(token), share) for token, share in pairs)
        panels.append(Bars(text, "probability of the next token", bars, share=True))
        findings.append(f"{text[0].upper()}{text[1:]} it says “{spoken(pairs[0][0])}” with {pairs[0][1]:.0%}.")
    picture_ = Picture("What the model says next", (tuple(panels),), findings=tuple(findings))
    return (
        f"The {len(rows[0]['top_tokens'])} tokens that the model finds the most probable, of all it knows.",
    ), picture_


def _lens(tables: Tables) -> tuple[tuple[str, ...], Picture]:
    table = tables["lens"]
    depth, drawn = len(set(table.columns["layer"])), picture(table)
    return (
        f"What would the model say if it ended early? After each of its {depth} layers (from the bottom up) the "
        "residual stream of each token (from left to right) is read as if that layer were the last. A cell shows the "
        f"token that would come next; its colour is the probability of “{_answer(tables)}”. In early layers the "
        "guesses mean little: look for where the answer appears in the last column.",
    ), replace(drawn, findings=tuple(line.replace("block_output: at", "At", 1) for line in drawn.findings))


def _parts(tables: Tables) -> tuple[tuple[str, ...], Picture]:
    table = tables["parts"]
    rows, drawn = list(table.rows()), picture(tables["parts"])
    total, logit = sum(row["contribution"] for row in rows), table.meta["logit"][0]
    strongest = largest((row for row in rows if row["layer"] is not None), "contribution", _MOST)
    others = total - sum(row["contribution"] for row in strongest)
    bars = [Bar(part_name(row), row["contribution"]) for row in strongest]
    bars += [Bar(f"the {len(rows) - len(strongest)} others", others, control=True), Bar("in all", total)]
    capped = " (before the model caps it)" if table.meta.get("capped") else ""
    checked = (
        f"All {len(rows)} parts add up to {total:.4f}; the model's own logit of “{_answer(tables)}” is {logit:.4f}"
        f"{capped}. They differ by {abs(total - logit):.1g}, which is rounding."
    )
    panels = ((Bars("the strongest parts, and the sum", "logits", tuple(bars)),), *drawn.panels)
    return (
        f"The logit of “{_answer(tables)}” is a sum: the embedding of the last token, and what every attention head "
        "and every MLP adds. So each part's share is known. A positive (blue) part speaks for the answer, a negative "
        "(orange) one against it.",
        "This is what a part says to the output directly. What it tells other parts, which then say something, is "
        "counted there.",
    ), replace(drawn, panels=panels, findings=(checked, *(_sentence(f"{one}.") for one in drawn.findings[:3])))


def _attention(tables: Tables) -> tuple[tuple[str, ...], Picture]:
    table, chosen = tables["attention"], heads_that_matter(tables)
    if not chosen:
        return ("An attention head copies from the tokens that it looks at.",), picture(table)
    rows = [row for row in table.rows() if (row["layer"], row["head"]) in chosen]
    rows.sort(key=lambda row: chosen.index((row["layer"], row["head"])))
    drawn = picture(table.from_rows(rows, meta=table.meta))
    also = ", and those that carry the difference most" if "carriers" in tables else ""
    last = max(table.columns["query"])
    tokens = table.meta["tokens"][0]
    findings = []
    for layer, head in chosen:
        own = [row for row in rows if (row["layer"], row["head"], row["query"]) == (layer, head, last)]
        seen = sorted(own, key=lambda row: -row["attention"])[:2]
        looks = ", ".join(f"“{visible(tokens[row['key']])}” ({row['attention']:.0%})" for row in seen)
        findings.append(f"Layer {layer}, head {head}: at the last token it looks at {looks}.")
    return (
        f"The heads that add or take off most{also}. An attention head copies from the tokens that it looks at. A row "
        "is the token that looks, a column the token that is looked at; the numbers of a row are shares and add up to "
        "1. A head that finds nothing to copy often looks at the first token.",
    ), replace(drawn, findings=tuple(findings))


def _swaps(tables: Tables) -> tuple[tuple[str, ...], Picture]:
    table = tables["swaps"]
    base, source = (spoken(str(table.meta[f"{side}_answer"])) for side in ("base", "source"))
    return (
        "An experiment: the first prompt is run again with one thing replaced, the residual stream of one token after "
        "one layer, by what the second prompt has there. A cell says how far that moves the answer: 0, it still is "
        f"“{base}”; 1, it is “{source}” as surely as after the second prompt. Where a cell is near 1, this one swap is "
        "enough: what tells the prompts apart was there.",
    ), replace(picture(table), findings=tuple(_flips(table, source)))


def _flips(table: Tabular, answer: str) -> Iterator[str]:
    """Yield how many swaps turn the answer, and which one does most."""
    found = facts(table)
    flips, best = found["flips"], found["largest"]
    if flips is not None:
        yield f"{len(flips) or 'None'} of {found['cells']} swaps turn the answer into “{answer}”."
    if best is not None:
        yield (
            f"The strongest is at layer {best['layer']}, token {best['position']} (“{visible(best['token'])}”): "
            f"it goes {best['recovered']:.0%} of the way."
        )


def _carriers(tables: Tables) -> tuple[tuple[str, ...], Picture]:
    table = tables["carriers"]
    rows = _by_strength(list(table.rows()))
    measured = [row for row in rows if row["exact"] is not None]
    best = (measured or rows)[:_MOST]
    whole = table.meta["source_value"] - table.meta["base_value"]
    reach = f" The two prompts differ by {whole:.1f} in all."
    findings = [_sentence(f"{part_name(row)}: {_found(row)}.") for row in best[:5]]
    wrong = [part_name(row) for row in best if (row["exact"] or 0) * row["effect"] < 0]
    if wrong:
        findings.append(f"Estimated with the wrong sign: {'; '.join(wrong)}. Believe what was measured.")
    scale = f"logits of “{_of(table, 'source')}” minus “{_of(table, 'base')}”"
    bars = tuple(Bar(part_name(row), _strength(row), details=(_found(row),)) for row in best)
    named = "the strongest that were measured" if measured else "the strongest, as estimated"
    heads = picture(
        table.from_rows((row for row in rows if row["head"] is not None), meta=_facts_of_heads(table)), "effect"
    )
    return (
        "The same experiment with one attention head or one MLP at a time, at all tokens at once: by how many logits "
        f"does it move the answer from “{_of(table, 'base')}” towards “{_of(table, 'source')}”?{reach} All {len(rows)} "
        f"swaps are estimated from gradients in one go; {len(measured)} of them, the strongest and some drawn at "
        "random, were really made. Estimates can be far off.",
    ), Picture(
        "Which heads and MLPs carry the difference",
        ((Bars(named, scale, bars),), tuple(replace(one, title="all heads, as estimated") for one in heads.maps)),
        findings=tuple(findings),
    )


def _route(tables: Tables) -> tuple[tuple[str, ...], Picture]:
    rows, swaps = list(tables["route"].rows()), tables["swaps"]
    layers = [row["layer"] for row in rows]
    findings = []
    for _, group in groupby(rows, key=lambda row: row["position"]):
        own = list(group)
        named = " → ".join(dict.fromkeys(visible(str(own[0][name])) for name in ("token", "source_token")))
        share = sum(row["recovered"] for row in own) / len(own)
        of = [row["layer"] for row in own]
        findings.append(
            f"Layer{'s' * (len(of) > 1)} {ranges(of, layers)}: most at token {own[0]['position']}, “{named}”; swapped "
            f"there, it goes {share:.0%} of the way."
        )
    points: dict[tuple[int, str], list[CurvePoint]] = {}
    for row in sorted(swaps.rows(), key=lambda row: (row["position"], row["layer"])):
        name = " → ".join(dict.fromkeys(visible(str(row[side])) for side in ("token", "source_token")))
        points.setdefault((row["position"], name), []).append(CurvePoint(row["layer"], row["recovered"]))
    lines = tuple(
        CurveLine(f"{position}: {name}", tuple(own))
        for (position, name), own in points.items()
        if max(abs(point.y or 0.0) for point in own) > _SHOWN
    )
    curve = Curve("", "layer", "share of the way", lines)
    return (
        "The map above, token by token: at which token is the difference after each layer? Where one line falls and "
        "another one rises, attention heads have copied it from the one token to the other.",
    ), Picture("The tokens through which the difference travels", ((curve,),), findings=tuple(findings))


def _by_strength(rows: Sequence[Row]) -> list[Row]:
    """Return rows of estimated swaps, the strongest first: by what was measured, others by the estimate."""
    return sorted(rows, key=lambda row: -abs(_strength(row)))


def _strength(row: Row) -> float:
    return float(row["effect"] if row["exact"] is None else row["exact"])


def _found(row: Row) -> str:
    measured = "" if row["exact"] is None else f"measured {row['exact']:+.2f}, "
    return f"{measured}estimated {row['effect']:+.2f}"


def _facts_of_heads(table: Tabular) -> dict[str, Any]:
    return {**table.meta, **table.meta["tables"][0]}


def _answer(tables: Tables) -> str:
    return spoken(str(tables["parts" if "parts" in tables else "says"].meta["answers"][0]))


def _of(table: Tabular, side: str) -> str:
    return spoken(str(table.meta[f"{side}_answer"]))


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _cut(text: str, most: int = 40) -> str:
    """Return a prompt for a heading; of a long one the end, where the model goes on."""
    line = " ".join(text.split())
    return line if len(line) <= most else "…" + line[-most + 1 :]


_MAKERS: Mapping[str, Callable[[Tables], tuple[tuple[str, ...], Picture]]] = {
    "says": _says,
    "lens": _lens,
    "parts": _parts,
    "attention": _attention,
    "swaps": _swaps,
    "carriers": _carriers,
    "route": _route,
}
