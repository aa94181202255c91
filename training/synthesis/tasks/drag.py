"""Move, scale and rotate an object, told by point tuples or by words."""

from __future__ import annotations

import math
from collections.abc import Callable

from ....dit.dreamomni.drag import (
    VERBS,
    DragOperation,
    drag_prompt,
    moved_points,
    rotated_points,
    scaled_points,
)
from ..naming import goal_words, place_of
from ..operations import Move, Operation, Resize, Turn, apply
from ..plan import Plan, edit_plan
from ..scene import Scene, SceneObject
from ..templates import fill
from ..workshop import PLACES, Unlucky, Workshop, is_symmetric_under

HANDLES = (3, 6)
"""Fewest and most handle points besides the centre; the published example has five."""

FACTORS = {
    0.5: ("half", "50 percent"),
    0.75: ("three quarters", "75 percent"),
    1.5: ("one and a half times", "150 percent"),
    2.0: ("twice", "200 percent"),
}
ANGLES = (45, 60, 90, 120, 135, 180)
MIN_MOVE = 0.2
"""Shortest move, as a share of the canvas."""


def moved_object(scene: Scene, operation: Operation, key: int) -> SceneObject:
    """The object after the operation."""
    return apply(operation, scene).find(key)


def handles(shop: Workshop, item: SceneObject) -> list[tuple[float, float]]:
    """Random points on the object, in pixels."""
    width, height = shop.size
    radius = item.scale * min(shop.size) / 2
    points = []
    for _ in range(shop.dice.integer(*HANDLES)):
        reach, angle = radius * math.sqrt(shop.dice.uniform(0.1, 0.8)), shop.dice.uniform(0, 2 * math.pi)
        points.append((item.x * width + reach * math.cos(angle), item.y * height + reach * math.sin(angle)))
    return points


def told_by_points(shop: Workshop, scene: Scene, item: SceneObject, operation: Operation) -> str:
    """The drag prompt of an operation."""
    width, height = shop.size
    centre = (item.x * width, item.y * height)
    match operation:
        case Move(dx=dx, dy=dy):
            kind = DragOperation.MOVE
            points = moved_points([centre, *handles(shop, item)], dx * width, dy * height)
        case Resize(factor=factor):
            kind = DragOperation.SCALE
            points = scaled_points(centre, handles(shop, item), factor)
        case Turn(degrees=degrees):
            kind = DragOperation.ROTATE
            points = rotated_points(centre, handles(shop, item), degrees)
        case _:
            raise AssertionError(operation)
    subject, verb = shop.named(item, scene.objects), shop.dice.choice(VERBS[kind])
    return drag_prompt(points, kind, shop.size, subject, verb)


def move(shop: Workshop) -> Plan:
    """Shift one object to a free place."""
    scene = shop.scene()
    item = shop.dice.choice(scene.objects)
    by_points = shop.dice.chance(shop.config.drag_share)
    for x, y in shop.dice.shuffled(PLACES):
        if by_points:
            x, y = x + shop.dice.uniform(-0.06, 0.06), y + shop.dice.uniform(-0.06, 0.06)
        operation = Move(key=item.key, dx=x - item.x, dy=y - item.y)
        moved = moved_object(scene, operation, item.key)
        is_far = math.hypot(operation.dx, operation.dy) >= MIN_MOVE
        if is_far and place_of(item.x, item.y) != place_of(x, y) and shop.fits(moved, scene.objects):
            break
    else:
        raise Unlucky
    if by_points:
        words = told_by_points(shop, scene, item, operation)
    else:
        words = fill(
            shop.dice,
            "move",
            old=shop.named(item, scene.objects),
            goal=goal_words(moved.x, moved.y, shop.dice),
        )
    return edit_plan("move", words, scene, (operation,))


def scale(shop: Workshop) -> Plan:
    """Make one object larger or smaller about its centre."""
    scene = shop.scene()
    item = shop.dice.choice(scene.objects)
    by_points = shop.dice.chance(shop.config.drag_share)
    factor = shop.dice.choice(tuple(FACTORS))
    operation = Resize(key=item.key, factor=factor * (shop.dice.uniform(0.9, 1.1) if by_points else 1))
    changed = moved_object(scene, operation, item.key)
    if not shop.fits(changed, scene.objects) or changed.scale < shop.config.sizes[0] * 0.6:
        raise Unlucky
    if by_points:
        words = told_by_points(shop, scene, item, operation)
    else:
        old, (times, share) = shop.named(item, scene.objects), FACTORS[factor]
        words = fill(shop.dice, "scale", old=old, factor=times, share=share)
    return edit_plan("scale", words, scene, (operation,))


def rotate(shop: Workshop) -> Plan:
    """Turn one object that does not look the same afterwards."""
    scene = shop.scene()
    by_points = shop.dice.chance(shop.config.drag_share)
    degrees = shop.dice.choice((-1, 1)) * float(shop.dice.choice(ANGLES))
    if by_points:
        degrees = shop.dice.choice((-1, 1)) * shop.dice.uniform(30, 180)
    items = [item for item in scene.objects if not is_symmetric_under(item.sprite, degrees)]
    if not items:
        raise Unlucky
    item = shop.dice.choice(items)
    operation = Turn(key=item.key, degrees=degrees)
    if by_points:
        words = told_by_points(shop, scene, item, operation)
    else:
        sense = "clockwise" if degrees > 0 else shop.dice.choice(("counter-clockwise", "anticlockwise"))
        old = shop.named(item, scene.objects)
        words = fill(shop.dice, "rotate", old=old, angle=str(round(abs(degrees))), sense=sense)
    return edit_plan("rotate", words, scene, (operation,))


DRAG_TASKS: dict[str, Callable[[Workshop], Plan]] = {"move": move, "scale": scale, "rotate": rotate}
