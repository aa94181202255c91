"""Small parts of the DreamOmni network: time embedding, modulation, positions and the attention it is given.

B batch, L tokens, D channels of a token, H W latent grid. No in-place operation: everything can be trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Attention = Callable[[Tensor, Tensor, Tensor, "Tensor | None"], Tensor]
"""(query, key, value (B, heads, L, head width), additive mask (B, 1, L, L) or None) -> (B, L, D)."""

TIME_SCALE = 1000.0
"""The sinusoid sees sigma times this; chosen, not published."""
TIME_PERIOD = 10000.0
NORM_EPSILON = 1e-6


EXPLICIT_TOKENS = 256
"""Up to here a CPU trains faster with the attention matrix written out; PyTorch's fused gradient in bf16
took four times as long at 80 tokens."""


def scaled_dot_product(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """PyTorch's own attention, for training and tests."""
    short = query.shape[-2] <= EXPLICIT_TOKENS
    if short and query.device.type == "cpu" and query.requires_grad:
        return written_out_attention(query, key, value, mask).transpose(1, 2).flatten(2)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return mixed.transpose(1, 2).flatten(2)


def written_out_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(Q K^T / sqrt(d) + mask) V by two matrix products, (B, heads, L, head width)."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    return (scores if mask is None else scores + mask).softmax(dim=-1).to(value.dtype) @ value


def sinusoid(values: Tensor, channels: int, period: float) -> Tensor:
    """Cosines then sines of `values` (...,) at `channels` / 2 frequencies from 1 down to 1 / period."""
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    steps = torch.arange(channels // 2, device=values.device, dtype=values.dtype) / (channels // 2)
    angles = values[..., None] * torch.exp(-math.log(period) * steps)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class Rotation(NamedTuple):
    """Cosine and sine of every token's rotary angles, (B or 1, 1, L, head width / 2)."""

    cos: Tensor
    sin: Tensor

    def apply(self, heads: Tensor) -> Tensor:
        """Rotate channel i with channel i + half of (B, heads, L, head width)."""
        first, second = heads.to(self.cos.dtype).chunk(2, dim=-1)
        turned = [first * self.cos - second * self.sin, second * self.cos + first * self.sin]
        return torch.cat(turned, dim=-1).to(heads.dtype)


def rotation(position_ids: Tensor, axes: tuple[int, int, int], theta: float) -> Rotation:
    """Rotary angles of position ids (B or 1, L, 3), in at least float32."""
    parts = []
    for axis, channels in enumerate(axes):
        steps = torch.arange(0, channels, 2, device=position_ids.device, dtype=position_ids.dtype) / channels
        parts.append(position_ids[..., axis, None] / theta**steps)
    angles = torch.cat(parts, dim=-1).unsqueeze(1)
    return Rotation(angles.cos(), angles.sin())


def grid_embedding(position_ids: Tensor, width: int, theta: float) -> Tensor:
    """Fixed (B or 1, L, width) embedding of rows and columns of position ids (B or 1, L, 3)."""
    rows, columns = position_ids[..., 1], position_ids[..., 2]
    return torch.cat([sinusoid(rows, width // 2, theta), sinusoid(columns, width // 2, theta)], dim=-1)


class TimeEmbedding(nn.Module):
    """sigma (B,) -> sinusoid -> Linear (-> SiLU -> Linear) -> (B, time width)."""

    def __init__(
        self, frequencies: int, width: int, layers: int, dtype: Any, device: Any, operations: Any
    ) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.linear = operations.Linear(frequencies, width, dtype=dtype, device=device)
        second = operations.Linear(width, width, dtype=dtype, device=device) if layers == 2 else None
        self.second = second

    def forward(self, sigma: Tensor, dtype: torch.dtype) -> Tensor:
        embedding = self.linear(sinusoid(sigma * TIME_SCALE, self.frequencies, TIME_PERIOD).to(dtype))
        return embedding if self.second is None else self.second(F.silu(embedding))


class Modulation(nn.Module):
    """Time embedding (B, time width) -> `parts` vectors (B, 1, width): alpha, beta and perhaps a gate.

    Drawn in the figure as Linear, then SiLU, with alpha itself as the factor; both can be exchanged.
    """

    def __init__(
        self,
        time_width: int,
        width: int,
        parts: int,
        order: str,
        form: str,
        dtype: Any,
        device: Any,
        operations: Any,
    ) -> None:
        super().__init__()
        self.parts, self.order, self.form = parts, order, form
        self.linear = operations.Linear(time_width, parts * width, dtype=dtype, device=device)

    def forward(self, time: Tensor) -> tuple[Tensor, ...]:
        silu_last = self.order == "linear-silu"
        values = F.silu(self.linear(time)) if silu_last else self.linear(F.silu(time))
        alpha, *others = values.unsqueeze(1).chunk(self.parts, dim=-1)
        return (alpha if self.form == "alpha" else 1 + alpha, *others)
