"""Rotary positions with the su/longrope stretch; they run on over words, pictures, time and target."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .config import OmniGenConfig


@dataclass(frozen=True, slots=True)
class Rotation:
    """cos and sin of every position, (L, head_dim / 2) float32 each: both halves of a head turn alike."""

    cos: Tensor
    sin: Tensor


def rotation(
    config: OmniGenConfig, position_ids: Tensor, sequence_length: int, device: torch.device
) -> Rotation:
    """The rotation of tokens at `position_ids` (L) in a sequence of that many tokens, target included."""
    if sequence_length > config.max_position_embeddings:
        raise ValueError(
            f"the sequence has {sequence_length} tokens (text, reference pictures and target), "
            f"the model reaches {config.max_position_embeddings}: use smaller or fewer pictures, or less text"
        )
    channels = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device) / config.head_dim
    factors = torch.tensor(config.rope_factors(sequence_length), dtype=torch.float32, device=device)
    frequencies = 1.0 / (factors * config.rope_theta**channels)
    angles = torch.outer(position_ids.to(device=device, dtype=torch.float32), frequencies)
    return Rotation(angles.cos() * config.rope_scaling, angles.sin() * config.rope_scaling)


def rotate(heads: Tensor, positions: Rotation) -> Tensor:
    """Turn heads (B, H, L, head_dim) by their positions; channel i pairs with i + head_dim/2, as in Phi-3."""
    first, second = heads.float().chunk(2, dim=-1)
    cos, sin = positions.cos, positions.sin
    turned = (torch.addcmul(first * cos, second, sin, value=-1), torch.addcmul(second * cos, first, sin))
    return torch.cat(turned, dim=-1).to(heads.dtype)
