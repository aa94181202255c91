"""What is measured of a network: its error on held-out samples, and what its pictures are judged to be.

B batch, H W pixels; pictures are RGB in -1..1.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ...samplers.flow import denoised_from_velocity, noised
from ..config import RunConfig
from ..drawn import DrawnSamples, DrawnStore
from ..evaluation.cases import Case, held_out_cases
from ..evaluation.rules import Judge, Limits, absolute_error, changed_pixels, worst_quadrant
from ..families import load_family
from ..families.base import Batch, CachedSample
from ..families.dreamomni import PROMPT_PARTS
from ..families.dreamomni_vlm import TrainedPair
from ..recipes.editor import FolderEditor
from ..recipes.small import SmallRecipe
from ..synthesis.config import SynthesisConfig
from ..synthesis.render import Canvas
from ..timesteps import slot_generator
from .kinds import Kind

SIGMAS = (0.35, 0.7, 0.95)
"""Noise shares a curve is measured at."""
HELD_OUT_SEED = 77
BATCH = 64
CPU = torch.device("cpu")
LIMITS = Limits()


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOutError:
    """Mean squared error of the clean picture on held-out samples, unweighted."""

    everywhere: float
    changed: float
    """Inside the region that the edit changes; everywhere for samples without a source."""


class HeldOut:
    """A fixed set of held-out samples with fixed noise; the same for every run of an ablation."""

    def __init__(self, recipe: SmallRecipe, kind: Kind, count: int) -> None:
        config = dataclasses.replace(kind.synthesis(recipe, split="test"), seed=HELD_OUT_SEED)
        store = DrawnStore(DrawnSamples(config=config, count=count))
        self.samples = [store.read(index) for index in range(count)]
        store.close()
        self.family = load_family("dreamomni")
        self.config = RunConfig(
            name="measured", family="dreamomni", adapter=None, options={"train_vlm": True}
        )

    def batches(self) -> list[list[tuple[int, CachedSample]]]:
        """The samples with their numbers, alike ones together."""
        alike: dict[Hashable, list[tuple[int, CachedSample]]] = defaultdict(list)
        for number, sample in enumerate(self.samples):
            alike[self.family.signature(sample)].append((number, sample))
        return [group[at : at + BATCH] for group in alike.values() for at in range(0, len(group), BATCH)]

    @torch.inference_mode()
    def error(self, pair: TrainedPair) -> HeldOutError:
        """The error of a network and its VLM, mean over samples and noise shares."""
        sums = torch.zeros(2)
        for group in self.batches():
            samples = [sample for _, sample in group]
            batch = self.family.collate(samples, self.config, CPU, torch.float32)
            features = pair.features(samples, CPU)
            batch.conditions["prompt"] = {name: getattr(features, name) for name in PROMPT_PARTS}
            for sigma in SIGMAS:
                noise = torch.stack([sample_noise(number, sigma, sample) for number, sample in group])
                sums += self.errors(pair, batch, noise, sigma).sum(dim=0)
        everywhere, changed = (sums / (len(self.samples) * len(SIGMAS))).tolist()
        return HeldOutError(everywhere=everywhere, changed=changed)

    def errors(self, pair: TrainedPair, batch: Batch, noise: Tensor, sigma: float) -> Tensor:
        """(B, 2) errors everywhere and in the changed region."""
        sigmas = torch.full((len(noise),), sigma)
        noisy = noised(batch.target, noise, sigmas)
        velocity = self.family.predict_velocity(pair.dit, batch, noisy, sigmas).float()
        denoised = denoised_from_velocity(noisy, velocity, sigmas)
        squared = (denoised - batch.target).square().mean(dim=1)
        region = torch.ones_like(squared) if batch.mask is None else batch.mask[:, 0]
        inside = (squared * region).sum(dim=(1, 2)) / region.sum(dim=(1, 2)).clamp(min=1)
        return torch.stack([squared.mean(dim=(1, 2)), inside], dim=1)


def sample_noise(number: int, sigma: float, sample: CachedSample) -> Tensor:
    """Noise (3, H, W) that belongs to a sample and a noise share."""
    return torch.randn(sample.target.shape, generator=slot_generator(0, number, round(1000 * sigma), "curve"))


def is_copy(case: Case, result: Canvas) -> bool:
    """Whether the judge would take the result for the source: its own limits, held against the source."""
    assert case.sample.source is not None
    error = absolute_error(result, case.sample.source)
    changed = changed_pixels(case)
    inside = float(error[changed].mean()) if changed.any() else 0.0
    return worst_quadrant(error) < LIMITS.quadrant and inside < LIMITS.changed


def tells_copies(case: Case) -> bool:
    """Whether copying can be told from the right answer: there is a source, and the target is no copy."""
    return case.sample.source is not None and not is_copy(case, case.sample.target)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tally:
    """Counts over the judged cases of one kind."""

    successes: int = 0
    count: int = 0
    copies: int = 0
    could_copy: int = 0


@lru_cache(maxsize=64)
def judged_cases(config: SynthesisConfig, task: str, group: str, count: int) -> tuple[Case, ...]:
    """Held-out cases, drawn once for all runs."""
    return tuple(held_out_cases(config, task, group, count))


def judged(folder: Path, cases: Sequence[Case], evaluations: int) -> Tally:
    """What the judge says of a model folder's answers."""
    editor = FolderEditor(folder, evaluations, CPU)
    judge, successes, copies, could = Judge(), 0, 0, 0
    for start in range(0, len(cases), BATCH):
        batch = cases[start : start + BATCH]
        for case, result in zip(batch, editor(batch), strict=True):
            successes += judge.judge(case, result).success
            if tells_copies(case):
                could += 1
                copies += is_copy(case, result)
    return Tally(successes=successes, count=len(cases), copies=copies, could_copy=could)
