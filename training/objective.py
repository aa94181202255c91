"""Rectified-flow objective: the weighting of the edited region and the loss.

B batch, C channels, H W latent grid. The convention of noise and velocity is in `samplers/flow.py`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import ObjectiveConfig

PAPER_WEIGHT_LIMIT = 64.0
"""Ceiling of 1/||x - x'||^2; chosen, not published (the code's own rule clamps at 64)."""
UNCHANGED_BELOW = 1e-3


def paper_weights(latent: Tensor, source: Tensor) -> Tensor:
    """OmniGen paper: w_ij = 1 where x_ij = x'_ij, else 1/||x - x'||^2, for (B, C, H, W) latents.

    The norm is the one of the whole difference, so a small edit weighs much. It is taken as the mean square,
    so that resolution does not matter, and the weight is limited (both chosen, not published).
    """
    difference = (latent - source).float()
    squared = difference.square().mean(dim=(1, 2, 3), keepdim=True)
    weight = 1 / squared.clamp(min=1 / PAPER_WEIGHT_LIMIT)
    return torch.where(difference == 0, torch.ones_like(difference), weight.expand_as(difference))


def code_weights(latent: Tensor, source: Tensor) -> Tensor:
    """OmniGen code (the block its train.py leaves inactive): the clamp rule, (B, C, H, W).

    m = mean |x - x'|; m < 0.001 drops the sample; m <= 0.8 weighs places that differ by more than 0.3 with
    clamp(1 / m, 5, 64); a larger m leaves every weight 1.
    """
    difference = (latent - source).float().abs()
    mean = difference.mean(dim=(1, 2, 3), keepdim=True)
    changed = (1 / (mean + 1e-6)).clamp(5.0, 64.0)
    weights = torch.where((difference > 0.3) & (mean <= 0.8), changed.expand_as(difference), 1.0)
    return torch.where(mean < UNCHANGED_BELOW, torch.zeros_like(weights), weights)


def mask_weights(mask: Tensor, weight: float, like: Tensor) -> Tensor:
    """`weight` inside the edited region, 1 outside; mask (B, 1, h, w) is brought to the latent grid."""
    region = F.interpolate(mask.float(), like.shape[-2:], mode="area").to(like.device)
    return (1 + (weight - 1) * region).expand_as(like)


def region_weights(
    config: ObjectiveConfig, latent: Tensor, source: Tensor | None, mask: Tensor | None
) -> Tensor | None:
    """(B, C, H, W) weights of the configured kind; None weighs everywhere alike.

    A sample without a source of the target's size (or without a mask) is weighted alike everywhere.
    """
    if config.region_weighting == "mask":
        return None if mask is None else mask_weights(mask, config.mask_weight, latent)
    if config.region_weighting == "none" or source is None or source.shape != latent.shape:
        return None
    return (paper_weights if config.region_weighting == "omnigen_paper" else code_weights)(latent, source)


def velocity_loss(velocity: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean squared error of each sample, (B,), in fp32; weights (B, C, H, W) multiply the squares."""
    squared = (velocity.float() - target.float()).square()
    if weights is not None:
        squared = squared * weights.float()
    return squared.flatten(1).mean(dim=1)
