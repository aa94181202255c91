"""The small VAE, pixel blocks, and what is fitted to them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pack.dit.dreamomni.vae import PixelBlocks, SmallVAE, SmallVAEConfig, fit_preview_colours, fit_scale


def pictures(count: int = 4, side: int = 16, seed: int = 0) -> torch.Tensor:
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear")


@pytest.mark.parametrize("downscale", [4, 8])
def test_shapes_follow_the_downscale(downscale: int) -> None:
    vae = SmallVAE(SmallVAEConfig(downscale=downscale, latent_channels=5, width=8, max_width=16))
    latent = vae.encode(torch.zeros(2, 3, 24, 32))
    assert latent.shape == (2, 5, 24 // downscale, 32 // downscale)
    assert vae.decode(latent).shape == (2, 3, 24, 32)


def test_it_learns_to_repeat_pictures() -> None:
    torch.manual_seed(0)
    vae = SmallVAE(SmallVAEConfig(latent_channels=4, width=8, max_width=16))
    data = pictures()
    optimizer = torch.optim.Adam(vae.parameters(), lr=3e-3)
    errors, generator = [], torch.Generator().manual_seed(1)
    for _ in range(100):
        drawn, divergence = vae(data, generator)
        error = (drawn - data).square().mean()
        optimizer.zero_grad()
        (error + 1e-4 * divergence.mean()).backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.25 * errors[0]
    assert (vae.decode(vae.encode(data)) - data).square().mean() < 0.3 * data.square().mean()


def test_the_drawn_latent_uses_the_generator() -> None:
    torch.manual_seed(0)
    vae = SmallVAE(SmallVAEConfig(width=8, max_width=16))
    data = pictures()
    first, again, other = (vae(data, torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_pixel_blocks_lose_nothing() -> None:
    data = pictures()
    blocks = PixelBlocks(4)
    assert blocks.encode(data).shape == (4, 48, 4, 4)
    assert torch.equal(blocks.decode(blocks.encode(data)), data)


def test_scale_and_preview_colours_are_fitted() -> None:
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(6, 4, 4, 4, generator=generator) * 3 + 2
    scale, shift = fit_scale(latents)
    scaled = (latents - shift) * scale
    assert scaled.mean().item() == pytest.approx(0.0, abs=1e-5)
    assert scaled.std().item() == pytest.approx(1.0, abs=1e-5)
    factors = torch.randn(4, 3, generator=generator)
    colours = torch.einsum("bchw,cr->brhw", scaled, factors) + 0.25
    shown = torch.nn.functional.interpolate(colours, scale_factor=4, mode="nearest")
    found, bias = fit_preview_colours(scaled, shown)
    torch.testing.assert_close(torch.tensor(found), factors, rtol=1e-4, atol=1e-4)
    assert bias == pytest.approx([0.25] * 3, abs=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"downscale": 3}, "downscale is 4 or 8, got 3"),
        ({"blocks": 0}, "blocks must be at least 1, got 0"),
        ({"width": 20}, "must be multiples of 8 norm groups"),
    ],
)
def test_bad_sizes_are_named(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SmallVAEConfig(), **change)
    with pytest.raises(
        ValueError, match=r"vae/config\.json has fields .* does not know: depth\. Update the pack"
    ):
        SmallVAEConfig.from_mapping({"depth": 3})
