"""What runs reached in which time, from their metrics.jsonl; as a table and as a picture, without a drawing library."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from xml.sax.saxutils import escape

from dlas.errors import DataError

Axis = Literal["seconds", "step", "samples"]

_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM, _RIGHT = 640.0, 320.0, 70.0, 44.0, 54.0, 20.0
_COLOURS = ("#0969da", "#bc4c00", "#8250df", "#1a7f37", "#bf3989", "#0a7f86")
_TICKS = 5


@dataclass(frozen=True)
class Curve:
    """One figure of a run's validations.

    Args:
        name: of the run.
        points: (seconds, step, samples, value) of each validation whose value is a number, in order.
    """

    name: str
    points: list[tuple[float, int, int, float]]

    def along(self, axis: Axis) -> list[tuple[float, float]]:
        """(place, value) of each validation."""
        column = ("seconds", "step", "samples").index(axis)
        return [(float(point[column]), point[3]) for point in self.points]

    def seconds_to(self, value: float, higher: bool) -> float | None:
        """Seconds until a validation was at least as good; None if none was."""
        sign = 1 if higher else -1
        return next((seconds for seconds, _, _, found in self.points if sign * found >= sign * value), None)

    def best(self, higher: bool) -> tuple[float, int, int, float]:
        """The best validation, the first of equals."""
        return max(self.points, key=lambda point: point[3]) if higher else min(self.points, key=lambda point: point[3])


def read_curves(runs: Sequence[Path], metric: str | None, set_name: str | None) -> tuple[str, str, list[Curve]]:
    """The curves of runs, and the names of the set and the metric.

    Args:
        runs: run folders.
        metric: a figure of their validations; the first of the first run by default.
        set_name: the data set; the first one validated on by default.

    Raises:
        DataError: a run has no such figures.
    """
    rows = [_validations(run) for run in runs]
    first = rows[0][0]
    chosen_set = set_name or str(first["set"])
    chosen = metric or next(key for key in first if key not in _HEAD)
    curves = []
    for run, own in zip(runs, rows, strict=True):
        points = [
            (float(row["seconds"]), int(row["step"]), int(row["samples"]), float(row[chosen]))
            for row in own
            if row["set"] == chosen_set and isinstance(row.get(chosen), int | float)
        ]
        if not points:
            there = sorted({f"{row['set']}: {key}" for row in own for key in row if key not in _HEAD})
            raise DataError(
                f"{run / 'metrics.jsonl'}: no validation gives '{chosen}' of '{chosen_set}'; there are: {', '.join(there)}"
            )
        curves.append(Curve(run.name, points))
    return chosen_set, chosen, curves


_HEAD = ("phase", "step", "samples", "seconds", "set")


def _validations(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; give folders of runs, for instance experiments/NAME") from error
    found = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:  # the last one of a run that was killed
            continue
        if isinstance(row, dict) and row.get("phase") == "val":
            found.append(row)
    if not found:
        raise DataError(f"{path}: there is no validation in it; set train.val_freq, or wait for the first")
    return found


def draw(curves: Sequence[Curve], title: str, axis: Axis, logarithmic: bool) -> str:
    """The text of an SVG file: values over time, a mark for each validation.

    Args:
        curves: of the runs.
        title: above the picture.
        axis: what lies along it.
        logarithmic: of the axis, for budgets that double.
    """
    lines = [(curve.name, [(max(x, 1e-9), y) for x, y in curve.along(axis)]) for curve in curves]
    places = [x for _, points in lines for x, _ in points]
    values = [y for _, points in lines for _, y in points]
    low_x, high_x = (min(places) if logarithmic else 0.0), max(places)
    low_y, high_y = min(values), max(values)
    margin = 0.05 * (high_y - low_y) or 0.05 * abs(high_y) or 1.0
    low_y, high_y = low_y - margin, high_y + margin

    def across(x: float) -> float:
        if logarithmic and high_x > low_x:
            share = math.log(x / low_x) / math.log(high_x / low_x)
        else:
            share = (x - low_x) / (high_x - low_x) if high_x > low_x else 0.5
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def down(y: float) -> float:
        return _TOP + (high_y - y) / (high_y - low_y) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{_WIDTH:.0f}" height="{_HEIGHT:.0f}" '
        f'viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" font-family="system-ui, DejaVu Sans, sans-serif" font-size="12">',
        f'<rect width="{_WIDTH:.0f}" height="{_HEIGHT:.0f}" fill="#ffffff"/>',
        f'<text x="{_LEFT:.0f}" y="18" font-size="14" font-weight="600">{escape(title)}</text>',
        *_grid(across, down, (low_x, high_x), (low_y, high_y), logarithmic),
        f'<text x="{_WIDTH - _RIGHT:.0f}" y="{_HEIGHT - 22:.0f}" text-anchor="end">{axis}</text>',
    ]
    for number, (name, points) in enumerate(lines):
        colour = _COLOURS[number % len(_COLOURS)]
        path = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        parts += [f'<circle cx="{across(x):.1f}" cy="{down(y):.1f}" r="3" fill="{colour}"/>' for x, y in points]
        x = _LEFT + number * (_WIDTH - _LEFT - _RIGHT) / len(lines)
        parts.append(f'<text x="{x:.0f}" y="{_HEIGHT - 6:.0f}" fill="{colour}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _grid(
    across: Callable[[float], float],
    down: Callable[[float], float],
    span_x: tuple[float, float],
    span_y: tuple[float, float],
    logarithmic: bool,
) -> Iterator[str]:
    """Lines and numbers."""
    for number in range(_TICKS):
        share = number / (_TICKS - 1)
        y = span_y[0] + share * (span_y[1] - span_y[0])
        x = span_x[0] * (span_x[1] / span_x[0]) ** share if logarithmic else span_x[0] + share * (span_x[1] - span_x[0])
        yield f'<path d="M{_LEFT:.1f},{down(y):.1f} H{_WIDTH - _RIGHT:.1f}" stroke="#d8dee4" fill="none"/>'
        yield f'<text x="{_LEFT - 6:.1f}" y="{down(y) + 4:.1f}" text-anchor="end">{y:.5g}</text>'
        yield f'<text x="{across(x):.1f}" y="{_HEIGHT - _BOTTOM + 16:.1f}" text-anchor="middle">{x:.4g}</text>'


def rows(curves: Sequence[Curve], higher: bool) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table: the best validation of each run, its last one, and the time to what the first run reached."""
    goal = curves[0].best(higher)[3]
    head = ["run", "best", "at step", "at seconds", "last", "seconds", f"seconds to {goal:.4f}"]
    table = []
    for curve in curves:
        seconds, step, _, value = curve.best(higher)
        end = curve.points[-1]
        reached = curve.seconds_to(goal, higher)
        to_goal = f"{reached:.1f}" if reached is not None else "not reached"
        table.append([curve.name, f"{value:.4f}", f"{step}", f"{seconds:.1f}", f"{end[3]:.4f}", f"{end[0]:.1f}", to_goal])
    return head, table


def by_step(curves: Sequence[Curve]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table: the value of each run at every step that all of them validated at, and the difference."""
    values = [{step: value for _, step, _, value in curve.points} for curve in curves]
    steps = [step for step in values[0] if all(step in other for other in values)]
    head = ["step", *(curve.name for curve in curves), *(f"{curve.name} - {curves[0].name}" for curve in curves[1:])]
    return head, [
        [f"{s}", *(f"{v[s]:.4f}" for v in values), *(f"{v[s] - values[0][s]:+.4f}" for v in values[1:])] for s in steps
    ]
