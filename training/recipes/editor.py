"""A finished model folder as an editor that the judge can question."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...samplers.flow import denoised_from_velocity
from ...samplers.schedules import SCHEDULES, ScheduleSettings, make_sigmas
from ...samplers.solvers import SOLVERS
from ..config import RunConfig, one_of
from ..config_json import from_json
from ..drawn import pictures_of
from ..evaluation.cases import Case
from ..evaluation.report import require_distinct
from ..families import load_family
from ..families.base import Batch, CachedSample
from ..families.dreamomni import PROMPT_PARTS
from ..families.dreamomni_vlm import TrainedPair
from ..process import chosen_device
from ..synthesis.config import SynthesisConfig
from ..synthesis.render import Canvas
from ..timesteps import slot_generator
from .loading import add_lora, load_trained, plain_sample
from .small import RECIPE, SmallRecipe
from .small_tasks import LORA_TASKS

BASE = "none"
SOLVER, SCHEDULE = "euler", "fixed"
"""How pictures are painted unless something else is asked for; chosen, see `dev.py bench small_solvers`."""


def lora_for(task: str) -> str:
    """The adapter a task belongs to; `none` for the network alone."""
    found = [name for name, tasks in LORA_TASKS.items() if task in dict(tasks)]
    return found[0] if found else BASE


SWITCHES: dict[str, dict[str, str]] = {
    "own": {},
    "crossed": {"edit": "generate", "generate": "edit"},
    "off": {"edit": BASE, "generate": BASE},
}
"""How the adapters may be set: each task its own, the other one, none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """From noise to a picture."""

    evaluations: int
    """How often the network is asked."""
    solver: str = SOLVER
    schedule: str = SCHEDULE
    shift: float | None = None
    """Shift of the schedule `fixed`; None takes the one of the network's config."""

    def __post_init__(self) -> None:
        one_of("solver", self.solver, tuple(SOLVERS))
        one_of("schedule", self.schedule, tuple(SCHEDULES))
        if self.evaluations < 1:
            raise ValueError(f"a picture needs at least 1 evaluation, got {self.evaluations}")

    @property
    def steps(self) -> int:
        """Steps of the solver; Heun's take two evaluations, but the last one takes one."""
        return (self.evaluations + 1) // 2 if self.solver == "heun" else self.evaluations


