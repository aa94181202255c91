"""A Kontext weight file of any layout -> ComfyUI's own Flux in a ModelPatcher."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

import comfy.model_detection
import comfy.model_management
import comfy.sd
import comfy.utils

from ..dit.flux_shape import FluxShape
from .patcher import make_patcher
from .state_dicts import kontext_shape, to_bfl_layout
from .weight_files import read_shapes, read_weights, weight_names, weight_paths

FOLDER = "diffusion_models"

# As in ComfyUI's Load Diffusion Model.
WEIGHT_DTYPES: dict[str, dict[str, Any]] = {
    "default": {},
    "fp8_e4m3fn": {"dtype": torch.float8_e4m3fn},
    "fp8_e4m3fn_fast": {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True},
    "fp8_e5m2": {"dtype": torch.float8_e5m2},
}

# Fields of a model config for a file with scales of its own; they changed between ComfyUI versions.
SCALED = ("scaled_fp8",)
NOTED = ("layer_quant_config", "quant_config")


def kontext_names() -> list[str]:
    """Files and shard folders to offer."""
    return weight_names(FOLDER)


def load_kontext(name: str, weight_dtype: str, disable_dynamic: bool = False) -> Any:
    """The ModelPatcher of a Kontext file or shard folder in `models/diffusion_models`.

    Raises ValueError saying what the file is when it is not FLUX.1 Kontext, damaged or incomplete.
    """
    if weight_dtype not in WEIGHT_DTYPES:
        raise ValueError(f"weight_dtype is {weight_dtype!r}; one of {', '.join(WEIGHT_DTYPES)} is needed")
    paths = weight_paths(FOLDER, name)
    shape, prefix = kontext_shape(name, read_shapes(paths))
    weights, metadata = read_weights(paths)
    weights = to_bfl_layout(weights, shape, prefix, metadata)
    options = dict(WEIGHT_DTYPES[weight_dtype])
    # Newer hosts ask a patcher how to load itself again (torch.compile, several GPUs).
    again = (load_kontext, (name, weight_dtype))
    if not host_knows(weights, shape):
        weights, metadata = with_layer_notes(weights, metadata)
        config = small_config(weights, shape, options, metadata)
        return make_patcher(config, weights, again, disable_dynamic)
    patcher = load_by_host(weights, options, metadata, disable_dynamic)
    patcher.cached_patcher_init = again
    return patcher


def host_knows(weights: dict[str, Tensor], shape: FluxShape) -> bool:
    """Whether ComfyUI works out the right heads and axes; older ones take 24 heads of 128 for granted."""
    found = comfy.model_detection.detect_unet_config(weights, "")
    return (found["num_heads"], tuple(found["axes_dim"])) == (shape.num_heads, shape.axes_dim)


def load_by_host(
    weights: dict[str, Tensor], options: dict[str, Any], metadata: dict[str, str], disable_dynamic: bool
) -> Any:
    """ComfyUI's own way, with everything it knows about quantised weights and memory."""
    load = comfy.sd.load_diffusion_model_state_dict
    more = (
        {"disable_dynamic": disable_dynamic}
        if "disable_dynamic" in inspect.signature(load).parameters
        else {}
    )
    return load(weights, model_options=options, metadata=metadata, **more)


def with_layer_notes(
    weights: dict[str, Tensor], metadata: dict[str, str]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Scaled weights as newer hosts' own loader has them noted before it looks for a config."""
    convert = getattr(comfy.utils, "convert_old_quants", None)
    return (weights, metadata) if convert is None else convert(weights, "", metadata=metadata)


def small_config(
    weights: dict[str, Tensor], shape: FluxShape, options: dict[str, Any], metadata: dict[str, str]
) -> Any:
    """ComfyUI's model config with the heads and axes that it would get wrong."""
    config = comfy.model_detection.model_config_from_unet(weights, "", metadata=metadata)
    config.unet_config |= {"num_heads": shape.num_heads, "axes_dim": list(shape.axes_dim)}
    set_dtypes(config, weights, options)
    return config


def set_dtypes(config: Any, weights: dict[str, Tensor], options: dict[str, Any]) -> None:
    """Storage and compute types of a model config, chosen as ComfyUI's loader does."""
    management = comfy.model_management
    device = management.get_torch_device()
    supported = list(config.supported_inference_dtypes)
    stored = options.get("dtype") or management.unet_dtype(
        model_params=comfy.utils.calculate_parameters(weights),
        supported_dtypes=supported,
        weight_dtype=None if is_set(config, *SCALED, *NOTED) else comfy.utils.weight_dtype(weights),
    )
    compute = management.unet_manual_cast(None if is_set(config, *NOTED) else stored, device, supported)
    config.set_inference_dtype(stored, compute)
    if options.get("fp8_optimizations"):
        config.optimizations["fp8"] = True


def is_set(config: Any, *fields: str) -> bool:
    """Whether a model config has one of the fields, and a value in it."""
    known = vars(config).keys() | {name for kind in type(config).__mro__ for name in vars(kind)}
    return any(field in known and getattr(config, field) is not None for field in fields)
