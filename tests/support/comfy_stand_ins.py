"""Small stand-ins for what a graph would bring along besides the model."""

from __future__ import annotations

import torch
from torch import Tensor


class CountingVAE:
    """An 8x VAE of averages and fixed random mixes with the interface of comfy.sd.VAE; counts its calls."""

    def __init__(self, channels: int = 16, video: bool = False) -> None:
        self.latent_channels = channels
        self.video = video
        self.calls = 0
        self.mix = torch.randn(channels, 3, generator=torch.Generator().manual_seed(7))

    def spacial_compression_encode(self) -> int:
        return 8

    def encode(self, pixels: Tensor) -> Tensor:
        self.calls += 1
        mean = torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1) * 2 - 1, 8)
        latent = torch.einsum("bchw,dc->bdhw", mean, self.mix)
        return latent.unsqueeze(2) if self.video else latent
