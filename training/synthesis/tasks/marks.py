"""Tasks with flat paint: inpainting, outpainting, segmentation, detection."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from ..operations import Paint, Uncover
from ..palette import BACKGROUNDS, COLOURS, MARK_COLOURS, distance
from ..plan import Plan, edit_plan
from ..scene import Mark, Scene, SceneObject
from ..templates import fill
from ..words import with_article
from ..workshop import Workshop
from .generate import caption


def hole_instruction(shop: Workshop, scene: Scene, task: str) -> str:
    """The caption of the full picture, or a plain request where a photo has none."""
    if scene.background.kind != "photo":
        return fill(shop.dice, task, caption=caption(shop, scene))
    note = shop.library.photos[scene.background.photo or ""].caption
    if note is None and not scene.objects:
        return fill(shop.dice, "photo")
    told = [caption(shop, scene)] if scene.objects else []
    return fill(shop.dice, task, caption=" ".join([*([note.rstrip(".") + "."] if note else []), *told]))


def covered(task: str, shop: Workshop, areas: tuple[tuple[float, float, float, float], ...]) -> Plan:
    """A scene with black rectangles, to be filled."""
    full = shop.scene(told=True)
    marks = tuple(Mark(kind="black", area=area) for area in areas)
    source = dataclasses.replace(full, marks=marks)
    return edit_plan(task, hole_instruction(shop, full, task), source, (Uncover(),))


def inpaint(shop: Workshop) -> Plan:
    """Fill one or two black rectangles inside the picture."""
    areas = []
    for _ in range(shop.dice.integer(1, 2)):
        wide, high = shop.dice.uniform(0.2, 0.5), shop.dice.uniform(0.2, 0.5)
        left, top = shop.dice.uniform(0, 1 - wide), shop.dice.uniform(0, 1 - high)
        areas.append((left, top, left + wide, top + high))
    return covered("inpaint", shop, tuple(areas))


def outpaint(shop: Workshop) -> Plan:
    """Extend the picture over one, two or four black borders."""
    dice = shop.dice
    part = dice.uniform(0.15, 0.3)
    borders = {
        "left": (0.0, 0.0, part, 1.0),
        "right": (1 - part, 0.0, 1.0, 1.0),
        "top": (0.0, 0.0, 1.0, part),
        "bottom": (0.0, 1 - part, 1.0, 1.0),
    }
    choices = (
        ("left",),
        ("right",),
        ("top",),
        ("bottom",),
        ("left", "right"),
        ("top", "bottom"),
        tuple(borders),
    )
    return covered("outpaint", shop, tuple(borders[side] for side in dice.choice(choices)))


def mark_colour(shop: Workshop, scene: Scene, item: SceneObject) -> str:
    """A paint that stands out from the object and from what is behind it."""
    behind = [BACKGROUNDS[name] for name in scene.background.colours]
    if item.sprite.colour is not None:
        behind.append(COLOURS[item.sprite.colour])
    seen = [
        name for name, paint in MARK_COLOURS.items() if all(distance(paint, other) > 0.25 for other in behind)
    ]
    return shop.dice.choice(seen or list(MARK_COLOURS))


def segment(shop: Workshop) -> Plan:
    """Fill the named object with flat paint."""
    scene = shop.scene()
    item = shop.dice.choice(scene.objects)
    colour = mark_colour(shop, scene, item)
    words = fill(shop.dice, "segment", old=shop.named(item, scene.objects), colour=colour)
    return edit_plan("segment", words, scene, (Paint(mark=Mark(kind="fill", colour=colour, key=item.key)),))


def detect(shop: Workshop) -> Plan:
    """Draw a thin box around the named object."""
    scene = shop.scene()
    item = shop.dice.choice(scene.objects)
    colour = mark_colour(shop, scene, item)
    old = shop.named(item, scene.objects)
    words = fill(shop.dice, "detect", old=old, a_colour=with_article(colour))
    return edit_plan("detect", words, scene, (Paint(mark=Mark(kind="box", colour=colour, key=item.key)),))


MARK_TASKS: dict[str, Callable[[Workshop], Plan]] = {
    "inpaint": inpaint,
    "outpaint": outpaint,
    "segment": segment,
    "detect": detect,
}
