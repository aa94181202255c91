"""Small random VAEs that the stock VAELoader reads under the name of the real one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def write_taesd(path: Path, channels: int) -> None:
    """TAESD's network (8x) with random weights: 16 channels stand in for Flux's VAE, 4 for SDXL's."""
    import torch
    from safetensors.torch import save_file

    from comfy.taesd.taesd import TAESD

    generator = torch.Generator().manual_seed(1)
    network = TAESD(latent_channels=channels)
    with torch.no_grad():
        for weight in network.parameters():
            fan_in = weight[0].numel() if weight.ndim == 4 else 100
            weight.copy_(torch.randn(weight.shape, generator=generator) * (2 / fan_in) ** 0.5)
        network.vae_scale.fill_(1.0)
        network.vae_shift.fill_(0.0)
        normalise(network.taesd_encoder, torch.rand(1, 3, 64, 64, generator=generator), mean=0.0, std=1.0)
        latent = torch.randn(1, channels, 8, 8, generator=generator)
        normalise(network.taesd_decoder, latent, mean=0.5, std=0.2)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(dict(network.state_dict()), str(path))


def normalise(network: torch.nn.Sequential, example: torch.Tensor, mean: float, std: float) -> None:
    """Scale the last layer so that the output is neither flat nor cut off."""
    last = network[-1]
    last.bias.zero_()
    found = network(example)
    last.weight.mul_(std / found.std())
    last.bias.fill_(mean - float(network(example).mean()))
