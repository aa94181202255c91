"""DreamOmni: one evaluation of the preset `small` against diffusers' Flux blocks of equal size.

Flux's single blocks have the same matrices per token as a DiT block here (12 width^2), so as many of them at
the same width, heads and tokens are the floor; the skips' merges and the convolution stem come on top.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import FluxTransformer2DModel

from ..dit.dreamomni.config import BLOCKS_PER_GROUP, small_preset
from ..dit.dreamomni.initialize import initialize
from ..dit.dreamomni.network import DreamOmniNetwork
from .harness import Table, compare

LATENT_SIDE = 32
"""A picture of 256 pixels."""
WORDS = 64
ROUNDS = 7


def tables() -> list[Table]:
    """Time of a step beside Flux's, with the number of weights of both."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with torch.inference_mode():
        flux, ours = flux_step(device, dtype), our_step(device, dtype)
        return [
            compare(
                "DreamOmni small, one step",
                {"diffusers Flux blocks": flux, "DreamOmni small": ours},
                rounds=ROUNDS,
                expected={"DreamOmni small": 1.1},
                note=f"{LATENT_SIDE * 8} px, {WORDS} VLM tokens, batch 1. Expected: at most 1.1.",
            )
        ]


def our_step(device: torch.device, dtype: torch.dtype) -> Callable[[], Any]:
    """One evaluation of the preset with random weights."""
    config = small_preset()
    network = DreamOmniNetwork(config)
    initialize(network, torch.Generator().manual_seed(0))
    network = network.to(device, dtype).eval()
    latent = torch.randn(1, config.latent.channels, LATENT_SIDE, LATENT_SIDE, device=device, dtype=dtype)
    context = torch.randn(1, WORDS, config.vlm_width, device=device, dtype=dtype)
    sigma = torch.full((1,), 0.5, device=device)
    return lambda: network(latent, sigma, context)


def flux_step(device: torch.device, dtype: torch.dtype) -> Callable[[], Any]:
    """One evaluation of as many Flux single blocks as the preset has DiT blocks."""
    config = small_preset()
    torch.manual_seed(0)
    network = FluxTransformer2DModel(
        num_layers=0,
        num_single_layers=2 * config.groups * BLOCKS_PER_GROUP,
        attention_head_dim=config.head_width,
        num_attention_heads=config.heads,
        joint_attention_dim=config.vlm_width,
        pooled_projection_dim=config.width,
        axes_dims_rope=config.rope_axes,
    )
    network = network.to(device, dtype).eval()
    side = LATENT_SIDE // config.cell
    ids = torch.zeros(side, side, 3, device=device)
    ids[..., 1] += torch.arange(side, device=device)[:, None]
    ids[..., 2] += torch.arange(side, device=device)[None]
    inputs = {
        "hidden_states": torch.randn(1, side * side, 64, device=device, dtype=dtype),
        "encoder_hidden_states": torch.randn(1, WORDS, config.vlm_width, device=device, dtype=dtype),
        "pooled_projections": torch.randn(1, config.width, device=device, dtype=dtype),
        "timestep": torch.full((1,), 0.5, device=device, dtype=dtype),
        "img_ids": ids.reshape(-1, 3),
        "txt_ids": torch.zeros(WORDS, 3, device=device),
    }
    return lambda: network(**inputs, return_dict=False)
