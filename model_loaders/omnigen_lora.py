"""Where the modules of an OmniGen LoRA go: official PEFT names, and diffusers' split q, k, v."""

from __future__ import annotations

from typing import Any

from ..dit.omnigen.state_dict import diffusers_name
from .omnigen_model import OmniGenModel

Place = str | tuple[str, tuple[int, int, int]]
"""A weight of the model, or rows of one: (name, (axis, first row, number of rows))."""


def omnigen_places(model: Any) -> dict[str, Place]:
    """Module names of the authors' and of diffusers' LoRA files -> weights; empty for any other BaseModel."""
    if not isinstance(model, OmniGenModel):
        return {}
    network = model.diffusion_model
    config = network.config
    rows = {"q": config.num_heads, "k": config.num_kv_heads, "v": config.num_kv_heads}
    places: dict[str, Place] = {}
    for name, _ in network.named_parameters():
        module, _, kind = name.rpartition(".")
        if kind != "weight":
            continue
        weight = f"diffusion_model.{name}"
        places[module] = weight
        other = diffusers_name(f"{module}.").removesuffix(".")
        if not module.endswith("qkv_proj"):
            places[f"transformer.{other}"] = places[other] = weight
            continue
        start = 0
        for part, heads in rows.items():
            piece = other.removesuffix("qkv_proj") + f"to_{part}"
            count = heads * config.head_dim
            places[f"transformer.{piece}"] = places[piece] = (weight, (0, start, count))
            start += count
    return places
