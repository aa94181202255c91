"""Runs of a tiny Kontext with references through ComfyUI's real sampling, and the result they must equal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from masked_flux import masked_velocity
from tiny_flux import tiny_conditioning, tiny_latent
from torch import Tensor

SIGMAS = torch.tensor([1.0, 0.6, 0.3, 0.0])


def reference(height: int, width: int, seed: int, batch: int = 1) -> Tensor:
    return tiny_latent(height, width, seed=seed, batch=batch)


def sampled(
    model: Any,
    references: Sequence[Tensor],
    *,
    seed: int = 1,
    prompt: int = 0,
    guidance: float = 3.5,
    size: tuple[int, int] = (8, 12),
    batch: int = 1,
    sampler: str = "euler",
    sigmas: Tensor = SIGMAS,
    **cond: Any,
) -> Tensor:
    """Samples (batch, 16, *size) of SamplerCustomAdvanced with a BasicGuider."""
    from comfy_extras.nodes_custom_sampler import BasicGuider, Noise_RandomNoise, SamplerCustomAdvanced

    import comfy.samplers

    if references:
        cond["reference_latents"] = list(references)
    conditioning = tiny_conditioning(prompt, **{"guidance": guidance, **cond})
    guider = BasicGuider.execute(model, conditioning).args[0]
    latent = {"samples": torch.zeros(batch, 16, *size)}
    chosen = comfy.samplers.sampler_object(sampler)
    return SamplerCustomAdvanced.execute(
        Noise_RandomNoise(seed), guider, chosen, sigmas.clone(), latent
    ).args[0]["samples"]


def masked_sample(
    model: Any,
    references: Sequence[Tensor],
    offsets: Sequence[tuple[float, float, float]],
    *,
    network: Any = None,
    seed: int = 1,
    prompt: int = 0,
    tokens: int = 6,
    guidance: float = 3.5,
    size: tuple[int, int] = (8, 12),
    batch: int = 1,
    sigmas: Tensor = SIGMAS,
) -> Tensor:
    """The same samples by Euler steps of the masked model without any cache."""
    network = network or model.model.diffusion_model
    context, extra = tiny_conditioning(prompt, tokens)[0]
    x = torch.randn(batch, 16, *size, generator=torch.manual_seed(seed))
    latents = [model.model.process_latent_in(latent) for latent in references]
    latents = [latent.expand(batch, -1, -1, -1) for latent in latents]
    for sigma, following in pairwise(sigmas):
        velocity = masked_velocity(
            network,
            x,
            sigma.expand(batch),
            context.expand(batch, -1, -1),
            extra["pooled_output"].expand(batch, -1),
            torch.full((batch,), guidance),
            latents,
            offsets,
        )
        x = x + (following - sigma) * velocity
    return model.model.process_latent_out(x)


def cached(model: Any, scheme: str | None = "index+offset", **settings: Any) -> Any:
    from pack.dit.positions import PositionScheme
    from pack.model_loaders.patches import attach_position_encoding
    from pack.model_loaders.reference_cache import attach_reference_cache
    from pack.model_loaders.reference_writing import CacheSettings

    patched = attach_reference_cache(model, CacheSettings(**settings))
    return patched if scheme is None else attach_position_encoding(patched, PositionScheme(scheme))


def store(model: Any) -> Any:
    from pack.model_loaders.reference_store import store_of

    return store_of(model)


def close(result: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Largest difference relative to the largest value, as velocities of random weights are not of size 1."""
    assert result.shape == expected.shape
    assert float((result - expected).abs().max() / expected.abs().max()) <= tolerance
