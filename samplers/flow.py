"""Rectified flow: the one place that fixes the sign, the direction and the names.

sigma is the share of noise: 1 is noise, 0 is data, x = (1 - sigma) * data + sigma * noise.
velocity is dx/dsigma = noise - data, which is what every network of the pack predicts.
Shapes: x, data, noise, velocity are B ...; sigma is a number or a tensor of B values.
"""

from __future__ import annotations

import torch
from torch import Tensor


def expand_sigma(sigma: Tensor | float, x: Tensor) -> Tensor:
    """sigma (a number, or one value per batch item) in a shape that broadcasts against x."""
    values = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).flatten()
    return values if values.numel() == 1 else values.reshape(-1, *[1] * (x.ndim - 1))


def noised(data: Tensor, noise: Tensor, sigma: Tensor | float) -> Tensor:
    """The point of the path: (1 - sigma) * data + sigma * noise."""
    share = expand_sigma(sigma, data)
    return (1 - share) * data + share * noise


def velocity_target(data: Tensor, noise: Tensor) -> Tensor:
    """dx/dsigma of the path, what a network learns to predict."""
    return noise - data


def denoised_from_velocity(x: Tensor, velocity: Tensor, sigma: Tensor | float) -> Tensor:
    """The data a velocity leads back to."""
    return x - expand_sigma(sigma, x) * velocity


def velocity_from_denoised(x: Tensor, denoised: Tensor, sigma: Tensor | float) -> Tensor:
    """The velocity behind a denoised prediction; sigma must not be 0."""
    return (x - denoised) / expand_sigma(sigma, x)
