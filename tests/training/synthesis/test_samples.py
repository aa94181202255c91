"""Every task: exact pairs, true descriptions, unambiguous names, good English, at small and large sizes."""

from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from drag_reading import fit_motion, parse_drag_prompt
from drawn_samples import samples, synthesizer
from grammar import grammar_faults
from pack.training.synthesis.config import ASKED_WEIGHTS, TASK_WEIGHTS, SynthesisConfig, recipe_for
from pack.training.synthesis.naming import background_phrase, place_of, ways_to_name
from pack.training.synthesis.palette import BACKGROUNDS, COLOURS, MARK_COLOURS, MIN_CONTRAST, distance
from pack.training.synthesis.samples import Synthesizer
from pack.training.synthesis.scene import Background, Scene
from pack.training.synthesis.tasks import TASKS
from pack.training.synthesis.workshop import circle_gap
from PIL import Image
from scenes_from_json import scene_from_json

MARKED = ("inpaint", "outpaint", "segment", "detect")
REFERENCED = ("reference_add", "reference_replace", "reference_attribute")
EDITS = ("add", "remove", "replace", "multi", "recolour", "retexture", "move", "scale", "rotate")
EDITS = (*EDITS, *MARKED, *REFERENCED)
GENERATED = ("text_to_image", "reference_generation", "control_canny", "control_segmentation")


def test_the_lists_of_tasks_are_complete() -> None:
    assert {*EDITS, *GENERATED, "control_depth"} == set(TASK_WEIGHTS)
    assert set(TASKS) == {*TASK_WEIGHTS, *ASKED_WEIGHTS}
    assert not {*Synthesizer(recipe_for(64, 64)).weights} & ASKED_WEIGHTS.keys()


def test_an_extracted_picture_shares_what_its_words_name_and_nothing_else() -> None:
    for sample in samples("extract_attribute", 40):
        (reference,), (made,) = sample.plan.references, sample.plan.target.objects
        attribute = re.findall(r"(colour|pattern|material)", sample.plan.instruction)[-1]
        field = "colour" if attribute == "colour" else "texture"
        owners = [
            item.sprite
            for item in reference.scene.objects
            if item.sprite.shape in sample.plan.instruction
            and getattr(item.sprite, field) == getattr(made.sprite, field)
        ]
        assert owners, sample.plan.instruction
        assert any(owner.shape != made.sprite.shape for owner in owners)
        assert getattr(made.sprite, field) not in sample.plan.instruction.split()
        assert "given image" in sample.plan.instruction
        assert not grammar_faults(sample.plan.instruction), sample.plan.instruction
    for sample in samples("extract_object", 40):
        (reference,), (made,) = sample.plan.references, sample.plan.target.objects
        assert made.sprite in [item.sprite for item in reference.scene.objects]
        assert sample.plan.source is None and sample.mask is None
        assert not grammar_faults(sample.plan.instruction), sample.plan.instruction


@pytest.mark.parametrize("task", EDITS)
def test_outside_the_mask_the_target_is_the_source_bit_for_bit(task: str) -> None:
    for sample in [*samples(task, 8), *samples(task, 1, width=256, height=256)]:
        assert sample.source is not None and sample.mask is not None
        changed = (sample.source != sample.target).any(axis=2)
        assert changed.any(), sample.plan.instruction
        assert not (changed & ~sample.mask).any()
        assert np.array_equal(sample.source[~sample.mask], sample.target[~sample.mask])
        assert sample.mask.mean() < 0.9 or task in ("inpaint", "outpaint")


