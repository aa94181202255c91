"""Small random VAEs that the stock VAELoader reads under the name of the real one."""

from __future__ import annotations

from pathlib import Path


def write_taesd(path: Path, channels: int) -> None:
    """TAESD's network (8x) with random weights: 16 channels stand in for Flux's VAE, 4 for SDXL's."""
    import torch
    from safetensors.torch import save_file

    from comfy.taesd.taesd import TAESD

    generator = torch.Generator().manual_seed(1)
    weights = {}
    for name, value in TAESD(latent_channels=channels).state_dict().items():
        fan_in = value[0].numel() if value.ndim == 4 else 1
        noise = torch.randn(value.shape, generator=generator)
        weights[name] = noise * (2 / fan_in) ** 0.5 if value.ndim == 4 else noise * 0.1
    weights |= {"vae_scale": torch.tensor(1.0), "vae_shift": torch.tensor(0.0)}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, str(path))
