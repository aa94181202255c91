"""A tiny DreamOmni sampled in ComfyUI."""

from __future__ import annotations

import torch
from tiny_dreamomni import VLM_WIDTH

STEPS = 3
SIGMAS = [1.0, 0.7, 0.3, 0.0]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def load(folder, weight_dtype="fp32"):
    from pack.model_loaders.dreamomni import load_patcher

    return load_patcher(folder, weight_dtype)


def conditioning(seed=1, length=7, pictures=(), mask=None):
    extras = {"dreamomni_image_index": torch.arange(length)[None] % 3}
    if mask is not None:
        extras["attention_mask"] = mask
    if pictures:
        extras |= {"reference_latents": list(pictures), "reference_latents_method": "index"}
    return [[draw(1, length, VLM_WIDTH, seed=seed), extras]]


def sample(model, positive, negative=None, cfg=1.0, latent=None, noise=None, callback=None, sigmas=SIGMAS):
    import comfy.sample
    import comfy.samplers

    channels = model.model.network_config.latent.channels
    latent = torch.zeros(1, channels, 8, 6) if latent is None else latent
    noise = draw(*latent.shape, seed=9) if noise is None else noise
    return comfy.sample.sample_custom(
        model,
        noise,
        cfg,
        comfy.samplers.sampler_object("euler"),
        torch.tensor(sigmas),
        positive,
        negative or positive,
        latent,
        callback=callback,
        disable_pbar=True,
    )
