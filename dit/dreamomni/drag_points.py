"""Drag points as a user writes them: one point per line in pixels, `x, y` or `x, y -> x, y`.

Or as Points Editor nodes write them, without goals: `[{"x": 120, "y": 80}, ...]`.
"""

from __future__ import annotations

import json
import re

from .drag import DragOperation, DragPoint, moved_points, rotated_points, scaled_points

NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
POINT = re.compile(rf"{NUMBER}[,\s]{NUMBER}(?:->{NUMBER}[,\s]{NUMBER})?")
EXAMPLE = "120, 80 -> 200, 80"

Line = tuple[float, float, tuple[float, float] | None]


def read_lines(text: str) -> list[Line]:
    """(x, y, where it goes or None) for each line or item of a list; ValueError says what is wrong."""
    lines = read_list(text) if text.lstrip().startswith("[") else read_rows(text)
    if not lines:
        raise ValueError(f"no points given; write one per line, like {EXAMPLE!r}")
    return lines


def read_rows(text: str) -> list[Line]:
    """The points of lines; raises ValueError naming the line."""
    lines: list[Line] = []
    for number, row in enumerate(re.split(r"[\n;]", text), 1):
        if not row.strip():
            continue
        match = POINT.fullmatch(row)
        if match is None:
            raise ValueError(
                f"line {number} of points is {row.strip()!r}; write it like {EXAMPLE!r} or '120, 80'"
            )
        x, y, *end = (None if value is None else float(value) for value in match.groups())
        assert x is not None and y is not None
        goal = None if end[0] is None or end[1] is None else (end[0], end[1])
        lines.append((x, y, goal))
    return lines


def read_list(text: str) -> list[Line]:
    """The points of a JSON list of x and y; ValueError for any other list."""
    try:
        return [(float(point["x"]), float(point["y"]), None) for point in json.loads(text)]
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise ValueError(
            f'points begin with \'[\' but are no list like [{{"x": 120, "y": 80}}] ({error}); or write one '
            f"per line, like {EXAMPLE!r}"
        ) from error


def points_from_text(
    text: str, operation: DragOperation, angle: float = 0.0, factor: float = 1.0
) -> list[DragPoint]:
    """Drag points in pixels. Move: lines without a goal travel like the first with one.

    Scale and rotate: the first line is the centre; the others say where they go or, if none does, are moved
    by `factor` or `angle` (degrees, clockwise). Raises ValueError where that leaves something open.
    """
    lines = read_lines(text)
    if operation is DragOperation.MOVE:
        return _moved(lines)
    centre, *rest = lines
    given = [goal is not None for _, _, goal in rest]
    if any(given) and not all(given):
        raise ValueError(
            f"line {given.index(False) + 2} of points does not say where it goes but others do; "
            "give every point after the centre a goal, or none"
        )
    if centre[2] is not None and centre[2] != centre[:2]:
        raise ValueError(f"the first point of {operation.value} is the centre and stays; remove its goal")
    if rest and all(given):
        goals = [(x, y, goal) for x, y, goal in rest if goal is not None]
        ends = [DragPoint(x, y, goal[0] - x, goal[1] - y) for x, y, goal in goals]
        return [DragPoint(centre[0], centre[1], 0.0, 0.0), *ends]
    return _turned(centre[:2], [(x, y) for x, y, _ in rest], operation, angle, factor)


def _moved(lines: list[Line]) -> list[DragPoint]:
    first = next(((x, y, goal) for x, y, goal in lines if goal is not None), None)
    if first is None or first[2] is None:
        raise ValueError(f"move needs a goal, at least on one line, like {EXAMPLE!r}")
    shift = (first[2][0] - first[0], first[2][1] - first[1])
    points: list[DragPoint] = []
    for x, y, goal in lines:
        dx, dy = shift if goal is None else (goal[0] - x, goal[1] - y)
        points += moved_points([(x, y)], dx, dy)
    return points


def _turned(
    centre: tuple[float, float],
    handles: list[tuple[float, float]],
    operation: DragOperation,
    angle: float,
    factor: float,
) -> list[DragPoint]:
    if operation is DragOperation.ROTATE:
        if angle == 0.0:
            raise ValueError("the rotation is 0 degrees: set angle, or write goals behind the points")
        return rotated_points(centre, handles, angle)
    if factor == 1.0:
        raise ValueError("the scale factor is 1: set factor, or write goals behind the points")
    return scaled_points(centre, handles, factor)