class FolderEditor:
    """Answers cases with the model of a folder; noise belongs to the case, so results do not depend on order.

    `switch` says which adapter a task gets where it is not its own (crossed, or off).
    """

    def __init__(
        self,
        folder: Path,
        sampling: int | Sampling,
        device: torch.device,
        switch: dict[str, str] | None = None,
    ) -> None:
        self.folder, self.device = folder, device
        self.sampling = Sampling(evaluations=sampling) if isinstance(sampling, int) else sampling
        self.family = load_family("dreamomni")
        self.config = RunConfig(
            name="judged",
            family="dreamomni",
            task="all",
            adapter=None,
            base={"model": str(folder), "vlm": str(folder / "vlm")},
            options={"train_vlm": True},
        )
        self.switch = switch or {}
        plain = load_trained(folder).to(device)
        self.pairs: dict[str, TrainedPair] = {BASE: plain}
        for name in LORA_TASKS:
            path = folder / "loras" / f"{name}.safetensors"
            if path.is_file():
                self.pairs[name] = copy.deepcopy(plain)
                add_lora(self.pairs[name], path)

    def pair_for(self, task: str) -> TrainedPair:
        """The network with the adapter of a task; without one where the folder has none."""
        wanted = self.switch.get(lora_for(task), lora_for(task))
        return self.pairs.get(wanted, self.pairs[BASE])

    @torch.inference_mode()
    def __call__(self, cases: Sequence[Case]) -> list[Canvas]:
        """Results (H, W, 3) uint8 in the order of the cases."""
        results: dict[int, Canvas] = {}
        alike: dict[Hashable, list[int]] = defaultdict(list)
        questions = [question(case) for case in cases]
        for number, (case, sample) in enumerate(zip(cases, questions, strict=True)):
            alike[lora_for(case.task), self.family.signature(sample)].append(number)
        for numbers in alike.values():
            pair = self.pair_for(cases[numbers[0]].task)
            noise = torch.stack([case_noise(cases[number]) for number in numbers]).to(self.device)
            painted = self.paint(pair, [questions[number] for number in numbers], noise)
            results |= {number: canvas(row) for number, row in zip(numbers, painted, strict=True)}
        return [results[number] for number in range(len(cases))]

    def paint(self, pair: TrainedPair, samples: Sequence[CachedSample], noise: Tensor) -> Tensor:
        """RGB (B, 3, H, W) in -1..1."""
        return self.solve(pair, self.read(pair, samples), noise, self.sampling)

    def read(self, pair: TrainedPair, samples: Sequence[CachedSample]) -> Batch:
        """What the network is told; words and pictures are read once, not at every evaluation."""
        batch = self.family.collate(samples, self.config, self.device, torch.float32)
        features = pair.features(samples, self.device)
        batch.conditions["prompt"] = {name: getattr(features, name) for name in PROMPT_PARTS}
        return batch

    def solve(self, pair: TrainedPair, batch: Batch, noise: Tensor, sampling: Sampling) -> Tensor:
        """RGB (B, 3, H, W) in -1..1 from noise of that shape."""
        latent = pair.dit.config.latent
        tokens = max(1, noise.shape[-1] * noise.shape[-2] // (4 * latent.downscale**2))
        shift = pair.dit.config.sampling_shift if sampling.shift is None else sampling.shift
        settings = ScheduleSettings(tokens=tokens, shift_value=shift)
        sigmas = make_sigmas(sampling.schedule, sampling.steps, settings).to(self.device)

        def denoised(current: Tensor, sigma: Tensor) -> Tensor:
            velocity = self.family.predict_velocity(pair.dit, batch, current, sigma)
            return denoised_from_velocity(current, velocity, sigma)

        return SOLVERS[sampling.solver](denoised, noise, sigmas, disable=True)


def question(case: Case) -> CachedSample:
    """What the network is told of a case: never its target's pixels, only their size."""
    height, width = case.sample.target.shape[:2]
    return plain_sample(
        case.sample.plan.instruction,
        pictures_of(case.sample),
        target=torch.zeros(3, height, width),
        has_source=case.sample.source is not None,
    )


def case_noise(case: Case) -> Tensor:
    """Noise (3, H, W) that belongs to the case."""
    height, width = case.sample.target.shape[:2]
    return torch.randn(3, height, width, generator=slot_generator(0, 0, 0, f"noise of {case.id}"))


def canvas(picture: Tensor) -> Canvas:
    """(3, H, W) in -1..1 as (H, W, 3) uint8."""
    levels = ((picture.float().clamp(-1, 1) + 1) * 127.5).round()
    return levels.permute(1, 2, 0).cpu().numpy().astype(np.uint8)


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedModels:
    """Model folders as editors, and the recipe whose held-out scenes they are asked."""

    config: SynthesisConfig
    editors: dict[str, FolderEditor]


def read_recipe(folder: Path) -> SmallRecipe:
    """The recipe a model folder was made by; FileNotFoundError when it is no such folder."""
    path = folder / RECIPE
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; train a small model with `python dev.py train-small`, or name its folder"
        )
    return from_json(SmallRecipe, json.loads(path.read_text(encoding="utf-8")))


def judged_models(folders: Sequence[Path], sampling: int | Sampling, adapters: str = "own") -> JudgedModels:
    """Editors of folders trained on one recipe of scenes; ValueError when their scenes differ."""
    one_of("adapters", adapters, tuple(SWITCHES))
    configs = {
        dataclasses.replace(read_recipe(folder).synthesis((), split="test"), seed=0) for folder in folders
    }
    if len(configs) > 1:
        raise ValueError("the models know scenes of different kinds or sizes; judge them one by one")
    require_distinct([folder.resolve().name for folder in folders])
    device = chosen_device("auto", 0)
    editors = {
        folder.resolve().name: FolderEditor(folder, sampling, device, SWITCHES[adapters])
        for folder in folders
    }
    return JudgedModels(config=configs.pop(), editors=editors)
