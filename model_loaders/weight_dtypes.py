"""What the networks of this pack may be stored as, and what they are computed in, by ComfyUI's rules."""

from __future__ import annotations

import torch
from torch import Tensor

import comfy.model_management
import comfy.utils

WEIGHT_DTYPES = {
    "default": None,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}


def storage_and_compute(
    weights: dict[str, Tensor], storage: torch.dtype | None, supported: list[torch.dtype]
) -> tuple[torch.dtype, torch.dtype | None]:
    """(storage dtype, compute dtype or None for the same); None as `storage` lets ComfyUI choose."""
    storage = storage or comfy.model_management.unet_dtype(
        model_params=comfy.utils.calculate_parameters(weights),
        supported_dtypes=supported,
        weight_dtype=comfy.utils.weight_dtype(weights),
    )
    device = comfy.model_management.get_torch_device()
    return storage, comfy.model_management.unet_manual_cast(storage, device, supported)
