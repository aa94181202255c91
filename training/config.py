"""Everything a training run is set to, as frozen values that are checked once and stored beside the run."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import PurePath

PRECISIONS = ("fp32", "bf16", "fp8", "int8", "nf4")
OPTIMIZERS = ("adamw", "adamw8bit", "prodigy", "muon")
LR_SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")
TIMESTEP_KINDS = ("uniform", "logit_normal", "shifted", "dynamic_shift")
REGION_WEIGHTINGS = ("none", "omnigen_paper", "omnigen_code", "mask")
REFERENCE_ATTENTION = ("full", "exact")
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+-]{0,79}")


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise ValueError naming the allowed values unless `value` is one of them."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; choose one of {', '.join(allowed)}")


def within(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Raise ValueError unless low <= value <= high (NaN is refused too)."""
    if not low <= value <= high:
        bound = f"at least {low}" if high == math.inf else f"between {low} and {high}"
        raise ValueError(f"{name} must be {bound}, got {value}")


def check_run_name(name: str) -> str:
    """The run name itself; ValueError when it could leave its folder or is not portable."""
    if not RUN_NAME.fullmatch(name) or name.endswith((".", " ")) or PurePath(name).name != name:
        raise ValueError(
            f"run name {name!r} cannot be a folder name; use letters, digits, space, . _ + - "
            "(at most 80, starting with a letter or digit, no slash)"
        )
    return name


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterConfig:
    """A LoRA: scaling = alpha / rank; weights are always kept in fp32."""

    rank: int = 16
    alpha: int = 16
    dropout: float = 0.0
    targets: tuple[str, ...] = ()
    """Module name endings to adapt; empty takes the family's own list."""

    def __post_init__(self) -> None:
        within("rank", self.rank, 1, 1024)
        within("alpha", self.alpha, 1)
        within("adapter dropout", self.dropout, 0.0, 0.9)


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """Optimizer and schedule; the rate itself belongs to a stage, `warmup_steps` counts optimizer steps."""

    name: str = "adamw"
    schedule: str = "constant"
    warmup_steps: int = 0
    weight_decay: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    clip_norm: float = 1.0
    """Largest norm of the whole gradient; 0 switches clipping off."""
    ema_decay: float = 0.0
    """Decay of the moving average that is saved instead of the raw weights; 0 switches it off."""

    def __post_init__(self) -> None:
        one_of("optimizer", self.name, OPTIMIZERS)
        one_of("learning rate schedule", self.schedule, LR_SCHEDULES)
        within("warmup_steps", self.warmup_steps, 0)
        within("weight_decay", self.weight_decay, 0.0)
        within("beta1", self.beta1, 0.0, 0.99999)
        within("beta2", self.beta2, 0.0, 0.99999)
        within("clip_norm", self.clip_norm, 0.0)
        within("ema_decay", self.ema_decay, 0.0, 0.999999)