def apply_by_hand(operations: list[dict], scene: dict) -> dict:
    """The operations on plain JSON, written apart from the product's own."""
    scene = json.loads(json.dumps(scene))
    for step in operations:
        objects = {item["key"]: item for item in scene["objects"]}
        item = objects.get(step.get("key"))
        kind = step["kind"]
        if kind == "add":
            scene["objects"].append(step["item"])
        elif kind == "remove":
            scene["objects"].remove(item)
        elif kind == "replace":
            item["sprite"] = step["sprite"]
        elif kind == "change":
            item["sprite"].update({name: step[name] for name in ("colour", "texture") if step[name]})
        elif kind == "move":
            item["x"], item["y"] = item["x"] + step["dx"], item["y"] + step["dy"]
        elif kind == "resize":
            item["scale"] *= step["factor"]
        elif kind == "turn":
            item["rotation"] = math.fmod(item["rotation"] + step["degrees"], 360)
        elif kind == "paint":
            scene["marks"].append(step["mark"])
        elif kind == "uncover":
            scene["marks"] = []
    return scene


@pytest.mark.parametrize("task", EDITS)
def test_the_stated_operation_on_the_description_gives_the_target(task: str) -> None:
    made = synthesizer(task)
    for index in range(6):
        sample = made.sample(index)
        words = json.loads(json.dumps(sample.scene))
        assert apply_by_hand(words["operations"], words["source"]) == words["target"]
        assert np.array_equal(made.renderer.draw(scene_from_json(words["target"])), sample.target)
        assert sample.source is not None
        assert np.array_equal(made.renderer.draw(scene_from_json(words["source"])), sample.source)


@pytest.mark.parametrize("task", [*EDITS, *GENERATED])
def test_instructions_are_good_english_and_vary(task: str) -> None:
    made = synthesizer(task, 128, 128)
    told = [made.plan(index).instruction for index in range(150)]
    faults = [(text, grammar_faults(text)) for text in told if grammar_faults(text)]
    assert not faults
    openings = {re.findall("[A-Za-z]+", text)[0] for text in told}
    assert len(set(told)) > 100 and len(openings) >= 3


@pytest.mark.parametrize("task", [*EDITS, *GENERATED])
def test_objects_stay_on_the_canvas_and_apart(task: str) -> None:
    made = synthesizer(task)
    for index in range(60):
        plan = made.plan(index)
        scenes = [(scene, (96, 64)) for scene in (plan.source, plan.target) if scene]
        scenes += [(reference.scene, (64, 64)) for reference in plan.references if not reference.is_canvas]
        for scene, size in scenes:
            for item in scene.objects:
                across, down = (item.scale / 2 * min(size) / side for side in size)
                assert across <= item.x <= 1 - across and down <= item.y <= 1 - down
            for one, two in itertools.combinations(scene.objects, 2):
                assert circle_gap(one, two, size) >= -1e-9


def test_objects_leave_the_canvas_only_when_asked() -> None:
    made = synthesizer("remove", 64, 64, margin=-0.15, place_jitter=0.25)
    edges = []
    for index in range(40):
        for item in made.plan(index).target.objects:
            edges.append(min(item.x, item.y, 1 - item.x, 1 - item.y) - item.scale / 2)
        assert made.sample(index).target.shape == (64, 64, 3)
    assert -0.15 - 1e-9 <= min(edges) < -0.02


def test_the_overlap_limit_is_used_when_it_is_allowed() -> None:
    made = synthesizer("text_to_image", 64, 64, max_overlap=0.5, single_share=0.0, objects=(4, 4))
    gaps = []
    for index in range(40):
        for one, two in itertools.combinations(made.plan(index).target.objects, 2):
            gaps.append(circle_gap(one, two, (64, 64)) / (min(one.scale, two.scale) / 2))
    assert -0.5 - 1e-9 <= min(gaps) < -0.05


def test_what_is_told_in_words_stands_where_the_words_say() -> None:
    centres = {"left": 0.25, "middle": 0.5, "right": 0.75, "upper": 0.25, "lower": 0.75}
    for task in ("text_to_image", "add", "reference_add", "reference_generation", "inpaint"):
        made = synthesizer(task, 128, 128)
        for index in range(20):
            plan = made.plan(index)
            known = {item.key for item in plan.source.objects} if plan.source and "add" in task else set()
            for item in plan.target.objects:
                if item.key in known:
                    continue
                column, row = place_of(item.x, item.y)
                # Large objects are pushed off the edge a little.
                assert abs(item.x - centres[column]) < 0.02 and abs(item.y - centres[row]) < 0.02
                assert any(item.scale == pytest.approx(size) for size in made.config.sizes)
            assert (
                plan.target.background.kind != "gradient"
                or task != "text_to_image"
                or (plan.target.background.angle in (0.0, 90.0))
            )


