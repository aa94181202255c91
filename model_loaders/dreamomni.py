"""A DreamOmni folder as ComfyUI MODEL, VLM and VAE."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..dit.dreamomni.storage import WEIGHTS, FolderIndex, check_weights, read_index, read_weights
from ..vlm.families import hidden_size
from .dreamomni_model import DreamOmniModelConfig
from .dreamomni_vae import open_vae, stock_file
from .patcher import make_patcher
from .paths import model_folder
from .vlm import LoadedVLM, load_vlm
from .vlm_files import read_config
from .weight_dtypes import WEIGHT_DTYPES, storage_and_compute

log = logging.getLogger("dreamomni")
FP16_REASON = "fp16 was never tried with this network and is not offered; use bf16, or fp32 without bf16"


def load_dreamomni(folder: Path, weight_dtype: str) -> tuple[Any, LoadedVLM, Any]:
    """(ModelPatcher, VLM, VAE) of a model folder; raises on missing parts and on parts that do not fit."""
    index = read_index(folder)
    vlm = open_vlm(folder, index)
    vae = open_vae(folder, index.vae, index.network.latent)
    return load_patcher(folder, weight_dtype), vlm, vae


def open_vlm(folder: Path, index: FolderIndex) -> LoadedVLM:
    """The VLM inside the folder, or the one of that name in models/vlm; its width must be the network's."""
    place = folder / index.vlm
    if not place.is_dir():
        try:
            place = model_folder("vlm", index.vlm)
        except FileNotFoundError as err:
            raise FileNotFoundError(
                f"{folder.name} has no folder {index.vlm!r} and models/vlm has none either. Put the Qwen2-VL "
                f"the network was trained with into {folder / 'vlm'}, or write the name of a folder in "
                'models/vlm as "vlm" in config.json.'
            ) from err
    vlm = load_vlm(place, "auto")
    width = hidden_size(read_config(place), str(place / "config.json"))
    if width != index.network.vlm_width:
        raise ValueError(
            f"the VLM in {place} has hidden states with {width} channels, this network was built for "
            f"{index.network.vlm_width}: another VLM belongs to it"
        )
    return vlm


def shared_parts(folder: Path) -> list[Path]:
    """The VLM folder and the VAE file outside the folder that its config.json names, where they are there."""
    found: list[Path] = []
    try:
        index = read_index(folder)
        if not (folder / index.vlm).is_dir():
            found.append(model_folder("vlm", index.vlm))
        if not (folder / index.vae).exists():
            found.append(stock_file(folder, index.vae))
    except (OSError, ValueError):  # what is missing or wrong is told when the folder is opened
        log.debug("%s names parts that are not there", folder.name)
    return found


def chosen_dtypes(weights: dict[str, Tensor], weight_dtype: str) -> tuple[torch.dtype, torch.dtype | None]:
    """(storage dtype, compute dtype or None for the same) by ComfyUI's rules; raises on unknown names."""
    if weight_dtype not in WEIGHT_DTYPES:
        reason = FP16_REASON if weight_dtype == "fp16" else f"use one of {', '.join(WEIGHT_DTYPES)}"
        raise ValueError(f"weight_dtype {weight_dtype!r}: {reason}")
    supported = DreamOmniModelConfig.supported_inference_dtypes
    return storage_and_compute(weights, WEIGHT_DTYPES[weight_dtype], supported)


def load_patcher(folder: Path, weight_dtype: str, disable_dynamic: bool = False) -> Any:
    """The ModelPatcher alone; newer hosts call it again to make one of another kind."""
    index = read_index(folder)
    weights = read_weights(folder / WEIGHTS)
    shapes = {name: tuple(part.shape) for name, part in weights.items()}
    check_weights(shapes, index.network, str(folder / WEIGHTS))
    model_config = DreamOmniModelConfig(index.network)
    model_config.set_inference_dtype(*chosen_dtypes(weights, weight_dtype))
    again = (load_patcher, (folder, weight_dtype))
    return make_patcher(model_config, weights, again, disable_dynamic)
