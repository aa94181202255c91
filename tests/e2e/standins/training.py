"""Stand-ins for the training workflows: a few steps on a few stickers with tiny networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from host_models import TINY
from tiny_vlm import write_vlm

from . import StandIn
from .kontext import write_kontext_models

FEW = {
    "DreamOmniStickerDataset.count": 4,
    "DreamOmniStickerDataset.size": 64,
    "DreamOmniStickerDataset.format": "folder",
    "DreamOmniStickerDataset.processes": 1,
    "DreamOmniDatasetPreview.count": 2,
}
QUICK = {
    "steps": 2,
    "resolution": 64,
    "rank": 2,
    "batch_size": 1,
    "gradient_accumulation": 1,
    "precision": "fp32",
}


def write_vlm_folder(models: Path, name: str, family: str) -> None:
    """A tiny random VLM under the name of the real one."""
    if not (models / "vlm" / name).exists():
        write_vlm(models / "vlm" / name, family=family)


def write_small_vlm(models: Path) -> None:
    write_vlm_folder(models, "Qwen2-VL-2B-Instruct", "qwen2_vl")


def write_large_vlm(models: Path) -> None:
    write_vlm_folder(models, "Qwen2.5-VL-7B-Instruct", "qwen2_5_vl")


def training(workflow: str, write_models: Any, settings: dict[str, Any], **more: Any) -> StandIn:
    # A second run would go on with the first one, and another seed needs another dataset name.
    return StandIn(
        workflow=workflow,
        write_models=write_models,
        settings=FEW | settings,
        repeatable=False,
        needs_seed=False,
        **more,
    )


def lora(workflow: str) -> StandIn:
    """A LoRA on the tiny Kontext."""
    clip = {"text_dim": TINY.text_dim, "pooled_dim": TINY.pooled_dim}
    return training(
        workflow,
        write_kontext_models,
        {f"DreamOmniTrainLoRA.{name}": value for name, value in QUICK.items()},
        replaced={"DualCLIPLoader": ("StandInFluxCLIP", clip)},
    )


STAND_INS = [
    lora("train-edit-lora"),
    lora("train-generate-lora"),
    training(
        "train-dreamomni-small",
        write_small_vlm,
        {"DreamOmniTrainDreamOmni.stages": "32 2 1e-3 1\n64 2 1e-3 1"},
    ),
    training(
        "train-prompt-translator",
        write_large_vlm,
        {f"DreamOmniTrainVLM.{name}": value for name, value in QUICK.items() if name != "resolution"},
    ),
]