def test_gradients_are_told_with_their_direction() -> None:
    across = Background(kind="gradient", colours=("sand", "white"), angle=0.0)
    down = Background(kind="gradient", colours=("sand", "white"), angle=90.0)
    made = synthesizer("text_to_image", 64, 64)
    assert background_phrase(across).endswith("from sand on the left to white on the right")
    assert background_phrase(down).endswith("from sand at the top to white at the bottom")
    rows, columns = (made.renderer.background(one)[..., 2].astype(int) for one in (down, across))
    assert rows[0].mean() < rows[-1].mean() - 50 and columns[:, 0].mean() < columns[:, -1].mean() - 50


def test_scenes_make_the_model_choose() -> None:
    made = synthesizer("remove", 64, 64)
    scenes = [made.plan(index).source for index in range(200)]
    several = [scene for scene in scenes if scene and len(scene.objects) > 1]
    assert 0.7 < len(several) / 200 < 0.9

    def shares(scene: Scene) -> bool:
        pairs = itertools.combinations([item.sprite for item in scene.objects], 2)
        return any(one.shape == two.shape or one.colour == two.colour for one, two in pairs)

    assert sum(shares(scene) for scene in several) / len(several) > 0.6


def fits_words(words: str, item: object, config: SynthesisConfig) -> bool:
    """Whether every attribute word of a name holds for an object."""
    sprite = item.sprite  # type: ignore[attr-defined]
    own = {sprite.shape, sprite.colour, sprite.texture}
    scale = item.scale  # type: ignore[attr-defined]
    size = min(
        zip(("small", "medium", "large"), config.sizes, strict=True), key=lambda pair: abs(pair[1] - scale)
    )
    own |= {"small": {"small", "little"}, "medium": set(), "large": {"large", "big"}}[size[0]]
    return set(words.split()) <= own


def test_names_fit_one_object_only() -> None:
    made = synthesizer("remove", 64, 64, objects=(4, 4), twins=0.2)
    checked = 0
    for index in range(80):
        scene = made.plan(index).source
        assert scene is not None
        for item in scene.objects:
            others = [other for other in scene.objects if other.key != item.key]
            from pack.training.synthesis.dice import Dice

            for name in ways_to_name(item, others, made.config, Dice(index)):
                words, _, side = name.replace(" on the ", " | ").replace(" at the ", " | ").partition(" | ")
                rivals = [other for other in others if fits_words(words, other, made.config)]
                assert fits_words(words, item, made.config)
                if side:
                    assert rivals
                    compare = {
                        "left": lambda other, item=item: other.x > item.x + 0.1,
                        "right": lambda other, item=item: other.x < item.x - 0.1,
                        "top": lambda other, item=item: other.y > item.y + 0.1,
                        "bottom": lambda other, item=item: other.y < item.y - 0.1,
                    }[side]
                    assert all(compare(rival) for rival in rivals)
                else:
                    assert not rivals, (name, scene)
                checked += 1
    assert checked > 500


@pytest.mark.parametrize("task", ["move", "scale", "rotate"])
def test_drag_tuples_decode_to_the_operation(task: str) -> None:
    made = synthesizer(task, 256, 192, drag_share=1.0)
    for index in range(30):
        plan = made.plan(index)
        told = parse_drag_prompt(plan.instruction)
        motion = fit_motion(told.points, (256, 192))
        step = plan.to_json((256, 192))["operations"][0]
        assert told.operation.value == task
        assert motion.error < 0.1
        if task == "rotate":
            assert abs((motion.angle - step["degrees"] + 180) % 360 - 180) < 0.5
        elif task == "scale":
            assert motion.scale == pytest.approx(step["factor"], abs=0.01)
        else:
            assert motion.centre_shift == pytest.approx((step["dx"] * 256, step["dy"] * 192), abs=0.1)


