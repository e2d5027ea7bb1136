"""Draws docs/images/design.png: `python docs/images/design.py`."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

INK, MEANING, SPEED, WORDS, AFTER = "#1b1f24", "#dbe9f6", "#fde8cf", "#e9ecef", "#e2f0d9"

BOXES = {  # name: (left, bottom, width, height, colour, title, lines)
    "words": (0.1, 6.3, 2.9, 1.1, WORDS, "words", "call | batch | prompts"),
    "compose": (3.8, 6.3, 2.9, 1.1, WORDS, "compose", "Plan (frozen, JSON) + inputs"),
    "bind": (8.2, 6.3, 3.0, 1.1, MEANING, "bind", "Bound: modules, index tensors\nevery user error ends here"),
    "one": (0.1, 3.3, 2.9, 1.5, MEANING, "one_by_one", "each run alone, in full:\nwhat a plan means"),
    "planned": (3.8, 3.3, 2.9, 1.5, SPEED, "planned", "donors, starts, stops, ways,\ncopies; reasons are values"),
    "run": (8.2, 3.3, 3.0, 1.5, MEANING, "run_step", "hooks -> model -> edits\ndecides nothing"),
    "outcome": (8.2, 0.8, 3.0, 1.1, AFTER, "Outcome", "outputs, values, ledger,\npasses and why no better"),
    "rows": (3.8, 0.8, 2.9, 1.1, AFTER, "scores | loss | rows", "Table, folder, picture, page"),
}


def arrow(axes: plt.Axes, start: tuple[float, float], end: tuple[float, float], text: str = "", at: float = 0) -> None:
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=13, color=INK, lw=1.2))
    if text:
        axes.text((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + at, text, ha="center", va="center", fontsize=8.5)


def main() -> None:
    figure, axes = plt.subplots(figsize=(10.4, 6.4))
    axes.set_xlim(0, 11.3)
    axes.set_ylim(0.6, 7.6)
    axes.axis("off")
    axes.add_patch(FancyBboxPatch((3.6, 2.8), 3.3, 2.3, boxstyle="round,pad=0.02", fc="none", ec="#c77d1e", ls="--"))
    axes.text(5.25, 3.02, "fast/: can be deleted", ha="center", va="center", fontsize=8.5, color="#a8630e")
    for left, bottom, width, height, colour, title, lines in BOXES.values():
        axes.add_patch(FancyBboxPatch((left, bottom), width, height, boxstyle="round,pad=0.04", fc=colour, ec=INK))
        axes.text(left + width / 2, bottom + height - 0.25, title, ha="center", va="center", fontsize=11, weight="bold")
        axes.text(left + width / 2, bottom + (height - 0.4) / 2, lines, ha="center", va="center", fontsize=8.8)
    arrow(axes, (3.05, 6.85), (3.75, 6.85))
    arrow(axes, (6.75, 6.85), (8.15, 6.85))
    axes.plot([9.7, 9.7, 1.55], [6.25, 5.7, 5.7], color=INK, lw=1.2)
    arrow(axes, (1.55, 5.7), (1.55, 4.85))
    arrow(axes, (5.25, 5.7), (5.25, 4.85))
    axes.text(3.4, 5.88, "a planner: one or the other", ha="center", va="center", fontsize=8.5)
    arrow(axes, (6.75, 4.4), (8.15, 4.4), "Step", 0.2)
    arrow(axes, (8.15, 3.7), (6.75, 3.7), "reply", 0.2)
    axes.plot([1.55, 1.55, 9.2], [3.25, 2.4, 2.4], color=INK, lw=1.2)
    arrow(axes, (9.2, 2.4), (9.2, 3.25))
    axes.text(5.25, 2.22, "Step, and the reply to it", ha="center", va="center", fontsize=8.5)
    arrow(axes, (10.2, 3.25), (10.2, 1.95))
    arrow(axes, (8.15, 1.35), (6.75, 1.35))
    figure.savefig(Path(__file__).with_name("design.png"), dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
