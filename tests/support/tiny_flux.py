"""ComfyUI's own Flux class at a size for tests, as the MODEL a loader would give."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch


def tiny_flux(
    seed: int = 0,
    *,
    hidden: int = 32,
    heads: int = 2,
    depth: int = 2,
    single: int = 2,
    guidance: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Any:
    """A ModelPatcher around a random Flux: text width 24, pooled width 12, 16 latent channels."""
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models

    head = hidden // heads
    spatial = head // 8 * 3
    axes = [head - 2 * spatial, spatial, spatial]  # 16 -> 4, 6, 6; Flux itself: 128 -> 16, 56, 56
    settings = {
        "image_model": "flux",
        "in_channels": 16,
        "out_channels": 16,
        "vec_in_dim": 12,
        "context_in_dim": 24,
        "hidden_size": hidden,
        "mlp_ratio": 4.0,
        "num_heads": heads,
        "depth": depth,
        "depth_single_blocks": single,
        "axes_dim": axes,
        "theta": 10000,
        "patch_size": 2,
        "qkv_bias": True,
        "guidance_embed": guidance,
    }
    config = comfy.supported_models.Flux(settings | newer_settings())
    config.set_inference_dtype(dtype, None)
    model = config.get_model({})
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.diffusion_model.named_parameters():
            noise = torch.randn(weight.shape, generator=draw)
            is_norm = name.endswith(".scale")
            weight.copy_(1 + 0.1 * noise if is_norm else noise / weight[0].numel() ** 0.5)
    patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return patcher(model, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))


def newer_settings() -> dict[str, Any]:
    """What newer versions of ComfyUI's Flux classes must be told beside the rest."""
    import comfy.ldm.flux.model

    names = {field.name for field in dataclasses.fields(comfy.ldm.flux.model.FluxParams)}
    return {"txt_ids_dims": []} if "txt_ids_dims" in names else {}


def tiny_conditioning(seed: int = 0, tokens: int = 6, **extra: Any) -> list:
    """A CONDITIONING for tiny_flux; extra keys (`reference_latents`, ...) go beside the pooled text."""
    draw = torch.Generator().manual_seed(100 + seed)
    context = torch.randn(1, tokens, 24, generator=draw)
    return [[context, {"pooled_output": torch.randn(1, 12, generator=draw), "guidance": 3.5, **extra}]]


def tiny_latent(height: int = 8, width: int = 12, seed: int = 0, batch: int = 1) -> torch.Tensor:
    """A latent (batch, 16, height, width)."""
    return torch.randn(batch, 16, height, width, generator=torch.Generator().manual_seed(200 + seed))
