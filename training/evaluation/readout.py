"""Reads the objects of a picture by matching it against drawn alternatives.

For every object of the target's description the picture is compared, inside the object's circle, with
scenes in which that object has another shape, colour or texture, stands elsewhere, or is missing. What fits
best is what the picture shows. Nothing is learned, and a perfect target is read back exactly.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..synthesis.palette import MARK_COLOURS
from ..synthesis.render import Canvas, Renderer
from ..synthesis.samples import Synthesizer
from ..synthesis.scene import Scene, SceneObject, Sprite

READ_SIDE = 64
"""Pictures are read at no more than about this many pixels; patterns of all recipes survive it."""

POSITION_TOLERANCE = 0.05
"""Largest error of a position, as a share of the shorter side; chosen."""

SEARCH = 0.11
"""How far around its place an object is looked for."""

MAX_ROUNDS = 3
Pixels = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What stands where an object should be."""

    key: int
    sprite: Sprite | None
    """None: nothing is there."""
    mark: str | None
    """Colour of flat paint on it."""
    shift: tuple[float, float]
    """Offset from the right place, shares of the shorter side."""

    @property
    def is_in_place(self) -> bool:
        """Whether the position is right within the tolerance."""
        return math.hypot(*self.shift) <= POSITION_TOLERANCE


