"""One LoRA on a tiny Kontext, written as diffusers, PEFT, kohya and ComfyUI write it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

RANK, ALPHA = 4, 6.0
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_mlp"]


def add_random_lora(network: Any, seed: int = 11, **kind: bool) -> Any:
    """Give diffusers' network a PEFT adapter with random weights; returns its config."""
    from peft import LoraConfig

    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, init_lora_weights=False, **kind)
    network.add_adapter(config)
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.named_parameters():
        if "lora_" in name:
            value.data = torch.randn(value.shape, generator=generator) * 0.1
    return config


def lora_layers(network: Any) -> dict[str, Tensor]:
    """The adapter's weights under diffusers' module names: `<module>.lora_A.weight` and `.lora_B.weight`."""
    from peft import get_peft_model_state_dict

    return {name: value.contiguous() for name, value in get_peft_model_state_dict(network).items()}


def write_by_diffusers(path: Path, network: Any, config: Any) -> None:
    """By diffusers' own pipeline: the alpha stands in the file's metadata only."""
    from diffusers import FluxPipeline

    FluxPipeline.save_lora_weights(
        path.parent,
        transformer_lora_layers=lora_layers(network),
        transformer_lora_adapter_metadata=config.to_dict(),
        weight_name=path.name,
    )


def write_by_peft(folder: Path, network: Any) -> None:
    """As PEFT saves an adapter: `adapter_model.safetensors`, alpha in `adapter_config.json`."""
    folder.mkdir(parents=True)
    layers = {f"base_model.model.{name}": value for name, value in lora_layers(network).items()}
    save_file(layers, str(folder / "adapter_model.safetensors"))
    (folder / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": ALPHA}))


def fused_layers(network: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """(down, up) for BFL's modules: the parts of a fused matrix become the blocks of one larger LoRA."""
    layers, out = lora_layers(network), {}
    for block in range(2):
        attn = f"transformer_blocks.{block}.attn."
        image = [f"{attn}{part}" for part in ("to_q", "to_k", "to_v")]
        out[f"double_blocks.{block}.img_attn.qkv"] = stacked(layers, image)
        out[f"double_blocks.{block}.img_attn.proj"] = stacked(layers, [f"{attn}to_out.0"])
        single = f"single_transformer_blocks.{block}."
        parts = ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"]
        out[f"single_blocks.{block}.linear1"] = stacked(layers, [single + part for part in parts])
    return out


def stacked(layers: dict[str, Tensor], modules: list[str]) -> tuple[Tensor, Tensor]:
    down = torch.cat([layers[f"{module}.lora_A.weight"] for module in modules])
    up = torch.block_diag(*[layers[f"{module}.lora_B.weight"] for module in modules])
    return down, up


def write_fused(path: Path, network: Any, kohya: bool) -> None:
    """kohya's names (`lora_unet_...`) or ComfyUI's (`diffusion_model....`), alpha beside the weights."""
    weights = {}
    for module, (down, up) in fused_layers(network).items():
        name = "lora_unet_" + module.replace(".", "_") if kohya else "diffusion_model." + module
        weights[f"{name}.lora_down.weight"] = down
        weights[f"{name}.lora_up.weight"] = up
        weights[f"{name}.alpha"] = torch.tensor(ALPHA * len(down) / RANK)
    save_file(weights, str(path))
