"""Which picture a study's table becomes: one function a study, chosen by `meta["study"]`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from .._errors import SpecError, UnknownNameError, near_misses
from .alignments import picture_of_alignment
from .attention_maps import picture_of_attention
from .attributions import picture_of_attribution
from .averages import picture_of_averages
from .circuit_evaluations import picture_of_circuit_evaluation
from .doses import picture_of_doses
from .edges import picture_of_edges
from .interchange import drawings_of, picture_of_pair
from .lenses import picture_of_lens
from .pair_summary import facts_of_pair, summary_of_pair
from .panels import Picture
from .paths import picture_of_paths
from .probes import picture_of_probes
from .prompt_scores import picture_of_scores
from .restorations import picture_of_restorations
from .scrubbing import picture_of_scrubbing
from .tabular import Tabular

PictureMaker = Callable[[Tabular, str | None], Picture]

_MAKERS: Mapping[str, PictureMaker] = {
    "grid": lambda table, value: _grid(table, value),
    "causal_tracing": picture_of_restorations,
    "path_patching": picture_of_paths,
    "causal_scrubbing": picture_of_scrubbing,
    "logit_lens": picture_of_lens,
    "direct_logit_attribution": picture_of_attribution,
    "attention_patterns": picture_of_attention,
    "probe": picture_of_probes,
    "steer": picture_of_doses,
    "align": picture_of_alignment,
    "evaluate_circuit": picture_of_circuit_evaluation,
    "score": picture_of_scores,
    "edge_attribution": picture_of_edges,
    "attribution": lambda table, value: _estimates(table, value),
}


def picture(table: Tabular, value: str | None = None, *, component: str | None = None) -> Picture:
    """Return the picture of a study's table, as data.

    Args:
        table: of a study.
        value: which number is drawn, where the study has several; default: its main one.
        component: which component; default: all, side by side.

    Raises:
        SpecError: the table has no rows or no picture, a number has no interval that it needs, or several rows would
            stand at one place; the message says what to choose.
        UnknownNameError: the table has no such column or component.
    """
    study = _study(table)
    maker = _MAKERS.get(study, picture_of_averages)
    if value is not None and value not in table.columns and value not in table.meta:
        raise UnknownNameError(f"the table has no column {value!r}; {near_misses(value, table.columns)}")
    if not len(table) and study != "grid":
        raise SpecError("the table has no rows, so there is nothing to draw")
    made = maker(table.select(component), value)
    facts = {name: str(table.meta[name]) for name in ("study", "model", "seed", "passes") if table.meta.get(name)}
    return replace(made, facts={**facts, **made.facts})


def summary(table: Tabular, *, value: str | None = None, component: str | None = None) -> str:
    """Return the main findings in a few plain lines.

    Args:
        table: of a study.
        value: which number, as for `picture`.
        component: which component, likewise.

    Raises:
        SpecError, UnknownNameError: as for `picture`.
    """
    return "\n".join(picture(table, value, component=component).findings)


def facts(table: Tabular, *, value: str | None = None, component: str | None = None) -> dict[str, Any]:
    """Return the main findings as JSON-able data.

    Args:
        table: of a study.
        value: which number, as for `picture`.
        component: which component, likewise.

    Returns:
        Of swaps in one pair of prompts: `base_answer`, `source_answer` (`None` if not known); `cells`: how many were
        swept; `flips`: those after which the most probable token is the source's answer,
        `{"layer", "position", "token"}` each (`None` if the table does not tell the most probable tokens); `largest`:
        the cell that moved the metric furthest towards the source (`None` where no cell's effect is known). Of other
        studies `findings`: the lines of `summary`.

    Raises:
        SpecError, UnknownNameError: as for `picture`.
    """
    chosen = table.select(component)
    pair = _study(table) == "grid" and value in (None, "recovered") and _is_one_pair(chosen)
    if pair and len(chosen.components()) == 1:
        return facts_of_pair(*drawings_of(chosen))
    return {"findings": list(picture(table, value, component=component).findings)}


def _study(table: Tabular) -> str:
    """Return the study that a table is of: of swaps, which tables did not always say, where it is none."""
    return str(table.meta.get("study", "grid"))


def _grid(table: Tabular, value: str | None) -> Picture:
    """Return the picture of swaps: of one pair at layers and tokens as a map, of others as a map of their means."""
    if value in (None, "recovered") and _is_one_pair(table):
        drawings = drawings_of(table)
        return replace(picture_of_pair(drawings), findings=summary_of_pair(drawings))
    return picture_of_averages(table, value)


def _estimates(table: Tabular, value: str | None) -> Picture:
    """Return the picture of swaps that were estimated: that of measured ones, and how good the estimates are."""
    drawn, check = _grid(table, value), table.meta.get("check")
    said = "The estimates were not checked."
    if isinstance(check, Mapping):
        said = (
            f"Checked by {check['n']} exact swaps: Pearson {_ends(check, 'pearson')}, Spearman "
            f"{_ends(check, 'spearman')}, recall of the top {check['k']} {_ends(check, 'recall')}."
        )
    return replace(drawn, title=f"{drawn.title} (estimated from gradients)", findings=(said, *drawn.findings))


def _ends(check: Mapping[str, Any], name: str) -> str:
    """Return a number of a check with its interval."""
    if check.get(name) is None:
        return "unknown"
    return f"{check[name]:.2f} [{check[f'{name}_low']:.2f}, {check[f'{name}_high']:.2f}]"


def _is_one_pair(table: Tabular) -> bool:
    """Whether there are layers and positions of one pair; what a table without layers lacks is told by `arrange`."""
    columns: Mapping[str, tuple[Any, ...]] = table.columns
    if "layer" not in columns:
        return True
    if "position" not in columns or "base" not in table.meta:
        return False
    several = any(len(set(columns.get(name, ()))) > 1 for name in ("pair", "direction", "head", "neuron"))
    placed = None not in columns.get("position", ()) and None not in columns.get("layer", ())
    return not several and placed
