"""Named starting points: what fits a card, what the paper did, what hobby trainers use.

None of the memory presets was run on the card it is named after; they follow published numbers of other
trainers and the plan in `memory.py`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from .config import (
    AdapterConfig,
    MemoryConfig,
    ObjectiveConfig,
    OptimizerConfig,
    OutputConfig,
    RunConfig,
    StageConfig,
    ValidationConfig,
)
from .families import families_where, load_family


@dataclass(frozen=True, kw_only=True, slots=True)
class Overrides:
    """Values in the place of a preset's; 0 or an empty word leaves the preset's value."""

    steps: int = 0
    learning_rate: float = 0.0
    rank: int = 0
    batch_size: int = 0
    gradient_accumulation: int = 0
    resolution: int = 0
    precision: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """Everything a preset decides; single values may be put in its place."""

    stage: StageConfig
    memory: MemoryConfig
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    reference_resolution: int = 0
    condition_dropout: float = 0.1
    """Chance of losing words and pictures together, for families that do: 0.1 is OmniGen's default."""
    translator: Overrides | None = None
    """Set: a prompt translator is taught on the same samples first, and the LoRA sees its prompts."""


HOBBY_STAGE = StageConfig(
    resolution=512, batch_size=1, gradient_accumulation=2, learning_rate=1e-4, steps=2000
)
PAPERS = {
    "kontext": Preset(
        # DreamOmni2. Batch and rate: arXiv 2510.06679 section 3.2. Rank 256 is the successor's (arXiv
        # 2512.22525); resolution and length are chosen, not published.
        stage=StageConfig(
            resolution=1024, batch_size=1, gradient_accumulation=16, learning_rate=5e-6, steps=10_000
        ),
        memory=MemoryConfig(precision="bf16"),
        adapter=AdapterConfig(rank=256, alpha=256),
    ),
    "omnigen": Preset(
        # The LoRA command of the authors' docs/fine-tuning.md; schedule, decay and clipping are the defaults
        # of their train.py. The length is chosen: theirs is 100 times over the data.
        stage=StageConfig(
            resolution=1024, batch_size=2, gradient_accumulation=1, learning_rate=3e-4, steps=2000
        ),
        memory=MemoryConfig(precision="bf16"),
        adapter=AdapterConfig(rank=8, alpha=8),
        optimizer=OptimizerConfig(weight_decay=0.0),
        condition_dropout=0.01,
    ),
}
"""Preset `paper` by family: whose numbers it takes."""
PRESETS = {
    "hobby": Preset(stage=HOBBY_STAGE, memory=MemoryConfig(precision="fp8")),
    "8 GB": Preset(
        stage=HOBBY_STAGE,
        memory=MemoryConfig(precision="fp8", stream_base=True, offload_activations=True),
        reference_resolution=512,
    ),
    "12 GB": Preset(stage=HOBBY_STAGE, memory=MemoryConfig(precision="nf4")),
    "16 GB": Preset(
        stage=dataclasses.replace(HOBBY_STAGE, resolution=768),
        memory=MemoryConfig(precision="nf4"),
        reference_resolution=512,
    ),
    "24 GB": Preset(
        stage=dataclasses.replace(HOBBY_STAGE, resolution=1024), memory=MemoryConfig(precision="int8")
    ),
    "paper": PAPERS["kontext"],
    "references for less": Preset(
        stage=HOBBY_STAGE, memory=MemoryConfig(precision="fp8", reference_attention="exact")
    ),
    "joint": Preset(stage=HOBBY_STAGE, memory=MemoryConfig(precision="fp8"), translator=Overrides()),
}
EVEN = "even"
CHANGED_REGION = (EVEN, "mask", "omnigen_paper", "omnigen_code")
LORA_OPTIMIZERS = ("adamw", "adamw8bit", "prodigy")
AS_FAMILY = "as the family"
TIMESTEPS = (AS_FAMILY, "logit_normal", "uniform", "dynamic_shift")
PRODIGY_RATE = 1.0
"""Prodigy finds the rate by itself; what it is given is a factor on what it found."""
PRODIGY_LEAST_RATE = 0.01
"""Chosen: at the rates of AdamW prodigy's estimate never leaves its start, and nothing is learnt."""
TRANSLATOR_SUFFIX = "-translator"


def chosen_stage(stage: StageConfig, chosen: Overrides) -> StageConfig:
    """The preset's stage with the user's values."""
    names = ("steps", "learning_rate", "batch_size", "gradient_accumulation", "resolution")
    given = {name: getattr(chosen, name) for name in names if getattr(chosen, name)}
    return dataclasses.replace(stage, **given)


