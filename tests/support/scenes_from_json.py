"""Scenes read back from the descriptions that datasets keep."""

from __future__ import annotations

from typing import Any

from pack.training.synthesis.scene import Background, Mark, Scene, SceneObject, Sprite, Style


def object_from_json(data: dict[str, Any]) -> SceneObject:
    """The object that `to_json` wrote."""
    values: dict[str, Any] = {**data, "sprite": Sprite(**data["sprite"])}
    return SceneObject(**values)


def scene_from_json(data: dict[str, Any]) -> Scene:
    """The scene that `to_json` wrote."""
    background: dict[str, Any] = dict(data["background"])
    background["colours"] = tuple(background["colours"])
    background["crop"] = tuple(background["crop"])
    marks: list[dict[str, Any]] = [dict(mark) for mark in data["marks"]]
    for mark in marks:
        mark["area"] = None if mark["area"] is None else tuple(mark["area"])
    style: dict[str, Any] = {**data["style"], "light": tuple(data["style"]["light"])}
    return Scene(
        background=Background(**background),
        objects=tuple(object_from_json(item) for item in data["objects"]),
        marks=tuple(Mark(**mark) for mark in marks),
        style=Style(**style),
    )
