"""The source of in- and outpainting: the area to paint is black (method figure; it draws no mask)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..sizes import MAX_SIDE


class Border(NamedTuple):
    """Pixels added on each side."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0


def masked_source(image: Tensor, mask: Tensor | None, border: Border) -> tuple[Tensor, Tensor]:
    """(picture with black where it is to be painted, mask with 1 there).

    image (B, H, W, 3) in 0..1, mask (B or 1, h, w) where over 0.5 is painted, brought to the picture's size.
    Raises ValueError for a negative border, a mask batch that does not fit or a result over 16384 px.
    """
    batch, height, width = image.shape[:3]
    if min(border) < 0:
        raise ValueError(f"a border cannot be negative, got {tuple(border)}")
    new_height, new_width = height + border.top + border.bottom, width + border.left + border.right
    if max(new_height, new_width) > MAX_SIDE:
        raise ValueError(f"the picture would become {new_width} x {new_height} px; {MAX_SIDE} is the most")
    painted = _fitted(mask, batch, height, width, image)
    sides = (border.left, border.right, border.top, border.bottom)
    painted = F.pad(painted, sides, value=1.0)
    canvas = F.pad(image.movedim(-1, 1), sides, value=0.0).movedim(1, -1)
    return canvas * (1 - painted[..., None]), painted


def _fitted(mask: Tensor | None, batch: int, height: int, width: int, like: Tensor) -> Tensor:
    if mask is None:
        return torch.zeros(batch, height, width, dtype=like.dtype, device=like.device)
    mask = mask.reshape(-1, *mask.shape[-2:]).to(like)
    if len(mask) not in (1, batch):
        raise ValueError(f"{len(mask)} masks for {batch} pictures; give one mask, or one for each picture")
    if mask.shape[-2:] != (height, width):
        mask = F.interpolate(mask[:, None], (height, width), mode="bilinear", align_corners=False)[:, 0]
    return (mask > 0.5).to(like).expand(batch, -1, -1)
