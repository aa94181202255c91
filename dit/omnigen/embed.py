"""What becomes of pixels and of time before the decoder: patches, 2-D positions, sinusoids."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor, nn

from .resolution import TOKEN_PIXELS

BASE_GRID = 64
"""The 192-token table runs over the coordinates 0..64, so one token is a third of a step."""
TIME_CHANNELS = 256
MAX_PERIOD = 10000.0


@functools.lru_cache(maxsize=64)
def axis_positions(start: int, count: int, channels: int, max_grid: int) -> Tensor:
    """sin then cos of `count` coordinates from token `start` of the table: (count, channels) float32."""
    with torch.inference_mode(False):
        coordinates = torch.arange(start, start + count, dtype=torch.float64) * (BASE_GRID / max_grid)
        frequencies = MAX_PERIOD ** (-torch.arange(channels // 2, dtype=torch.float64) / (channels // 2))
        angles = torch.outer(coordinates, frequencies)
        return torch.cat((angles.sin(), angles.cos()), dim=1).float()


def grid_positions(
    height: int,
    width: int,
    hidden_size: int,
    max_grid: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Positions of a picture of height x width tokens: the centre of the table, column channels before row's.

    Returns (height * width, hidden_size) on `device`, rounded to `dtype`.
    """
    if max(height, width) > max_grid:
        raise ValueError(
            f"a picture of {width * TOKEN_PIXELS} x {height * TOKEN_PIXELS} px is too large: "
            f"the model's positions end at {max_grid * TOKEN_PIXELS} px a side"
        )
    columns = axis_positions((max_grid - width) // 2, width, hidden_size // 2, max_grid)
    rows = axis_positions((max_grid - height) // 2, height, hidden_size // 2, max_grid)
    # Two short tables travel; joined first, 50 MB would be made and sent in every evaluation at 1024 px.
    columns, rows = (axis.to(device=device, dtype=dtype) for axis in (columns, rows))
    columns = columns[None].expand(height, -1, -1)
    rows = rows[:, None].expand(-1, width, -1)
    return torch.cat((columns, rows), dim=-1).reshape(height * width, hidden_size)


class PatchEmbed(nn.Module):
    """Latent (B, C, H, W) to tokens (B, H/2 * W/2, hidden)."""

    def __init__(
        self, in_channels: int, hidden_size: int, patch_size: int, *, operations: Any, **factory: Any
    ) -> None:
        super().__init__()
        self.proj = operations.Conv2d(
            in_channels, hidden_size, kernel_size=patch_size, stride=patch_size, bias=True, **factory
        )

    def forward(self, latent: Tensor) -> Tensor:
        """Tokens, row by row."""
        return self.proj(latent).flatten(2).transpose(1, 2)


def time_sinusoids(time: Tensor) -> Tensor:
    """cos then sin of time (B) in 0..1, not scaled by 1000: (B, 256) float32."""
    half = TIME_CHANNELS // 2
    frequencies = torch.exp(
        -math.log(MAX_PERIOD) * torch.arange(half, dtype=torch.float32, device=time.device) / half
    )
    angles = time.float()[:, None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=1)


class TimeEmbed(nn.Module):
    """Time (B) to vectors (B, hidden) through a two-layer MLP."""

    def __init__(self, hidden_size: int, *, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            operations.Linear(TIME_CHANNELS, hidden_size, bias=True, **factory),
            nn.SiLU(),
            operations.Linear(hidden_size, hidden_size, bias=True, **factory),
        )

    def forward(self, time: Tensor, dtype: torch.dtype) -> Tensor:
        """Vectors of the given dtype."""
        return self.mlp(time_sinusoids(time).to(dtype))