@dataclass(frozen=True, kw_only=True, slots=True)
class TimestepConfig:
    """How the noise share sigma of a training sample is drawn; 1 is pure noise."""

    kind: str = "logit_normal"
    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0
    """Fixed time shift (kind `shifted`): sigma' = shift sigma / (1 + (shift - 1) sigma)."""
    base_tokens: int = 256
    base_mu: float = 0.5
    max_tokens: int = 4096
    max_mu: float = 1.15

    def __post_init__(self) -> None:
        one_of("timestep sampling", self.kind, TIMESTEP_KINDS)
        within("timestep std", self.std, 1e-3)
        within("timestep shift", self.shift, 1e-3)
        within("max_tokens", self.max_tokens, self.base_tokens + 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig:
    """Loss weighting, condition dropout and the guidance value the network is told."""

    region_weighting: str = "none"
    """`omnigen_paper`: 1/||x - x'||^2 on changed latents; `omnigen_code`: the released clamp rule."""
    mask_weight: float = 4.0
    """Weight of the edited region for `mask`."""
    caption_dropout: float = 0.0
    reference_dropout: float = 0.0
    condition_dropout: float = 0.0
    """Chance of dropping caption and references together (OmniGen: 0.1)."""
    guidance: float = 1.0
    """Embedded guidance told to a distilled network while training; chosen, not published."""

    def __post_init__(self) -> None:
        one_of("region weighting", self.region_weighting, REGION_WEIGHTINGS)
        within("mask_weight", self.mask_weight, 1e-3)
        rates = (self.caption_dropout, self.reference_dropout, self.condition_dropout)
        for rate in rates:
            within("dropout", rate, 0.0, 1.0)
        within("sum of the three dropout rates", sum(rates), 0.0, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationConfig:
    """Held-out loss at fixed noise and sigmas; off when fewer than `smallest_split` samples are held out."""

    fraction: float = 0.1
    smallest_split: int = 4
    largest_split: int = 32
    every: int = 100
    sigmas: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    patience: int = 0
    """Validations without a better value before the run stops early; 0 never stops."""

    def __post_init__(self) -> None:
        within("validation fraction", self.fraction, 0.0, 0.9)
        within("validation every", self.every, 1)
        within("validation patience", self.patience, 0)
        for sigma in self.sigmas:
            within("validation sigma", sigma, 0.0, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputConfig:
    """When to keep a checkpoint and when to draw sample pictures, in optimizer steps."""

    checkpoint_every: int = 250
    sample_every: int = 250
    sample_count: int = 2
    sample_steps: int = 12
    sample_guidance: float = 2.5

    def __post_init__(self) -> None:
        within("checkpoint_every", self.checkpoint_every, 1)
        within("sample_every", self.sample_every, 0)
        within("sample_count", self.sample_count, 0, 16)
        within("sample_steps", self.sample_steps, 1, 400)


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryConfig:
    """How the frozen base is held and what is traded for memory."""

    precision: str = "bf16"
    """Precision of the frozen base; fully trained weights are fp32 with bf16 arithmetic unless `fp32`."""
    gradient_checkpointing: bool = True
    stream_base: bool = False
    """Keep the frozen base in host memory and copy each layer one way when it is needed."""
    offload_activations: bool = False
    reference_attention: str = "full"
    """`exact`: references see only themselves and take one pass without gradient."""

    def __post_init__(self) -> None:
        one_of("precision", self.precision, PRECISIONS)
        one_of("reference attention", self.reference_attention, REFERENCE_ATTENTION)


@dataclass(frozen=True, kw_only=True, slots=True)
class StageConfig:
    """One stage: pixels per side of the area trained at, samples per optimizer step, rate and length."""

    resolution: int = 512
    batch_size: int = 1
    gradient_accumulation: int = 1
    learning_rate: float = 1e-4
    steps: int = 1000

    def __post_init__(self) -> None:
        within("resolution", self.resolution, 16, 4096)
        within("batch_size", self.batch_size, 1)
        within("gradient_accumulation", self.gradient_accumulation, 1)
        within("learning_rate", self.learning_rate, 1e-9, 10.0)
        within("steps", self.steps, 1)

    @property
    def global_batch(self) -> int:
        """Samples in one optimizer step, over all processes."""
        return self.batch_size * self.gradient_accumulation


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """A whole run; `base` and `options` are read by the family only."""

    name: str
    family: str
    task: str = "edit"
    """Which samples of the dataset are used: edit, generate, extract or all."""
    base: dict[str, str] = field(default_factory=dict)
    """Role -> absolute path of a file or folder (`transformer`, `vae`, ...)."""
    options: dict[str, str | int | float | bool] = field(default_factory=dict)
    stages: tuple[StageConfig, ...] = (StageConfig(),)
    reference_resolution: int = 0
    """Largest area side of the references; 0 follows the stage's resolution, which they never exceed."""
    adapter: AdapterConfig | None = field(default_factory=AdapterConfig)
    """None trains every weight of the network."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    timesteps: TimestepConfig = field(default_factory=TimestepConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        check_run_name(self.name)
        one_of("task", self.task, ("edit", "generate", "extract", "all"))
        within("seed", self.seed, 0, 2**63 - 1)
        if not self.stages:
            raise ValueError("a run needs at least one stage (resolution, batch, learning rate, steps)")

    @property
    def total_steps(self) -> int:
        """Optimizer steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    def reference_side(self, resolution: int) -> int:
        """Area side, in pixels, of the references beside targets of `resolution`."""
        return min(resolution, self.reference_resolution or resolution)

    def stage_at(self, step: int) -> tuple[int, StageConfig]:
        """(index, stage) that optimizer step `step` (from 0) belongs to; the last stage beyond the end."""
        for index, stage in enumerate(self.stages):
            if step < stage.steps:
                return index, stage
            step -= stage.steps
        return len(self.stages) - 1, self.stages[-1]
