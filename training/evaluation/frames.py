"""Reads the frames that `detect` draws: each side must be there, and in its place."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from ..synthesis.palette import MARK_COLOURS
from ..synthesis.render import Canvas, Frame, Renderer
from ..synthesis.scene import Mark, Scene
from .cases import Case

SIDES = ("left", "top", "right", "bottom")


def frames_of(case: Case) -> list[Mark]:
    """The frames that the right answer has and the source has not."""
    plan = case.sample.plan
    known = plan.source.marks if plan.source is not None else ()
    return [mark for mark in plan.target.marks if mark.kind == "box" and mark not in known]


def grown(mask: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """A mask with a rim of some pixels, corners too."""
    height, width = mask.shape
    padded, out = np.pad(mask, pixels), np.zeros_like(mask)
    for row in range(2 * pixels + 1):
        for column in range(2 * pixels + 1):
            out |= padded[row : row + height, column : column + width]
    return out


def with_rim(case: Case, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The changed region of a case; lines get a rim of their thickness, as outlines of objects have one."""
    renderer, target = case.synthesizer.renderer, case.sample.plan.target
    for mark in frames_of(case):
        frame = renderer.frame(mark, target)
        mask = mask | grown(frame.lines(renderer.size), frame.thick)
    return mask


def frame_faults(case: Case, result: Canvas) -> list[str]:
    """Sides of frames that the result fits worse than without them, or than one thickness further on."""
    renderer, target = case.synthesizer.renderer, case.sample.plan.target
    return [
        f"frame: {side} side missing or elsewhere"
        for mark in frames_of(case)
        for side in SIDES
        if not has_side(renderer, target, mark, side, result)
    ]


def has_side(renderer: Renderer, target: Scene, mark: Mark, side: str, result: Canvas) -> bool:
    """Whether the result fits the frame better than each frame with a wrong side."""
    others = dataclasses.replace(target, marks=tuple(other for other in target.marks if other != mark))
    bare, frame = renderer.draw(others), renderer.frame(mark, target)
    right = frame.lines(renderer.size)
    wrong = [right & ~line_of(frame, side, right)]
    for step in (-frame.thick, frame.thick):
        wrong.append(moved(frame, side, step, renderer.size).lines(renderer.size))
    return all(fits_better(result, bare, MARK_COLOURS[mark.colour], right, lines) for lines in wrong)


def line_of(frame: Frame, side: str, lines: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels of one side without its corners, which belong to two."""
    area = np.zeros_like(lines)
    thick = frame.thick
    rows, columns = (
        slice(frame.top + thick, frame.bottom - thick),
        slice(frame.left + thick, frame.right - thick),
    )
    if side == "left":
        area[rows, frame.left : frame.left + thick] = True
    elif side == "right":
        area[rows, frame.right - thick : frame.right] = True
    elif side == "top":
        area[frame.top : frame.top + thick, columns] = True
    else:
        area[frame.bottom - thick : frame.bottom, columns] = True
    return area & lines


def moved(frame: Frame, side: str, step: int, size: tuple[int, int]) -> Frame:
    """The frame with one side elsewhere; at the picture's edge it stays where it is."""
    place = getattr(frame, side) + step
    limit = size[0] if side in ("left", "right") else size[1]
    return dataclasses.replace(frame, **{side: min(max(place, 0), limit)})


def fits_better(
    result: Canvas,
    bare: Canvas,
    colour: tuple[int, int, int],
    right: NDArray[np.bool_],
    wrong: NDArray[np.bool_],
) -> bool:
    """Whether the result is nearer to the right lines than to the wrong ones, where the two differ."""
    area = right != wrong
    if not area.any():
        return True
    paint, seen = np.asarray(colour, np.float32), result[area].astype(np.float32)
    under = bare[area].astype(np.float32)
    good = np.where(right[area][:, None], paint, under)
    bad = np.where(wrong[area][:, None], paint, under)
    return float(np.square(seen - good).sum()) < float(np.square(seen - bad).sum())
