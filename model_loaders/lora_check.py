"""Holds a LoRA file against ComfyUI's own key map, without loading the model it is for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import comfy.lora
import comfy.model_detection

from .lora import normalised, unmatched_names
from .state_dicts import kontext_shape, to_bfl_layout
from .weight_files import read_shapes, read_weights


def bare_kontext(base: Path) -> Any:
    """ComfyUI's model of a Kontext file, on the meta device: names and sizes, no weights."""
    shapes = read_shapes([base])
    shape, prefix = kontext_shape(base.name, shapes)
    inner = {name: size for name, size in shapes.items() if name.endswith((".weight", ".bias", ".scale"))}
    weights = {
        name: torch.empty(tuple(size), dtype=torch.bfloat16, device="meta") for name, size in inner.items()
    }
    weights = to_bfl_layout(weights, shape, prefix)
    config = comfy.model_detection.model_config_from_unet(weights, "")
    config.unet_config |= {"num_heads": shape.num_heads, "axes_dim": list(shape.axes_dim)}
    config.set_inference_dtype(torch.bfloat16, None)
    return config.get_model(weights, "", device=torch.device("meta"))


def unmatched_kontext_keys(lora: Path, base: Path) -> list[str]:
    """Names in a LoRA file that ComfyUI would not load onto the Kontext in `base`; empty is what we want.

    Besides the names, every module must become one patch: ComfyUI drops a module with half its matrices.
    """
    weights, _ = read_weights([lora])
    named = normalised(weights, {})
    places = comfy.lora.model_lora_keys_unet(bare_kontext(base), {})
    unmatched = unmatched_names(named, places)
    modules = {name.rsplit(".lora_", 1)[0] for name in named if ".lora_" in name}
    patches = comfy.lora.load_lora(dict(named), places, log_missing=False)
    if not unmatched and len(patches) < len(modules):
        unmatched = [f"{len(modules) - len(patches)} of {len(modules)} modules gave no patch"]
    return unmatched
