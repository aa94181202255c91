"""What stops a run: known before any work, and of the LoRA that it has written."""

from __future__ import annotations

from pathlib import Path

import torch

import comfy.model_management

from ..model_loaders.lora_check import unmatched_keys
from ..training.base_files import opened
from ..training.checkpoint import newest_data
from ..training.config import RunConfig
from ..training.config_json import from_json
from ..training.ladder import laddered
from ..training.process import chosen_device
from ..training.trainer import CHECKPOINTS, require_resumable
from .training_bases import bare_model, base_parts

LARGEST_ON_CPU = 2 << 30


def check_resume(config: RunConfig, folder: Path) -> None:
    """Raise ValueError, listing changed settings, unless the run in `folder` can go on with `config`."""
    data = newest_data(folder / CHECKPOINTS)
    if data is not None:
        old = laddered(from_json(RunConfig, data["config"]), folder)
        require_resumable(old, laddered(config, folder), data.get("base_hashes", {}))


def require_device(config: RunConfig) -> None:
    """Raise ValueError for a large network that only a CPU could train, or a precision the device lacks."""
    require_eight_bit_floats(config)
    files = [file for part in base_parts(config).values() for file in part]
    size = sum(file.stat().st_size for file in files)
    host, worker = comfy.model_management.get_torch_device().type, chosen_device("auto", rank=0).type
    if size <= LARGEST_ON_CPU or "cpu" not in (host, worker):
        return
    place = "ComfyUI runs" if host == "cpu" else f"ComfyUI runs on {host!r}, but training would run"
    raise ValueError(
        f"{place} on the CPU and the base has {size / 2**30:.1f} GiB; that would take months. Training knows "
        "CUDA (NVIDIA, AMD with ROCm) and Apple's MPS only. Start ComfyUI with a CUDA device (check "
        "nvidia-smi and leave --cpu out)."
    )


def require_eight_bit_floats(config: RunConfig) -> None:
    """Raise ValueError when the base is to be held in fp8 on a device that has no such numbers."""
    held = config.adapter is not None and config.memory.precision == "fp8"
    if held and chosen_device("auto", rank=0).type == "mps":
        raise ValueError(
            "the base is to be held in fp8, which Apple's MPS has no numbers for. Set precision to int8, "
            "which takes as little memory, or to bf16."
        )


def require_readable(config: RunConfig) -> None:
    """Raise ValueError when a base is damaged; only the headers are read."""
    for file in (file for part in base_parts(config).values() for file in part):
        if file.suffix == ".safetensors":
            with opened(file):
                pass


def require_cards(processes: int) -> None:
    """Raise ValueError when several training processes would have to share a GPU."""
    cards = torch.cuda.device_count() if torch.cuda.is_available() else processes
    if processes > 1 and processes > cards:
        raise ValueError(
            f"processes is {processes} and this computer has {cards} GPU(s): each process holds the whole "
            f"base on a GPU of its own. Set processes to {cards}; the result stays the same."
        )


def require_loadable(config: RunConfig, lora: Path) -> None:
    """Raise ValueError when ComfyUI would not load every part of a LoRA that was just written."""
    model = bare_model(config)
    unmatched = unmatched_keys(lora, model) if model is not None else []
    if unmatched:
        raise ValueError(
            f"{len(unmatched)} parts of the saved LoRA do not load in this ComfyUI, first {unmatched[0]}. "
            f"The run is kept in {lora.parent.parent}; please report this."
        )
