"""Held-out cases, apart for one object and for several: what no training sample has both before and after."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from ..synthesis.config import SynthesisConfig
from ..synthesis.generate import VERSION
from ..synthesis.plan import Plan
from ..synthesis.samples import Sample, Synthesizer
from ..synthesis.split import scene_key

GROUPS = ("one", "several")
CASES_PER_GROUP = 200
CASE_SEED = 20_412_117


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A question to a model and its right answer."""

    id: str
    task: str
    group: str
    """`one`: the source holds one object, so nothing in it had to be chosen; `several`: it holds more.

    Without a source the fullest picture counts, a sheet or the target. A reference beside a source is not
    counted: that of a `reference_add` case may hold two objects in either group, one of them named.
    """
    sample: Sample
    synthesizer: Synthesizer
    """The recipe and renderer the case was made with."""


def choices(plan: Plan) -> int:
    """How many objects the source holds; without a source, the fullest of the sheets and the target."""
    if plan.source is not None:
        return len(plan.source.objects)
    sheets = [len(reference.scene.objects) for reference in plan.references]
    return max([*sheets, len(plan.target.objects)])


def group_of(plan: Plan) -> str:
    """`one` or `several`."""
    return "one" if choices(plan) == 1 else "several"


def recipe_for_group(config: SynthesisConfig, task: str, group: str) -> SynthesisConfig:
    """The recipe restricted to one task, held-out scenes and one group.

    A scene has no more objects than the recipe says after objects were added, and `several` asks for two
    before. So with a recipe of up to three objects no case adds from two references; with four some do.
    """
    most = config.objects[1]
    if group == "one":
        # `add` needs room for a second object beside the one in the source.
        objects, single = (1, 2 if "add" in task else 1), 1.0
    else:
        objects, single = (2, max(most, 2)), 0.0
    return dataclasses.replace(
        config, tasks=((task, 1.0),), objects=objects, single_share=single, split="test", seed=CASE_SEED
    )


def cases_fingerprint(config: SynthesisConfig) -> str:
    """A hash of all that decides what the cases of a recipe show; recipes with the same cases share it.

    Stickers and photos count by their names and sizes, wherever their folder lies.
    """
    # Any task and group will do: what they set is no part of the recipe then, nor are seed and split.
    recipe = recipe_for_group(config, "remove", "several")
    material = Synthesizer(recipe).library.fingerprint()
    recipe = dataclasses.replace(recipe, stickers_folder=None, backgrounds_folder=None)
    return hashlib.sha256(f"{VERSION} {recipe.fingerprint()} {material}".encode()).hexdigest()


def held_out_cases(
    config: SynthesisConfig, task: str, group: str, count: int = CASES_PER_GROUP
) -> Iterator[Case]:
    """`count` different cases of a task and group, the same on every run.

    Raises ValueError if the recipe has no such case.
    """
    synthesizer = Synthesizer(recipe_for_group(config, task, group))
    seen: set[str] = set()
    index, made, limit = 0, 0, count * 10
    while made < count:
        if index >= limit:
            raise ValueError(
                f"only {made} of {count} different cases of {task} with {group} object(s) were found in "
                f"{limit} draws. Ask for fewer, or use a recipe with more shapes and colours."
            )
        plan = synthesizer.plan(index)
        key = scene_key(plan.to_json(synthesizer.renderer.size)) + plan.instruction
        if group_of(plan) == group and key not in seen:
            seen.add(key)
            made += 1
            yield Case(
                id=f"{task}-{group}-{index:05d}",
                task=task,
                group=group,
                sample=synthesizer.sample(index),
                synthesizer=synthesizer,
            )
        index += 1
