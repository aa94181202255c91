"""The four rules a result must keep; copying the source or editing another object breaks them.

The mean error over the whole picture is no rule: a copy of the source passes it in nearly every edit.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..synthesis.config import TASK_GROUPS
from ..synthesis.operations import Move, Resize, Turn
from ..synthesis.palette import COLOURS
from ..synthesis.render import Canvas
from ..synthesis.scene import Scene, SceneObject
from ..synthesis.workshop import is_symmetric_under
from .cases import Case
from .frames import frame_faults, grown, with_rim
from .readout import Reader, Reading, fill_colour, with_object
from .surroundings import background_faults, size_faults, worst_window

VISIBLE = 16 / 255
"""Pixels whose source and target differ by more than this in a channel count as changed."""

WRONG_TURN = 25.0
"""A turn is right when the picture fits it better than one so many degrees off; chosen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Thresholds on pixel values 0..1."""

    quadrant: float = 0.08
    """Largest mean absolute error of any quarter of the picture."""
    changed: float = 0.12
    """Largest mean absolute error where the target differs from the source."""
    outside_psnr: float = 25.0
    """Least peak signal-to-noise ratio elsewhere, dB."""
    window: float = 0.07
    """Largest mean absolute error of any window elsewhere: one small object too many hides in the ratio."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What the judge found in one result."""

    case_id: str
    task: str
    group: str
    quadrant_error: float
    outside_psnr: float
    rules: tuple[bool, bool, bool, bool]
    """Quadrants, changed region, outside, readout."""
    faults: tuple[str, ...]
    """What the readout found wrong, in words."""

    @property
    def success(self) -> bool:
        """All four rules hold."""
        return all(self.rules)


def absolute_error(one: Canvas, two: Canvas) -> NDArray[np.float32]:
    """(height, width) mean over the channels, 0..1."""
    return np.abs(one.astype(np.float32) - two.astype(np.float32)).mean(axis=2) / 255


def worst_quadrant(error: NDArray[np.float32]) -> float:
    """The largest mean of the four quarters."""
    rows, columns = error.shape[0] // 2, error.shape[1] // 2
    halves = (error[:rows], error[rows:])
    return max(float(part.mean()) for half in halves for part in (half[:, :columns], half[:, columns:]))


def changed_pixels(case: Case) -> NDArray[np.bool_]:
    """(height, width) what visibly differs between source and target; for generation, the objects."""
    sample = case.sample
    if sample.source is not None:
        gap = np.abs(sample.source.astype(np.int16) - sample.target.astype(np.int16)).max(axis=2)
        return gap > VISIBLE * 255
    mask = objects_of(case)
    return mask if mask.any() else np.ones_like(mask)


def objects_of(case: Case) -> NDArray[np.bool_]:
    """(height, width) where the target's objects are."""
    renderer, target = case.synthesizer.renderer, case.sample.plan.target
    mask = np.zeros(case.sample.target.shape[:2], bool)
    for item in target.objects:
        mask |= renderer.footprint(item, target.style, with_shadow=False)
    return mask


