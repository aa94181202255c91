"""Extraction: a new picture with one named thing of the given one, as DreamOmni2's second stage is taught.

The instruction names an object or an attribute; nothing else of the given picture may come along.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from ..naming import phrase, place_words
from ..plan import Plan, Reference, generate_plan
from ..scene import Background, Scene, SceneObject, Sprite
from ..templates import fill
from ..textures import MATERIALS
from ..words import with_article
from ..workshop import Unlucky, Workshop
from .reference import reference_scene, subject_words

WHITE = Background(colours=("white",))


def extract_object(shop: Workshop) -> Plan:
    """One object of the given picture, alone on white."""
    given = reference_scene(shop.for_references())
    item = shop.dice.choice(given.objects)
    if not shop.stands_out(item.sprite, WHITE):
        raise Unlucky
    shop.named(item, given.objects, with_sides=False)
    placed = on_white(shop, item.sprite)
    placed = dataclasses.replace(placed, rotation=item.rotation)
    words = fill(
        shop.dice,
        "extract_object",
        subject=subject_words(shop, item, given),
        place=place_words(placed.x, placed.y, shop.dice),
    )
    return extracted("extract_object", words, shop, placed, given)


def extract_attribute(shop: Workshop) -> Plan:
    """Another object that has the colour, pattern or material of one in the given picture."""
    square = shop.for_references()
    given = square.scene(min(shop.dice.integer(1, 2), shop.config.objects[1]), procedural=True)
    item = shop.dice.choice(given.objects)
    attribute, hidden, sprite = shared_sprite(shop, item.sprite)
    placed = on_white(shop, sprite)
    told = ("colour",) if hidden == "texture" else ("texture",) if sprite.texture != "plain" else ()
    words = fill(
        shop.dice,
        "extract_attribute",
        new=with_article(phrase(placed, told, shop.config, shop.dice)),
        attribute=attribute,
        subject=shop.named(item, given.objects, hidden=(hidden,), with_sides=False),
        place=place_words(placed.x, placed.y, shop.dice),
    )
    return extracted("extract_attribute", words, shop, placed, given)


def shared_sprite(shop: Workshop, given: Sprite) -> tuple[str, str, Sprite]:
    """(attribute in words, the sprite's field, another sprite that has only it in common)."""
    other = shop.other_sprite([given], WHITE, procedural=True)
    if other.shape == given.shape or other.colour == given.colour:
        raise Unlucky
    if given.texture != "plain" and given.texture != other.texture and shop.dice.chance(0.65):
        attribute = "material" if given.texture in MATERIALS else "pattern"
        return attribute, "texture", dataclasses.replace(other, texture=given.texture)
    if given.colour not in shop.visible_colours(WHITE):
        raise Unlucky
    return "colour", "colour", dataclasses.replace(other, colour=given.colour)


def on_white(shop: Workshop, sprite: Sprite) -> SceneObject:
    """The sprite in one of the nine places of an empty canvas."""
    return shop.placed(sprite, [], scale=shop.config.sizes[1], told=True)


def extracted(task: str, words: str, shop: Workshop, placed: SceneObject, given: Scene) -> Plan:
    """The plan of a white picture with one object."""
    target = Scene(background=WHITE, objects=(placed,), style=shop.style)
    return generate_plan(task, words, target, (Reference(scene=given),))


EXTRACT_TASKS: dict[str, Callable[[Workshop], Plan]] = {
    "extract_object": extract_object,
    "extract_attribute": extract_attribute,
}
