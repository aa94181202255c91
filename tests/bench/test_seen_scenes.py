"""Judged scenes looked up one by one among the scenes of training."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from pack.bench import seen_scenes
from pack.training.config_json import to_json
from pack.training.drawn import DrawnStore
from pack.training.evaluation.cases import held_out_cases
from pack.training.recipes.small import RECIPE, Refinement, SmallRecipe
from pack.training.synthesis.scene import to_json as scene_json
from pack.training.synthesis.split import coarse_objects

SMALL = SmallRecipe(
    steps=3,
    further_steps=2,
    batch_size=8,
    easy_samples=10,
    lora_samples=6,
    refinements=(Refinement(steps=2, tasks=(("remove", 1.0),), single_share=1.0),),
)


def test_every_sample_that_training_reads_is_looked_at() -> None:
    base, refined, edit, generate = seen_scenes.trained_samples(SMALL)
    assert (base.count, base.easy_count, refined.count) == (40, 10, 16)
    assert (edit.count, generate.count) == (6, 6)
    store = DrawnStore(base)
    assert [plan.instruction for plan in seen_scenes.plans(base)] == [
        store.read(index).instruction for index in range(40)
    ]


def test_a_scene_is_known_by_what_stands_where_and_nothing_else() -> None:
    config = SMALL.synthesis((), split="test")
    scene = next(iter(held_out_cases(config, "remove", "several", 1))).sample.plan.source
    assert scene is not None
    number = seen_scenes.scene_number(scene)
    turned = tuple(dataclasses.replace(item, rotation=item.rotation + 5) for item in scene.objects[::-1])
    assert seen_scenes.scene_number(dataclasses.replace(scene, objects=turned)) == number
    fewer = dataclasses.replace(scene, objects=scene.objects[1:])
    assert coarse_objects(scene_json(fewer)) != coarse_objects(scene_json(scene))
    assert seen_scenes.scene_number(fewer) != number


def test_the_table_counts_cases_whose_scenes_were_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / RECIPE).write_text(json.dumps(to_json(SMALL)))
    config = SMALL.synthesis((), split="test")
    groups = {group: list(held_out_cases(config, "remove", group, 3)) for group in ("one", "several")}
    verdicts = {case.id: int(place > 0) for cases in groups.values() for place, case in enumerate(cases)}
    (tmp_path / "verdicts.json").write_text(json.dumps({"mine": verdicts}))
    shown = seen_scenes.scenes_of(groups["several"][1].sample.plan)[1:]
    monkeypatch.setattr(seen_scenes, "seen_scenes", lambda recipe: np.array(shown, dtype=np.uint64))
    (table,) = seen_scenes.tables(tmp_path)
    rows = {row[:2]: row[2:5] for row in table.rows}
    assert rows["several", "remove"] == rows["several", "all"] == (3, "67", 2)
    assert rows["one", "remove"][:2] == (3, "67")


def test_all_scenes_of_a_recipe_are_found() -> None:
    seen = seen_scenes.seen_scenes(SMALL)
    known = {
        number
        for samples in seen_scenes.trained_samples(SMALL)
        for plan in seen_scenes.plans(samples)
        for number in seen_scenes.scenes_of(plan)
    }
    assert sorted(known) == seen.tolist() and len(known) > 60
