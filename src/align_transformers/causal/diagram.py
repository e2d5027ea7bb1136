"""A causal model as a graph, and as a picture: inputs at the bottom, outputs on top."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .._checked import checked
from .._optional import optional
from .causal_model import CausalModel

if TYPE_CHECKING:
    import networkx
    from matplotlib.figure import Figure

_INK, _GROUND, _LINE, _TAKEN = "#1c1c1c", "#e8eef7", "#5a5a5a", "#f6d9b8"


@checked
def graph(model: CausalModel) -> networkx.DiGraph:
    """Return a causal model as a graph of networkx: a node for each variable, an edge from each parent.

    Args:
        model: any.

    Raises:
        MissingExtraError: networkx is not installed.

    >>> model = CausalModel(["a", "b"], {"a": range(2)}, {"b": ["a"]}, {"b": lambda a: not a})
    >>> list(graph(model).edges)
    [('a', 'b')]
    """
    networkx = optional("networkx", extra="report")
    made = networkx.DiGraph()
    for name in model.variables:
        made.add_node(name, timestep=model.timesteps[name])
    made.add_edges_from((parent, name) for name in model.variables for parent in model.parents[name])
    return made


@checked
def draw(model: CausalModel, setting: Mapping[str, Any] | None = None) -> Figure:
    """Draw a causal model: a row for each time step, inputs at the bottom.

    Args:
        model: any.
        setting: by name values that are written into the variables, such as those that `run_forward` returns.

    Returns:
        A figure of matplotlib, which saves itself with `savefig`.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    rows: dict[int, list[str]] = {}
    for name in model.variables:
        rows.setdefault(model.timesteps[name], []).append(name)
    widest = max(map(len, rows.values()), default=1)
    places = {
        name: (number - (len(row) - 1) / 2, step) for step, row in rows.items() for number, name in enumerate(row)
    }
    figure = optional("matplotlib.figure", extra="report").Figure(
        figsize=(max(3.0, 1.9 * widest), max(1.6, 1.15 * len(rows))), facecolor="white"
    )
    axes = figure.add_axes((0, 0, 1, 1))
    for name in model.variables:
        for parent in model.parents[name]:
            axes.annotate(
                "", places[name], places[parent],
                arrowprops={"arrowstyle": "-|>", "color": _LINE, "shrinkA": 16, "shrinkB": 16, "linewidth": 1.2},
            )  # fmt: skip
    for name, (x, y) in places.items():
        said = name if setting is None or name not in setting else f"{name}\n{setting[name]}"
        ground = _TAKEN if setting is not None and name in setting else _GROUND
        axes.text(
            x, y, said, ha="center", va="center", size=11, color=_INK, parse_math=False,
            bbox={"boxstyle": "round,pad=0.45", "facecolor": ground, "edgecolor": _LINE},
        )  # fmt: skip
    axes.set(xlim=(-widest / 2 - 0.2, widest / 2 + 0.2), ylim=(min(rows, default=0) - 0.6, max(rows, default=0) + 0.6))
    axes.axis("off")
    return figure
