"""Holds a LoRA file against ComfyUI's own key map, without loading the model it is for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import comfy.lora
import comfy.model_detection

from ..dit.dreamomni.storage import read_index
from ..dit.omnigen.folder import find_files, read_config
from .dreamomni_model import DreamOmniModelConfig
from .lora import normalised
from .lora_patches import unmatched_names
from .omnigen_model import OmniGenModelConfig
from .state_dicts import kontext_shape, to_bfl_layout
from .weight_files import read_shapes, read_weights

META = torch.device("meta")


def bare(config: Any, weights: dict[str, Tensor]) -> Any:
    """ComfyUI's model of a configuration on the meta device, in torch's own layers."""
    config.set_inference_dtype(torch.bfloat16, None)
    # Newer ComfyUI's layers may have no weights, and so no names, before a file is loaded into them.
    config.custom_operations = torch.nn
    return config.get_model(weights, "", device=META)


def bare_kontext(files: Sequence[Path]) -> Any:
    """ComfyUI's model of a Kontext file or its shards, on the meta device: names and sizes, no weights."""
    shapes = read_shapes(list(files))
    shape, prefix = kontext_shape(files[0].name, shapes)
    inner = {name: size for name, size in shapes.items() if name.endswith((".weight", ".bias", ".scale"))}
    weights = {
        name: torch.empty(tuple(size), dtype=torch.bfloat16, device=META) for name, size in inner.items()
    }
    weights = to_bfl_layout(weights, shape, prefix, {})
    config = comfy.model_detection.model_config_from_unet(weights, "")
    config.unet_config |= {"num_heads": shape.num_heads, "axes_dim": list(shape.axes_dim)}
    return bare(config, weights)


def bare_omnigen(base: Path) -> Any:
    """The MODEL of an OmniGen folder, or of a file in one, on the meta device."""
    network = read_config(find_files(base if base.is_dir() else base.parent).config)
    config = OmniGenModelConfig({"config": network, "image_model": "omnigen"})
    return bare(config, {})


def bare_dreamomni(base: Path) -> Any:
    """The MODEL of a DreamOmni folder on the meta device."""
    config = DreamOmniModelConfig(read_index(base).network)
    return bare(config, {})


BARE_MODELS: dict[str, Callable[[Path, Sequence[Path]], Any]] = {
    "kontext": lambda base, files: bare_kontext(files),
    "omnigen": lambda base, files: bare_omnigen(base),
    "dreamomni": lambda base, files: bare_dreamomni(base),
}
"""Family -> ComfyUI's model of a base (a file or a folder) and its weight files, without weights."""


def bare_model(family: str, base: Path, files: Sequence[Path]) -> Any:
    """ComfyUI's model of a family's base on the meta device; None when its LoRAs are for no MODEL."""
    return BARE_MODELS[family](base, files) if family in BARE_MODELS else None


def unmatched_keys(lora: Path, model: Any) -> list[str]:
    """Names in a LoRA file that ComfyUI would not load onto a (bare) model; empty is what we want.

    Only ComfyUI's own map counts, so that its stock LoRA loader reads the file too. Besides the names, every
    module must become one patch: ComfyUI drops a module with half its matrices.
    """
    weights, _ = read_weights([lora])
    named = normalised(weights, {})
    places = comfy.lora.model_lora_keys_unet(model, {})
    unmatched = unmatched_names(named, places)
    modules = {name.rsplit(".lora_", 1)[0] for name in named if ".lora_" in name}
    patches = comfy.lora.load_lora(dict(named), places, log_missing=False)
    if not unmatched and len(patches) < len(modules):
        unmatched = [f"{len(modules) - len(patches)} of {len(modules)} modules gave no patch"]
    return unmatched
