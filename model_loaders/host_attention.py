"""ComfyUI's attention for our networks."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from comfy.ldm.modules.attention import attention_pytorch, optimized_attention

from ..dit.omnigen.blocks import Attention


def host_attention(transformer_options: dict[str, Any]) -> Attention:
    """The attention ComfyUI was started with and the overrides of this run; PyTorch's where there is a mask.

    SageAttention takes a mask and does not look at it, without a word.
    """

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        if mask is not None:
            return attention_pytorch(query, key, value, query.shape[1], mask=mask, skip_reshape=True)
        return optimized_attention(
            query,
            key,
            value,
            query.shape[1],
            skip_reshape=True,
            transformer_options=transformer_options,
        )

    return attend
