"""Text-to-image with layout captions, and the captions that other tasks use."""

from __future__ import annotations

from collections.abc import Callable

from ..dice import Dice
from ..naming import background_phrase, full_phrase, place_words
from ..plan import Plan, generate_plan
from ..scene import Scene, SceneObject
from ..templates import fill
from ..words import join_list
from ..workshop import PLACES, Workshop

RELATIVE_SHARE = 0.4
"""How often an object is placed by words relative to the one before."""


def relation(dx: float, dy: float) -> str | None:
    """The words for an offset in shares of the picture; None if too close to tell."""
    across = "right" if dx > 0 else "left"
    down = "below" if dy > 0 else "above"
    if abs(dx) > 0.2 and abs(dy) > 0.2:
        return f"{down} and to the {across} of it"
    if abs(dx) > 0.2 and abs(dy) < 0.1:
        return f"to the {across} of it"
    if abs(dy) > 0.2 and abs(dx) < 0.1:
        return f"{down} it"
    return None


def relative_words(item: SceneObject, before: SceneObject, dice: Dice) -> str | None:
    """`to the right of it`, `directly below it`, `below and to the left of it`.

    None where another of the nine places would fit the words as well: there is one right answer.
    """
    words = relation(item.x - before.x, item.y - before.y)
    fitting = [place for place in PLACES if relation(place[0] - before.x, place[1] - before.y) == words]
    if words is None or len(fitting) != 1:
        return None
    is_straight = words in ("below it", "above it")
    return dice.choice(("", "directly ")) + words if is_straight else words


def sentences(shop: Workshop, scene: Scene) -> str:
    """One sentence for each object, some of them relative to the one before."""
    dice, told = shop.dice, []
    before: SceneObject | None = None
    for item in scene.objects:
        place = place_words(item.x, item.y, dice)
        near = relative_words(item, before, dice) if before else None
        new = full_phrase(item, shop.config, dice)
        if before is None:
            told.append(fill(dice, "layout_first", place=place, new=new))
        else:
            where = near if near and dice.chance(RELATIVE_SHARE) else place
            told.append(fill(dice, "layout_next", place=where, new=new))
        before = item
    if scene.background.kind != "photo":
        told.append(f"The picture is {background_phrase(scene.background)}." if not scene.objects else "")
        shade = background_phrase(scene.background).removeprefix("on ")
        told[-1] = f"All of it is on {shade}." if len(scene.objects) > 1 else f"It is on {shade}."
    return " ".join(told)


def caption(shop: Workshop, scene: Scene) -> str:
    """A caption that tells every object and its place."""
    dice = shop.dice
    if scene.background.kind == "photo" or dice.chance(0.5):
        return sentences(shop, scene)
    items = [
        f"{full_phrase(item, shop.config, dice)} {place_words(item.x, item.y, dice)}"
        for item in scene.objects
    ]
    template = "layout_list" if len(items) > 1 else "layout_one"
    return fill(dice, template, items=join_list(items), background=background_phrase(scene.background))


def text_to_image(shop: Workshop) -> Plan:
    """A picture from a layout caption."""
    scene = shop.scene(background=shop.background(("plain", "plain", "gradient"), told=True), told=True)
    return generate_plan("text_to_image", caption(shop, scene), scene)


GENERATE_TASKS: dict[str, Callable[[Workshop], Plan]] = {"text_to_image": text_to_image}
