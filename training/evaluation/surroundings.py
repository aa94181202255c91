"""What nobody asked for: an object too many, another background, a new object of another size."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from ..synthesis.palette import BACKGROUNDS
from ..synthesis.render import Canvas
from ..synthesis.scene import SceneObject
from .cases import Case
from .readout import Reader, with_object

WINDOW = 3 / 16
"""Side of a window as a share of the picture's shorter side, less than the smallest object's; chosen."""
OTHER_SIZE = 0.15
"""Sizes of the recipe that differ by more than this share are different ones in words."""


def worst_window(error: NDArray[np.float32], area: NDArray[np.bool_]) -> float:
    """The largest mean of (height, width) errors over a square window; pixels outside the area count as 0."""
    side = max(1, round(WINDOW * min(error.shape)))
    sums = np.pad(np.where(area, error, 0).astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    windows = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    return float(windows.max()) / side**2


def background_faults(case: Case, result: Canvas, area: NDArray[np.bool_]) -> list[str]:
    """The plain background that the area shows, where it is not the target's."""
    colours = case.sample.plan.target.background.colours
    if len(colours) != 1 or colours[0] not in BACKGROUNDS or not area.any():
        return []
    shown = np.median(result[area], axis=0)
    nearest = min(BACKGROUNDS, key=lambda name: float(np.abs(np.array(BACKGROUNDS[name]) - shown).sum()))
    return [] if nearest == colours[0] else [f"background: {nearest}"]


def size_faults(reader: Reader, case: Case, result: Canvas) -> list[str]:
    """New objects that fit another of the recipe's sizes better than their own."""
    plan = case.sample.plan
    known = {item.key for item in plan.source.objects} if plan.source is not None else set()
    return [
        f"{item.sprite.colour or item.sprite.sticker} {item.sprite.shape}: another size"
        for item in plan.target.objects
        if item.key not in known and not has_its_size(reader, case, result, item)
    ]


def has_its_size(reader: Reader, case: Case, result: Canvas, item: SceneObject) -> bool:
    """Whether an object fits its size better than the recipe's sizes that are visibly others."""
    target = case.sample.plan.target
    for scale in reader.config.sizes:
        if abs(scale - item.scale) <= OTHER_SIZE * item.scale:
            continue
        rival = dataclasses.replace(item, scale=scale)
        larger = max(item, rival, key=lambda one: one.scale)
        if not reader.shows(result, target, with_object(target, rival), larger):
            return False
    return True
