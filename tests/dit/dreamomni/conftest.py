"""Debug-size DreamOmni networks with every weight random, so that no zero hides a wrong path."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pack.dit.dreamomni.config import DreamOmniConfig
from pack.dit.dreamomni.latent import LatentSpec
from pack.dit.dreamomni.network import DreamOmniNetwork


def figure_config(**changes) -> DreamOmniConfig:
    """The figure's wiring with two groups a side, at debug size."""
    config = DreamOmniConfig(
        latent=LatentSpec(kind="small", channels=4, downscale=4, scale=1.0, shift=0.0),
        width=32,
        heads=2,
        groups=2,
        vlm_width=24,
        conv_width=16,
        conv_norm_groups=4,
        time_width=20,
        time_frequencies=16,
        rope_axes=(4, 6, 6),
        rope_theta=100.0,
        source_tokens=True,
    )
    return replace(config, **changes)


def random_network(config: DreamOmniConfig, seed: int = 0, dtype=torch.float64) -> DreamOmniNetwork:
    network = DreamOmniNetwork(config, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            scale = 0.5 if parameter.ndim == 1 else 1.5 * parameter[0].numel() ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=dtype) * scale)
    return network.eval()


@pytest.fixture
def make_network():
    return random_network


@pytest.fixture
def make_config():
    return figure_config


@pytest.fixture
def inputs():
    """Two requests: latent 6 x 8, two pictures, VLM tokens of which the second request has two fewer."""
    generator = torch.Generator().manual_seed(7)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    keep = torch.ones(2, 5, dtype=torch.bool)
    keep[1, 3:] = False
    return {
        "latent": draw(2, 4, 6, 8),
        "sigma": torch.tensor([0.9, 0.3], dtype=torch.float64),
        "context": draw(2, 5, 24),
        "attention_mask": keep,
        "image_index": torch.tensor([[0, 1, 1, 2, 0], [0, 1, 2, 0, 0]]),
        "ref_latents": [draw(2, 4, 4, 6), draw(2, 4, 6, 4)],
    }
