"""The logit lens: what the model would say at every layer and token; of several prompts, the answer layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .._errors import SpecError
from .layer_map import Row, averaged, layer_map, line_of, prompts_of, token_labels
from .panels import ColourScale, Curve, HeatMap, Picture, rank_scale, signed_scale
from .tabular import Tabular
from .words import precise, spoken, visible

_SHARES = ((0.0, "0"), (0.25, "0.25"), (0.5, "0.5"), (0.75, "0.75"), (1.0, "1"))


def picture_of_lens(table: Tabular, value: str | None) -> Picture:
    """Return a map by layer and token with the most probable token in each cell; of several prompts curves of means."""
    asked = value or "probability"
    prompts = sorted(set(table.columns["prompt"]))
    answers = [spoken(str(table.meta["answers"][n])) for n in prompts]
    named = f"{asked} of “{answers[0]}”" if len(set(answers)) == 1 else f"{asked} of the answer"
    chosen = {name: [table.meta[name][n] for n in prompts] for name in ("prompts", "answers") if name in table.meta}
    common = {
        "prompts": prompts_of(chosen),
        "about": f"{', '.join(table.components())} of {table.meta['model']}, read with its own norm and unembedding",
    }
    if len(prompts) > 1:
        return _curves(table, asked, named, common)
    scale = _scale(table, asked, named)
    position = table.columns["position"]
    places = sorted(set(position))
    labels = token_labels(table.meta["tokens"][prompts[0]], places), places
    answer = str(table.meta["answers"][prompts[0]])
    maps: list[HeatMap] = []
    for name in table.components():
        rows = list(table.select(name).rows())
        maps.append(
            layer_map(
                rows,
                asked,
                labels,
                lambda row: row["position"],
                scale,
                title=name if len(table.components()) > 1 else "",
                details=_details,
                text=_top if "top_tokens" in table.columns else None,
                mark=lambda row: bool(row.get("top_tokens")) and row["top_tokens"][0] == answer,
            )
        )
    end = [row for row in table.rows() if row["position"] == places[-1]]
    return Picture(
        f"What the model would say after each layer: {named}",
        (tuple(maps),),
        caption=(
            f"{table.meta['model']}: the state of each token after each layer, read with the model's own final norm "
            f"and unembedding. In the cells: the most probable token. Colours: {named}. Outlined: it is the most "
            "probable token. Deepest layer on top."
        ),
        notes=(f"colours: {named}; * = it is the most probable token",),
        findings=_findings(end, answer),
        **common,  # type: ignore[arg-type]
    )


def _curves(table: Tabular, asked: str, named: str, common: Mapping[str, object]) -> Picture:
    """Return the answer at the last token of each prompt, layer by layer, as the mean over prompts with its band."""
    ends: dict[int, int] = {}
    for prompt, position in zip(table.columns["prompt"], table.columns["position"], strict=True):
        ends[prompt] = max(position, ends.get(prompt, 0))
    last = table.from_rows((row for row in table.rows() if row["position"] == ends[row["prompt"]]), meta=table.meta)
    whole = averaged(last, ["component", "layer"], asked, "prompt")
    lines = tuple(
        line_of(name, [row for row in whole if row["component"] == name], asked) for name in table.components()
    )
    over = f"means over {len(ends)} prompts; bands: 95 % intervals (bootstrap over prompts)"
    return Picture(
        f"What the model would say after each layer: {named}",
        ((Curve("", "layer", asked, lines),),),
        caption=f"{table.meta['model']}: {named} at the last token, {over}.",
        notes=(over,),
        **common,  # type: ignore[arg-type]
    )


def _scale(table: Tabular, asked: str, named: str) -> ColourScale:
    if asked == "probability":
        return ColourScale(named, _SHARES)
    values = [value for value in table.columns[asked] if value is not None]
    if asked == "rank":
        return rank_scale(named, max(int(max(values, default=1)), 1))
    if any(isinstance(value, str | tuple) for value in values):
        raise SpecError(f"{asked!r} holds no numbers: value is 'probability', 'rank' or 'logit'")
    return signed_scale(named, values)


def _top(row: Row) -> str:
    return visible(row["top_tokens"][0])


def _details(row: Row) -> list[str]:
    lines = [f"probability {precise(row['probability'])}, rank {row['rank']}, logit {precise(row['logit'])}"]
    best = zip(row.get("top_tokens", ()), row.get("top_probabilities", ()), strict=True)
    return [*lines, "", "the model would say", *(f"{share:6.1%}  {visible(token)}" for token, share in best)]


def _findings(rows: Sequence[Row], answer: str) -> tuple[str, ...]:
    """Say from which layer on the answer is the most probable token at the last token."""
    lines = []
    for name in dict.fromkeys(row["component"] for row in rows):
        own = sorted((row for row in rows if row["component"] == name), key=lambda row: row["layer"])
        wrong = [row["layer"] for row in own if row["rank"] != 0]
        first = [row["layer"] for row in own if not wrong or row["layer"] > wrong[-1]]
        said = f"is the most probable token from layer {first[0]} on" if first else "is never the most probable token"
        lines.append(f"{name}: at the last token read, “{spoken(answer)}” {said}.")
    return tuple(lines)
