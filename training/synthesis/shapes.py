"""Procedural stickers: outlines in a unit circle, y down, made of polygons drawn one over the other."""

from __future__ import annotations

import math
from dataclasses import dataclass

Point = tuple[float, float]
Outline = tuple[Point, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A polygon of a shape."""

    outline: Outline
    tone: str = "base"
    """`base` carries colour and texture; `dark` and `light` are shades of it; `hole` cuts through."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """A silhouette with details."""

    parts: tuple[Part, ...]
    fold: int
    """Looks the same after 360/fold degrees; 0 for a circle."""


def ellipse(x: float, y: float, rx: float, ry: float, tilt: float = 0.0, count: int = 72) -> Outline:
    """An ellipse as a polygon; `tilt` in degrees clockwise."""
    cos, sin = math.cos(math.radians(tilt)), math.sin(math.radians(tilt))
    points = []
    for step in range(count):
        angle = 2 * math.pi * step / count
        u, v = rx * math.cos(angle), ry * math.sin(angle)
        points.append((x + u * cos - v * sin, y + u * sin + v * cos))
    return tuple(points)


def regular(corners: int, radius: float = 1.0, turn: float = -90.0) -> Outline:
    """A regular polygon, first corner at `turn` degrees."""
    angles = [math.radians(turn + 360 * step / corners) for step in range(corners)]
    return tuple((radius * math.cos(angle), radius * math.sin(angle)) for angle in angles)


def star(points: int, inner: float) -> Outline:
    """A star with its inner corners at this share of the radius."""
    outer_ring, inner_ring = regular(points), regular(points, inner, -90 + 180 / points)
    return tuple(point for pair in zip(outer_ring, inner_ring, strict=True) for point in pair)


def rounded_box(left: float, top: float, right: float, bottom: float, radius: float) -> Outline:
    """A rectangle with round corners."""
    points: list[Point] = []
    corners = ((right, bottom, 0), (left, bottom, 90), (left, top, 180), (right, top, 270))
    for x, y, start in corners:
        cx = x - radius if x == right else x + radius
        cy = y - radius if y == bottom else y + radius
        for step in range(9):
            angle = math.radians(start + 90 * step / 8)
            points.append((cx + radius * math.cos(angle), cy + radius * math.sin(angle)))
    return tuple(points)


def heart() -> Outline:
    """The usual parametric heart."""
    points = []
    for step in range(96):
        angle = 2 * math.pi * step / 96
        x = 16 * math.sin(angle) ** 3
        y = 13 * math.cos(angle) - 5 * math.cos(2 * angle) - 2 * math.cos(3 * angle) - math.cos(4 * angle)
        points.append((x, -y))
    return tuple(points)


def moon() -> Outline:
    """A crescent, open to the right."""
    outer = [math.radians(angle) for angle in range(48, 313, 6)]
    tip_x, tip_y = math.cos(outer[0]), math.sin(outer[0])
    centre, radius = 0.42, math.hypot(tip_x - 0.42, tip_y)
    start = math.atan2(-tip_y, tip_x - centre)
    inner = [start - step * (2 * math.pi + 2 * start) / 40 for step in range(41)]
    back = [(centre + radius * math.cos(angle), radius * math.sin(angle)) for angle in inner]
    return tuple([(math.cos(angle), math.sin(angle)) for angle in outer] + back)


def drop() -> Outline:
    """A drop, tip up."""
    angles = [math.radians(angle) for angle in range(-28, 209, 6)]
    return (*((0.62 * math.cos(angle), 0.36 + 0.62 * math.sin(angle)) for angle in angles), (0.0, -1.0))


def flower() -> Outline:
    """Six round petals."""
    points = []
    for step in range(144):
        angle = 2 * math.pi * step / 144
        radius = 0.72 + 0.28 * math.cos(6 * angle)
        points.append((radius * math.cos(angle), radius * math.sin(angle)))
    return tuple(points)


def leaf() -> Outline:
    """A pointed leaf, upright."""
    side = [(0.56 * math.sin(math.pi * t) ** 1.1, -1 + 2 * t) for t in (step / 30 for step in range(31))]
    return tuple(side + [(-x, y) for x, y in reversed(side[1:-1])])


def parts(*items: Outline | tuple[Outline, str]) -> tuple[Part, ...]:
    """Parts from outlines, or from (outline, tone)."""
    made = []
    for item in items:
        match item:
            case (outline, str(tone)):
                made.append(Part(outline=outline, tone=tone))
            case _:
                made.append(Part(outline=item))
    return tuple(made)


def fitted(shape: Shape) -> Shape:
    """The shape moved and scaled so that its smallest circle about the box centre is the unit circle."""
    solid = [point for part in shape.parts if part.tone != "hole" for point in part.outline]
    xs, ys = [x for x, _ in solid], [y for _, y in solid]
    cx, cy = (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2
    if shape.fold != 1 and shape.fold != 2:
        # A regular polygon turns about its own centre, not about its box.
        cx = cy = 0.0
    radius = max(math.hypot(x - cx, y - cy) for x, y in solid)
    moved = tuple(
        Part(outline=tuple(((x - cx) / radius, (y - cy) / radius) for x, y in part.outline), tone=part.tone)
        for part in shape.parts
    )
    return Shape(parts=moved, fold=shape.fold)


def mirrored(side: Outline) -> Outline:
    """A closed outline from its right side, first point on the axis."""
    return side + tuple((-x, y) for x, y in reversed(side[1:]))


def building() -> dict[str, Shape]:
    """A house, a tree and a car."""
    roof = ((-0.85, -0.1), (0.0, -0.9), (0.85, -0.1))
    crown = ((0.0, -1.0), (0.55, -0.3), (0.3, -0.3), (0.7, 0.25), (0.4, 0.25), (0.85, 0.75))
    cabin = ((-0.55, -0.05), (-0.35, -0.5), (0.3, -0.5), (0.58, -0.05))
    house = parts(
        rounded_box(-0.66, -0.15, 0.66, 0.85, 0.05),
        (roof, "dark"),
        (rounded_box(-0.16, 0.32, 0.16, 0.85, 0.03), "dark"),
        (rounded_box(-0.5, 0.05, -0.24, 0.3, 0.03), "light"),
        (rounded_box(0.24, 0.05, 0.5, 0.3, 0.03), "light"),
    )
    car = parts(
        (cabin, "dark"),
        rounded_box(-0.95, -0.1, 0.95, 0.36, 0.16),
        (((-0.4, -0.08), (-0.27, -0.4), (-0.04, -0.4), (-0.04, -0.08)), "light"),
        (((0.06, -0.08), (0.06, -0.4), (0.25, -0.4), (0.42, -0.08)), "light"),
        *((ellipse(x, 0.36, 0.24, 0.24), "dark") for x in (-0.5, 0.5)),
        *((ellipse(x, 0.36, 0.1, 0.1), "light") for x in (-0.5, 0.5)),
    )
    tree = parts((rounded_box(-0.14, 0.6, 0.14, 1.0, 0.04), "dark"), mirrored(crown))
    return {
        name: Shape(parts=made, fold=1) for name, made in (("house", house), ("tree", tree), ("car", car))
    }


def natural() -> dict[str, Shape]:
    """A fish, a mushroom, a flower, a leaf, a cloud, a balloon and an arrow."""
    tail = ((0.45, 0.0), (1.0, -0.48), (0.88, 0.0), (1.0, 0.48))
    cap = tuple((x, y) for x, y in ellipse(0, 0.0, 0.95, 0.85) if y <= 0.02)
    arrow = mirrored(((0.0, -0.95), (0.72, -0.1), (0.28, -0.1), (0.28, 0.9)))
    vein = ((-0.03, -0.7), (0.03, -0.7), (0.03, 0.95), (-0.03, 0.95))
    string = ((-0.015, 0.5), (0.015, 0.5), (0.035, 1.15), (0.005, 1.15))
    made = {
        "fish": parts(
            (tail, "dark"),
            ellipse(-0.15, 0, 0.78, 0.5),
            (ellipse(-0.55, -0.12, 0.12, 0.12), "light"),
            (ellipse(-0.57, -0.12, 0.06, 0.06), "dark"),
        ),
        "mushroom": parts(
            (rounded_box(-0.26, -0.05, 0.26, 0.8, 0.16), "light"),
            cap,
            (ellipse(-0.42, -0.32, 0.14, 0.13), "light"),
            (ellipse(0.1, -0.5, 0.16, 0.15), "light"),
            (ellipse(0.54, -0.24, 0.12, 0.12), "light"),
        ),
        "leaf": parts(leaf(), (vein, "dark")),
        "cloud": parts(
            ellipse(-0.5, 0.12, 0.42, 0.36),
            ellipse(0.5, 0.14, 0.42, 0.34),
            ellipse(0.0, -0.12, 0.5, 0.48),
            rounded_box(-0.7, 0.0, 0.7, 0.48, 0.22),
        ),
        "balloon": parts(
            (string, "dark"),
            ellipse(0, -0.2, 0.62, 0.76),
            (((0, 0.5), (0.13, 0.68), (-0.13, 0.68)), "dark"),
            (ellipse(-0.24, -0.48, 0.1, 0.18, 25), "light"),
        ),
        "arrow": parts(arrow),
    }
    shapes = {name: Shape(parts=items, fold=1) for name, items in made.items()}
    centre = (ellipse(0, 0, 0.26, 0.26), "light")
    return {**shapes, "flower": Shape(parts=parts(flower(), centre), fold=6)}


def geometric() -> dict[str, Shape]:
    """Plain silhouettes."""
    bar, round_one = 0.36, ellipse(0, 0, 1, 1, count=120)
    cross = ((-bar, -1), (bar, -1), (bar, -bar), (1, -bar), (1, bar), (bar, bar), (bar, 1), (-bar, 1))
    cross += ((-bar, bar), (-1, bar), (-1, -bar), (-bar, -bar))
    return {
        "circle": Shape(parts=parts(round_one), fold=0),
        "square": Shape(parts=parts(regular(4, turn=-45.0)), fold=4),
        "triangle": Shape(parts=parts(regular(3)), fold=3),
        "star": Shape(parts=parts(star(5, 0.45)), fold=5),
        "heart": Shape(parts=parts(heart()), fold=1),
        "ring": Shape(parts=parts(round_one, (ellipse(0, 0, 0.52, 0.52), "hole")), fold=0),
        "cross": Shape(parts=parts(cross), fold=4),
        "moon": Shape(parts=parts(moon()), fold=1),
        "diamond": Shape(parts=parts(((0, -1), (0.62, 0), (0, 1), (-0.62, 0))), fold=2),
        "hexagon": Shape(parts=parts(regular(6)), fold=6),
        "pentagon": Shape(parts=parts(regular(5)), fold=5),
        "drop": Shape(parts=parts(drop()), fold=1),
    }


SHAPES: dict[str, Shape] = {
    name: fitted(shape) for made in (geometric(), building(), natural()) for name, shape in made.items()
}
"""Every procedural shape by its noun."""

SIMPLE_SHAPES = ("circle", "square", "triangle", "star", "heart", "ring", "cross", "moon")
"""Shapes that are told apart in a picture of a few pixels."""
