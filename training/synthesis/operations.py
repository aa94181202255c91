"""Edits of a scene as data: applying them to the source gives the target."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from .scene import Background, Mark, Scene, SceneObject, Sprite, to_json


@dataclass(frozen=True, kw_only=True, slots=True)
class Add:
    """Put a new object in front."""

    item: SceneObject


@dataclass(frozen=True, kw_only=True, slots=True)
class Remove:
    """Take an object away."""

    key: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Replace:
    """Put another sprite in an object's place; place, size and angle stay."""

    key: int
    sprite: Sprite


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """Give an object another colour, texture or both."""

    key: int
    colour: str | None = None
    texture: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Move:
    """Shift an object by fractions of the canvas."""

    key: int
    dx: float
    dy: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Resize:
    """Multiply an object's size, about its centre."""

    key: int
    factor: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """Turn an object about its centre, degrees clockwise on the screen."""

    key: int
    degrees: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Paint:
    """Lay flat paint over the picture."""

    mark: Mark


@dataclass(frozen=True, kw_only=True, slots=True)
class Uncover:
    """Take all flat paint away."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SetBackground:
    """Put another background behind the objects."""

    background: Background


Operation = Add | Remove | Replace | Change | Move | Resize | Turn | Paint | Uncover | SetBackground


def changed_object(item: SceneObject, operation: Operation) -> SceneObject | None:
    """One object after an operation on it; None if it is gone."""
    match operation:
        case Remove():
            return None
        case Replace(sprite=sprite):
            return dataclasses.replace(item, sprite=sprite)
        case Change(colour=colour, texture=texture):
            sprite = item.sprite
            sprite = dataclasses.replace(
                sprite, colour=colour or sprite.colour, texture=texture or sprite.texture
            )
            return dataclasses.replace(item, sprite=sprite)
        case Move(dx=dx, dy=dy):
            return dataclasses.replace(item, x=item.x + dx, y=item.y + dy)
        case Resize(factor=factor):
            return dataclasses.replace(item, scale=item.scale * factor)
        case Turn(degrees=degrees):
            return dataclasses.replace(item, rotation=math.fmod(item.rotation + degrees, 360.0))
    return item


def apply(operation: Operation, scene: Scene) -> Scene:
    """The scene after one operation; raises KeyError if it names an object the scene has not."""
    match operation:
        case Add(item=item):
            return dataclasses.replace(scene, objects=(*scene.objects, item))
        case Paint(mark=mark):
            return dataclasses.replace(scene, marks=(*scene.marks, mark))
        case Uncover():
            return dataclasses.replace(scene, marks=())
        case SetBackground(background=background):
            return dataclasses.replace(scene, background=background)
        case Remove(key=key) | Replace(key=key) | Change(key=key) | Move(key=key) | Resize(key=key):
            named = key
        case Turn(key=key):
            named = key
    scene.find(named)
    changed = (changed_object(item, operation) if item.key == named else item for item in scene.objects)
    return dataclasses.replace(scene, objects=tuple(item for item in changed if item is not None))


def apply_all(operations: tuple[Operation, ...], scene: Scene) -> Scene:
    """The scene after all operations, one after another."""
    for operation in operations:
        scene = apply(operation, scene)
    return scene


def operation_to_json(operation: Operation) -> dict[str, Any]:
    """Plain JSON values of an operation; `kind` is its name in lower case."""
    return {"kind": type(operation).__name__.lower(), **to_json(operation)}
