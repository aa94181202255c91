"""ComfyUI's attention for our networks."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from comfy.ldm.modules.attention import attention_pytorch, optimized_attention

from ..dit.omnigen.blocks import Attention

OVERRIDE = "optimized_attention_override"
SAGE = re.compile(r"(?<![a-z])sage|Sage")


def host_attention(transformer_options: dict[str, Any]) -> Attention:
    """The attention ComfyUI was started with and this run's override.

    Masked rows never go through SageAttention: it accepts a mask and does not look at it. ComfyUI may be
    started with it, and other packs hang it into a run as an override; every other override sees all rows,
    as the rows of one pass must agree.
    """
    override = transformer_options.get(OVERRIDE)
    masked_options = transformer_options
    if override is not None and is_sage(override):
        masked_options = {name: value for name, value in transformer_options.items() if name != OVERRIDE}

    masked_host = attention_pytorch if is_sage(optimized_attention) else optimized_attention
    seen: list[Tensor] = []

    def added(mask: Tensor, dtype: torch.dtype) -> Tensor:
        """The mask as numbers: some attention functions add it whatever its dtype. All layers share one."""
        if mask.dtype != torch.bool:
            return mask
        if not seen or seen[0] is not mask:
            numbers = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
            seen[:] = [mask, numbers]
        return seen[1]

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        host, options = optimized_attention, transformer_options
        if mask is not None:
            host, options, mask = masked_host, masked_options, added(mask, query.dtype)
        return host(
            query, key, value, query.shape[1], mask=mask, skip_reshape=True, transformer_options=options
        )

    return attend


def is_sage(function: Any) -> bool:
    """Whether a function is SageAttention or hands on to it, by the names in it."""
    function = getattr(function, "func", function)  # of a partial
    code = getattr(function, "__code__", None)
    names = [getattr(function, "__name__", "")]
    if code is not None:
        names += [*code.co_names, *code.co_freevars]
    return any(SAGE.search(name) for name in names)
