"""A node pack for the tests only: ComfyUI's real text encoders, very small."""

from __future__ import annotations

from typing import Any

import torch

import comfy.model_management
import comfy.sd
import comfy.text_encoders.flux
from comfy_api.latest import ComfyExtension, io


def tiny_configs(text_dim: int, pooled_dim: int) -> dict[str, dict[str, Any]]:
    """What differs from the shipped T5-XXL and CLIP-L configurations."""
    t5 = {"d_model": text_dim, "d_ff": 2 * text_dim, "d_kv": 8, "num_heads": 2, "num_layers": 1}
    clip = {"hidden_size": pooled_dim, "intermediate_size": 2 * pooled_dim, "num_attention_heads": 2}
    return {"t5xxl_model_config": t5, "clip_l_model_config": {**clip, "num_hidden_layers": 2}}


class Target:
    """What comfy.sd.CLIP needs to know about a text encoder."""

    params: dict[str, Any] = {}
    clip = staticmethod(comfy.text_encoders.flux.FluxClipModel)
    tokenizer = comfy.text_encoders.flux.FluxTokenizer


def tiny_flux_clip(text_dim: int, pooled_dim: int) -> Any:
    """Flux's own text encoder classes and tokenizers with random weights of the given widths."""
    clip = comfy.sd.CLIP(Target, model_options=tiny_configs(text_dim, pooled_dim))
    generator = torch.Generator().manual_seed(2)
    for weight in clip.cond_stage_model.state_dict().values():
        if weight.is_floating_point() and weight.ndim:
            values = torch.randn(weight.shape, generator=generator)
            weight.copy_(values * weight.shape[-1] ** -0.5 if weight.ndim > 1 else 1 + 0.1 * values)
    return clip


class StandInFluxCLIP(io.ComfyNode):
    """In place of DualCLIPLoader."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StandInFluxCLIP",
            category="stand-ins",
            inputs=[io.Int.Input("text_dim", default=24), io.Int.Input("pooled_dim", default=16)],
            outputs=[io.Clip.Output(display_name="CLIP")],
        )

    @classmethod
    def execute(cls, text_dim: int, pooled_dim: int) -> io.NodeOutput:
        return io.NodeOutput(tiny_flux_clip(text_dim, pooled_dim))


class StandIns(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [StandInFluxCLIP]


async def comfy_entrypoint() -> ComfyExtension:
    return StandIns()