def preset_of(name: str, family: str) -> Preset:
    """What a preset decides for a family; ValueError when it is unknown or not for this family."""
    if name not in PRESETS:
        raise ValueError(f"preset is {name!r}; choose one of {', '.join(PRESETS)}")
    if name == "paper":
        if family not in PAPERS:
            raise ValueError(
                f"the preset {name!r} is for {' and '.join(PAPERS)}, for which numbers of a LoRA were "
                f"published; for {family} there are none, choose another preset"
            )
        return PAPERS[family]
    if PRESETS[name].memory.reference_attention == "exact" and not load_family(family).has_exact_references:
        able = families_where(lambda known: known.has_exact_references)
        raise ValueError(
            f"the preset {name!r} is for {' and '.join(able)}, whose references may take a pass of their "
            f"own; {family} has none, choose another preset"
        )
    return PRESETS[name]


def lora_run(
    *, name: str, family: str, task: str, base: dict[str, str], preset: str, chosen: Overrides, seed: int
) -> RunConfig:
    """The config of a LoRA run; ValueError on an unknown preset or a value out of bounds."""
    start = preset_of(preset, family)
    stage = chosen_stage(start.stage, chosen)
    adapter = start.adapter
    if chosen.rank:
        adapter = dataclasses.replace(adapter, rank=chosen.rank, alpha=chosen.rank)
    memory = start.memory
    if chosen.precision:
        # bitsandbytes keeps its weights on the card.
        stream = memory.stream_base and chosen.precision != "nf4"
        memory = dataclasses.replace(memory, precision=chosen.precision, stream_base=stream)
    dropout = start.condition_dropout if load_family(family).drops_condition else 0.0
    return RunConfig(
        name=name,
        family=family,
        task=task,
        base=base,
        stages=(stage,),
        reference_resolution=start.reference_resolution,
        adapter=adapter,
        optimizer=start.optimizer,
        objective=ObjectiveConfig(condition_dropout=dropout),
        memory=memory,
        output=output_for(stage.steps),
        validation=validation_for(stage.steps),
        seed=seed,
    )


