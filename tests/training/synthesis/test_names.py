"""Names of objects: they fit one object, also where a sticker's looks are unknown."""

from __future__ import annotations

import dataclasses

import pytest
from pack.training.synthesis.config import recipe_for
from pack.training.synthesis.dice import Dice
from pack.training.synthesis.naming import matches, may_mean, name_of, phrase
from pack.training.synthesis.palette import COLOURS
from pack.training.synthesis.samples import Synthesizer
from pack.training.synthesis.scene import SceneObject, Sprite


def test_a_size_is_not_said_twice() -> None:
    config = recipe_for(64, 64)
    item = SceneObject(key=1, sprite=Sprite(shape="small airplane", sticker="a"), x=0.5, y=0.5, scale=0.2)
    assert phrase(item, ("size",), config, Dice(0)) == "small airplane"
    cup = dataclasses.replace(item, sprite=Sprite(shape="cup", sticker="a"))
    assert phrase(cup, ("size",), config, Dice(0)) in ("small cup", "little cup")


def test_matching_needs_all_told_attributes() -> None:
    made = Synthesizer(recipe_for(64, 64, seed=11, tasks=("remove",)))
    scene = made.plan(0).source
    assert scene is not None
    item = scene.objects[0]
    other = dataclasses.replace(item, key=99)
    colour = next(name for name in COLOURS if name != item.sprite.colour)
    painted = dataclasses.replace(other, sprite=dataclasses.replace(item.sprite, colour=colour))
    assert matches(item, other, ("colour", "texture", "size"), made.config)
    assert matches(item, painted, ("texture",), made.config)
    assert not matches(item, painted, ("colour",), made.config)


def cut_out(noun: str, key: int = 1) -> SceneObject:
    """A sticker of unknown looks."""
    return SceneObject(key=key, sprite=Sprite(shape=noun, sticker=f"{noun}.png"), x=0.5, y=0.5, scale=0.2)


def drawn(shape: str, colour: str, key: int = 2) -> SceneObject:
    """A drawn shape."""
    sprite = Sprite(shape=shape, colour=colour, texture="plain")
    return SceneObject(key=key, sprite=sprite, x=0.2, y=0.2, scale=0.2)


@pytest.mark.parametrize(
    ("item", "other", "told", "fits"),
    [
        (cut_out("heart"), cut_out("red heart"), (), True),
        (cut_out("red heart"), cut_out("heart"), (), False),
        (cut_out("red heart"), drawn("heart", "red"), (), True),
        (cut_out("red heart"), drawn("heart", "blue"), (), False),
        (drawn("star", "yellow"), cut_out("star"), ("colour",), True),
        (drawn("star", "yellow"), cut_out("cat"), ("colour",), False),
        (drawn("star", "yellow"), drawn("star", "yellow", 3), ("colour",), False),
    ],
)
def test_a_sticker_of_unknown_looks_may_be_meant(
    item: SceneObject, other: SceneObject, told: tuple[str, ...], fits: bool
) -> None:
    config = recipe_for(64, 64)
    assert may_mean(item, other, told, config) is fits
    large = dataclasses.replace(other, scale=0.5)
    assert not may_mean(item, large, (*told, "size"), config)


def test_an_object_that_a_sticker_may_be_is_not_named_alone() -> None:
    item, other = cut_out("heart"), cut_out("red heart", 2)
    config = recipe_for(64, 64)
    assert name_of(item, [item, other], config, Dice(0), with_sides=False) is None
    assert name_of(other, [item, other], config, Dice(0), with_sides=False) == "red heart"
    aside = dataclasses.replace(other, x=0.9)
    assert name_of(item, [item, aside], config, Dice(0)) == "heart on the left"
