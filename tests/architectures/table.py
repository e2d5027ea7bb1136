"""`docs/architectures.md`: what can be addressed in which architecture, and why not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from .record import COMPLETE, NOT_BUILT, REFUSED, VERDICTS, Kind, Record
from .tiny import MAPPINGS
from .verify import is_absent

FILE = Path(__file__).parents[2] / "docs" / "architectures.md"
GOALS: Mapping[str, int] = {"CAUSAL_LM": 175, "MASKED_LM": 42, "SEQ_TO_SEQ_CAUSAL_LM": 30, "IMAGE_TEXT_TO_TEXT": 62}
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "block": ("block_input", "block_output"),
    "attention": ("attention_input", "attention_output"),
    "z": ("attention_value_output",),
    "q": ("query_output",),
    "k": ("key_output",),
    "v": ("value_output",),
    "mlp": ("mlp_input", "mlp_output"),
    "activation": ("mlp_activation",),
    "moe": ("moe_input", "moe_output"),
    "per layer": ("per_layer_mlp_input", "per_layer_mlp_activation", "per_layer_mlp_output"),
    "mixer": ("mixer_input", "mixer_output"),
    "added": ("attention_contribution", "mixer_contribution", "mlp_contribution", "moe_contribution"),
    "by head": ("head_contribution",),
    "cross": ("cross_attention_input", "cross_attention_output", "cross_attention_value_output"),
    "cross q k v": ("cross_query_output", "cross_key_output", "cross_value_output"),
    "inside": ("query_rotary", "key_rotary", "head_output", "attention_score", "attention_pattern"),
    "experts": ("router_output", "expert_activation"),
}
STAYS_OUT: Mapping[str, str] = {
    "dbrx": "the weights of all experts are one matrix, of which each expert takes rows: no module gives its neurons",
    "deepseek_v4": "keys and values share one projection: no channel is the key's alone",
    "gemma4_assistant, gemma4_unified_assistant": "it reads another model's caches and is not built alone",
    "got_ocr2": "its picture encoder attends in windows of height and width; its language model is complete",
    "inkling2_text": "queries, keys and values read inputs of their own, so there is no one `attention_input`",
    "jetmoe": "queries and outputs of attention are made by experts, each token's by others",
    "llama4, llama4_text": "all but `expert_activation`: its experts do not go through transformers' interface",
    "longcat_flash": "a block has two attentions, two MLPs and experts: the number of a layer does not tell them apart",
    "reformer": "blocks are reversible and chunked: no module is given the residual stream and returns it",
    "xlm": "no modules stand for blocks: attentions, norms and MLPs are lists beside each other",
    "xlnet": "projections are raw parameters in products, no modules",
    "zaya": "a convolution over positions makes keys and values of what their projection gives",
}
"""Causal models that are not complete, and why."""
_HEAD = """# Architectures

Written by `make arch` (`tests/architectures`); do not edit. Every entry of transformers' mappings is built tiny and
with random weights, resolved without any code for it, and every component that is offered is checked.

- ✓ the component is there and passed every check
- · the block has no such thing
- ✗ refused, with the number of the reason; `overrides` can name it
- two signs in a cell: the architecture's blocks are of several kinds

*inside* are the rotated queries and keys, the raw heads, and the attention's scores and pattern, which transformers'
attention interface shows; *experts* the router's output and the experts' neurons. The scores, patterns and experts'
neurons are not checked here but by the tests of the engine.

*added* are `attention_contribution`, `mixer_contribution` and `mlp_contribution`, what is added to the residual stream
after norms and multipliers: `block_output = block_input + contributions` is checked as the model is, and with each of
them edited; the configurations have multipliers that are not 1. *by head* is `head_contribution`.

An architecture is *complete* when it has everything but these extras (*inside*, `router_output`, *added*, *by head*),
or the block has no such thing; *partial* when something is refused.

z is `attention_value_output`; q, k, v are `query_output`, `key_output`, `value_output`. *additive* says where
`block_output = block_input + attention_output + mlp_output` holds. A `stack` is named where a model has several.

