"""Layered drawing of a graph whose arrows point right: columns by layer, rows so that arrows are short and touch no box.

A small form of the method of Sugiyama, Tagawa and Toda, "Methods for visual understanding of hierarchical system structures",
1981: layers are given; long arrows get a place of their own in each column that they cross; rows are found by moving every box
to the mean of its neighbours, in sweeps, with the least squares shift that keeps boxes of a column apart.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

_SWEEPS = 12
OUTSIDE = -1
"""The band of boxes that stand in no band."""


@dataclass
class Box:
    """Something with a size that is given a place.

    Args:
        id: unique.
        layer: column, from 0.
        band: bands are stacked from top to bottom; `OUTSIDE` is beside all of them.
        width: in pixels.
        height: in pixels.
        x: left edge, found by `arrange`.
        y: upper edge, found by `arrange`.
    """

    id: str
    layer: int
    band: int
    width: float
    height: float
    x: float = 0.0
    y: float = 0.0
    column_right: float = 0.0  # right edge of the widest box of its column
    through: bool = False  # only a passage for a long arrow

    @property
    def middle(self) -> float:
        """y of its centre."""
        return self.y + self.height / 2

    @property
    def right(self) -> float:
        """x of its right edge."""
        return self.x + self.width


@dataclass(frozen=True)
class Spacing:
    """Distances in pixels."""

    columns: float = 46.0
    rows: float = 14.0
    passage: float = 8.0  # height of the place of a long arrow
    band_head: float = 56.0
    band_foot: float = 16.0
    bands: float = 18.0


@dataclass
class Drawing:
    """Where everything is.

    Args:
        boxes: with places.
        arrows: for each arrow its corner points (x, y), from the right edge of its start to the left edge of its end. Straight
            and curved pieces alternate: it leaves the start's column straight, curves to the next one, crosses that one
            straight, ...
        bands: upper and lower edge of each band.
        width: of everything.
        height: of everything.
    """

    boxes: dict[str, Box]
    arrows: dict[tuple[str, str], list[tuple[float, float]]]
    bands: list[tuple[float, float]] = field(default_factory=list)
    width: float = 0.0
    height: float = 0.0


def arrange(boxes: Sequence[Box], arrows: Sequence[tuple[str, str]], spacing: Spacing) -> Drawing:
    """Places boxes and routes arrows.

    Args:
        boxes: the layer of an arrow's end is greater than that of its start. They are changed in place.
        arrows: (start, end).
        spacing: distances.
    """
    found = {box.id: box for box in boxes}
    routes = {arrow: _route(found, *arrow, spacing) for arrow in arrows}
    neighbours: dict[str, set[str]] = defaultdict(set)
    for route in routes.values():
        for left, right in pairwise(route):
            neighbours[left].add(right)
            neighbours[right].add(left)
    _set_columns(found, spacing)
    edges = _set_rows(found, neighbours, spacing)
    drawing = Drawing(found, {}, edges)
    for arrow, route in routes.items():
        drawing.arrows[arrow] = _points(route, found, routes)
    drawing.width = max((box.right for box in found.values()), default=0.0)
    drawing.height = max([*(box.y + box.height for box in found.values()), *(bottom for _, bottom in edges)], default=0.0)
    return drawing


def _route(found: dict[str, Box], start: str, end: str, spacing: Spacing) -> list[str]:
    """The boxes that an arrow runs through; arrows from one box into one band share their passages."""
    first, last = found[start], found[end]
    assert first.layer < last.layer, f"arrow {start} -> {end} does not point right"
    route = [start]
    for layer in range(first.layer + 1, last.layer):
        name = f"{start}>{last.band}>{layer}"
        if name not in found:
            found[name] = Box(name, layer, last.band, 0.0, spacing.passage, through=True)
        route.append(name)
    return [*route, end]


def _set_columns(found: Mapping[str, Box], spacing: Spacing) -> None:
    widths: dict[int, float] = defaultdict(float)
    for box in found.values():
        widths[box.layer] = max(widths[box.layer], box.width)
    left = 0.0
    lefts = {}
    for layer in sorted(widths):
        lefts[layer] = left
        left += widths[layer] + spacing.columns
    for box in found.values():
        box.x = lefts[box.layer]
        box.column_right = box.x + widths[box.layer]
        if box.through:
            box.width = widths[box.layer]


def _set_rows(found: Mapping[str, Box], neighbours: Mapping[str, set[str]], spacing: Spacing) -> list[tuple[float, float]]:
    columns: dict[tuple[int, int], list[Box]] = defaultdict(list)
    for box in found.values():
        columns[box.band, box.layer].append(box)
    top = 0.0
    edges = []
    for band in range(max(box.band for box in found.values()) + 1):
        own = {layer: column for (each, layer), column in sorted(columns.items()) if each == band}
        inside = {box.id for column in own.values() for box in column}
        height = _settle(own, {name: neighbours[name] & inside for name in inside}, found, spacing)
        bottom = top + spacing.band_head + height + spacing.band_foot
        for column in own.values():
            for box in column:
                box.y += top + spacing.band_head
        edges.append((top, bottom))
        top = bottom + spacing.bands
    outside = {layer: column for (each, layer), column in sorted(columns.items(), reverse=True) if each == OUTSIDE}
    for column in outside.values():  # from right to left: what they point to has its place
        right = {box.id: [found[n] for n in neighbours[box.id] if found[n].layer > box.layer] for box in column}
        _place(column, {id_: _mean_of(boxes) for id_, boxes in right.items()}, spacing)
    lowest = min((box.y for column in outside.values() for box in column), default=0.0)
    if lowest < 0:
        for box in found.values():
            box.y -= lowest
        edges = [(upper - lowest, lower - lowest) for upper, lower in edges]
    return edges


def _settle(
    columns: Mapping[int, list[Box]], neighbours: Mapping[str, set[str]], found: Mapping[str, Box], spacing: Spacing
) -> float:
    """Finds the rows of one band, upper edge 0, and returns its height."""
    for column in columns.values():
        _place(column, dict.fromkeys((box.id for box in column), 0.0), spacing)
    for sweep in range(_SWEEPS):
        rightwards = sweep % 2 == 0
        for layer in sorted(columns, reverse=not rightwards):
            wanted = {}
            for box in columns[layer]:
                near = [found[name] for name in neighbours[box.id]]
                behind = [other for other in near if (other.layer < layer) == rightwards]
                wanted[box.id] = _mean_of(behind or near) if near else box.middle
            _place(columns[layer], wanted, spacing)
    boxes = [box for column in columns.values() for box in column]
    top = min((box.y for box in boxes), default=0.0)
    for box in boxes:
        box.y -= top
    return max((box.y + box.height for box in boxes), default=0.0)


def _mean_of(boxes: Sequence[Box]) -> float:
    return sum(box.middle for box in boxes) / len(boxes) if boxes else 0.0


def _place(column: list[Box], wanted: Mapping[str, float], spacing: Spacing) -> None:
    """Puts the boxes of a column as near as possible to the wanted middles, in their order and apart (isotonic regression)."""
    column.sort(key=lambda box: wanted[box.id])  # stable: equals keep the order of the file
    offsets = [0.0]
    for upper, lower in pairwise(column):
        offsets.append(offsets[-1] + (upper.height + lower.height) / 2 + spacing.rows)
    blocks: list[tuple[float, int]] = []  # (mean, members)
    for box, offset in zip(column, offsets, strict=True):
        mean, members = wanted[box.id] - offset, 1
        while blocks and blocks[-1][0] > mean:
            other, count = blocks.pop()
            mean = (mean * members + other * count) / (members + count)
            members += count
        blocks.append((mean, members))
    middles = [mean for mean, members in blocks for _ in range(members)]
    for box, offset, middle in zip(column, offsets, middles, strict=True):
        box.y = middle + offset - box.height / 2


def _points(
    route: Sequence[str], found: Mapping[str, Box], routes: Mapping[tuple[str, str], Sequence[str]]
) -> list[tuple[float, float]]:
    start, end = found[route[0]], found[route[-1]]
    points = [(start.right, start.middle), (start.column_right, start.middle)]
    for name in route[1:-1]:
        passage = found[name]
        points += [(passage.x, passage.middle), (passage.right, passage.middle)]
    arriving = sorted((each for each in routes.values() if each[-1] == end.id), key=lambda each: found[each[-2]].middle)
    share = (arriving.index(route) + 1) / (len(arriving) + 1)
    return [*points, (end.x, end.y + share * end.height)]