class Reader:
    """Reads pictures of one recipe."""

    def __init__(self, synthesizer: Synthesizer) -> None:
        self.config = synthesizer.config
        width, height = synthesizer.renderer.size
        self.factor = max(1, min(width, height) // READ_SIDE)
        size = (max(1, width // self.factor), max(1, height // self.factor))
        self.renderer = Renderer(size, synthesizer.library)

    def shrink(self, picture: Canvas) -> Pixels:
        """The picture at reading size, (height, width, 3) floats 0..1."""
        image = Image.fromarray(picture)
        if image.size != self.renderer.size:
            image = image.resize(self.renderer.size, Image.Resampling.BOX)
        return (np.asarray(image) / 255).astype(np.float32)

    def draw(self, scene: Scene) -> Pixels:
        """A scene at reading size, (height, width, 3) floats 0..1."""
        return (self.renderer.draw(scene) / 255).astype(np.float32)

    def disc(self, item: SceneObject) -> NDArray[np.bool_]:
        """(height, width) mask of the object's circle and a rim of one pixel."""
        width, height = self.renderer.size
        radius = item.scale * min(width, height) / 2 + 1
        rows, columns = np.ogrid[0:height, 0:width]
        return np.hypot(columns + 0.5 - item.x * width, rows + 0.5 - item.y * height) <= radius

    def read(self, picture: Canvas, scene: Scene, key: int, others: Iterable[Sprite] = ()) -> Reading:
        """What the picture shows in place of object `key` of `scene`.

        `others` are further sprites it may be; stickers from files are told apart only from those.
        """
        seen, rivals = self.shrink(picture), tuple(others)
        fits = [self.best_fit(seen, scene, key, rivals)]
        across, down = self.find_shift(seen, scene, key)
        if (across, down) != (0.0, 0.0):
            # It may stand elsewhere: what it is must then be read there.
            fits.append(self.best_fit(seen, self.shifted(scene, key, across, down), key, rivals))
        error, best = min(fits, key=lambda fit: fit[0])
        item, found = scene.find(key), best.find(key)
        rest = self.find_shift(seen, best, key)
        side = min(self.renderer.size)
        width, height = (length / side for length in self.renderer.size)
        shift = ((found.x - item.x) * width + rest[0], (found.y - item.y) * height + rest[1])
        if self.error(seen, without_object(best, key), self.disc(found)) < error:
            return Reading(key=key, sprite=None, mark=None, shift=shift)
        return Reading(key=key, sprite=found.sprite, mark=fill_colour(best, key), shift=shift)

    def best_fit(
        self, seen: Pixels, scene: Scene, key: int, others: tuple[Sprite, ...]
    ) -> tuple[float, Scene]:
        """The error and the scene that fits best, changing one attribute of one object at a time."""
        area = self.disc(scene.find(key))
        best, error = scene, self.error(seen, scene, area)
        for _ in range(MAX_ROUNDS):
            before = best
            for alternative in self.alternatives(best, key, others):
                other = self.error(seen, alternative, area)
                if other < error:
                    best, error = alternative, other
            if best == before:
                break
        return error, best

    def shifted(self, scene: Scene, key: int, across: float, down: float) -> Scene:
        """The scene with one object moved by shares of the shorter side."""
        side, item = min(self.renderer.size), scene.find(key)
        width, height = self.renderer.size
        x, y = item.x + across * side / width, item.y + down * side / height
        return with_object(scene, dataclasses.replace(item, x=x, y=y))

    def shows(self, picture: Canvas, scene: Scene, rival: Scene, item: SceneObject) -> bool:
        """Whether the picture fits `scene` better than `rival` in the circle of an object."""
        seen, area = self.shrink(picture), self.disc(item)
        return self.error(seen, scene, area) < self.error(seen, rival, area)

    def error(self, seen: Pixels, scene: Scene, area: NDArray[np.bool_]) -> float:
        """Mean squared error inside an area."""
        return float(np.square(seen[area] - self.draw(scene)[area]).mean())

    def alternatives(self, scene: Scene, key: int, others: tuple[Sprite, ...]) -> list[Scene]:
        """The scene with one attribute of one object changed, or with another sprite in its place."""
        item = scene.find(key)
        sprite, config = item.sprite, self.config
        sprites = [other for other in others if other != sprite]
        if sprite.colour is not None:
            sprites += [dataclasses.replace(sprite, colour=name) for name in config.colours]
            sprites += [dataclasses.replace(sprite, texture=name) for name in config.textures]
            sprites += [dataclasses.replace(sprite, shape=name) for name in config.shapes]
        made = [with_object(scene, dataclasses.replace(item, sprite=other)) for other in sprites]
        painted = fill_colour(scene, key)
        if painted is not None:
            made += [with_fill(scene, key, name) for name in MARK_COLOURS if name != painted]
        return made

    def find_shift(self, seen: Pixels, scene: Scene, key: int) -> tuple[float, float]:
        """Offset of the object in the picture from its place in the scene, shares of the shorter side."""
        side, item = min(self.renderer.size), scene.find(key)
        steps = max(1, round(SEARCH * side))
        rows, columns = np.nonzero(grown(self.renderer.footprint(item, scene.style, with_shadow=False)))
        drawn = self.draw(scene)[rows, columns]
        wide = np.pad(seen, ((steps, steps), (steps, steps), (0, 0)), mode="edge")
        best, found = math.inf, (0, 0)
        for down, across in sorted(
            product(range(-steps, steps + 1), repeat=2), key=lambda at: math.hypot(*at)
        ):
            gap = wide[rows + down + steps, columns + across + steps] - drawn
            error = float(np.dot(gap.ravel(), gap.ravel()))
            # The nearest of equal places: they are tried from the middle outwards.
            if error < best * (1 - 1e-6) - 1e-9:
                best, found = error, (across, down)
        return found[0] / side, found[1] / side


def grown(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask with a rim of two pixels, so that a shift of a plain body is seen at its edge."""
    wide = mask.copy()
    for _ in range(2):
        padded = np.pad(wide, 1)
        wide = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:] | wide
    return wide


def with_object(scene: Scene, item: SceneObject) -> Scene:
    """The scene with the object of the same key replaced."""
    objects = tuple(item if other.key == item.key else other for other in scene.objects)
    return dataclasses.replace(scene, objects=objects)


def without_object(scene: Scene, key: int) -> Scene:
    """The scene without an object and the paint on it."""
    objects = tuple(other for other in scene.objects if other.key != key)
    marks = tuple(mark for mark in scene.marks if mark.key != key)
    return dataclasses.replace(scene, objects=objects, marks=marks)


def fill_colour(scene: Scene, key: int) -> str | None:
    """The flat paint on an object, if there is any."""
    return next((mark.colour for mark in scene.marks if mark.kind == "fill" and mark.key == key), None)


def with_fill(scene: Scene, key: int, colour: str) -> Scene:
    """The scene with an object painted in another flat colour."""
    marks = tuple(
        dataclasses.replace(mark, colour=colour) if mark.kind == "fill" and mark.key == key else mark
        for mark in scene.marks
    )
    return dataclasses.replace(scene, marks=marks)