def output_for(steps: int) -> OutputConfig:
    """Checkpoints and pictures about eight times in a run."""
    every = max(1, min(250, steps // 8))
    return OutputConfig(checkpoint_every=every, sample_every=every)


def validation_for(steps: int) -> ValidationConfig:
    """A held-out loss about twenty times in a run."""
    return ValidationConfig(every=max(1, min(100, steps // 20)))


def vlm_run(*, name: str, folder: str, chosen: Overrides, full: bool, seed: int) -> RunConfig:
    """A prompt translator's run: rate 1e-5 in full (arXiv 2510.06679), the rest is chosen."""
    stage = StageConfig(
        resolution=512, batch_size=1, gradient_accumulation=8, learning_rate=1e-5 if full else 1e-4, steps=500
    )
    stage = chosen_stage(stage, chosen)
    rank = chosen.rank or 64
    return RunConfig(
        name=name,
        family="vlm",
        task="all",
        base={"vlm": folder},
        stages=(stage,),
        adapter=None if full else AdapterConfig(rank=rank, alpha=rank),
        optimizer=OptimizerConfig(schedule="cosine", warmup_steps=min(20, stage.steps // 10)),
        memory=MemoryConfig(precision=chosen.precision or "bf16"),
        output=dataclasses.replace(output_for(stage.steps), sample_every=0),
        validation=validation_for(stage.steps),
        seed=seed,
    )


def translator_plan(preset: str) -> Overrides | None:
    """How a preset teaches a translator first; None for the presets that do not."""
    return PRESETS[preset].translator if preset in PRESETS else None


def translator_run(lora: RunConfig, folder: str, chosen: Overrides, steps: int) -> RunConfig:
    """The first half of a joint run: the VLM in `folder` sees pictures as large as the LoRA does.

    arXiv 2510.06679, table 4: translator and LoRA trained for each other beat either alone. The base of both
    halves is held in the same precision (chosen).
    """
    chosen = dataclasses.replace(
        chosen,
        steps=steps or chosen.steps,
        resolution=lora.stages[0].resolution,
        precision=lora.memory.precision,
    )
    name = lora.name + TRANSLATOR_SUFFIX
    config = vlm_run(name=name, folder=folder, chosen=chosen, full=False, seed=lora.seed)
    return dataclasses.replace(config, reference_resolution=lora.reference_resolution)


def with_changed_region(config: RunConfig, choice: str) -> RunConfig:
    """The run with one of `CHANGED_REGION`: how places that an edit changes count in the loss."""
    weighting = "none" if choice == EVEN else choice
    objective = dataclasses.replace(config.objective, region_weighting=weighting)
    return dataclasses.replace(config, objective=objective)


def with_optimizer(config: RunConfig, name: str, chosen: Overrides) -> RunConfig:
    """The run with one of `LORA_OPTIMIZERS`; prodigy has no use for a preset's rate, only for the user's.

    Raises ValueError when the user's is a rate of AdamW.
    """
    stages = config.stages
    if name == "prodigy":
        rate = chosen.learning_rate or PRODIGY_RATE
        if rate < PRODIGY_LEAST_RATE:
            raise ValueError(
                f"learning_rate is {rate:g} with the optimizer prodigy, which finds the rate by itself and "
                f"takes a factor on it, at least {PRODIGY_LEAST_RATE:g}; set learning_rate to 0 (it then is "
                f"{PRODIGY_RATE:.1f}), or choose adamw"
            )
        stages = tuple(dataclasses.replace(stage, learning_rate=rate) for stage in stages)
    optimizer = dataclasses.replace(config.optimizer, name=name)
    return dataclasses.replace(config, stages=stages, optimizer=optimizer)


def with_timesteps(config: RunConfig, choice: str) -> RunConfig:
    """The run with one of `TIMESTEPS`: how the share of noise of a sample is drawn."""
    if choice == AS_FAMILY:
        return config
    return dataclasses.replace(config, timesteps=dataclasses.replace(config.timesteps, kind=choice))


def parse_stages(text: str) -> tuple[StageConfig, ...]:
    """Stages from lines `resolution batch learning_rate steps`; ValueError names the line that is none."""
    stages = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split("#")[0].replace(",", " ").split()
        if not words:
            continue
        try:
            resolution, batch, rate, steps = int(words[0]), int(words[1]), float(words[2]), int(words[3])
        except (ValueError, IndexError) as error:
            raise ValueError(
                f"stages, line {number}: {line.strip()!r} is not `resolution batch learning_rate steps`, for "
                "example `256 16 1e-4 2000`"
            ) from error
        stages.append(StageConfig(resolution=resolution, batch_size=batch, learning_rate=rate, steps=steps))
    if not stages:
        raise ValueError("stages is empty; write one line `resolution batch learning_rate steps` per stage")
    return tuple(stages)


def vae_run(
    *, name: str, start: str, options: dict[str, str | int | float | bool], chosen: Overrides, seed: int
) -> RunConfig:
    """A small VAE: new with the sizes in `options`, or from the folder `start`; all settings are chosen."""
    stage = chosen_stage(StageConfig(resolution=128, batch_size=16, learning_rate=1e-3, steps=4000), chosen)
    return RunConfig(
        name=name,
        family="small_vae",
        task="all",
        base={"vae": start} if start else {},
        options={} if start else options,
        stages=(stage,),
        adapter=None,
        optimizer=OptimizerConfig(
            weight_decay=0.0, schedule="cosine", warmup_steps=min(100, stage.steps // 10)
        ),
        memory=MemoryConfig(precision="fp32", gradient_checkpointing=False),
        output=output_for(stage.steps),
        validation=validation_for(stage.steps),
        seed=seed,
    )


def dreamomni_run(
    *,
    name: str,
    base: dict[str, str],
    options: dict[str, str | int | float | bool],
    stages: tuple[StageConfig, ...],
    seed: int,
) -> RunConfig:
    """Full training of a DreamOmni network on text-to-image and editing samples together."""
    total = sum(stage.steps for stage in stages)
    return RunConfig(
        name=name,
        family="dreamomni",
        task="all",
        base=base,
        options=options,
        stages=stages,
        adapter=None,
        optimizer=OptimizerConfig(
            weight_decay=0.01, beta2=0.99, ema_decay=0.999, schedule="constant_with_warmup", warmup_steps=100
        ),
        # Guidance leads away from no words: beside the same pictures in the workflows, or alone.
        objective=ObjectiveConfig(caption_dropout=0.05, condition_dropout=0.05),
        memory=MemoryConfig(precision="bf16", gradient_checkpointing=False),
        output=output_for(total),
        validation=validation_for(total),
        seed=seed,
    )
