"""LoRA files of every common layout -> ComfyUI's patches on a clone of a MODEL.

ComfyUI knows the names of diffusers, kohya, OneTrainer and its own; what it does not read is added here:
PEFT's prefixes, and an alpha in the file's metadata or in adapter_config.json instead of beside the weights.
"""

from __future__ import annotations

import json
import math
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import comfy.lora
import comfy.lora_convert

from .lora_patches import bias_patches, in_model, read_patches, refuse_dora
from .omnigen_lora import omnigen_places
from .paths import model_adapters
from .weight_files import read_weights, safetensors_names, weight_paths

FOLDER = "loras"
SETTINGS_FILE = "adapter_config.json"
"""What PEFT writes beside its weights."""
# An edit and a generate LoRA; they can be gigabytes each, so not more are kept.
MAX_CACHED_FILES = 2

DIFFUSERS_ROOTS = (
    "transformer_blocks.",
    "single_transformer_blocks.",
    "x_embedder.",
    "context_embedder.",
    "time_text_embed.",
    "norm_out.",
    "proj_out.",
)
BFL_ROOTS = (
    "double_blocks.",
    "single_blocks.",
    "img_in.",
    "txt_in.",
    "time_in.",
    "vector_in.",
    "guidance_in.",
    "final_layer.",
)
PEFT_PREFIX = re.compile(r"^(transformer\.|unet\.)?base_model\.model\.")
ADAPTER_NAME = re.compile(r"\.(lora_[AB])\.[^.]+\.(weight|bias)$")

FileState = tuple[str, int, int] | None
_cache: OrderedDict[tuple[FileState, FileState], dict[str, Tensor]] = OrderedDict()


@dataclass(frozen=True, slots=True)
class AppliedLora:
    """What became of a LoRA file: how many modules it changed, and its names that were not used."""

    name: str
    num_modules: int
    unmatched: tuple[str, ...]

    def __str__(self) -> str:
        text = f"{self.name}: {self.num_modules} modules"
        if not self.unmatched:
            return text
        shown = ", ".join(self.unmatched[:3]) + (", ..." if len(self.unmatched) > 3 else "")
        return f"{text}; {len(self.unmatched)} keys not used: {shown}"


def lora_names() -> list[str]:
    """What can be chosen: files in models/loras, and those inside a DreamOmni folder."""
    return [*safetensors_names(FOLDER), *model_adapters()]


def lora_path(name: str) -> Path:
    """The file of one of `lora_names`; raises as `weight_paths` does for a name that is none."""
    adapter = model_adapters().get(name)
    if adapter is not None and name not in safetensors_names(FOLDER):
        return adapter
    (path,) = weight_paths(FOLDER, name)
    return path


def apply_lora(model: Any, name: str, strength: float) -> tuple[Any, AppliedLora]:
    """A clone of the ModelPatcher with the LoRA file `name` at `strength`, and a report.

    Raises ValueError if the file belongs to another model or is of a kind that ComfyUI cannot apply,
    FileNotFoundError if there is none.
    """
    weights = lora_weights(name)
    places = lora_places(model)
    if not any(in_model(key, places) for key in weights):
        raise ValueError(
            f"the LoRA {name} is for another model: none of its {len(weights)} keys "
            f"(such as {next(iter(weights), 'none')}) is in this MODEL, which is {describe(model)}. "
            "Choose a LoRA made for this model."
        )
    refuse_dora(name, weights)
    patches, unread = read_patches(weights, places)
    check_sizes(name, model, patches)
    biases, used = bias_patches(name, weights, places, model.model.state_dict())
    patched = model.clone()
    patched.add_patches(patches | biases, strength)
    return patched, AppliedLora(name, len(patches), tuple(key for key in unread if key not in used))


def lora_places(model: Any) -> dict[str, Any]:
    """LoRA module names -> weights of the MODEL; also bare and diffusers-prefixed ones for networks of ours.

    ComfyUI knows those two spellings only for the networks it has a table of.
    """
    places = comfy.lora.model_lora_keys_unet(model.model, {}) | omnigen_places(model.model)
    for name, place in list(places.items()):
        bare = name.removeprefix("diffusion_model.")
        if bare != name:
            places.setdefault(bare, place)
            places.setdefault(f"transformer.{bare}", place)
    return places


