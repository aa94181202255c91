"""A tiny DreamOmni folder with random weights: network, small VLM, and pixel blocks, a small VAE or none.

write_dreamomni(models / "dreamomni" / "toy")      # all a workflow needs
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from pack.dit.dreamomni.config import DreamOmniConfig, tiny_preset
from pack.dit.dreamomni.latent import LatentSpec
from pack.dit.dreamomni.network import DreamOmniNetwork
from pack.dit.dreamomni.storage import FolderIndex, save_dreamomni
from pack.dit.dreamomni.vae import SmallVAE, SmallVAEConfig
from safetensors.torch import save_file
from tiny_vlm import write_vlm

VLM_WIDTH = 64


def toy_config(**changes) -> DreamOmniConfig:
    """The tiny preset made smaller, for the stand-in VLM."""
    small = {
        "width": 32,
        "heads": 2,
        "groups": 1,
        "vlm_width": VLM_WIDTH,
        "conv_width": 16,
        "time_width": 16,
        "rope_axes": (4, 6, 6),
    }
    return replace(tiny_preset(), **{**small, **changes})


def vae_latent() -> LatentSpec:
    colours = tuple((0.1 * n, 0.2, -0.1 * n) for n in range(6))
    return LatentSpec(
        kind="small",
        channels=6,
        downscale=8,
        scale=0.5,
        shift=0.25,
        rgb_factors=colours,
        rgb_bias=(0.1, 0, 0),
    )


def small_vae() -> SmallVAE:
    torch.manual_seed(4)
    return SmallVAE(SmallVAEConfig(downscale=8, latent_channels=6, width=8, max_width=16))


def random_weights(config: DreamOmniConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random everywhere, so that pictures, words and noise all change the result."""
    network = DreamOmniNetwork(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            scale = 0.3 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return dict(network.state_dict())


def write_network(folder: Path, config: DreamOmniConfig | None = None, seed: int = 0, **index) -> Path:
    """The folder without a VLM."""
    config = config or toy_config()
    vae = small_vae() if config.latent.kind == "small" else None
    save_dreamomni(folder, FolderIndex(network=config, **index), random_weights(config, seed), vae=vae)
    return folder


def write_dreamomni(folder: Path, config: DreamOmniConfig | None = None) -> Path:
    """The whole folder."""
    write_network(folder, config)
    write_vlm(folder / "vlm", "qwen2_vl")
    return folder


def write_adapter(path: Path, config: DreamOmniConfig | None = None, seed: int = 3) -> None:
    """A random LoRA of rank 2 on every `qkv` of a network, with the names the trainer writes."""
    generator = torch.Generator().manual_seed(seed)
    weights = DreamOmniNetwork(config or toy_config(), device="meta").state_dict()
    tensors = {}
    for name in [name for name in weights if name.endswith(".qkv.weight")]:
        layer, (rows, columns) = f"diffusion_model.{name.removesuffix('.weight')}", weights[name].shape
        tensors[f"{layer}.lora_A.weight"] = torch.randn(2, columns, generator=generator) * columns**-0.5
        tensors[f"{layer}.lora_B.weight"] = torch.randn(rows, 2, generator=generator)
    path.parent.mkdir(exist_ok=True)
    save_file(tensors, str(path))
