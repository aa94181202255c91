"""The description of a picture: what is where. Everything the renderer draws and the judge reads.

Positions are fractions of the canvas (x to the right, y down), sizes fractions of its shorter side,
angles degrees, clockwise on the screen.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Sprite:
    """What an object is, wherever it stands."""

    shape: str
    """The noun: `star`, or what a sticker from a folder shows."""
    colour: str | None = None
    """A name of `palette.COLOURS`; None for a sticker from a file."""
    texture: str | None = None
    """A name of `textures.TEXTURES`; None for a sticker from a file."""
    sticker: str | None = None
    """Key of a sticker from a file; None for a procedural shape."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneObject:
    """A sprite in its place."""

    key: int
    """Tells the objects of one sample apart; kept when an object is moved or changed."""
    sprite: Sprite
    x: float
    y: float
    scale: float
    """Diameter of the circle around the object, as a share of the shorter side."""
    rotation: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Background:
    """What lies behind the objects."""

    kind: str = "plain"
    """`plain`, `gradient` or `photo`."""
    colours: tuple[str, ...] = ("white",)
    """One name of `palette.BACKGROUNDS`, two for a gradient."""
    angle: float = 0.0
    photo: str | None = None
    crop: tuple[float, float, float] = (0.5, 0.5, 1.0)
    """Centre of the crop (fractions of what is left over) and its size (1 = as large as fits)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """Flat paint above the picture."""

    kind: str
    """`fill` (an object's silhouette), `box` (a frame around it) or `black` (a rectangle)."""
    colour: str = "black"
    key: int | None = None
    """The object, for `fill` and `box`."""
    area: tuple[float, float, float, float] | None = None
    """Left, top, right, bottom for `black`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Style:
    """How the objects are drawn; the same in all pictures of a sample."""

    rim: float = 0.0
    """White sticker edge, as a share of the object's radius."""
    shadow: float = 0.0
    """Darkness of the cast shadow, 0..1."""
    shading: float = 0.0
    """Brightness fall from the top of an object to its bottom."""
    pattern: float = 1.0
    """Coarseness of patterns and materials; above 1 for pictures of a few pixels."""
    light: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Gain of red, green and blue over the whole picture."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """A whole picture."""

    background: Background = Background()
    objects: tuple[SceneObject, ...] = ()
    marks: tuple[Mark, ...] = ()
    style: Style = Style()

    def find(self, key: int) -> SceneObject:
        """The object with this key; raises KeyError."""
        for item in self.objects:
            if item.key == key:
                return item
        raise KeyError(key)


def to_json(value: Any) -> Any:
    """Plain JSON values of a scene or of any part of it, exact to the last bit."""
    if dataclasses.is_dataclass(value):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    return value
