"""A finished model folder as plain modules that answer without ComfyUI."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ...dit.dreamomni.storage import load_network, read_index
from ...vlm.encoder import DEFAULT_TEMPLATE
from ..families.base import CachedSample
from ..families.dreamomni_vlm import TrainedPair, load_pair

LORA_PREFIX = "diffusion_model."


def load_trained(folder: Path) -> TrainedPair:
    """Network and VLM of a folder, in fp32, for reading only."""
    vlm = folder / read_index(folder).vlm
    pair = load_pair(load_network(folder), vlm, DEFAULT_TEMPLATE)
    return pair.eval().requires_grad_(False)


@torch.no_grad()
def add_lora(pair: TrainedPair, path: Path) -> None:
    """Add a LoRA file to the network's weights; ValueError for a foreign file."""
    tensors = load_file(path)
    names = [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")]
    layers = dict(pair.dit.named_modules())
    for name in names:
        layer = layers.get(name.removeprefix(LORA_PREFIX))
        if layer is None:
            raise ValueError(f"{path.name} adapts {name}, which this network does not have")
        down, up = tensors[f"{name}.lora_A.weight"].float(), tensors[f"{name}.lora_B.weight"].float()
        scaling = float(tensors[f"{name}.alpha"]) / len(down)
        weight = layer.get_parameter("weight")
        weight += scaling * (up @ down).to(weight)


def plain_sample(
    instruction: str, pictures: Sequence[Tensor], target: Tensor | None = None, has_source: bool = False
) -> CachedSample:
    """A question to the network: words and RGB pictures (3, H, W) in -1..1."""
    return CachedSample(
        id="",
        task="",
        instruction=instruction,
        target=torch.zeros(3, 1, 1) if target is None else target,
        references=tuple(pictures),
        prompt={},
        has_source=has_source,
        reference_pixels=tuple(pictures),
    )
