"""Tasks with reference pictures: generation from sheets, adding, replacing, and borrowing an attribute."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from ..naming import EDIT_NAMES, GENERATE_NAMES, image_name, may_mean, phrase, place_words
from ..operations import Add, Change, Operation, Replace
from ..plan import Plan, Reference, edit_plan, generate_plan
from ..scene import Background, Scene, SceneObject, Sprite
from ..templates import fill
from ..textures import MATERIALS
from ..words import with_article
from ..workshop import Unlucky, Workshop

REFERENCE_COUNTS = {1: 6.0, 2: 2.0, 3: 1.0, 4: 0.5, 5: 0.5}
"""How often an edit has so many references; the published histogram is unknown."""

SHEET_COUNTS = {1: 2.0, 2: 3.0, 3: 3.0}
WHITE = Background(colours=("white",))

Step = tuple[Operation, str, Scene]


def drawn_count(shop: Workshop, weights: Mapping[int, float]) -> int:
    """How many reference pictures are asked for, within the recipe's bounds; Unlucky if none of them is."""
    low, high = shop.config.references
    wanted = {count: weight for count, weight in weights.items() if low <= count <= high}
    if not wanted:
        raise Unlucky
    return shop.dice.weighted(wanted)


def require_references(shop: Workshop, count: int) -> None:
    """Raise Unlucky if a sample would have fewer reference pictures than the recipe wants."""
    if count < shop.config.references[0]:
        raise Unlucky


def reference_sheets(shop: Workshop) -> Plan:
    """A white canvas with one sticker of each of 1-3 sheets."""
    most = max(shop.config.objects[1], 1)
    count = min(drawn_count(shop, SHEET_COUNTS), most)
    require_references(shop, count)
    square = shop.for_references()
    style = shop.dice.choice(GENERATE_NAMES)
    sheets, picked, told = [], [], []
    for number in range(1, count + 1):
        sheet = square.scene(shop.dice.integer(min(2, most), min(5, most)), WHITE)
        item = shop.dice.choice(sheet.objects)
        if any(item.sprite == other.sprite for other in picked):
            raise Unlucky
        shop.named(item, sheet.objects, with_sides=False)
        placed = shop.placed(item.sprite, picked, scale=shop.config.sizes[1], told=True)
        placed = dataclasses.replace(placed, rotation=item.rotation)
        subject = subject_words(shop, item, sheet)
        place = place_words(placed.x, placed.y, shop.dice)
        told.append(fill(shop.dice, "picked", subject=subject, other=image_name(number, style), place=place))
        sheets.append(Reference(scene=sheet))
        picked.append(placed)
    target = Scene(background=WHITE, objects=tuple(picked), style=shop.style)
    return generate_plan("reference_generation", " ".join(told), target, tuple(sheets))


def subject_words(shop: Workshop, item: SceneObject, sheet: Scene) -> str:
    """The picked sticker with `a`, told fully enough to find it on its sheet."""
    sprite, others = item.sprite, [other for other in sheet.objects if other.key != item.key]
    if any(other.sprite == sprite for other in others):
        raise Unlucky
    told = ("colour",) if sprite.texture == "plain" else ("colour", "texture")
    if sprite.texture == "plain" and any(
        (other.sprite.shape, other.sprite.colour) == (sprite.shape, sprite.colour) for other in others
    ):
        told = ("colour", "texture")
    if any(may_mean(item, other, told, shop.config) for other in others):
        raise Unlucky
    return with_article(phrase(item, told, shop.config, shop.dice))


def reference_scene(square: Workshop) -> Scene:
    """A reference picture with one or two objects on a background of its own."""
    weights: dict[int, float] = {1: 3.0, 2: 1.0}
    return square.scene(min(square.dice.weighted(weights), square.config.objects[1]))


def require_new_and_visible(shop: Workshop, sprite: Sprite, scene: Scene) -> None:
    """Raise Unlucky if the scene has the sprite already or its background hides it."""
    is_there = any(sprite == other.sprite for other in scene.objects)
    if is_there or not shop.stands_out(sprite, scene.background):
        raise Unlucky


