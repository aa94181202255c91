"""ComfyUI's attention for our networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from comfy.ldm.modules.attention import attention_pytorch, optimized_attention

from ..dit.omnigen.blocks import Attention


def host_attention(transformer_options: dict[str, Any]) -> Attention:
    """The attention ComfyUI was started with and the overrides of this run.

    Where that is SageAttention, rows with a mask take PyTorch's: it accepts a mask and does not look at it.
    """

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        if mask is not None and mask.dtype == torch.bool:
            # Attention functions that overrides bring may add the mask whatever its dtype.
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
            transformer_options=transformer_options,
        )

    return attend
