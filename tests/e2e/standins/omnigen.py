"""Stand-ins for the OmniGen workflows: a random OmniGen folder with its tokenizer, and a small VAE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_omnigen import tiny_config, write_official

from . import StandIn
from .autoencoders import write_taesd
from .training import FEW, QUICK

TRAINING = FEW | {f"DreamOmniTrainLoRA.{name}": value for name, value in QUICK.items()}


def write_omnigen_models(models: Path) -> None:
    """The folder and the VAE under the names the workflows use."""
    write_official(models / "omnigen" / "OmniGen-v1", tiny_config())
    write_taesd(models / "vae" / "sdxl_vae.safetensors", channels=4)


def omnigen(workflow: str, **more: Any) -> StandIn:
    """An OmniGen workflow on small pictures with two steps."""
    settings = {
        "DreamOmniOmniGenEncode.max_image_size": 64,
        "DreamOmniOmniGenEncode.width": 96,
        "DreamOmniOmniGenEncode.height": 64,
        "DreamOmniSchedule.steps": 2,
        "KSampler.steps": 2,
    }
    return StandIn(workflow=workflow, write_models=write_omnigen_models, settings=settings | more)


STAND_INS = [
    omnigen("omnigen-text-to-image"),
    omnigen("omnigen-edit"),
    omnigen("omnigen-subjects"),
    omnigen("omnigen-visual-conditions"),
    omnigen("omnigen-in-context"),
    StandIn(
        workflow="train-omnigen-lora",
        write_models=write_omnigen_models,
        settings=TRAINING,
        # A second run would go on with the first one, and another seed needs another dataset name.
        repeatable=False,
        needs_seed=False,
    ),
]
