"""What is compared: the reference recipe at a small size, and the runs that differ from it in one thing.

Every number here is chosen, not published. A run's budget is a number of optimizer steps.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from ...dit.positions import PositionScheme
from ..config import AdapterConfig, ObjectiveConfig, RunConfig, ValidationConfig
from ..drawn import DrawnSamples
from ..recipes.small import SmallRecipe
from ..recipes.small_tasks import EASY_SCENES, Weighted
from ..recipes.small_vlm import SmallVLMConfig
from .kinds import EDIT_TASKS, GENERATION_TASKS, TAUGHT

MIXTURES: dict[str, Weighted] = {
    "joint": EDIT_TASKS + GENERATION_TASKS,
    "edit": EDIT_TASKS,
    "generate": GENERATION_TASKS,
}
"""Half of the joint samples are edits."""
Changes = tuple[tuple[str, int | float | bool | str], ...]

SMALL_NETWORK: Changes = (("width", 96), ("heads", 3), ("conv_width", 32))
SMALL_VLM = SmallVLMConfig(width=64, layers=2, heads=2, feedforward=192, picture_width=32, picture_layers=1)
SCHEDULE = "constant_with_warmup"
"""A falling rate would lower the loss at the end of a run and hide how many steps a level takes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One row of a table."""

    name: str
    network: Changes = ()
    weighting: str = "mask"
    mixture: str = "joint"
    positions: str | None = None
    """Position scheme of a LoRA on the finished model; None keeps the model's."""
    adapter: str | None = None
    """The task of a LoRA on the finished model; `none`: no LoRA; None trains a network from nothing."""


REFERENCE = Variant(name="reference")
NO_BLOCK_SKIPS = Variant(name="no block skips", network=(("block_skips", False),))
NO_SKIPS = Variant(
    name="no skips at all",
    network=(("block_skips", False), ("conv_skips", False), ("source_exit_skips", False)),
)
"""Without the convolutions' skips the source's own cannot enter the exit either."""
UNWEIGHTED = Variant(name="changed region not weighted", weighting="none")
EDIT_ONLY = Variant(name="edits only", mixture="edit")
GENERATION_ONLY = Variant(name="text-to-image only", mixture="generate")
SCHEMES = tuple(
    Variant(name=f"positions {scheme.value}", positions=scheme.value, adapter="all")
    for scheme in PositionScheme
)
BARE = "none"
SWITCH = (
    Variant(name="edit adapter", adapter="edit"),
    Variant(name="generate adapter", adapter="generate"),
    Variant(name="no adapter", adapter=BARE),
)

EXPERIMENTS: dict[str, tuple[Variant, ...]] = {
    "a": (REFERENCE, NO_BLOCK_SKIPS, NO_SKIPS),
    "b": SCHEMES,
    "c": (REFERENCE, UNWEIGHTED),
    "d": (REFERENCE, EDIT_ONLY, GENERATION_ONLY),
    "e": SWITCH,
}
"""Letter -> variants; the first one is what the others are held against."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """How much every run gets, and on how much it is judged."""

    steps: int = 1200
    batch_size: int = 32
    lora_steps: int = 120
    lora_batch_size: int = 24
    lora_samples: int = 2880
    lora_learning_rate: float = 2e-3
    measured: int = 12
    """Points of a network's curve."""
    lora_measured: int = 4
    """Points of a LoRA's curve, and 1 for the model without one."""
    held_out: int = 48
    """Samples of each curve."""
    cases: int = 50
    """Judged cases of each task, in each group."""
    evaluations: int = 6
    network: Changes = SMALL_NETWORK
    vlm: SmallVLMConfig = field(default_factory=lambda: SMALL_VLM)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "lora_steps", "lora_samples", "held_out", "cases"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for points, steps in ((self.measured, self.steps), (self.lora_measured, self.lora_steps)):
            if not 1 <= points <= steps:
                raise ValueError(f"a curve of {points} points needs as many steps, {steps} are given")

    def recipe(self, seed: int) -> SmallRecipe:
        """The small model's recipe at this budget; the seed changes weights, noise and samples.

        Scenes are as plain as those its training begins with: minutes are too short to learn more.
        """
        plain = SmallRecipe()
        network = {**dict(plain.network), **dict(self.network)}
        return dataclasses.replace(
            plain,
            seed=plain.seed + 1000 * (seed + 1),
            steps=self.steps,
            further_steps=0,
            batch_size=self.batch_size,
            warmup_steps=min(50, self.steps // 4),
            **EASY_SCENES,
            network=tuple(network.items()),
            vlm=self.vlm,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One training run of an ablation."""

    variant: Variant
    seed: int
    budget: Budget

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.variant.name}, seed {self.seed}".replace(",", "").replace(" ", "-")

    def recipe(self) -> SmallRecipe:
        """The recipe with the variant's network."""
        plain = self.budget.recipe(self.seed)
        network = {**dict(plain.network), **dict(self.variant.network)}
        return dataclasses.replace(plain, network=tuple(network.items()))

    def samples(self) -> DrawnSamples:
        """What a network is trained on."""
        recipe = self.recipe()
        return DrawnSamples(
            config=recipe.synthesis(MIXTURES[self.variant.mixture]), count=recipe.distinct_samples
        )

    def config(self, base: Path) -> RunConfig:
        """The run: a new network on the VLM in `base`, or a LoRA on the model in `base`."""
        return self.lora_config(base) if self.variant.adapter else self.network_config(base)

    def network_config(self, vlm: Path) -> RunConfig:
        """Network and VLM from nothing."""
        recipe = self.recipe()
        run = recipe.base_run(vlm)
        return self.measured(
            dataclasses.replace(
                run,
                name=self.name,
                optimizer=dataclasses.replace(run.optimizer, schedule=SCHEDULE, ema_decay=0.99),
                objective=ObjectiveConfig(
                    region_weighting=self.variant.weighting, mask_weight=run.objective.mask_weight
                ),
            ),
            self.budget.steps // self.budget.measured,
        )

    def lora_config(self, model: Path) -> RunConfig:
        """A LoRA, in b with the variant's position ids for references."""
        budget, variant = self.budget, self.variant
        assert variant.adapter in TAUGHT
        recipe = dataclasses.replace(
            self.recipe(),
            lora_batch_size=budget.lora_batch_size,
            edit_steps=budget.lora_steps,
            lora_learning_rate=budget.lora_learning_rate,
            warmup_steps=min(10, budget.lora_steps // 4),
        )
        run = recipe.lora_run("edit", model)
        adapter = AdapterConfig(rank=recipe.lora_rank, alpha=recipe.lora_rank)
        return self.measured(
            dataclasses.replace(
                run,
                name=self.name,
                task=variant.adapter,
                options={"positions": variant.positions} if variant.positions else {},
                adapter=adapter,
                optimizer=dataclasses.replace(run.optimizer, schedule=SCHEDULE, ema_decay=0.95),
            ),
            budget.lora_steps // budget.lora_measured,
        )

    def measured(self, run: RunConfig, every: int) -> RunConfig:
        """The run with its weights written wherever its curve has a point, and no validation of its own."""
        return dataclasses.replace(
            run,
            output=dataclasses.replace(run.output, checkpoint_every=every),
            validation=ValidationConfig(fraction=0.0),
        )


def jobs_of(experiments: str, seeds: int, budget: Budget) -> list[Job]:
    """The runs that some experiments need, each once; all variants of a seed, seed by seed."""
    chosen = dict.fromkeys(variant for letter in experiments for variant in EXPERIMENTS[letter])
    return [Job(variant=variant, seed=seed, budget=budget) for seed in range(seeds) for variant in chosen]
