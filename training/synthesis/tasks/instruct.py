"""Instruction editing: add, remove, replace, recolour, retexture, and several of them at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from ..naming import full_phrase, phrase, place_words
from ..operations import Add, Change, Operation, Remove, Replace
from ..plan import Plan, edit_plan
from ..scene import Scene, SceneObject, Sprite
from ..templates import fill
from ..words import with_article
from ..workshop import Unlucky, Workshop, surface_word

Step = tuple[Operation, str]


def add_step(shop: Workshop, scene: Scene, others: tuple[SceneObject, ...]) -> Step:
    """A new object in a free place."""
    taken = [item.sprite for item in others]
    sprite = shop.other_sprite(taken, scene.background)
    if taken and taken[0].sticker is None and shop.dice.chance(shop.config.sharing):
        sprite = shop.relative(shop.dice.choice(taken), scene.background)
    item = shop.placed(sprite, others, told=True)
    new, place = full_phrase(item, shop.config, shop.dice), place_words(item.x, item.y, shop.dice)
    return Add(item=item), fill(shop.dice, "add", new=new, place=place)


def remove_step(shop: Workshop, item: SceneObject, others: tuple[SceneObject, ...]) -> Step:
    """One object less."""
    return Remove(key=item.key), fill(shop.dice, "remove", old=shop.named(item, others))


def replace_step(shop: Workshop, item: SceneObject, others: tuple[SceneObject, ...], scene: Scene) -> Step:
    """Another sprite in the same place."""
    taken = [item.sprite, *(other.sprite for other in others)]
    sprite = shop.other_sprite(taken, scene.background)
    if sprite.shape == item.sprite.shape:
        raise Unlucky
    new = dataclasses.replace(item, sprite=sprite)
    told = ("colour",) if sprite.texture == "plain" else ("colour", "texture")
    words = with_article(phrase(new, told, shop.config, shop.dice))
    old = shop.named(item, others)
    return Replace(key=item.key, sprite=sprite), fill(shop.dice, "replace", old=old, new=words)


def recolour_step(shop: Workshop, item: SceneObject, others: tuple[SceneObject, ...], scene: Scene) -> Step:
    """Another colour; only procedural objects have one."""
    if item.sprite.colour is None:
        raise Unlucky
    colour = shop.other_value(shop.visible_colours(scene.background), item.sprite.colour)
    words = fill(
        shop.dice,
        "recolour",
        old=shop.named(item, others),
        colour=colour,
        a_colour=with_article(colour),
    )
    return Change(key=item.key, colour=colour), words


def retexture_step(shop: Workshop, item: SceneObject, others: tuple[SceneObject, ...]) -> Step:
    """Another pattern or material."""
    if item.sprite.texture is None:
        raise Unlucky
    texture = shop.other_value(shop.config.textures, item.sprite.texture)
    words = fill(
        shop.dice,
        "retexture",
        old=shop.named(item, others),
        texture=texture,
        a_texture=with_article(texture),
        surface=surface_word(texture, shop.dice),
    )
    return Change(key=item.key, texture=texture), words


def one_step(kind: str, shop: Workshop, scene: Scene, item: SceneObject | None) -> Step:
    """A step of the named kind on `item`; `add` needs none."""
    if kind == "add":
        return add_step(shop, scene, scene.objects)
    assert item is not None
    match kind:
        case "remove":
            return remove_step(shop, item, scene.objects)
        case "replace":
            return replace_step(shop, item, scene.objects, scene)
        case "recolour":
            return recolour_step(shop, item, scene.objects, scene)
    return retexture_step(shop, item, scene.objects)


def single(kind: str) -> Callable[[Workshop], Plan]:
    """The task that does one step of a kind."""

    def make(shop: Workshop) -> Plan:
        most = shop.config.objects[1]
        count = min(shop.object_count(), max(most - 1, 1)) if kind == "add" else None
        scene = shop.scene(count, procedural=kind in ("recolour", "retexture"))
        operation, words = one_step(kind, shop, scene, shop.dice.choice(scene.objects))
        return edit_plan(kind, words, scene, (operation,))

    return make


def multi(shop: Workshop) -> Plan:
    """Two or three steps on different objects, told one after another."""
    scene = shop.scene(shop.object_count(least=2))
    kinds = shop.dice.sample(("add", "remove", "replace", "recolour"), shop.dice.integer(2, 3))
    items = shop.dice.shuffled(scene.objects)
    if len([kind for kind in kinds if kind != "add"]) > len(items):
        raise Unlucky
    steps: list[Step] = []
    # Names must hold in every state between the steps: each is told against all that is ever there.
    crowd = scene
    for kind in kinds:
        item = None if kind == "add" else items.pop()
        operation, words = one_step(kind, shop, crowd, item)
        steps.append((operation, words))
        if isinstance(operation, Add):
            crowd = dataclasses.replace(crowd, objects=(*crowd.objects, operation.item))
        elif isinstance(operation, Replace | Change) and item is not None:
            changed = dataclasses.replace(item, key=shop.new_key(), sprite=new_sprite(operation, item))
            crowd = dataclasses.replace(crowd, objects=(*crowd.objects, changed))
    words = " ".join(words for _, words in steps)
    return edit_plan("multi", words, scene, tuple(operation for operation, _ in steps))


def new_sprite(operation: Replace | Change, item: SceneObject) -> Sprite:
    """The sprite an object has after a step."""
    if isinstance(operation, Replace):
        return operation.sprite
    return dataclasses.replace(item.sprite, colour=operation.colour or item.sprite.colour)


INSTRUCT_TASKS: dict[str, Callable[[Workshop], Plan]] = {
    kind: single(kind) for kind in ("add", "remove", "replace", "recolour", "retexture")
} | {"multi": multi}
