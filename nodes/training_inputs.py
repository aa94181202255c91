"""Inputs and outputs that the training nodes share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from ..training.config import PRECISIONS, ObjectiveConfig
from ..training.presets import AS_FAMILY, CHANGED_REGION, LORA_OPTIMIZERS, PRODIGY_RATE, TIMESTEPS, Overrides
from .schema import node_input
from .training_folders import CONTINUE, resume_choices
from .types import CATEGORY, Dataset, Run

STAGE_CATEGORY = f"{CATEGORY}/train"
FROM_PRESET = "as the preset"
BY_PRESET = "as the preset says"
MAX_SEED = 2**63 - 1
NUMBERS: tuple[tuple[Any, str, str, dict[str, Any]], ...] = (
    (io.Int, "steps", "Optimizer steps.", {"max": 1_000_000}),
    (io.Float, "learning_rate", "Rate of the optimizer.", {"max": 1.0, "step": 1e-7, "round": 1e-9}),
    (io.Int, "rank", "Rank of the LoRA; alpha is set equal to it.", {"max": 1024}),
    (io.Int, "batch_size", "Samples computed at once; costs memory.", {"max": 256}),
    (io.Int, "gradient_accumulation", "Batches added up to one optimizer step.", {"max": 1024}),
    (io.Int, "resolution", "Side of a square with the area trained at, in pixels.", {"max": 2048}),
)
"""Kind, name, tooltip and bounds of the numbers that take the place of a preset's."""


def number(kind: Any, name: str, tooltip: str, zero: str = BY_PRESET, **bounds: Any) -> io.Input:
    """An optional number; `zero` says which value its 0 stands for."""
    return node_input(kind, name, default=0, min=0, optional=True, tooltip=f"{tooltip} 0: {zero}.", **bounds)


def override_inputs(usual: Mapping[str, str] | None = None) -> list[io.Input]:
    """Optional settings in the place of the preset's, or of the `usual` ones of a node without presets."""
    words = dict.fromkeys((field.name for field in dataclasses.fields(Overrides)), BY_PRESET)
    words = words if usual is None else dict(usual)
    return [
        *(
            number(kind, name, tooltip, words[name], **bounds)
            for kind, name, tooltip, bounds in NUMBERS
            if name in words
        ),
        *([precision_input(words["precision"])] if "precision" in words else []),
        seed_input("Fixes start weights, order, noise and dropout."),
    ]


def seed_input(tooltip: str) -> io.Input:
    """What everything drawn in a run follows from."""
    return node_input(
        io.Int,
        "seed",
        default=0,
        min=0,
        max=MAX_SEED,
        optional=True,
        control_after_generate=False,
        tooltip=tooltip,
    )


def precision_input(usual: str) -> io.Input:
    """How the frozen base is held; where there is no preset its first choice stands for `usual`."""
    first = "" if usual == BY_PRESET else f" There is no preset here: '{FROM_PRESET}' is {usual}."
    return node_input(
        io.Combo,
        "precision",
        options=[FROM_PRESET, *PRECISIONS],
        default=FROM_PRESET,
        optional=True,
        tooltip="How the frozen base is held: fp8 and int8 take half of bf16, nf4 a quarter (needs "
        f"bitsandbytes). The trained weights are always fp32.{first}",
    )


def resume_input() -> io.Input:
    """The widget that lists runs to go on with."""
    return node_input(
        io.Combo,
        "resume",
        options=resume_choices(),
        default=CONTINUE,
        optional=True,
        tooltip="Go on with a run of this name if there is one, insist on a new one, or pick an old run: "
        "its name then counts instead of run_name.",
    )


def processes_input() -> io.Input:
    """How many devices share a run."""
    return node_input(
        io.Int,
        "processes",
        default=1,
        min=1,
        max=16,
        optional=True,
        tooltip="Training processes, one per GPU, started by accelerate. They share the batch, so the "
        "result stays the same.",
    )


def advanced_choice(name: str, options: tuple[str, ...], default: str, tooltip: str) -> io.Input:
    """A choice that most users leave as it is."""
    return node_input(
        io.Combo, name, options=list(options), default=default, optional=True, advanced=True, tooltip=tooltip
    )


def changed_region_input(default: str) -> io.Input:
    """How places that an edit changes count in the loss."""
    return advanced_choice(
        "changed_region",
        CHANGED_REGION,
        default,
        "How much what an edit changes counts in the loss. even: as all the rest. mask: "
        f"{ObjectiveConfig().mask_weight:g} times inside the sample's mask; a sample without a mask counts "
        "evenly. omnigen_paper, omnigen_code: the less differs from the source, the more it counts, as "
        "OmniGen's paper or its code has it.",
    )


def optimizer_input() -> io.Input:
    """What moves the weights of a LoRA."""
    return advanced_choice(
        "optimizer",
        LORA_OPTIMIZERS,
        LORA_OPTIMIZERS[0],
        "adamw: what all presets were made for. adamw8bit: its moments in 8 bit, less memory (needs "
        "bitsandbytes). prodigy: finds the rate by itself (needs prodigyopt); learning_rate is then a factor "
        f"on that: leave it at 0, which means {PRODIGY_RATE:.1f}, prodigy's own unit.",
    )


def timesteps_input() -> io.Input:
    """How the share of noise of a training sample is drawn."""
    return advanced_choice(
        "timesteps",
        TIMESTEPS,
        AS_FAMILY,
        "How noisy the samples are that are trained on. as the family: logit_normal, for every "
        "family so far. logit_normal: mostly about half noise. uniform: every share of noise alike. "
        "dynamic_shift: noisier, the more so the larger the picture, as FLUX samples.",
    )


def name_input(default: str) -> io.Input:
    """The run's name."""
    return node_input(
        io.String,
        "run_name",
        default=default,
        tooltip="Folder in output/dreamomni/training and name of the result; no slashes.",
    )


def run_outputs(name: str, label: str) -> list[Any]:
    """Outputs of the training nodes."""
    return [
        io.String.Output(name, display_name=name, tooltip=label),
        Run.Output("run", display_name="run", tooltip="For the training report."),
    ]


def dataset_input() -> io.Input:
    """The samples."""
    return node_input(Dataset, "dataset", tooltip="Samples: from Load Dataset or Make Sticker Dataset.")


def chosen_overrides(settings: dict[str, Any]) -> Overrides:
    """The optional widgets that were set."""
    names = {field.name for field in dataclasses.fields(Overrides)}
    given = {name: value for name, value in settings.items() if name in names}
    if given.get("precision") == FROM_PRESET:
        given["precision"] = ""
    return Overrides(**given)
