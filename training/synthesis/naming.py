"""Names of objects, places and pictures: unambiguous, in good English."""

from __future__ import annotations

from collections.abc import Sequence

from .config import SynthesisConfig
from .dice import Dice
from .scene import Background, SceneObject
from .textures import MATERIALS
from .words import ORDINALS, with_article

SIDE_GAP = 0.2
"""How much further to a side an object must lie to be called the one on that side."""

SIZE_WORDS = {"small": ("small", "little"), "medium": ("",), "large": ("large", "big")}


def place_of(x: float, y: float) -> tuple[str, str]:
    """(column, row) of a point on a 3x3 grid: left, middle, right and upper, middle, lower."""
    column = "left" if x < 0.385 else "right" if x > 0.615 else "middle"
    row = "upper" if y < 0.385 else "lower" if y > 0.615 else "middle"
    return column, row


def place_words(x: float, y: float, dice: Dice) -> str:
    """`in the upper left corner`, `on the right`, `at the bottom`, `in the middle`."""
    column, row = place_of(x, y)
    if column == "middle" and row == "middle":
        return dice.choice(("in the middle", "in the centre"))
    if column == "middle":
        return "at the top" if row == "upper" else "at the bottom"
    if row == "middle":
        return dice.choice((f"on the {column}", f"on the {column} side"))
    return dice.choice(
        (f"in the {row} {column} corner", f"in the {row} {column} part", f"in the {row} {column}")
    )


def goal_words(x: float, y: float, dice: Dice) -> str:
    """The same place as the goal of a move: `to the upper left corner`."""
    words = place_words(x, y, dice)
    if words.startswith("on the ") and not words.endswith("side"):
        words += " side"
    return "to " + words.split(" ", 1)[1]


def size_class(item: SceneObject, config: SynthesisConfig) -> str:
    """`small`, `medium` or `large`: the nearest of the recipe's sizes."""
    gaps = {name: abs(item.scale - size) for name, size in zip(SIZE_WORDS, config.sizes, strict=True)}
    return min(gaps, key=lambda name: gaps[name])


def has_size_in_name(item: SceneObject) -> bool:
    """Whether a sticker's own name starts with a size: `small airplane`."""
    return any(item.sprite.shape.split(" ")[0] in words for words in SIZE_WORDS.values())


def phrase(item: SceneObject, told: Sequence[str], config: SynthesisConfig, dice: Dice) -> str:
    """The noun with the told attributes in English order: `large striped red star`, `red wooden star`."""
    sprite = item.sprite
    says_size = "size" in told and not has_size_in_name(item)
    words = [dice.choice(SIZE_WORDS[size_class(item, config)])] if says_size else []
    texture = sprite.texture if "texture" in told else None
    colour = sprite.colour if "colour" in told else None
    pair = (colour, texture) if texture in MATERIALS else (texture, colour)
    return " ".join(word for word in (*words, *pair, sprite.shape) if word)


def matches(item: SceneObject, other: SceneObject, told: Sequence[str], config: SynthesisConfig) -> bool:
    """Whether the told attributes of `item` describe `other` as well."""
    one, two = item.sprite, other.sprite
    if one.shape != two.shape:
        return False
    if "colour" in told and one.colour != two.colour:
        return False
    if "texture" in told and one.texture != two.texture:
        return False
    return "size" not in told or size_class(item, config) == size_class(other, config)


def may_mean(item: SceneObject, other: SceneObject, told: Sequence[str], config: SynthesisConfig) -> bool:
    """Whether the words said of `item` may be read as `other`: a sticker's looks are unknown.

    `the heart` may be a sticker called red heart, and `the yellow car` a sticker called car.
    """
    one, two = item.sprite, other.sprite
    if one.sticker is None and two.sticker is None:
        return False
    said, shown = set(one.shape.split()), set(two.shape.split())
    if two.sticker is None:
        shown |= {look for look in (two.colour, two.texture) if look}
        looks = {"colour": one.colour, "texture": one.texture}
        said |= {look for name, look in looks.items() if name in told and look}
    return said <= shown and ("size" not in told or size_class(item, config) == size_class(other, config))


