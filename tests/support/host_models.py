"""Tiny Kontext networks with random weights in ComfyUI's real classes, and the files they come in.

weights = kontext_weights()                 # BFL layout, float32, the released names on every host
model = kontext_model(weights)              # a ModelPatcher, as a loader gives it
write_kontext(path, weights)                # one file; write_diffusers, write_sharded, write_saved ...
reference = diffusers_kontext(weights)      # diffusers' network with the same weights
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from pack.dit.flux_shape import FluxShape
from safetensors.torch import save_file
from torch import Tensor

TINY = FluxShape(
    in_channels=64,
    hidden_size=64,
    num_heads=2,
    axes_dim=(4, 14, 14),
    text_dim=24,
    pooled_dim=16,
    num_double=2,
    num_single=2,
)


def kontext_config(shape: FluxShape = TINY, dtype: torch.dtype = torch.float32) -> Any:
    """ComfyUI's own Flux model config for a network of `shape`."""
    import comfy.ldm.flux.model
    import comfy.supported_models

    values: dict[str, Any] = {
        "image_model": "flux",
        "in_channels": shape.latent_channels,
        "out_channels": shape.latent_channels,
        "vec_in_dim": shape.pooled_dim,
        "context_in_dim": shape.text_dim,
        "hidden_size": shape.hidden_size,
        "mlp_ratio": 4.0,
        "num_heads": shape.num_heads,
        "depth": shape.num_double,
        "depth_single_blocks": shape.num_single,
        "axes_dim": list(shape.axes_dim),
        "theta": 10000,
        "patch_size": 2,
        "qkv_bias": True,
        "guidance_embed": True,
    }
    if "txt_ids_dims" in {field.name for field in dataclasses.fields(comfy.ldm.flux.model.FluxParams)}:
        values["txt_ids_dims"] = []
    config = comfy.supported_models.Flux(values)
    config.set_inference_dtype(dtype, None)
    return config


def kontext_weights(shape: FluxShape = TINY, seed: int = 0) -> dict[str, Tensor]:
    """Random weights in Black Forest Labs' layout, float32, scaled so that signals keep their size."""
    network = kontext_config(shape).get_model({}).diffusion_model
    generator = torch.Generator().manual_seed(seed)
    # Newer hosts call a norm's scale weight.
    likes = {name.replace("_norm.weight", "_norm.scale"): p for name, p in network.state_dict().items()}
    return {name: random_weight(name, like, generator) for name, like in likes.items()}


def random_weight(name: str, like: Tensor, generator: torch.Generator) -> Tensor:
    values = torch.randn(like.shape, generator=generator)
    if name.endswith("_norm.scale"):
        return 1 + 0.1 * values
    return values * (0.2 if like.ndim == 1 else like.shape[1] ** -0.5)


def kontext_model(weights: dict[str, Tensor] | None = None, shape: FluxShape = TINY) -> Any:
    """A ModelPatcher around ComfyUI's Flux with `weights`, as a loader gives it."""
    import comfy.model_management
    import comfy.model_patcher

    model = kontext_config(shape).get_model({})
    model.load_model_weights(dict(weights or kontext_weights(shape)), "")
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=torch.device("cpu"))


def diffusers_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights in diffusers' layout, by a mapping written down here and nowhere else."""
    out: dict[str, Tensor] = {}
    for name, value in weights.items():
        stem, kind = name.rsplit(".", 1)
        parts = stem.split(".")
        if parts[0] == "double_blocks":
            put_double(out, f"transformer_blocks.{parts[1]}", ".".join(parts[2:]), kind, value)
        elif parts[0] == "single_blocks":
            put_single(out, f"single_transformer_blocks.{parts[1]}", ".".join(parts[2:]), kind, value)
        elif stem == "final_layer.adaLN_modulation.1":
            shift, scale = value.chunk(2)
            out[f"norm_out.linear.{kind}"] = torch.cat((scale, shift))
        else:
            out[f"{OUTER_NAMES[stem]}.{kind}"] = value
    return {name: value.contiguous() for name, value in out.items()}


OUTER_NAMES = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
}
DOUBLE_NAMES = {
    "img_mod.lin": "norm1.linear",
    "txt_mod.lin": "norm1_context.linear",
    "img_attn.proj": "attn.to_out.0",
    "txt_attn.proj": "attn.to_add_out",
    "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2",
    "txt_mlp.0": "ff_context.net.0.proj",
    "txt_mlp.2": "ff_context.net.2",
    "img_attn.norm.query_norm": "attn.norm_q",
    "img_attn.norm.key_norm": "attn.norm_k",
    "txt_attn.norm.query_norm": "attn.norm_added_q",
    "txt_attn.norm.key_norm": "attn.norm_added_k",
}


