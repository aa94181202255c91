"""What nobody asked for fails: an object too many, another background, another size."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from pack.training.evaluation.cases import Case, held_out_cases
from pack.training.evaluation.frames import with_rim
from pack.training.evaluation.readout import with_object
from pack.training.evaluation.rules import Judge, changed_pixels
from pack.training.evaluation.run import EDIT_TASKS
from pack.training.evaluation.surroundings import worst_window
from pack.training.recipes.small import SmallRecipe
from pack.training.synthesis.dice import Dice
from pack.training.synthesis.palette import BACKGROUNDS
from pack.training.synthesis.scene import Background, Scene, SceneObject
from pack.training.synthesis.workshop import PLACES, Workshop

RECIPE = SmallRecipe().synthesis((), split="test")
"""Small pictures, where one object too many weighs least."""


def cases(task: str, group: str, count: int) -> list[Case]:
    return list(held_out_cases(RECIPE, task, group, count))


def drawn(case: Case, scene: Scene) -> np.ndarray:
    return case.synthesizer.renderer.draw(scene)


def with_one_more(case: Case, number: int) -> Scene | None:
    """The target and one more of the smallest objects, a plain one, in a free place, if there is one."""
    plan, dice = case.sample.plan, Dice("one more", case.id, number)
    shop = Workshop(dice, RECIPE, case.synthesizer.library)
    sprite = dataclasses.replace(shop.sprite(plan.target.background), texture="plain")
    others = [*plan.target.objects, *(plan.source.objects if plan.source is not None else ())]
    for x, y in dice.shuffled(PLACES):
        item = shop.kept_inside(SceneObject(key=999, sprite=sprite, x=x, y=y, scale=RECIPE.sizes[0]))
        footprint = case.synthesizer.renderer.footprint(item, plan.target.style, with_shadow=False)
        if shop.is_free(item, others) and not (footprint & with_rim(case, changed_pixels(case))).any():
            return dataclasses.replace(plan.target, objects=(*plan.target.objects, item))
    return None


@pytest.mark.parametrize("task", EDIT_TASKS)
def test_one_object_too_many_fails(task: str) -> None:
    judge, tried = Judge(), 0
    for group in ("one", "several"):
        for case in cases(task, group, 4):
            assert judge.judge(case, case.sample.target).success
            for scene in filter(None, (with_one_more(case, number) for number in range(3))):
                tried += 1
                assert not judge.judge(case, drawn(case, scene)).success, case.id
    assert tried > 8


def test_another_background_fails() -> None:
    judge = Judge()
    for case in cases("text_to_image", "several", 2):
        for right in BACKGROUNDS:
            asked = dataclasses.replace(case.sample.plan.target, background=Background(colours=(right,)))
            shop = Workshop(Dice("unused"), RECIPE, case.synthesizer.library)
            if not all(shop.stands_out(item.sprite, asked.background) for item in asked.objects):
                continue
            plan = dataclasses.replace(case.sample.plan, target=asked)
            sample = dataclasses.replace(case.sample, plan=plan, target=drawn(case, asked))
            mine = dataclasses.replace(case, sample=sample)
            for shown in BACKGROUNDS:
                scene = dataclasses.replace(asked, background=Background(colours=(shown,)))
                assert judge.judge(mine, drawn(case, scene)).success == (shown == right), (right, shown)


@pytest.mark.parametrize("task", ["text_to_image", "add"])
def test_a_new_object_of_another_size_fails(task: str) -> None:
    judge, tried = Judge(), 0
    for case in cases(task, "one", 10):
        assert case.sample.plan.target.objects
        item = case.sample.plan.target.objects[-1]
        for scale in RECIPE.sizes:
            if abs(scale - item.scale) > 0.15 * item.scale:
                tried += 1
                scene = with_object(case.sample.plan.target, dataclasses.replace(item, scale=scale))
                assert not judge.judge(case, drawn(case, scene)).success
    assert tried >= 15


def test_windows_by_hand() -> None:
    error = np.zeros((32, 32), np.float32)
    error[10:13, 20:26] = 0.5
    everywhere = np.ones(error.shape, bool)
    assert worst_window(error, everywhere) == pytest.approx(0.5 * 18 / 36)
    everywhere[10, :] = False
    assert worst_window(error, everywhere) == pytest.approx(0.5 * 12 / 36)
    assert worst_window(error, np.zeros(error.shape, bool)) == 0
