"""The judge judged: perfect answers pass, copies fail, edits of the wrong object fail, each rule bites."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
from pack.training.dataset import EditDataset, open_dataset
from pack.training.evaluation.baselines import copy_source, random_object
from pack.training.evaluation.cases import Case, group_of, held_out_cases
from pack.training.evaluation.frames import SIDES, line_of, moved, with_rim
from pack.training.evaluation.readout import Reader, with_object
from pack.training.evaluation.report import Rate, markdown_table, rate, rule_table, select
from pack.training.evaluation.rules import Judge, Limits, absolute_error, changed_pixels, psnr, worst_quadrant
from pack.training.evaluation.run import EDIT_TASKS, Evaluation, evaluate, one_by_one
from pack.training.synthesis.config import recipe_for
from pack.training.synthesis.generate import Job, generate
from pack.training.synthesis.palette import MARK_COLOURS
from pack.training.synthesis.plan import Plan
from pack.training.synthesis.render import Frame
from pack.training.synthesis.samples import Synthesizer
from pack.training.synthesis.scene import Scene, SceneObject, Sprite
from pack.training.synthesis.split import HELD_OUT_SHARE, scene_key
from pack.training.synthesis.workshop import is_symmetric_under

TASKS = (*EDIT_TASKS, "multi", "outpaint")
RECIPE = recipe_for(48, 48)


def perfect(case: Case) -> np.ndarray:
    return case.sample.target


def cases(task: str, group: str, count: int = 6, recipe=RECIPE) -> list[Case]:
    return list(held_out_cases(recipe, task, group, count))


@pytest.mark.parametrize("task", TASKS)
def test_perfect_answers_pass_and_copies_fail(task: str) -> None:
    judge = Judge()
    for group in ("several",) if task == "multi" else ("one", "several"):
        for case in cases(task, group, 4):
            verdict = judge.judge(case, perfect(case))
            assert verdict.success, verdict
            assert verdict.quadrant_error == 0 and verdict.outside_psnr == np.inf and verdict.faults == ()
            assert not judge.judge(case, copy_source(case)).success


@pytest.mark.parametrize("task", ["remove", "replace", "recolour", "retexture", "move", "rotate", "segment"])
def test_the_edit_of_another_object_fails(task: str) -> None:
    judge, failed, others = Judge(), 0, 0
    for case in cases(task, "several", 14):
        result = random_object(case)
        if np.array_equal(result, case.sample.target):
            continue
        others += 1
        failed += not judge.judge(case, result).success
    assert others >= 4 and failed == others


def test_perfect_answers_pass_in_large_pictures_with_shadows_and_details() -> None:
    judge = Judge()
    for task in ("add", "recolour"):
        for case in cases(task, "several", 2, recipe_for(256, 256)):
            verdict = judge.judge(case, perfect(case))
            assert verdict.success, verdict


def frame_of(case: Case) -> Frame:
    (mark,) = case.sample.plan.target.marks
    return case.synthesizer.renderer.frame(mark, case.sample.plan.target)


def with_frame(case: Case, lines: np.ndarray) -> np.ndarray:
    """The source of a `detect` case with other lines in the right colour."""
    (mark,) = case.sample.plan.target.marks
    result = case.sample.source.copy()
    result[lines] = MARK_COLOURS[mark.colour]
    return result


@pytest.mark.parametrize("group", ["one", "several"])
def test_a_frame_needs_each_side_in_its_place(group: str) -> None:
    judge = Judge()
    for case in cases("detect", group, 12):
        frame, size = frame_of(case), case.synthesizer.renderer.size
        lines = frame.lines(size)
        assert np.array_equal(with_frame(case, lines), case.sample.target)
        for side in SIDES:
            for wrong in (lines & ~line_of(frame, side, lines), moved(frame, side, 1, size).lines(size)):
                if not np.array_equal(wrong, lines):
                    assert not judge.judge(case, with_frame(case, wrong)).success, (case.id, side)


def test_soft_lines_of_a_right_frame_are_forgiven() -> None:
    judge = Judge()
    for case in cases("detect", "one", 12):
        lines = frame_of(case).lines(case.synthesizer.renderer.size)
        soft, rim = case.sample.target.astype(np.float32), with_rim(case, lines) & ~lines
        paint = case.sample.target[lines][0].astype(np.float32)
        soft[rim] += 0.25 * (paint - soft[rim])
        soft[lines] += 0.1 * (case.sample.source[lines] - soft[lines])
        assert judge.judge(case, soft.astype(np.uint8)).success, case.id


@pytest.mark.parametrize("group", ["one", "several"])
def test_a_turn_needs_its_angle_and_its_sense(group: str) -> None:
    judge, opposite = Judge(), 0
    for case in cases("rotate", group, 24):
        plan, draw = case.sample.plan, case.synthesizer.renderer.draw
        (operation,) = plan.operations
        item = plan.target.find(operation.key)

        def turned(change: float, item: SceneObject = item, plan: Plan = plan) -> Scene:
            return with_object(plan.target, dataclasses.replace(item, rotation=item.rotation + change))

        for change in (-3, 3) if item.sprite.texture == "plain" else ():  # patterns turn too
            assert judge.judge(case, draw(turned(change))).success, case.id
        for change in (-30, 30, -2 * operation.degrees):
            if not is_symmetric_under(item.sprite, change):
                opposite += 1
                assert not judge.judge(case, draw(turned(change))).success, (case.id, change)
    assert opposite > 40


def test_small_noise_is_forgiven_and_blur_of_everything_is_not() -> None:
    judge = Judge()
    noise = np.random.default_rng(0)
    for case in cases("recolour", "several"):
        target = case.sample.target.astype(np.int16)
        noisy = np.clip(target + noise.normal(0, 6, target.shape), 0, 255).astype(np.uint8)
        assert judge.judge(case, noisy).success
        rough = np.clip(target + noise.normal(0, 40, target.shape), 0, 255).astype(np.uint8)
        assert not judge.judge(case, rough).rules[2]


def solid(colour: tuple[int, int, int]) -> np.ndarray:
    return np.broadcast_to(np.asarray(colour, np.uint8), (48, 48, 3)).copy()


def test_each_rule_bites_alone() -> None:
    case = cases("remove", "several")[0]
    target, mask = case.sample.target, changed_pixels(case)
    judge = Judge()
    corner = target.copy()
    corner[:24, :24] = 255 - corner[:24, :24]
    assert not judge.judge(case, corner).rules[0]
    inside = target.copy()
    inside[mask] = 255 - inside[mask]
    assert judge.judge(case, inside).rules[1] is False
    assert case.sample.mask is not None
    outside = target.astype(np.int16)
    outside[~case.sample.mask] += np.where(outside[~case.sample.mask] > 127, -16, 16)
    verdict = judge.judge(case, outside.astype(np.uint8))
    assert verdict.rules[:3] == (True, True, False) and verdict.faults == ("not read",)
    generous = Judge(Limits(quadrant=1, changed=1, outside_psnr=0, window=1))
    verdict = generous.judge(case, copy_source(case))
    assert verdict.rules == (True, True, True, False)
    assert any("still there" in fault for fault in verdict.faults)


def test_faults_are_named() -> None:
    generous = Judge(Limits(quadrant=1, changed=1, outside_psnr=0, window=1))

    def told(task: str) -> str:
        case = cases(task, "several")[0]
        return " ".join(generous.judge(case, copy_source(case)).faults)

    assert "missing" in told("add")
    assert "colour is" in told("recolour")
    assert "texture is" in told("retexture")
    assert "as before" in told("rotate")
    assert "as before" in told("scale")
    assert any(word in told("replace") for word in ("shape is", "colour is"))
    case = cases("segment", "several")[0]
    painted = next(mark for mark in case.sample.plan.target.marks)
    other = dataclasses.replace(painted, colour="cyan" if painted.colour != "cyan" else "red")
    wrong = dataclasses.replace(case.sample.plan.target, marks=(other,))
    verdict = generous.judge(case, case.synthesizer.renderer.draw(wrong))
    assert any(f"painted {other.colour}" in fault for fault in verdict.faults)


def test_every_wrong_sprite_is_read_as_wrong() -> None:
    made = Synthesizer(recipe_for(48, 48))
    reader, style = Reader(made), made.plan(0).target.style
    sprites = [
        Sprite(shape=shape, colour=colour, texture=texture)
        for shape, colour, texture in itertools.product(
            ("circle", "star", "ring", "moon"), ("red", "blue", "yellow"), ("plain", "striped", "dotted")
        )
    ]

    def scene(sprite: Sprite) -> Scene:
        item = SceneObject(key=1, sprite=sprite, x=0.4, y=0.55, scale=0.4)
        return Scene(objects=(item,), style=style)

    wrong = 0
    for place, sprite in enumerate(sprites):
        expected = sprites[(place * 7 + 5) % len(sprites)]
        picture = made.renderer.draw(scene(sprite))
        reading = reader.read(picture, scene(expected), 1)
        assert (reading.sprite == expected) == (sprite == expected)
        wrong += sprite != expected
        assert reader.read(picture, scene(sprite), 1).sprite == sprite
    assert wrong > 30


@pytest.mark.parametrize(("shift", "right"), [(0.0, True), (0.03, True), (0.08, False), (-0.1, False)])
def test_positions_are_read(shift: float, right: bool) -> None:
    made = Synthesizer(recipe_for(64, 64))
    reader = Reader(made)
    item = SceneObject(
        key=1, sprite=Sprite(shape="star", colour="red", texture="plain"), x=0.5, y=0.5, scale=0.4
    )
    moved = dataclasses.replace(item, x=0.5 + shift)
    picture = made.renderer.draw(Scene(objects=(moved,)))
    reading = reader.read(picture, Scene(objects=(item,)), 1)
    assert reading.shift[0] == pytest.approx(shift, abs=1.01 / 64) and reading.shift[1] == 0
    assert reading.is_in_place is right
    empty = reader.read(made.renderer.draw(Scene()), Scene(objects=(item,)), 1)
    assert empty.sprite is None


def test_measures_by_hand() -> None:
    black, white = solid((0, 0, 0)), solid((255, 255, 255))
    error = absolute_error(black, white)
    assert error.shape == (48, 48) and float(error.mean()) == 1
    error[24:, 24:] = 0.5
    error[:24] = error[:, :24] = 0
    assert worst_quadrant(error) == 0.5
    assert psnr(black, solid((26, 26, 26)), np.ones((48, 48), bool)) == pytest.approx(19.83, abs=0.01)
    assert psnr(black, white, np.zeros((48, 48), bool)) == np.inf
    with pytest.raises(ValueError, match=r"the result has the shape \(8, 8, 3\), the target \(48, 48, 3\)"):
        Judge().judge(cases("add", "one", 1)[0], np.zeros((8, 8, 3), np.uint8))


def test_wilson_intervals_against_published_values() -> None:
    # Newcombe (1998), table I: 81 of 263, 15 of 148, 0 of 20, and 1 of 29, score method.
    for successes, count, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        found = Rate(successes=successes, count=count).interval
        assert found == pytest.approx((low, high), abs=5e-5)
    assert str(Rate(successes=3, count=4)) == "75 % (30-95)"
    assert str(Rate(successes=0, count=0)) == "-"


def shared_with(asked: list[Case], dataset: EditDataset) -> list[str]:
    """Ids of training samples that show the scenes of a case."""
    keys = {scene_key(case.sample.scene) for case in asked}
    records = [dataset.record(index) for index in range(len(dataset))]
    return [record.id for record in records if scene_key(record.scene or {}) in keys]


def test_held_out_scenes_are_never_trained_on(tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, split="train", objects=(1, 2))
    folder = generate(Job(folder=tmp_path / "train", config=recipe, count=300))
    asked = [case for task in ("remove", "recolour") for case in cases(task, "one", 20)]
    dataset = open_dataset(folder)
    assert shared_with(asked, dataset) == []
    everything = dataclasses.replace(recipe, split="test")
    leaked = open_dataset(generate(Job(folder=tmp_path / "leak", config=everything, count=4)))
    keys = {scene_key(leaked.record(index).scene or {}) for index in range(4)}
    assert not keys & {scene_key(dataset.record(index).scene or {}) for index in range(300)}


def test_a_leak_is_found(tmp_path: Path) -> None:
    case = cases("remove", "one", 1)[0]
    folder = generate(Job(folder=tmp_path / "a", config=case.synthesizer.config, count=8))
    found = shared_with([case], open_dataset(folder))
    assert case.id.rpartition("-")[2] in {name[-5:] for name in found}


def test_the_share_kept_for_judging() -> None:
    made = Synthesizer(RECIPE)
    from pack.training.synthesis.split import is_held_out

    kept = sum(is_held_out(made.plan(index)) for index in range(1200))
    assert 1200 / HELD_OUT_SHARE * 0.7 < kept < 1200 / HELD_OUT_SHARE * 1.3


def test_cases_are_repeatable_different_and_in_their_group() -> None:
    one, again = cases("move", "one", 8), cases("move", "one", 8)
    assert [case.id for case in one] == [case.id for case in again]
    assert all(np.array_equal(a.sample.target, b.sample.target) for a, b in zip(one, again, strict=True))
    assert len({scene_key(case.sample.scene) + case.sample.plan.instruction for case in one}) == 8
    for case in [*one, *cases("reference_add", "one"), *cases("reference_generation", "one")]:
        assert group_of(case.sample.plan) == "one"
    for case in cases("reference_attribute", "several"):
        assert case.sample.plan.source is not None and len(case.sample.plan.source.objects) > 1
    poor = dataclasses.replace(RECIPE, shapes=("circle",), colours=("red",), textures=("plain",))
    with pytest.raises(ValueError, match=r"of 150 different cases of remove with one object\(s\) were found"):
        cases("remove", "one", 150, poor)


def test_the_whole_table() -> None:
    done: list[tuple[str, int]] = []
    outcome = evaluate(
        {"perfect": one_by_one(perfect)},
        Evaluation(config=RECIPE, tasks=("remove", "text_to_image"), cases_per_group=5, batch_size=3),
        lambda name, count: done.append((name, count)),
    )
    assert done[:2] == [("remove-one", 3), ("remove-one", 5)]
    rows = outcome.verdicts["perfect"]
    assert rate(rows).share == 1 and rate(outcome.verdicts["copy the source"]).share == 0
    assert rate(select(outcome.verdicts["edit a random object"], "remove", "several")).share < 1
    lines = outcome.table.split("\n")
    assert lines[0].startswith("| task | perfect, one | perfect, several | copy the source, one")
    assert lines[2].startswith("| remove | 100 % (57-100) | 100 % (57-100) | 0 % (0-43)")
    assert lines[-1].startswith("| **all** |")
    assert "| remove | 100 % | 100 % | 100 % | 100 % | 100 % (72-100) |" in rule_table(rows)
    assert set(outcome.sheets) == {
        f"{task}-{group}" for task in ("remove", "text_to_image") for group in ("one", "several")
    }
    assert all(sheet.width > 400 for sheet in outcome.sheets.values())
    assert markdown_table({"x": rows}).count("\n") == 4
    with pytest.raises(ValueError, match=r"cases_per_group and batch_size must be at least 1, got 0 and 32"):
        Evaluation(config=RECIPE, cases_per_group=0)
