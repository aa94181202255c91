"""Draws sprites, backgrounds and whole scenes that keep the layout rules of a recipe."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .config import SynthesisConfig
from .dice import Dice
from .library import SMALLEST_CROP, Library
from .naming import name_of
from .palette import BACKGROUNDS, COLOURS, MIN_CONTRAST, distance
from .scene import Background, Scene, SceneObject, Sprite, Style
from .shapes import SHAPES
from .textures import MATERIALS

PLACES = tuple((x, y) for y in (0.25, 0.5, 0.75) for x in (0.25, 0.5, 0.75))
"""The nine places of a canvas."""

TRIES = 40
SMALLEST_TURN = 20.0
"""A silhouette turned by less than so many degrees counts as the same; chosen."""


class Unlucky(Exception):
    """This draw cannot be finished; the sample is drawn again."""


class Workshop:
    """One sample's dice, recipe and material."""

    def __init__(self, dice: Dice, config: SynthesisConfig, library: Library) -> None:
        self.dice = dice
        self.config = config
        self.library = library
        self.size = (config.width, config.height)
        self._last_key = 0
        self.style = self._style()

    def for_references(self) -> Workshop:
        """The same workshop for square reference pictures; keys go on counting."""
        square = Workshop.__new__(Workshop)
        square.dice, square.config, square.library = self.dice, self.config, self.library
        square.size = (self.config.reference_size, self.config.reference_size)
        square._last_key = self._last_key + 100
        square.style = self.style
        return square

    def new_key(self) -> int:
        """A key no object of the sample has."""
        self._last_key += 1
        return self._last_key

    def background(self, kinds: Sequence[str] = (), told: bool = False) -> Background:
        """A random background of one of the recipe's kinds; `kinds` says which of them fit, and how often.

        A gradient that is `told` in words runs straight across or down.
        """
        dice = self.dice
        known = self.config.backgrounds
        usable = [
            kind for kind in (kinds or known) if kind in known and (kind != "photo" or self.library.photos)
        ]
        kind = dice.choice(usable or ["plain"])
        if kind == "photo":
            crop = (dice.uniform(0, 1), dice.uniform(0, 1), dice.uniform(SMALLEST_CROP, 1.0))
            return Background(
                kind="photo", colours=(), photo=dice.choice(list(self.library.photos)), crop=crop
            )
        if kind == "gradient":
            light = [name for name in BACKGROUNDS if name not in ("navy blue", "dark grey")]
            angle = dice.choice((0.0, 90.0)) if told else dice.uniform(0, 360)
            return Background(kind="gradient", colours=tuple(dice.sample(light, 2)), angle=angle)
        return Background(colours=(dice.choice(list(BACKGROUNDS)),))

    def visible_colours(self, background: Background) -> list[str]:
        """The recipe's colours that stand out from a background."""
        behind = [BACKGROUNDS[name] for name in background.colours]
        seen = [
            name
            for name in self.config.colours
            if all(distance(COLOURS[name], colour) >= MIN_CONTRAST for colour in behind)
        ]
        return seen or list(self.config.colours)

    def stands_out(self, sprite: Sprite, background: Background) -> bool:
        """Whether a sprite that was made for another background can be seen on this one."""
        return sprite.colour is None or sprite.colour in self.visible_colours(background)

    def sprite(self, background: Background, procedural: bool = False) -> Sprite:
        """A random sprite; `procedural` ones have a colour and a texture."""
        dice = self.dice
        if self.library.stickers and not procedural and dice.chance(self.config.sticker_share):
            file = self.library.stickers[dice.choice(list(self.library.stickers))]
            return Sprite(shape=file.noun, sticker=file.key)
        patterned = [name for name in self.config.textures if name != "plain"]
        plain = "plain" in self.config.textures and (dice.chance(self.config.plain_share) or not patterned)
        return Sprite(
            shape=dice.choice(self.config.shapes),
            colour=dice.choice(self.visible_colours(background)),
            texture="plain" if plain else dice.choice(patterned),
        )

    def relative(self, sprite: Sprite, background: Background) -> Sprite:
        """A sprite that shares something with another one, but not everything."""
        if sprite.sticker is not None:
            return self.other_sprite([sprite], background)
        for _ in range(TRIES):
            fresh = self.sprite(background, procedural=True)
            kept = self.dice.choice(("shape", "colour", "texture", "shape", "colour"))
            values = {"shape": fresh.shape, "colour": fresh.colour, "texture": fresh.texture}
            values[kept] = getattr(sprite, kept)
            made = Sprite(shape=str(values["shape"]), colour=values["colour"], texture=values["texture"])
            if made != sprite:
                return made
        raise Unlucky

    def other_sprite(
        self, taken: Sequence[Sprite], background: Background, procedural: bool = False
    ) -> Sprite:
        """A sprite unlike all `taken` ones."""
        nouns = {sprite.shape for sprite in taken if sprite.sticker is not None}
        for _ in range(TRIES):
            made = self.sprite(background, procedural)
            if made not in taken and made.shape not in nouns:
                return made
        raise Unlucky

    def scene(
        self,
        count: int | None = None,
        background: Background | None = None,
        procedural: bool = False,
        told: bool = False,
    ) -> Scene:
        """A scene with `count` objects (or as many as the recipe draws) that share attributes.

        What is `told` in words stands as the words say, so that a reader can know the right answer.
        """
        background = background or self.background()
        count = count or self.object_count()
        sprites = [self.sprite(background, procedural)]
        while len(sprites) < count:
            like = self.dice.choice(sprites)
            if self.dice.chance(self.config.twins):
                sprites.append(like)
            elif self.dice.chance(self.config.sharing):
                sprites.append(self.relative(like, background))
            else:
                sprites.append(self.other_sprite(sprites, background, procedural))
        objects: list[SceneObject] = []
        for sprite in self.dice.shuffled(sprites):
            objects.append(self.placed(sprite, objects, told=told))
        return Scene(background=background, objects=tuple(objects), style=self.style)

    def object_count(self, least: int = 1) -> int:
        """How many objects a scene gets."""
        low, high = self.config.objects
        if least <= 1 and low == 1 and self.dice.chance(self.config.single_share):
            return 1
        return self.dice.integer(min(max(low, least, 2), high), high)

    def placed(
        self,
        sprite: Sprite,
        others: Sequence[SceneObject],
        scale: float | None = None,
        told: bool = False,
    ) -> SceneObject:
        """The sprite in a free place; raises Unlucky if there is none.

        If it is `told` where the object is and how large, it stands upright in one of the nine places.
        """
        dice, config = self.dice, self.config
        tilt = dice.uniform(-config.tilt, config.tilt) if config.tilt and not told else 0.0
        jitter = 0.0 if told else config.place_jitter
        if scale is None:
            drawn = dice.choice(config.sizes[:2] if len(others) > 1 else config.sizes)
            size_jitter = 0.0 if told else config.size_jitter
            scale = drawn * (1 + dice.uniform(-size_jitter, size_jitter))
        for anchor in dice.shuffled(PLACES):
            x, y = anchor[0] + dice.uniform(-jitter, jitter), anchor[1] + dice.uniform(-jitter, jitter)
            item = self.kept_inside(SceneObject(key=0, sprite=sprite, x=x, y=y, scale=scale, rotation=tilt))
            if self.is_free(item, others):
                return SceneObject(
                    key=self.new_key(), sprite=sprite, x=item.x, y=item.y, scale=scale, rotation=tilt
                )
        raise Unlucky

    def reach(self, item: SceneObject) -> tuple[float, float]:
        """Half width and height an object needs, margin included, as shares of the canvas."""
        need = (item.scale / 2 + self.config.margin) * min(self.size)
        return need / self.size[0], need / self.size[1]

    def kept_inside(self, item: SceneObject) -> SceneObject:
        """The object shifted so that it does not leave the canvas."""
        across, down = self.reach(item)
        x, y = min(max(item.x, across), 1 - across), min(max(item.y, down), 1 - down)
        return SceneObject(
            key=item.key, sprite=item.sprite, x=x, y=y, scale=item.scale, rotation=item.rotation
        )

    def is_inside(self, item: SceneObject) -> bool:
        """Whether the whole object lies on the canvas."""
        across, down = self.reach(item)
        edge = 1e-9
        return across - edge <= item.x <= 1 - across + edge and down - edge <= item.y <= 1 - down + edge

    def is_free(self, item: SceneObject, others: Sequence[SceneObject]) -> bool:
        """Whether an object keeps the overlap limit with all others."""
        return all(
            circle_gap(item, other, self.size) >= -self.config.max_overlap * min(item.scale, other.scale) / 2
            for other in others
            if other.key != item.key
        )

    def fits(self, item: SceneObject, others: Sequence[SceneObject]) -> bool:
        """Both of `is_inside` and `is_free`."""
        return self.is_inside(item) and self.is_free(item, others)

    def named(
        self,
        item: SceneObject,
        others: Sequence[SceneObject],
        hidden: Sequence[str] = (),
        with_sides: bool = True,
    ) -> str:
        """`the red star`: an unambiguous name; raises Unlucky if there is none."""
        name = name_of(item, others, self.config, self.dice, hidden, with_sides)
        if name is None:
            raise Unlucky
        return f"the {name}"

    def other_value(self, values: Sequence[str], current: str | None) -> str:
        """One of the values that is not the current one."""
        choices = [value for value in values if value != current]
        if not choices:
            raise Unlucky
        return self.dice.choice(choices)

    def _style(self) -> Style:
        dice, config = self.dice, self.config
        jitter = config.light_jitter
        red, green, blue = ((1 + dice.uniform(-jitter, jitter)) if jitter else 1.0 for _ in range(3))
        return Style(
            rim=config.rim if dice.chance(config.rim_share) else 0.0,
            shadow=config.shadow if dice.chance(config.shadow_share) else 0.0,
            shading=config.shading,
            pattern=config.pattern,
            light=(red, green, blue),
        )


def circle_gap(one: SceneObject, two: SceneObject, size: tuple[int, int]) -> float:
    """Space between the circles of two objects, as a share of the shorter side; negative if they overlap."""
    shorter = min(size)
    dx, dy = (one.x - two.x) * size[0] / shorter, (one.y - two.y) * size[1] / shorter
    return math.hypot(dx, dy) - (one.scale + two.scale) / 2


def is_symmetric_under(sprite: Sprite, degrees: float) -> bool:
    """Whether a turn by `degrees` leaves the silhouette (nearly) as it was."""
    if sprite.sticker is not None:
        return False
    fold = SHAPES[sprite.shape].fold
    if fold == 0:
        return True
    step = 360 / fold
    rest = degrees % step
    return min(rest, step - rest) < SMALLEST_TURN


def surface_word(texture: str, dice: Dice) -> str:
    """What a texture is called: patterns are patterns, materials are surfaces."""
    if texture in MATERIALS:
        return dice.choice(("surface", "finish"))
    return "surface" if texture == "plain" else dice.choice(("pattern", "design"))
