"""A FLUX-shaped network of one head, in both layouts, for tests."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import save_file

SHAPE = {
    "in_channels": 64,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 128,
    "num_attention_heads": 1,
    "joint_attention_dim": 16,
    "pooled_projection_dim": 8,
    "guidance_embeds": True,
}


def tiny_flux(seed: int = 0, **changes: object) -> FluxTransformer2DModel:
    """Random weights large enough that every part matters."""
    torch.manual_seed(seed)
    network = FluxTransformer2DModel(**{**SHAPE, **changes})
    for parameter in network.parameters():
        parameter.data = torch.randn_like(parameter) * (0.05 if parameter.ndim > 1 else 0.2)
    return network.eval()


def saved_flux(folder: Path, network: FluxTransformer2DModel) -> Path:
    """The network as a file of diffusers' layout."""
    path = folder / "tiny-kontext.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, path)
    return path