def empty_inside(case: Case, changed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(height, width) what is plain inside the mask: between a frame's lines, around objects filled in."""
    mask = case.sample.mask
    if mask is None or case.task not in ("detect", *TASK_GROUPS["fill"]):
        return np.zeros_like(changed)
    used = with_rim(case, changed) if case.task == "detect" else grown(objects_of(case), 2)
    return (mask > 0) & ~used


def psnr(result: Canvas, target: Canvas, area: NDArray[np.bool_]) -> float:
    """Peak signal-to-noise ratio inside an area, dB; infinite for equal pixels or no area."""
    if not area.any():
        return math.inf
    gap = (result[area].astype(np.float32) - target[area].astype(np.float32)) / 255
    error = float(np.square(gap).mean())
    return math.inf if error == 0 else -10 * math.log10(error)


class Judge:
    """Applies the rules to the results of one recipe."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._readers: dict[int, Reader] = {}

    def judge(self, case: Case, result: Canvas) -> Verdict:
        """The verdict on a (height, width, 3) uint8 result of the target's size.

        The readout costs most, so it is left out (and counts as broken) where another rule is broken already.
        Raises ValueError for a result of another size.
        """
        target, limits = case.sample.target, self.limits
        if result.shape != target.shape:
            raise ValueError(
                f"{case.id}: the result has the shape {result.shape}, the target {target.shape}."
            )
        error, changed = absolute_error(result, target), changed_pixels(case)
        outside = ~with_rim(case, changed if case.sample.mask is None else case.sample.mask)
        quadrant = worst_quadrant(error)
        inside = float(error[changed].mean()) if changed.any() else 0.0
        kept = psnr(result, target, outside)
        # A rim of one pixel is left out: a line around what changed is softness, not an object.
        plain = ~grown(~outside, 1) | empty_inside(case, changed)
        alone = worst_window(error, plain) < limits.window
        rules = [quadrant < limits.quadrant, inside < limits.changed, kept >= limits.outside_psnr and alone]
        faults = tuple(self.faults(case, result, outside)) if all(rules) else ("not read",)
        return Verdict(
            case_id=case.id,
            task=case.task,
            group=case.group,
            quadrant_error=quadrant,
            outside_psnr=kept,
            rules=(rules[0], rules[1], rules[2], not faults),
            faults=faults,
        )

    def faults(self, case: Case, result: Canvas, outside: NDArray[np.bool_]) -> list[str]:
        """Every object that is not read as the target has it or should be gone, and another background."""
        reader = self._readers.setdefault(id(case.synthesizer), Reader(case.synthesizer))
        plan, target = case.sample.plan, case.sample.plan.target
        sprites = tuple({item.sprite: None for scene in scenes_of(case) for item in scene.objects})
        found = []
        for item in target.objects:
            if item.sprite.sticker is None and item.sprite.colour not in COLOURS:
                continue
            reading = reader.read(result, target, item.key, sprites)
            found += object_faults(item, reading, target)
        if plan.source is not None:
            found += [*ghosts(reader, result, plan.source, target), *unmoved(reader, case, result)]
        found += size_faults(reader, case, result)
        return found + frame_faults(case, result) + background_faults(case, result, outside)


def scenes_of(case: Case) -> list[Scene]:
    """All scenes of a case."""
    plan = case.sample.plan
    references = [reference.scene for reference in plan.references]
    return [scene for scene in (plan.source, plan.target, *references) if scene is not None]


def object_faults(item: SceneObject, reading: Reading, target: Scene) -> list[str]:
    """What is wrong with one object, in words."""
    name = " ".join(part for part in (item.sprite.colour, item.sprite.shape) if part)
    if reading.sprite is None:
        return [f"{name}: missing"]
    found = []
    painted = fill_colour(target, item.key)
    for attribute in ("shape", "colour", "texture", "sticker"):
        right, read = getattr(item.sprite, attribute), getattr(reading.sprite, attribute)
        if right != read and not (painted and attribute in ("colour", "texture")):
            found.append(f"{name}: {attribute} is {read}")
    if painted != reading.mark:
        found.append(f"{name}: painted {reading.mark}")
    if not reading.is_in_place:
        found.append(f"{name}: {reading.shift[0]:+.2f}, {reading.shift[1]:+.2f} away from its place")
    return found


def ghosts(reader: Reader, result: Canvas, source: Scene, target: Scene) -> list[str]:
    """Objects of the source that should be gone and are still there."""
    there = {item.key for item in target.objects}
    found = []
    for item in source.objects:
        if item.key in there:
            continue
        still = dataclasses.replace(target, objects=(*target.objects, item))
        if not reader.shows(result, target, still, item):
            found.append(f"{item.sprite.colour} {item.sprite.shape}: still there")
    return found


def unmoved(reader: Reader, case: Case, result: Canvas) -> list[str]:
    """Objects that fit the state before they were moved, scaled or turned better, or a wrong turn."""
    plan, found = case.sample.plan, []
    for operation in plan.operations:
        if isinstance(operation, Move | Resize | Turn) and plan.source is not None:
            before, after = plan.source.find(operation.key), plan.target.find(operation.key)
            larger = max(before, after, key=lambda item: item.scale)
            name = f"{after.sprite.colour} {after.sprite.shape}"
            if not reader.shows(result, plan.target, plan.source, larger):
                found.append(f"{name}: as before")
            if isinstance(operation, Turn) and not is_turned(reader, case, result, operation):
                found.append(f"{name}: turned otherwise")
    return found


def is_turned(reader: Reader, case: Case, result: Canvas, operation: Turn) -> bool:
    """Whether no turn that is visibly another fits better: too far, not far enough, the other sense."""
    target = case.sample.plan.target
    item, right = target.find(operation.key), reader.draw(target)
    for change in (-WRONG_TURN, WRONG_TURN, -2 * operation.degrees):
        turned = dataclasses.replace(item, rotation=item.rotation + change)
        rival = with_object(target, turned)
        is_other = float(np.abs(reader.draw(rival) - right).max()) > VISIBLE
        if is_symmetric_under(item.sprite, change) or not is_other:
            continue
        if not reader.shows(result, target, rival, item):
            return False
    return True