def side_words(item: SceneObject, rivals: Sequence[SceneObject]) -> list[str]:
    """Ways to tell an object from its rivals by its side."""
    sides = {
        "on the left": all(rival.x - item.x > SIDE_GAP for rival in rivals),
        "on the right": all(item.x - rival.x > SIDE_GAP for rival in rivals),
        "at the top": all(rival.y - item.y > SIDE_GAP for rival in rivals),
        "at the bottom": all(item.y - rival.y > SIDE_GAP for rival in rivals),
    }
    return [words for words, holds in sides.items() if holds]


def usable_attributes(item: SceneObject) -> list[tuple[str, ...]]:
    """Sets of attributes that can be said of an object, the shortest first."""
    if item.sprite.colour is None:
        return [(), ("size",)]
    sets: list[tuple[str, ...]] = [(), ("colour",), ("texture",), ("size",), ("colour", "texture")]
    return [*sets, ("colour", "size"), ("texture", "size"), ("colour", "texture", "size")]


def is_needless(
    item: SceneObject, told: Sequence[str], alike: Sequence[SceneObject], config: SynthesisConfig
) -> bool:
    """Whether a size or `plain` would be said though nothing of the same shape differs in it."""
    if "size" in told:
        own = size_class(item, config)
        if (
            own == "medium"
            or has_size_in_name(item)
            or all(size_class(other, config) == own for other in alike)
        ):
            return True
    is_plain = "texture" in told and item.sprite.texture == "plain"
    return is_plain and all(other.sprite.texture == "plain" for other in alike)


def ways_to_name(
    item: SceneObject,
    others: Sequence[SceneObject],
    config: SynthesisConfig,
    dice: Dice,
    hidden: Sequence[str] = (),
    with_sides: bool = True,
) -> list[str]:
    """Phrases without article that fit `item` and none of `others`; `hidden` attributes are not told."""
    found = []
    alike = [other for other in others if other.sprite.shape == item.sprite.shape]
    for told in usable_attributes(item):
        if set(told) & set(hidden) or is_needless(item, told, alike, config):
            continue
        words = phrase(item, told, config, dice)
        rivals = [
            other
            for other in others
            if matches(item, other, told, config) or may_mean(item, other, told, config)
        ]
        if not rivals:
            found.append(words)
        elif with_sides and "size" not in told:
            found += [f"{words} {side}" for side in side_words(item, rivals)]
    return found


def name_of(
    item: SceneObject,
    others: Sequence[SceneObject],
    config: SynthesisConfig,
    dice: Dice,
    hidden: Sequence[str] = (),
    with_sides: bool = True,
) -> str | None:
    """One unambiguous phrase without article, or None if there is none; short ones are preferred."""
    rest = [other for other in others if other.key != item.key]
    ways = ways_to_name(item, rest, config, dice, hidden, with_sides)
    if not ways:
        return None
    ways.sort(key=lambda words: len(words.split()))
    return dice.choice(ways[: max(3, len(ways) // 2)])


def full_phrase(item: SceneObject, config: SynthesisConfig, dice: Dice) -> str:
    """Everything that matters of a new object, with article: `a large striped red star`."""
    told = ["colour"] if item.sprite.texture == "plain" else ["colour", "texture"]
    return with_article(phrase(item, [*told, "size"], config, dice))


def background_phrase(background: Background) -> str:
    """`on a white background`, `on a background that fades from sand to navy blue`."""
    if background.kind == "gradient":
        first, last = background.colours
        if background.angle == 0.0:
            first, last = f"{first} on the left", f"{last} on the right"
        elif background.angle == 90.0:
            first, last = f"{first} at the top", f"{last} at the bottom"
        return f"on a background that fades from {first} to {last}"
    return f"on {with_article(background.colours[0])} background"


def image_name(number: int, style: str) -> str:
    """Picture `number` (from 1) in one of the published ways to say it."""
    ordinal = ORDINALS[number - 1]
    names = {
        "ordinal": f"the {ordinal} image",
        "number": f"image {number}",
        "figure": f"figure {number}",
        "picture": f"picture {number}",
        "reference": f"reference image {number}",
        "given": f"the {ordinal} given image",
        "provided": f"the {ordinal} provided image",
    }
    return names[style]


EDIT_NAMES = ("ordinal", "ordinal", "number", "picture", "figure")
GENERATE_NAMES = ("reference", "given", "provided", "ordinal", "number")
