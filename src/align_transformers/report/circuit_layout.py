"""Where the nodes of a circuit are drawn, and which way its edges take."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

Pixel = tuple[float, float]
Dots = tuple[Pixel, ...]

HIGH, ROW, GAP, MARGIN, LABELS = 30.0, 62.0, 16.0, 16.0, 44.0
"""Pixels: of a node, from row to row, between nodes, around all, for the names of layers."""
_PORTS = {"q": -0.3, "k": 0.0, "v": 0.3}
_SWEEPS = 12
_POINTS = 72.0  # an inch, which `dot` counts in


@dataclass(frozen=True)
class Link:
    """An edge as a layout sees it.

    Args:
        sender: the node below.
        owner: the node above.
        letter: of the port that it ends at; `""`: the middle.
        weight: how much it pulls.
    """

    sender: str
    owner: str
    letter: str
    weight: float


@dataclass(frozen=True)
class CircuitLayout:
    """Where all is, in pixels from the left and from the top.

    Args:
        spots: the middle of each node.
        ways: of each edge the dots of Bezier curves.
        wide: of the whole.
        tall: likewise.
    """

    spots: Mapping[str, Pixel]
    ways: Sequence[Dots]
    wide: float
    tall: float


def width_of_name(name: str, *, ports: bool) -> float:
    """Return how wide a node is."""
    return max(54.0 if ports else 44.0, 9.0 * len(name) + 12)


def port_of(spot: Pixel, wide: float, letter: str) -> Pixel:
    """Return where at a node an edge ends: at its lower side, at the port of a letter."""
    return spot[0] + _PORTS.get(letter, 0.0) * wide, spot[1] + HIGH / 2


# --- by sweeps --------------------------------------------------------------------------------------------------------


def by_sweeps(levels: Sequence[Sequence[str]], links: Sequence[Link], letters: Collection[str]) -> CircuitLayout:
    """Return a layout in which nodes of a row stand below and above those that they are linked with.

    Args:
        levels: names by row, the lowest first.
        links: between them, upwards.
        letters: the nodes that have ports.
    """
    widths = {name: width_of_name(name, ports=name in letters) for level in levels for name in level}
    pulls: dict[str, list[tuple[str, float]]] = {name: [] for name in widths}
    most = max((link.weight for link in links), default=1.0) or 1.0
    for link in links:
        weight = link.weight / most + 0.05
        pulls[link.sender].append((link.owner, weight))
        pulls[link.owner].append((link.sender, weight))
    places: dict[str, float] = {}
    for level in levels:
        _packed(list(level), dict.fromkeys(level, 0.0), widths, places)
    for sweep in range(_SWEEPS):
        for level in levels if sweep % 2 else reversed(levels):
            wanted = {name: _pulled(name, pulls[name], places) for name in level}
            _packed(sorted(level, key=lambda name: wanted[name]), wanted, widths, places)
    left = min(places[name] - widths[name] / 2 for name in places) - MARGIN - LABELS
    rows = {name: number for number, level in enumerate(levels) for name in level}
    tall = len(levels) * ROW - (ROW - HIGH) + 2 * MARGIN
    spots = {name: (x - left, tall - MARGIN - HIGH / 2 - rows[name] * ROW) for name, x in places.items()}
    ways = [_bowed(link, spots, widths, rows) for link in links]
    wide = max([spots[name][0] + widths[name] / 2 for name in spots] + [x for way in ways for x, _ in way]) + MARGIN
    short = min([0.0, *(x - LABELS for way in ways for x, _ in way)])
    moved = {name: (x - short, y) for name, (x, y) in spots.items()}
    return CircuitLayout(moved, [tuple((x - short, y) for x, y in way) for way in ways], wide - short, tall)


def _pulled(name: str, pulls: Sequence[tuple[str, float]], places: Mapping[str, float]) -> float:
    total = sum(weight for _, weight in pulls)
    return sum(places[other] * weight for other, weight in pulls) / total if total else places[name]


def _packed(
    order: Sequence[str], wanted: Mapping[str, float], widths: Mapping[str, float], places: dict[str, float]
) -> None:
    """Place nodes of a row in an order, none over another, as a whole around where they want to be."""
    found: list[float] = []
    for n, name in enumerate(order):
        least = found[-1] + (widths[order[n - 1]] + widths[name]) / 2 + GAP if found else wanted[name]
        found.append(max(wanted[name], least))
    shift = sum(wanted[name] - x for name, x in zip(order, found, strict=True)) / max(len(order), 1)
    places.update({name: x + shift for name, x in zip(order, found, strict=True)})


def _bowed(link: Link, spots: Mapping[str, Pixel], widths: Mapping[str, float], rows: Mapping[str, int]) -> Dots:
    """Return a curve that leaves upwards and arrives from below; a long one makes way for the rows between."""
    x, y = spots[link.sender]
    start, end = (x, y - HIGH / 2), port_of(spots[link.owner], widths[link.owner], link.letter)
    span = rows[link.owner] - rows[link.sender]
    middle = sum(place for place, _ in spots.values()) / len(spots)
    side = 1 if (start[0] + end[0]) / 2 >= middle else -1
    bow = side * min(170.0, 26.0 * (span - 1)) if abs(start[0] - end[0]) < 120 else 0.0
    reach = 0.45 * (start[1] - end[1])
    return start, (start[0] + bow, start[1] - reach), (end[0] + bow, end[1] + reach), end


# --- by graphviz ------------------------------------------------------------------------------------------------------


def by_dot(levels: Sequence[Sequence[str]], links: Sequence[Link], letters: Collection[str]) -> CircuitLayout | None:
    """Return the layout of graphviz; `None` where it is not installed, or has no answer in half a minute.

    Args:
        levels: as for `by_sweeps`.
        links: likewise.
        letters: likewise.
    """
    program = shutil.which("dot")
    if program is None:
        return None
    text = _dot_text(levels, links, letters)
    try:
        done = subprocess.run([program, "-Tplain"], input=text, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return _read_plain(done.stdout, [name for level in levels for name in level], links)


def _dot_text(levels: Sequence[Sequence[str]], links: Sequence[Link], letters: Collection[str]) -> str:
    names = [name for level in levels for name in level]
    numbers = {name: n for n, name in enumerate(names)}
    lines = ["digraph {", f"rankdir=BT; nodesep={GAP / _POINTS:.3f}; ranksep={(ROW - HIGH) / _POINTS:.3f};"]
    lines.append(f"node [shape=record, fixedsize=true, height={HIGH / _POINTS:.3f}]; edge [dir=none];")
    for name in names:
        wide, ports = (
            width_of_name(name, ports=name in letters) / _POINTS,
            "{<q>q|<k>k|<v>v}" if name in letters else "x",
        )
        lines.append(f'n{numbers[name]} [label="{{{ports}}}", width={wide:.3f}];')
    for level in levels:
        lines.append(f"{{rank=same; {' '.join(f'n{numbers[name]};' for name in level)}}}")
    for below, above in pairwise(levels):
        lines.append(f"n{numbers[below[0]]} -> n{numbers[above[0]]} [style=invis];")
    for link in links:
        port = f":{link.letter}:s" if link.letter and link.owner in letters else ":s"
        lines.append(f"n{numbers[link.sender]}:n -> n{numbers[link.owner]}{port};")
    return "\n".join([*lines, "}"])


def _read_plain(text: str, names: Sequence[str], links: Sequence[Link]) -> CircuitLayout | None:
    """Read what `dot -Tplain` says: inches from the lower left corner."""
    spots: dict[str, Pixel] = {}
    ways: dict[tuple[str, str], list[Dots]] = {}
    tall = wide = 0.0
    for line in text.splitlines():
        word, *rest = line.split() or [""]
        if word == "graph":
            wide, tall = float(rest[1]) * _POINTS, float(rest[2]) * _POINTS
        elif word == "node":
            spots[names[int(rest[0][1:])]] = _pixels(rest[1], rest[2], tall)
        elif word == "edge":
            count = int(rest[2])
            flat = rest[3 : 3 + 2 * count]
            dots = tuple(_pixels(x, y, tall) for x, y in zip(flat[::2], flat[1::2], strict=True))
            ends = names[int(rest[0].split(":")[0][1:])], names[int(rest[1].split(":")[0][1:])]
            ways.setdefault(ends, []).append(dots)
    if set(spots) != set(names):
        return None
    return CircuitLayout(
        spots, [_way_of(link, spots, ways) for link in links], wide + LABELS + 2 * MARGIN, tall + 2 * MARGIN
    )


def _way_of(link: Link, spots: Mapping[str, Pixel], ways: Mapping[tuple[str, str], list[Dots]]) -> Dots:
    """Return the way of a link: of those between two nodes the one that ends nearest its port."""
    found = ways[link.sender, link.owner]
    wide = width_of_name(link.owner, ports=bool(link.letter))
    wanted = port_of(spots[link.owner], wide, link.letter)[0]
    return min(found, key=lambda dots: abs(dots[-1][0] - wanted))


def _pixels(x: str, y: str, tall: float) -> Pixel:
    return float(x) * _POINTS + LABELS + MARGIN, tall - float(y) * _POINTS + MARGIN