def add_step(shop: Workshop, square: Workshop, scene: Scene, names: tuple[str, str]) -> Step:
    """Put the object of a reference into the source."""
    reference = reference_scene(square)
    item = shop.dice.choice(reference.objects)
    require_new_and_visible(shop, item.sprite, scene)
    placed = shop.placed(item.sprite, scene.objects, scale=shop.config.sizes[1], told=True)
    placed = dataclasses.replace(placed, rotation=item.rotation)
    words = fill(
        shop.dice,
        "reference_add",
        subject=shop.named(item, reference.objects, with_sides=False),
        first=names[0],
        other=names[1],
        place=place_words(placed.x, placed.y, shop.dice),
    )
    return Add(item=placed), words, reference


def replace_step(
    shop: Workshop, square: Workshop, scene: Scene, item: SceneObject, names: tuple[str, str]
) -> Step:
    """Put the object of a reference where one of the source was."""
    reference = reference_scene(square)
    subject = shop.dice.choice(reference.objects)
    require_new_and_visible(shop, subject.sprite, scene)
    words = fill(
        shop.dice,
        "reference_replace",
        old=shop.named(item, scene.objects),
        subject=shop.named(subject, reference.objects, with_sides=False),
        first=names[0],
        other=names[1],
    )
    return Replace(key=item.key, sprite=subject.sprite), words, reference


def attribute_step(
    shop: Workshop, square: Workshop, scene: Scene, item: SceneObject, names: tuple[str, str]
) -> Step:
    """Give an object of the source the colour, pattern or material of the object of a reference."""
    reference = square.scene(1, procedural=True)
    subject = reference.objects[0]
    sprite = subject.sprite
    if item.sprite.colour is None or sprite.texture is None:
        raise Unlucky
    attribute, hidden = "colour", "colour"
    operation = Change(key=item.key, colour=sprite.colour)
    if sprite.texture != "plain" and sprite.texture != item.sprite.texture and shop.dice.chance(0.65):
        attribute = "material" if sprite.texture in MATERIALS else "pattern"
        hidden, operation = "texture", Change(key=item.key, texture=sprite.texture)
    elif sprite.colour == item.sprite.colour or sprite.colour not in shop.visible_colours(scene.background):
        raise Unlucky
    words = fill(
        shop.dice,
        "reference_attribute",
        old=shop.named(item, scene.objects),
        subject=shop.named(subject, reference.objects, hidden=(hidden,)),
        first=names[0],
        other=names[1],
        attribute=attribute,
    )
    return operation, words, reference


def one_step(
    task: str, shop: Workshop, square: Workshop, scene: Scene, item: SceneObject, names: tuple[str, str]
) -> Step:
    """One step of a task; `reference_add` does not look at the item."""
    match task:
        case "reference_add":
            return add_step(shop, square, scene, names)
        case "reference_replace":
            return replace_step(shop, square, scene, item, names)
    return attribute_step(shop, square, scene, item, names)


def edit_with_references(task: str) -> Callable[[Workshop], Plan]:
    """A task of 1-5 steps of one kind, each with a reference picture of its own."""

    def make(shop: Workshop) -> Plan:
        count, most = drawn_count(shop, REFERENCE_COUNTS), shop.config.objects[1]
        if task == "reference_add":
            count = min(count, max(most - 1, 1))
            scene = shop.scene(min(shop.object_count(), max(most - count, 1)))
        else:
            scene = shop.scene(procedural=task == "reference_attribute")
            count = min(count, len(scene.objects))
        require_references(shop, count)
        square, style = shop.for_references(), shop.dice.choice(EDIT_NAMES)
        items = shop.dice.shuffled(scene.objects)
        crowd, steps = scene, []
        for number in range(2, count + 2):
            names = (image_name(1, style), image_name(number, style))
            step = one_step(task, shop, square, crowd, items[(number - 2) % len(items)], names)
            if isinstance(step[0], Add):
                crowd = dataclasses.replace(crowd, objects=(*crowd.objects, step[0].item))
            steps.append(step)
        words = " ".join(words for _, words, _ in steps)
        operations = tuple(operation for operation, _, _ in steps)
        return edit_plan(task, words, scene, operations, tuple(reference for _, _, reference in steps))

    return make


EDITS = ("reference_add", "reference_replace", "reference_attribute")

REFERENCE_TASKS: dict[str, Callable[[Workshop], Plan]] = {
    "reference_generation": reference_sheets,
    **{task: edit_with_references(task) for task in EDITS},
}