def put_double(out: dict[str, Tensor], block: str, part: str, kind: str, value: Tensor) -> None:
    if part.endswith("_attn.qkv"):
        image = part.startswith("img")
        names = ("to_q", "to_k", "to_v") if image else ("add_q_proj", "add_k_proj", "add_v_proj")
        for name, piece in zip(names, value.chunk(3), strict=True):
            out[f"{block}.attn.{name}.{kind}"] = piece
        return
    out[f"{block}.{DOUBLE_NAMES[part]}.{'weight' if kind == 'scale' else kind}"] = value


def put_single(out: dict[str, Tensor], block: str, part: str, kind: str, value: Tensor) -> None:
    if part == "linear1":
        hidden = value.shape[0] // 7
        pieces = value.split((hidden, hidden, hidden, 4 * hidden))
        names = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
        out.update({f"{block}.{name}.{kind}": piece for name, piece in zip(names, pieces, strict=True)})
        return
    names = {
        "linear2": "proj_out",
        "modulation.lin": "norm.linear",
        "norm.query_norm": "attn.norm_q",
        "norm.key_norm": "attn.norm_k",
    }
    out[f"{block}.{names[part]}.{'weight' if kind == 'scale' else kind}"] = value


def diffusers_kontext(weights: dict[str, Tensor], shape: FluxShape = TINY) -> Any:
    """diffusers' FluxTransformer2DModel with the same weights, in eval mode."""
    from diffusers import FluxTransformer2DModel

    network = FluxTransformer2DModel(
        in_channels=shape.in_channels,
        num_layers=shape.num_double,
        num_single_layers=shape.num_single,
        attention_head_dim=shape.head_dim,
        num_attention_heads=shape.num_heads,
        joint_attention_dim=shape.text_dim,
        pooled_projection_dim=shape.pooled_dim,
        guidance_embeds=True,
        axes_dims_rope=shape.axes_dim,
    )
    network.load_state_dict(diffusers_weights(weights))
    return network.eval()


def write_kontext(path: Path, weights: dict[str, Tensor] | None = None, prefix: str = "") -> Path:
    """One file in Black Forest Labs' layout."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = weights or kontext_weights()
    save_file({prefix + name: value.contiguous() for name, value in values.items()}, str(path))
    return path


def write_saved(path: Path, weights: dict[str, Tensor] | None = None) -> Path:
    """One file as newer ComfyUI's ModelSave writes it: norms' scales are called weight."""
    values = weights or kontext_weights()
    saved = {name.replace("_norm.scale", "_norm.weight"): value for name, value in values.items()}
    return write_kontext(path, saved, prefix="model.diffusion_model.")


def write_diffusers(path: Path, weights: dict[str, Tensor] | None = None) -> Path:
    """One file in diffusers' layout."""
    return write_kontext(path, diffusers_weights(weights or kontext_weights()))


def write_sharded(folder: Path, weights: dict[str, Tensor] | None = None, count: int = 3) -> Path:
    """A diffusers folder with `count` shards and their index."""
    values = sorted(diffusers_weights(weights or kontext_weights()).items())
    index = {}
    for number in range(count):
        name = f"diffusion_pytorch_model-{number + 1:05}-of-{count:05}.safetensors"
        shard = dict(values[number::count])
        write_kontext(folder / name, shard)
        index |= dict.fromkeys(shard, name)
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index})
    )
    return folder


def rounded_to_fp8(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights as fp8 files keep them: matrices in float8_e4m3fn, the rest untouched."""
    return {n: w.to(torch.float8_e4m3fn) if w.ndim == 2 else w for n, w in weights.items()}


def scaled_to_fp8(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights as scaled fp8 files keep them: each matrix over its own scale, and the marker key."""
    out: dict[str, Tensor] = {"scaled_fp8": torch.empty(2, dtype=torch.float8_e4m3fn)}
    for name, weight in weights.items():
        if weight.ndim != 2:
            out[name] = weight
            continue
        scale = weight.abs().max() / 448
        out[name] = (weight / scale).to(torch.float8_e4m3fn)
        out[name.removesuffix("weight") + "scale_weight"] = scale.float()
    return out


def unscaled(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """What scaled or plain fp8 weights stand for, in float32; of a file or of a network's state."""
    ends = tuple(
        "." + end for end in ("scale_weight", "weight_scale", "scale_input", "input_scale", "comfy_quant")
    )
    scales = {n.rpartition(".")[0] + ".weight": s for n, s in weights.items() if n.endswith(ends[:2])}
    return {
        name: weight.float() * scales.get(name, 1.0)
        for name, weight in weights.items()
        if name != "scaled_fp8" and not name.endswith(ends)
    }
