"""The drag grammar of DreamOmni: which points of an object go where, as text.

The one published example (method figure, rotation) is `(x, y, dx, dy)` tuples with four decimals, x and dx as
a share of the picture's width, y and dy of its height, then a full stop and a verb with the object. Its first
tuple is the centre with zero displacement. Read as whole pixels of a 1350 x 776 picture, every other tuple is
the exact rotation by -62 degrees about it. Angles are clockwise on the screen: that one is counter-clockwise.
The wording of moving and scaling is not published: chosen here as the same tuples under other verbs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

DECIMALS = 4
TOLERANCE = 1e-6


class DragOperation(str, Enum):
    """What happens to the dragged object."""

    MOVE = "move"
    SCALE = "scale"
    ROTATE = "rotate"


VERBS: dict[DragOperation, tuple[str, ...]] = {
    DragOperation.MOVE: ("Move", "Drag", "Shift", "Relocate"),
    DragOperation.SCALE: ("Scale", "Resize", "Rescale"),
    DragOperation.ROTATE: ("Revolve", "Rotate", "Turn"),
}
"""Verbs by operation, the first is the default. Only `Revolve` is published, the others are chosen."""


class DragPoint(NamedTuple):
    """A handle point and where it goes: position and displacement, in pixels or as shares of the picture."""

    x: float
    y: float
    dx: float
    dy: float


def moved_points(handles: Sequence[tuple[float, float]], dx: float, dy: float) -> list[DragPoint]:
    """Handle points that all travel by (dx, dy) pixels."""
    return [DragPoint(x, y, dx, dy) for x, y in handles]


def scaled_points(
    centre: tuple[float, float], handles: Sequence[tuple[float, float]], factor: float
) -> list[DragPoint]:
    """The centre at rest, then handles that move to centre + factor * (handle - centre), in pixels."""
    if not (math.isfinite(factor) and factor > 0):
        raise ValueError(f"the scale factor must be positive, got {factor}")
    cx, cy = centre
    return [DragPoint(cx, cy, 0.0, 0.0)] + [
        DragPoint(x, y, (factor - 1) * (x - cx), (factor - 1) * (y - cy)) for x, y in handles
    ]


def rotated_points(
    centre: tuple[float, float], handles: Sequence[tuple[float, float]], degrees: float
) -> list[DragPoint]:
    """The centre at rest, then handles turned about it by `degrees` clockwise on the screen, in pixels."""
    cx, cy = centre
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    points = [DragPoint(cx, cy, 0.0, 0.0)]
    for x, y in handles:
        u, v = x - cx, y - cy
        points.append(DragPoint(x, y, cos * u - sin * v - u, sin * u + cos * v - v))
    return points


def _check_points(points: Sequence[DragPoint], operation: DragOperation, size: tuple[int, int]) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ValueError(f"the picture size must be positive, got {width} x {height}")
    needed = 1 if operation is DragOperation.MOVE else 2
    if len(points) < needed:
        what = "at least one point" if needed == 1 else "its centre first, then at least one more point"
        raise ValueError(f"{operation.value} needs {what}; got {len(points)}")
    for number, (x, y, dx, dy) in enumerate(points, 1):
        if not all(math.isfinite(value) for value in (x, y, dx, dy)):
            raise ValueError(f"point {number} is not made of finite numbers: {(x, y, dx, dy)}")
        if not (0 <= x <= width and 0 <= y <= height):
            raise ValueError(
                f"point {number} at ({x:g}, {y:g}) lies outside the {width} x {height} picture; "
                f"x goes from 0 to {width}, y from 0 to {height}"
            )
    first = points[0]
    if operation is not DragOperation.MOVE and (abs(first.dx) > TOLERANCE or abs(first.dy) > TOLERANCE):
        raise ValueError(
            f"the first point of {operation.value} is the centre and stays where it is; "
            f"got a displacement of ({first.dx:g}, {first.dy:g}) pixels"
        )


def _tuple_text(point: DragPoint, size: tuple[int, int]) -> str:
    shares = (point.x / size[0], point.y / size[1], point.dx / size[0], point.dy / size[1])
    texts = [f"{share:.{DECIMALS}f}" for share in shares]
    zero = f"{0:.{DECIMALS}f}"
    return "(" + ", ".join(zero if text == f"-{zero}" else text for text in texts) + ")"


def drag_prompt(
    points: Sequence[tuple[float, float, float, float]],
    operation: DragOperation | str,
    size: tuple[int, int],
    subject: str,
    verb: str | None = None,
) -> str:
    """The instruction that drags `subject`.

    `points` are (x, y, dx, dy) in pixels of a picture of `size` = (width, height); for scale and rotate the
    first is the centre with zero displacement. `verb` is one of `VERBS[operation]`, by default the first.
    Raises ValueError for a point outside the picture, a missing centre, an unknown verb or an empty subject.
    """
    operation = DragOperation(operation)
    drag_points = [DragPoint(*point) for point in points]
    _check_points(drag_points, operation, size)
    caption = " ".join(subject.split()).rstrip(".")
    if not caption:
        raise ValueError("say what is dragged, for example 'the white speech bubble'; the subject is empty")
    verb = VERBS[operation][0] if verb is None else verb
    if verb not in VERBS[operation]:
        raise ValueError(
            f"{verb!r} is no verb of {operation.value}; use one of {', '.join(VERBS[operation])}"
        )
    return " ".join(_tuple_text(point, size) for point in drag_points) + f". {verb} {caption}."
