"""How many judged cases show a scene that training showed too, and how many of the others are right.

A case is held out as a pair, before and after; here each of its two scenes is looked up alone among all
scenes that the model's recipe draws, adapters included. Takes half an hour for the shipped model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..training.drawn import DrawnSamples
from ..training.evaluation.cases import CASES_PER_GROUP, GROUPS, Case, held_out_cases
from ..training.evaluation.report import Rate
from ..training.recipes.editor import read_recipe
from ..training.recipes.small import SmallRecipe
from ..training.recipes.small_tasks import LORA_TASKS
from ..training.synthesis.plan import Plan
from ..training.synthesis.samples import Synthesizer
from ..training.synthesis.scene import Scene, to_json
from ..training.synthesis.split import coarse_objects
from .harness import Table

MODEL = Path(__file__).resolve().parent.parent / "assets" / "small"
VERDICTS = "verdicts.json"


def scene_number(scene: Scene) -> int:
    """A number for what one scene shows: objects in their nine places, and marks."""
    marks = sorted(mark.kind + mark.colour for mark in scene.marks)
    told = json.dumps([coarse_objects(to_json(scene)), marks])
    return int.from_bytes(hashlib.sha256(told.encode()).digest()[:8], "big")


def scenes_of(plan: Plan) -> list[int]:
    """The scenes before and after; references are not what is edited."""
    return [scene_number(scene) for scene in (plan.source, plan.target) if scene is not None]


def trained_samples(recipe: SmallRecipe) -> list[DrawnSamples]:
    """Everything the recipe trains on, run by run, without drawn samples that no step reaches."""
    base, steps = recipe.base_samples(), recipe.steps + recipe.further_steps
    runs = [(base, steps * recipe.batch_size)]
    runs += [
        (recipe.refine_samples(number), refinement.steps * recipe.batch_size)
        for number, refinement in enumerate(recipe.refinements)
    ]
    adapters = [
        DrawnSamples(config=recipe.lora_synthesis(task), count=recipe.lora_samples) for task in LORA_TASKS
    ]
    return [
        DrawnSamples(
            config=samples.config,
            count=min(samples.count, seen),
            easy=samples.easy,
            easy_count=min(samples.easy_count, samples.count, seen),
        )
        for samples, seen in runs
    ] + adapters


def plans(samples: DrawnSamples) -> Iterator[Plan]:
    """The plans of drawn samples, none of them painted."""
    plain = Synthesizer(samples.config)
    easy = Synthesizer(samples.easy) if samples.easy is not None else plain
    for index in range(samples.count):
        yield (easy if index < samples.easy_count else plain).plan(index)


def seen_scenes(recipe: SmallRecipe) -> np.ndarray:
    """The numbers of all scenes of training, sorted, each once."""
    parts = []
    for samples in trained_samples(recipe):
        numbers = (number for plan in plans(samples) for number in scenes_of(plan))
        parts.append(np.unique(np.fromiter(numbers, dtype=np.uint64)))
    return np.unique(np.concatenate(parts))


def is_among(number: int, numbers: np.ndarray) -> bool:
    """Whether sorted numbers hold one."""
    place = int(np.searchsorted(numbers, np.uint64(number)))
    return place < len(numbers) and int(numbers[place]) == number


def judged_cases(recipe: SmallRecipe, group: str, count: int, tasks: Sequence[str]) -> Iterator[Case]:
    """The cases that the judge asks, of one group."""
    for task in tasks:
        yield from held_out_cases(recipe.synthesis((), split="test"), task, group, count)


def row(group: str, task: str, verdicts: list[tuple[bool, bool]]) -> tuple[str | float, ...]:
    """Cases and right answers, of all and of those whose scenes were never shown."""
    new = [right for right, is_new in verdicts if is_new]
    whole = Rate(successes=sum(right for right, _ in verdicts), count=len(verdicts))
    apart = Rate(successes=sum(new), count=len(new))
    low, high = apart.interval
    between = f"{100 * low:.0f}-{100 * high:.0f}" if new else "-"
    share = f"{100 * apart.share:.0f}" if new else "-"
    return group, task, whole.count, f"{100 * whole.share:.0f}", apart.count, share, between


def tables(model: Path | None = None) -> list[Table]:
    """One row for each group and task, from the verdicts in a model folder (the shipped one)."""
    folder = model or MODEL
    recipe = read_recipe(folder)
    verdicts = next(iter(json.loads((folder / VERDICTS).read_text(encoding="utf-8")).values()))
    tasks = list(dict.fromkeys(name.rsplit("-", 2)[0] for name in verdicts))
    count = min(CASES_PER_GROUP, len(verdicts) // (len(tasks) * len(GROUPS)))
    seen = seen_scenes(recipe)
    rows: list[tuple[str | float, ...]] = []
    for group in GROUPS:
        found: dict[str, list[tuple[bool, bool]]] = {task: [] for task in tasks}
        for case in judged_cases(recipe, group, count, tasks):
            is_new = not any(is_among(number, seen) for number in scenes_of(case.sample.plan))
            found[case.task].append((bool(verdicts[case.id]), is_new))
        rows += [row(group, task, pairs) for task, pairs in found.items()]
        rows.append(row(group, "all", [pair for pairs in found.values() for pair in pairs]))
    return [
        Table(
            name="right answers on scenes never shown in training",
            columns=("group", "task", "cases", "right %", "never shown", "right % of these", "95 %"),
            rows=tuple(rows),
            note=f"Training draws {len(seen)} different scenes; never shown: neither before nor after.",
        )
    ]
