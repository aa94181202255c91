"""Which scenes are kept for judging: decided by what they show, so that no run can train on them."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from .naming import place_of
from .plan import Plan
from .scene import to_json

HELD_OUT_SHARE = 12
"""One description in so many is kept for judging; chosen, not published."""


def coarse_objects(scene: dict[str, Any] | None) -> list[list[Any]]:
    """What stands in which of the nine places, without exact positions, sizes and angles; sorted."""
    if scene is None:
        return []
    objects = []
    for item in scene["objects"]:
        sprite = item["sprite"]
        column, row = place_of(item["x"], item["y"])
        looks = [sprite[name] for name in ("shape", "colour", "texture", "sticker")]
        objects.append([str(part) for part in (*looks, column, row)])
    return sorted(objects)


def scene_key(data: dict[str, Any]) -> str:
    """The coarse description of a sample: its source, target and marks; references and background left out.

    `data` is what `Plan.to_json` gives and what is written beside every sample.
    """
    source, target = data["source"], data["target"]
    marks = [mark["kind"] + mark["colour"] for scene in (source, target) if scene for mark in scene["marks"]]
    parts = [coarse_objects(source), coarse_objects(target), sorted(marks)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def is_held_out(plan: Plan) -> bool:
    """Whether a plan belongs to the judge; the same for every seed and recipe."""
    scenes = {"source": to_json(plan.source) if plan.source else None, "target": to_json(plan.target)}
    return int(scene_key(scenes)[:8], 16) % HELD_OUT_SHARE == 0