"""


def counts(records: Sequence[Record]) -> list[tuple[str, dict[str, int]]]:
    """Return, for every mapping, how many entries got which verdict."""
    rows = []
    for mapping in MAPPINGS:
        mine = [record for record in records if record.mapping == mapping]
        if mine:
            rows.append((mapping, {verdict: sum(r.verdict == verdict for r in mine) for verdict in VERDICTS}))
    return rows


def render(records: Sequence[Record]) -> str:
    """Return the page."""
    reasons: dict[str, int] = {}
    parts = [_HEAD, _count_table(records)]
    for mapping in MAPPINGS:
        mine = [record for record in records if record.mapping == mapping]
        if mine:
            parts.append(f"\n## {mapping}\n\n" + _mapping_table(mine, reasons))
    parts.append("\n## Causal models that are not complete\n\n" + _stays_out(records))
    if reasons:
        parts.append("\n## Reasons\n\n" + "".join(f"{number}. {text}\n" for text, number in reasons.items()))
    return "".join(parts)


def _stays_out(records: Sequence[Record]) -> str:
    """Return why each causal model that is not complete is not; one without a reason stands there without."""
    why = {name: reason for names, reason in STAYS_OUT.items() for name in names.split(", ")}
    left = [one.model_type for one in records if one.mapping == "CAUSAL_LM" and one.verdict != COMPLETE]
    return "".join(f"- {name}: {why.get(name, '**not looked into**')}\n" for name in left)


def _count_table(records: Sequence[Record]) -> str:
    lines = ["| mapping | " + " | ".join(VERDICTS) + " | goal |", "|---" * (len(VERDICTS) + 2) + "|"]
    for mapping, row in counts(records):
        goal = GOALS.get(mapping, "")
        lines.append(f"| {mapping} | " + " | ".join(str(row[verdict]) for verdict in VERDICTS) + f" | {goal} |")
    return "\n".join(lines) + "\n"


def _mapping_table(records: Sequence[Record], reasons: dict[str, int]) -> str:
    """Return one mapping's table; architectures with the same row share it."""
    rows: dict[tuple[str, ...], list[str]] = {}
    failed: dict[str, list[str]] = {}
    for record in records:
        if record.verdict in (NOT_BUILT, REFUSED):
            failed.setdefault(f"{record.verdict}: {_short(record.reason)}", []).append(record.model_type)
            continue
        for stack in dict.fromkeys(kind.stack for kind in record.kinds):
            kinds = [kind for kind in record.kinds if kind.stack == stack]
            label = record.model_type if len(record.kinds) == len(kinds) else f"{record.model_type} ({stack or 'main'})"
            rows.setdefault(_row(kinds, record, reasons), []).append(label)
    lines = [
        "| architectures | " + " | ".join(COLUMNS) + " | additive | notes |",
        "|---" * (len(COLUMNS) + 3) + "|",
        *(f"| {', '.join(names)} | " + " | ".join(row) + " |" for row, names in _by_size(rows)),
    ]
    text = "\n".join(lines) + "\n"
    if failed:
        text += "\n" + "".join(f"- {', '.join(names)}: {reason}\n" for reason, names in failed.items())
    return text


def _by_size(rows: Mapping[tuple[str, ...], list[str]]) -> list[tuple[tuple[str, ...], list[str]]]:
    return sorted(rows.items(), key=lambda item: (-len(item[1]), item[1]))


def _row(kinds: Sequence[Kind], record: Record, reasons: dict[str, int]) -> tuple[str, ...]:
    cells = [_join(_cell(kind, names, reasons) for kind in kinds) for names in COLUMNS.values()]
    additive = _join("yes" if kind.facts.get("additive") == "True" else "no" for kind in kinds)
    return (*cells, additive, "; ".join([*_notes(kinds), *_remarks(record)]))


def _cell(kind: Kind, names: Sequence[str], reasons: dict[str, int]) -> str:
    why = [kind.missing.get(name) for name in names if name not in kind.slots]
    refused = [reason for reason in why if reason is not None and not is_absent(reason)]
    if refused:
        return " ".join(f"✗{reasons.setdefault(reason, len(reasons) + 1)}" for reason in dict.fromkeys(refused))
    return "✓" if len(why) < len(names) else "·"


def _join(values: Iterable[str]) -> str:
    return " ".join(sorted(set(values)))


def _notes(kinds: Sequence[Kind]) -> list[str]:
    """Return what is unusual about the blocks: kinds of mixers and experts, and other flags."""
    notes: dict[str, None] = {}
    for kind in kinds:
        for name, value in kind.facts.items():
            if name in ("additive", "attention_owner", "attention owner") or value in ("False", "softmax", "none"):
                continue
            notes[name.replace("_", " ") if value == "True" else f"{name.replace('_', ' ')}: {value}"] = None
    return list(notes)


def _remarks(record: Record) -> list[str]:
    wrong = dict.fromkeys(": ".join(failure.split(": ")[:2]) for failure in record.failures)
    return [*(f"**wrong** {failure}" for failure in wrong), *record.excused]


def _short(text: str) -> str:
    text = " ".join(text.split()).replace("|", "/")
    return text if len(text) <= 200 else text[:197] + "..."
