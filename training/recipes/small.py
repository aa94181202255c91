"""The recipe of the small model: a DreamOmni network that a CPU trains from nothing, and its two LoRAs.

Pixels instead of a VAE, a small Qwen2-VL trained along, pictures also as source tokens. Every number is
chosen, not published.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from ..config import (
    AdapterConfig,
    MemoryConfig,
    ObjectiveConfig,
    OptimizerConfig,
    OutputConfig,
    RunConfig,
    StageConfig,
    TimestepConfig,
    ValidationConfig,
)
from ..drawn import DrawnSamples
from ..synthesis.config import SynthesisConfig, recipe_for
from ..synthesis.textures import MAIN_TEXTURES
from .small_tasks import (
    BASE_TASKS,
    EASY_SCENES,
    EASY_TASKS,
    HARD_TASKS,
    JOINT_TASKS,
    LAST_TASKS,
    LATE_TASKS,
    LORA_SINGLE_SHARE,
    LORA_TASKS,
    POINT_TASKS,
    REFINE_TASKS,
    TURN_TASKS,
    Weighted,
)
from .small_vlm import SmallVLMConfig

HELD_OUT = ValidationConfig().largest_split
RECIPE = "recipe.json"
"""In a finished model folder: every setting of the recipe."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Refinement:
    """One more run on the finished network, on new samples, each seen once."""

    steps: int
    tasks: Weighted
    learning_rate: float = 2.5e-3
    single_share: float | None = None
    """Share of the scenes with one object, None: the recipe's; the others may have several references."""
    drag_share: float | None = None
    """Share of move, scale and rotate told by points, None: the recipe's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SmallRecipe:
    """Everything the small model depends on."""

    side: int = 32
    """Pixels per side of every picture but the references."""
    reference_side: int = 24
    """Pixels per side of a reference; another size than the target's, so that only a source counts as one."""
    seed: int = 20_412_117
    steps: int = 2_900
    batch_size: int = 64
    learning_rate: float = 3e-3
    further_steps: int = 3_300
    """A second stage on the samples that follow, again with warm-up and cosine."""
    further_learning_rate: float = 2.5e-3
    refinements: tuple[Refinement, ...] = (
        Refinement(steps=4_500, tasks=REFINE_TASKS),
        Refinement(steps=3_400, tasks=JOINT_TASKS),
        Refinement(steps=3_700, tasks=HARD_TASKS, single_share=0.2),
        Refinement(steps=4_200, tasks=LATE_TASKS, single_share=0.2),
        Refinement(steps=4_300, tasks=LAST_TASKS, single_share=0.25),
        Refinement(steps=4_500, tasks=POINT_TASKS, single_share=0.4, drag_share=0.45),
        Refinement(steps=5_000, tasks=TURN_TASKS, single_share=0.5, drag_share=0.25),
    )
    """Further runs, each on the network that the one before it left."""
    warmup_steps: int = 100
    distinct_samples: int = 400_000
    """Samples of one pass; they are drawn while training, so their number costs nothing."""
    easy_samples: int = 30_000
    """Training begins with so many samples of few tasks, in plain colours and with one or two objects."""
    edit_steps: int = 250
    """Of the adapter that learns three tasks."""
    generate_steps: int = 150
    """Of the one that learns one."""
    lora_batch_size: int = 48
    lora_samples: int = 16_000
    lora_learning_rate: float = 1e-3
    lora_rank: int = 24
    objects: tuple[int, int] = (1, 3)
    single_share: float = 0.3
    """Share of the scenes with one object, where nothing has to be chosen."""
    backgrounds: tuple[str, ...] = ("plain",)
    textures: tuple[str, ...] = MAIN_TEXTURES
    drag_share: float = 0.2
    """Share of move, scale and rotate told by points; they make the longest prompts."""
    vlm: SmallVLMConfig = field(default_factory=SmallVLMConfig)
    pixel_block: int = 2
    """Pixels per side of what the convolutions see as one cell; smaller ones keep contours sharper."""
    network: tuple[tuple[str, int | float | bool | str], ...] = (
        ("width", 160),
        ("heads", 5),
        ("source_exit_skips", True),
        ("source_matte", True),
        ("conv_width", 48),
        ("patch", 2),
        ("time_width", 32),
        ("sampling_shift", 6.0),
    )
    """Changes to the `tiny` preset, by field."""
    precision: str = "bf16"
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        if self.side < 32 or self.side % 8:
            raise ValueError(f"side must be a multiple of 8 and at least 32, got {self.side}")
        if not 16 <= self.reference_side <= self.side or self.reference_side % 8:
            raise ValueError(
                f"reference_side must be a multiple of 8 from 16 to side, which is {self.side}, got "
                f"{self.reference_side}"
            )
        for name in (
            "steps",
            "edit_steps",
            "generate_steps",
            "lora_samples",
            "distinct_samples",
            "batch_size",
            "lora_batch_size",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def synthesis(self, tasks: Weighted, split: str = "train", seed: int = 0) -> SynthesisConfig:
        """The sticker recipe at this size."""
        return dataclasses.replace(
            recipe_for(self.side, self.side, seed=self.seed + seed),
            tasks=tasks,
            objects=self.objects,
            single_share=self.single_share,
            backgrounds=self.backgrounds,
            textures=self.textures,
            twins=0.0,
            drag_share=self.drag_share,
            reference_size=self.reference_side,
            split=split,
        )

    def base_samples(self) -> DrawnSamples:
        """What the network is trained on."""
        easy = dataclasses.replace(
            self.synthesis(EASY_TASKS, seed=len(LORA_TASKS) + 1),
            objects=(1, min(2, self.objects[1])),
            **EASY_SCENES,
        )
        count = self.distinct_samples
        return DrawnSamples(
            config=self.synthesis(BASE_TASKS),
            count=count,
            easy=easy,
            easy_count=min(self.easy_samples, count // 2),
        )

    def refine_samples(self, number: int) -> DrawnSamples:
        """What further run `number` sees, each sample once; another seed than all before."""
        refinement = self.refinements[number]
        config = self.synthesis(refinement.tasks, seed=len(LORA_TASKS) + 2 + number)
        if refinement.single_share is not None:
            config = dataclasses.replace(config, single_share=refinement.single_share)
        if refinement.drag_share is not None:
            config = dataclasses.replace(config, drag_share=refinement.drag_share)
        return DrawnSamples(config=config, count=refinement.steps * self.batch_size + HELD_OUT)

    def lora_synthesis(self, task: str) -> SynthesisConfig:
        """What an adapter is trained on; another seed than the network's."""
        config = self.synthesis(LORA_TASKS[task], seed=1 + list(LORA_TASKS).index(task))
        return dataclasses.replace(config, single_share=LORA_SINGLE_SHARE)

    def base_run(self, vlm: Path) -> RunConfig:
        """The run that trains network and VLM together."""
        changes: dict[str, str | int | float | bool] = {
            f"network.{name}": value for name, value in self.network
        }
        return RunConfig(
            name="small-base",
            family="dreamomni",
            task="all",
            base={"vlm": str(vlm)},
            options={"preset": "tiny", "train_vlm": True, "pixel_block": self.pixel_block, **changes},
            stages=self.base_stages(),
            adapter=None,
            optimizer=self.optimizer("muon", ema_decay=0.998),
            timesteps=TimestepConfig(kind="shifted", shift=6.0),
            objective=ObjectiveConfig(region_weighting="mask", mask_weight=4.0),
            validation=ValidationConfig(every=1000),
            output=OutputConfig(checkpoint_every=self.checkpoint_every, sample_every=0),
            memory=MemoryConfig(precision=self.precision, gradient_checkpointing=False),
            seed=self.seed,
        )

    def refine_run(self, number: int, model: Path) -> RunConfig:
        """Further run `number`, which goes on with the finished network and its VLM."""
        refinement = self.refinements[number]
        return dataclasses.replace(
            self.base_run(model / "vlm"),
            name=f"small-refined-{number + 1}",
            base={"model": str(model), "vlm": str(model / "vlm")},
            options={"train_vlm": True},
            stages=(self.stage(refinement.steps, refinement.learning_rate, self.batch_size),),
            seed=self.seed + 1 + number,
        )

    def lora_run(self, task: str, model: Path) -> RunConfig:
        """The run that trains one adapter on the finished network."""
        base = self.base_run(model)
        steps = {"edit": self.edit_steps, "generate": self.generate_steps}
        return dataclasses.replace(
            base,
            name=f"small-{task}-lora",
            reference_resolution=self.reference_side,
            task=task,
            base={"model": str(model)},
            options={},
            stages=(self.stage(steps[task], self.lora_learning_rate, self.lora_batch_size),),
            adapter=AdapterConfig(rank=self.lora_rank, alpha=self.lora_rank),
            optimizer=self.optimizer("adamw", ema_decay=0.99),
        )

    def base_stages(self) -> tuple[StageConfig, ...]:
        """One stage, or two when `further_steps` are wanted."""
        planned = ((self.steps, self.learning_rate), (self.further_steps, self.further_learning_rate))
        return tuple(self.stage(steps, rate, self.batch_size) for steps, rate in planned if steps)

    def stage(self, steps: int, rate: float, batch_size: int) -> StageConfig:
        """One stage of a run."""
        return StageConfig(resolution=self.side, batch_size=batch_size, learning_rate=rate, steps=steps)

    def optimizer(self, name: str, ema_decay: float) -> OptimizerConfig:
        """Warm-up, then cosine to nothing."""
        return OptimizerConfig(
            name=name,
            schedule="cosine",
            warmup_steps=self.warmup_steps,
            weight_decay=0.0,
            beta1=0.9,
            beta2=0.98,
            ema_decay=ema_decay,
        )
