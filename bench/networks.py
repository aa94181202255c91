"""Random Flux networks of ComfyUI's class for timing."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

TEXT_WIDTH, POOLED_WIDTH = 64, 64


def random_flux(*, hidden: int, heads: int, double: int, single: int, device: str, dtype: torch.dtype) -> Any:
    """A ModelPatcher around a random Flux; weights are drawn on the device."""
    import comfy.ldm.flux.model
    import comfy.model_patcher
    import comfy.supported_models

    spatial = hidden // heads // 16 * 7 // 2 * 2
    settings: dict[str, Any] = {
        "image_model": "flux",
        "in_channels": 16,
        "out_channels": 16,
        "vec_in_dim": POOLED_WIDTH,
        "context_in_dim": TEXT_WIDTH,
        "hidden_size": hidden,
        "mlp_ratio": 4.0,
        "num_heads": heads,
        "depth": double,
        "depth_single_blocks": single,
        "axes_dim": [hidden // heads - 2 * spatial, spatial, spatial],
        "theta": 10000,
        "patch_size": 2,
        "qkv_bias": True,
        "guidance_embed": True,
    }
    if "txt_ids_dims" in {field.name for field in dataclasses.fields(comfy.ldm.flux.model.FluxParams)}:
        settings["txt_ids_dims"] = []
    config = comfy.supported_models.Flux(settings)
    config.set_inference_dtype(dtype, None)
    model = config.get_model({}, device=torch.device(device))
    draw = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, weight in model.diffusion_model.named_parameters():
            weight.normal_(generator=draw)
            weight.copy_(1 + 0.1 * weight) if name.endswith(".scale") else weight.mul_(
                weight[0].numel() ** -0.5
            )
    return comfy.model_patcher.ModelPatcher(model, torch.device(device), torch.device("cpu"))


def step_flops(network: Any, text: int, image: int, references: int, cached: bool) -> float:
    """Multiply-adds times two of one step: the linear layers of every token, and attention."""
    blocks = len(network.double_blocks) + len(network.single_blocks)
    width, own = network.hidden_size, text + image
    computed = own if cached else own + references
    keys = own + references
    return blocks * (24 * width**2 * computed + 4 * width * computed * keys)
