"""Samples of one task, as tests of the sticker pipeline draw them."""

from __future__ import annotations

import dataclasses

from pack.training.synthesis.config import recipe_for
from pack.training.synthesis.samples import Sample, Synthesizer


def synthesizer(task: str, width: int = 96, height: int = 64, **changes: object) -> Synthesizer:
    return Synthesizer(dataclasses.replace(recipe_for(width, height, seed=11, tasks=(task,)), **changes))


def samples(task: str, count: int, **options: object) -> list[Sample]:
    made = synthesizer(task, **options)
    return [made.sample(index) for index in range(count)]