def lora_weights(name: str) -> dict[str, Tensor]:
    """Weights of a LoRA file under names ComfyUI reads, with every alpha; the last files used are kept."""
    path = lora_path(name)
    key = (state_of(path), state_of(path.with_name(SETTINGS_FILE)))
    if key not in _cache:
        weights, metadata = read_weights([path])
        _cache[key] = normalised(weights, settings_beside(path, metadata))
    _cache.move_to_end(key)
    while len(_cache) > MAX_CACHED_FILES:
        _cache.popitem(last=False)
    return _cache[key]


def state_of(path: Path) -> FileState:
    """A file's path, time and size; None where there is none."""
    if not path.is_file():
        return None
    status = path.stat()
    return str(path), status.st_mtime_ns, status.st_size


def normalised(weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights under names ComfyUI reads, with alphas from `settings` where the file has none."""
    renamed = {host_name(name): weight for name, weight in weights.items()}
    for name, down in list(renamed.items()):
        if name.endswith(".lora_A.weight"):
            module = name.removesuffix(".lora_A.weight")
            alpha = alpha_of(module.removeprefix("transformer."), down.shape[0], settings)
            if alpha is not None:
                renamed.setdefault(f"{module}.alpha", torch.tensor(alpha))
    return comfy.lora_convert.convert_lora(renamed)


def host_name(name: str) -> str:
    """A weight's name as ComfyUI's key map has it."""
    name = ADAPTER_NAME.sub(r".\1.\2", PEFT_PREFIX.sub("", name))
    if name.startswith(DIFFUSERS_ROOTS):
        return f"transformer.{name}"
    if name.startswith(BFL_ROOTS) and ".processor." not in name:
        return f"diffusion_model.{name}"
    return name


def settings_beside(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """PEFT's settings: from the file's metadata, as diffusers saves it, or adapter_config.json beside it."""
    if "lora_adapter_metadata" in metadata:
        entries = json.loads(metadata["lora_adapter_metadata"])
        return {key.removeprefix("transformer."): value for key, value in entries.items()}
    config = path.with_name(SETTINGS_FILE)
    if path.stem == "adapter_model" and config.is_file():
        return json.loads(config.read_text("utf-8"))
    return {}


def alpha_of(module: str, rank: int, settings: Mapping[str, Any]) -> float | None:
    """The alpha PEFT used for a module, as ComfyUI counts it (scaling = alpha / rank); None if not stated."""
    patterns = settings.get("alpha_pattern") or {}
    stated = [value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)]
    alpha = stated[0] if stated else settings.get("lora_alpha")
    if alpha is None:
        return None
    return float(alpha) * (math.sqrt(rank) if settings.get("use_rslora") else 1.0)


def check_sizes(name: str, model: Any, patches: Mapping[Any, Any]) -> None:
    """Raise ValueError if a LoRA's matrices do not fit the model's."""
    weights = model.model.state_dict()
    for place, adapter in patches.items():
        key, rows = (place, None) if isinstance(place, str) else place[:2]
        weight, matrices = weights.get(key), getattr(adapter, "weights", None)
        if getattr(adapter, "name", None) != "lora" or weight is None or matrices is None:
            continue
        if weight.ndim != 2 or not weight.is_floating_point() or matrices[5] is not None:
            continue  # packed 4-bit weights do not show their size; control LoRAs enlarge the layer
        got = (matrices[0].shape[0], matrices[1].shape[1])
        wanted = (rows[2] if rows else weight.shape[0], weight.shape[1])
        if got != wanted:
            raise ValueError(
                f"the LoRA {name} is for another model: its {key} is {got[0]}x{got[1]}, in this MODEL, "
                f"which is {describe(model)}, it is {wanted[0]}x{wanted[1]}. "
                "Choose a LoRA made for this model."
            )


def describe(model: Any) -> str:
    """A MODEL in words: its class, and for Flux its sizes."""
    kind, params = type(model.model).__name__, getattr(model.model.diffusion_model, "params", None)
    if params is None or not hasattr(params, "depth_single_blocks"):
        return kind
    return f"{kind} ({params.hidden_size} channels, {params.depth}+{params.depth_single_blocks} blocks)"
