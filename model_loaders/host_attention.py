"""ComfyUI's attention for our networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from comfy.ldm.modules.attention import attention_pytorch, optimized_attention

from ..dit.omnigen.blocks import Attention

OVERRIDE = "optimized_attention_override"


def host_attention(transformer_options: dict[str, Any]) -> Attention:
    """The attention ComfyUI was started with and this run's override; what has a mask is kept from both.

    SageAttention accepts a mask and does not look at it, and other packs hang it into a run as an override
    with any name. So rows with a mask take the attention ComfyUI was started with, PyTorch's if that is Sage.
    """
    without_override = {name: value for name, value in transformer_options.items() if name != OVERRIDE}

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        if mask is not None and mask.dtype == torch.bool:
            # Some of ComfyUI's attention functions add the mask whatever its dtype.
            lowest = torch.finfo(query.dtype).min
            mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, lowest)
        drops_masks = "sage" in getattr(optimized_attention, "__name__", "")
        host = attention_pytorch if mask is not None and drops_masks else optimized_attention
        return host(
            query,
            key,
            value,
            query.shape[1],
            mask=mask,
            skip_reshape=True,
            transformer_options=transformer_options if mask is None else without_override,
        )

    return attend