def test_masked_areas_are_black_and_segments_flat() -> None:
    for sample in samples("inpaint", 4) + samples("outpaint", 4):
        assert sample.source is not None and sample.mask is not None
        assert (sample.source[sample.mask] == 0).all()
    for sample in samples("segment", 4):
        colour = MARK_COLOURS[sample.scene["target"]["marks"][0]["colour"]]
        assert sample.mask is not None and (sample.target[sample.mask] == colour).all()


def test_references_are_pictures_of_what_is_asked() -> None:
    made = synthesizer("reference_add", 64, 64)
    counts = set()
    for index in range(60):
        plan = made.plan(index)
        counts.add(len(plan.references))
        assert plan.source is not None
        added = [item.sprite for item in plan.target.objects][len(plan.source.objects) :]
        assert len(added) == len(plan.references)
        for sprite, reference in zip(added, plan.references, strict=True):
            assert sprite in [item.sprite for item in reference.scene.objects]
    assert {1, 2, 3} <= counts
    attribute = synthesizer("reference_attribute", 64, 64)
    most = max(len(attribute.plan(index).references) for index in range(100))
    assert 3 <= most <= 5


@pytest.mark.parametrize("task", ("reference_generation", *REFERENCED))
def test_a_recipe_says_how_many_references(task: str) -> None:
    for low, high in ((1, 1), (2, 2), (2, 3)):
        made = synthesizer(task, references=(low, high))
        counts = {len(made.plan(index).references) for index in range(40)}
        assert counts == set(range(low, high + 1))


def test_photos_are_used_and_captioned(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (90, 140, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    (tmp_path / "noise.txt").write_text("Noise on a screen.")
    made = synthesizer("inpaint", 64, 64, backgrounds_folder=str(tmp_path), backgrounds=("photo",))
    told = [made.sample(index) for index in range(4)]
    assert all("Noise on a screen." in sample.plan.instruction for sample in told)
    assert all(sample.target.std() > 40 for sample in told)


@pytest.mark.parametrize("task", ["text_to_image", "control_canny", "recolour"])
def test_only_backgrounds_of_the_recipe_are_drawn(task: str) -> None:
    for asked in (("plain",), ("plain", "gradient")):
        made = synthesizer(task, 64, 64, backgrounds=asked)
        kinds = {made.plan(index).target.background.kind for index in range(16)}
        assert kinds == set(asked)


def test_a_sample_depends_on_seed_and_index_only() -> None:
    first, second = Synthesizer(recipe_for(64, 64, seed=5)), Synthesizer(recipe_for(64, 64, seed=5))
    forward = [first.sample(index) for index in range(12)]
    backward = [second.sample(index) for index in reversed(range(12))][::-1]
    for one, two in zip(forward, backward, strict=True):
        assert one.plan == two.plan and np.array_equal(one.target, two.target)
    other = Synthesizer(recipe_for(64, 64, seed=6)).sample(0)
    assert other.plan != forward[0].plan


@pytest.mark.parametrize("size", [32, 1024])
def test_the_smallest_and_the_largest_size(size: int) -> None:
    made = Synthesizer(recipe_for(size, size, seed=1))
    for index in range(2 if size > 100 else 20):
        sample = made.sample(index)
        assert sample.target.shape == (size, size, 3)


@pytest.mark.parametrize("task", ["reference_add", "reference_replace", "extract_object"])
def test_what_comes_from_a_reference_can_be_seen_where_it_goes(task: str) -> None:
    made = synthesizer(task, 64, 64)
    for index in range(60):
        target = made.plan(index).target
        if target.background.kind == "photo":
            continue
        behind = [BACKGROUNDS[name] for name in target.background.colours]
        for item in target.objects:
            if item.sprite.colour is not None:
                assert all(distance(COLOURS[item.sprite.colour], colour) >= MIN_CONTRAST for colour in behind)
