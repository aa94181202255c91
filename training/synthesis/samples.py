"""From (recipe, index) to a finished sample, the same on every machine and in every process."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .config import TASK_WEIGHTS, SynthesisConfig
from .dice import Dice
from .edges import canny
from .library import Library
from .palette import MARK_COLOURS
from .plan import Plan, Reference
from .render import Canvas, Renderer
from .scene import Scene
from .split import HELD_OUT_SHARE, is_held_out
from .tasks import TASKS, missing_material
from .workshop import Unlucky, Workshop

MAX_ATTEMPTS = 400
FAINTEST = 12
"""Least difference (of 255) by which an object's edge must show where a frame goes by it; chosen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A drawn sample; pictures are (height, width, 3) uint8, the mask (height, width) bool."""

    id: str
    plan: Plan
    source: Canvas | None
    references: tuple[Canvas, ...]
    target: Canvas
    mask: NDArray[np.bool_] | None
    scene: dict[str, Any]


class Synthesizer:
    """Makes sample after sample of one recipe; holds nothing but the material."""

    def __init__(self, config: SynthesisConfig) -> None:
        self.config = config
        self.library = Library(
            Path(config.stickers_folder) if config.stickers_folder else None,
            Path(config.backgrounds_folder) if config.backgrounds_folder else None,
        )
        self.weights = usable_tasks(config, self.library)
        self.renderer = Renderer((config.width, config.height), self.library)
        self.reference_renderer = Renderer((config.reference_size, config.reference_size), self.library)

    def plan(self, index: int) -> Plan:
        """The plan of sample `index`; raises ValueError if the recipe leaves no room for its task."""
        task = Dice(self.config.seed, index).weighted(self.weights)
        # Only one scene in HELD_OUT_SHARE is kept for judging, so that split needs more draws.
        attempts = MAX_ATTEMPTS * (HELD_OUT_SHARE if self.config.split == "test" else 1)
        for attempt in range(attempts):
            dice = Dice(self.config.seed, index, attempt, task)
            try:
                plan = TASKS[task](Workshop(dice, self.config, self.library))
            except Unlucky:
                continue
            if not frames_show(plan, self.renderer):
                continue
            if self.config.split == "all" or is_held_out(plan) == (self.config.split == "test"):
                return plan
        raise ValueError(
            f"no {task} could be made in {attempts} tries from this material: allow more shapes, "
            "colours or textures, smaller objects, or leave the task out."
        )

    def sample(self, index: int) -> Sample:
        """Sample `index`, drawn."""
        plan = self.plan(index)
        renderer = self.renderer
        return Sample(
            id=f"{index:08d}",
            plan=plan,
            source=renderer.draw(plan.source) if plan.source else None,
            references=tuple(self._reference(reference) for reference in plan.references),
            target=renderer.draw(plan.target),
            mask=change_mask(plan.source, plan.target, renderer) if plan.source else None,
            scene=plan.to_json((self.config.width, self.config.height)),
        )

    def _reference(self, reference: Reference) -> Canvas:
        renderer = self.renderer if reference.is_canvas else self.reference_renderer
        match reference.view:
            case "canny":
                return canny(renderer.draw(reference.scene))
            case "segmentation":
                return segmentation_map(reference.scene, renderer)
            case "depth":
                background = reference.scene.background
                assert background.photo is not None
                return self.library.photo(background.photo, renderer.size, background.crop, depth=True)
        return renderer.draw(reference.scene)


def frames_show(plan: Plan, renderer: Renderer) -> bool:
    """Whether each side of each new frame goes by an edge that is seen; a faint one would leave it open."""
    known, target = plan.source.marks if plan.source else (), plan.target
    for mark in target.marks:
        if mark.kind != "box" or mark in known or mark.key is None:
            continue
        shown = dataclasses.replace(target, marks=())
        others = tuple(item for item in target.objects if item.key != mark.key)
        hidden = dataclasses.replace(shown, objects=others)
        gap = np.abs(renderer.draw(shown).astype(np.int16) - renderer.draw(hidden)).max(axis=2)
        left, top, right, bottom = renderer.box(target.find(mark.key), target.style)
        body, thick = gap[top:bottom, left:right], renderer.frame(mark, target).thick
        sides = (body[:thick], body[-thick:], body[:, :thick], body[:, -thick:])
        if any(side.max(initial=0) < FAINTEST for side in sides):
            return False
    return True


def usable_tasks(config: SynthesisConfig, library: Library) -> dict[str, float]:
    """Task weights: those asked for (raises ValueError if material is missing), or all that can be made."""
    if config.tasks:
        missing = [missing_material(task, library) for task, _ in config.tasks]
        if reasons := [reason for reason in missing if reason]:
            raise ValueError(f"{reasons[0]}.")
        return dict(config.tasks)
    return {task: weight for task, weight in TASK_WEIGHTS.items() if missing_material(task, library) is None}


def change_mask(source: Scene, target: Scene, renderer: Renderer) -> NDArray[np.bool_]:
    """(height, width) mask of every pixel the edit can change: what differs between the descriptions."""
    shape = (renderer.size[1], renderer.size[0])
    if source.background != target.background or source.style != target.style:
        return np.ones(shape, bool)
    mask = np.zeros(shape, bool)
    before = {item.key: item for item in source.objects}
    after = {item.key: item for item in target.objects}
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            for item in (before.get(key), after.get(key)):
                if item is not None:
                    mask |= renderer.footprint(item, source.style)
    for scene, other in ((source, target), (target, source)):
        for mark in scene.marks:
            if mark not in other.marks:
                mask |= renderer.mark_area(mark, scene)
    return mask


def segmentation_map(scene: Scene, renderer: Renderer) -> Canvas:
    """(height, width, 3) map with one flat colour for each object on black."""
    canvas = np.zeros((renderer.size[1], renderer.size[0], 3), np.uint8)
    for paint, item in zip(MARK_COLOURS.values(), scene.objects, strict=False):
        canvas[renderer.silhouette(item.key, scene)] = paint
    return canvas
