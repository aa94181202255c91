"""A tiny OmniGen sampled in ComfyUI, with and without its prefix cache."""

from __future__ import annotations

import torch

ONE = "<img><|image_1|></img>"


class RandomVAE:
    """Latents that depend on every pixel."""

    def encode(self, image):
        blocks = image.mean(-1).unflatten(2, (-1, 8)).unflatten(1, (-1, 8))
        rows = torch.stack([blocks[:, :, k, :, k] for k in range(4)], dim=1)
        return (rows - 0.5) * 8


def load(folder, **settings):
    from pack.dit.omnigen.prefix_cache import CacheSettings
    from pack.model_loaders.omnigen import load_omnigen

    return load_omnigen(folder, "fp32", CacheSettings(**settings))


def conditionings(processor, prompt=f"{ONE} with a hat", seed=0, size=(32, 48), negative="ugly", max_size=64):
    from pack.dit.references import ReferenceSet, Task
    from pack.nodes.omnigen import OmniGenEncode

    image = torch.rand(1, *size, 3, generator=torch.Generator().manual_seed(seed))
    refs = ReferenceSet(Task.GENERATE, (image,))
    return OmniGenEncode.execute(
        processor, RandomVAE(), prompt, negative, max_size, refs, width=64, height=48
    ).args


def run(model, conds, noise, sampler="euler", sigmas=None, scales=(2.5, 1.6)):
    from comfy_extras.nodes_custom_sampler import DualCFGGuider

    import comfy.samplers

    guider = DualCFGGuider.execute(model, conds[0], conds[2], conds[1], *scales, "regular").args[0]
    sigmas = torch.linspace(1, 0, 4) if sigmas is None else sigmas
    with torch.inference_mode():
        return guider.sample(
            noise,
            torch.zeros_like(noise),
            comfy.samplers.sampler_object(sampler),
            sigmas,
            disable_pbar=True,
            seed=5,
        )


def without_cache(model):
    from pack.dit.omnigen.prefix_cache import CacheSettings
    from pack.model_loaders.omnigen import set_prefix_cache

    clone = model.clone()
    set_prefix_cache(clone, CacheSettings(enabled=False))
    return clone


def cache_of(model):
    return model.model.diffusion_model.prefix_cache


def noise_of(seed=0, batch=1, size=(6, 8)):
    return torch.randn(batch, 4, *size, generator=torch.Generator().manual_seed(seed))
