"""The two published layouts of the weights: official (fused qkv, `llm.` names) and diffusers'."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

OFFICIAL_TO_DIFFUSERS = {
    "pos_embed": "patch_embedding.pos_embed",
    "x_embedder.proj.": "patch_embedding.output_image_proj.",
    "input_x_embedder.proj.": "patch_embedding.input_image_proj.",
    "time_token.mlp.0.": "time_token.linear_1.",
    "time_token.mlp.2.": "time_token.linear_2.",
    "t_embedder.mlp.0.": "t_embedder.linear_1.",
    "t_embedder.mlp.2.": "t_embedder.linear_2.",
    "final_layer.adaLN_modulation.1.": "norm_out.linear.",
    "final_layer.linear.": "proj_out.",
    "llm.": "",
}
SPLIT = re.compile(r"(.*self_attn\.)to_([qkv])\.(.*)")
OUTPUT = (".self_attn.o_proj.", ".self_attn.to_out.0.")


def is_diffusers(names: Mapping[str, object]) -> bool:
    """Whether the names are diffusers' (also those of a part of a sharded file)."""
    return not any(name.startswith("llm.") for name in names)


def rename(name: str, table: Mapping[str, str]) -> str:
    """The name with the first matching beginning replaced."""
    for old, new in table.items():
        if name.startswith(old):
            return new + name[len(old) :]
    return name


def diffusers_name(name: str) -> str:
    """diffusers' name of an official tensor that is not the fused qkv."""
    return rename(name, OFFICIAL_TO_DIFFUSERS).replace(*OUTPUT)


def official_name(name: str) -> str:
    """The official name of a diffusers tensor that is not one of q, k, v."""
    table = {new: old for old, new in OFFICIAL_TO_DIFFUSERS.items() if new}
    renamed = rename(name, table)
    return renamed if renamed != name else "llm." + name.replace(OUTPUT[1], OUTPUT[0])


def to_official(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """diffusers' tensors under official names, q, k and v joined; nothing is rounded."""
    official, parts = {}, {}
    for name, tensor in weights.items():
        match = SPLIT.match(name)
        if match:
            fused = f"llm.{match[1]}qkv_proj.{match[3]}"
            parts.setdefault(fused, {})[match[2]] = tensor
        else:
            official[official_name(name)] = tensor
    for fused, tensors in parts.items():
        missing = [part for part in "qkv" if part not in tensors]
        if missing:
            raise ValueError(f"{fused}: the file has no to_{missing[0]}; is a shard missing?")
        official[fused] = torch.cat([tensors["q"], tensors["k"], tensors["v"]])
    return official
