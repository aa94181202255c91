"""FLUX.1 Kontext and what is shaped like it: LoRAs that edit, generate or extract, with DreamOmni2's ids.

B batch, C channels, H W latent grid, L tokens. Trained on diffusers' FluxTransformer2DModel, because
ComfyUI's own class adds in place and cannot be differentiated; the ids come from the function inference uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ...dit.dreamomni.latent import LatentSpec
from ...dit.positions import (
    PositionScheme,
    latent_grid,
    reference_position_ids,
    target_position_ids,
    text_position_ids,
)
from ...samplers.schedules import ScheduleSettings
from ..config import RunConfig
from ..frozen import FrozenBuilder
from .base import Batch, EncodePlan, Family
from .kontext_files import base_tensors, network_arguments
from .kontext_time import velocity_at

ATTENTION_TARGETS = (
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
)


def packed(latent: Tensor) -> Tensor:
    """Latent (B, C, H, W) to tokens (B, H/2 * W/2, 4 C), row by row."""
    return rearrange(latent, "b c (h p) (w q) -> b (h w) (c p q)", p=2, q=2)


def unpacked(tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens (B, H/2 * W/2, 4 C) to a latent (B, C, height, width)."""
    return rearrange(tokens, "b (h w) (c p q) -> b c (h p) (w q)", h=height // 2, w=width // 2, p=2, q=2)


class KontextFamily(Family):
    """LoRAs on FLUX.1 Kontext; the base is `config.base["transformer"]`, a file or a folder."""

    name = "kontext"
    trains_image_lora = True
    reads_translations = True
    has_exact_references = True

    def encode_plan(self, config: RunConfig) -> EncodePlan:
        """VAE latents, T5 and CLIP of the instruction; an edit's source covers its target place by place."""
        return EncodePlan(
            image_encoding="vae",
            prompt_encoding="clip",
            size_multiple=16,
            kontext_sizes=True,
            source_follows_target=True,
        )

    def latent_space(self, config: RunConfig) -> LatentSpec:
        """FLUX's VAE."""
        return LatentSpec(kind="flux")

    def load_network(self, config: RunConfig, device: torch.device) -> nn.Module:
        """diffusers' transformer filled from the user's file or shards, tensor by tensor."""
        # Here and below: diffusers takes seconds to import, and a node that lists families needs none of it.
        from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

        path = Path(config.base.get("transformer") or "none chosen")
        with torch.device("meta"):
            network = FluxTransformer2DModel(**network_arguments(path))
        builder = FrozenBuilder(network, config.memory, device, wide=("x_embedder", "proj_out", "norm_out"))
        for name, tensor in base_tensors(path):
            builder.add(name, tensor)
        builder.finish(path.name)
        if config.memory.reference_attention == "exact":
            from .kontext_exact import install

            install(network)
        return network

    def prompt_part(self, config: RunConfig) -> str:
        """T5's hidden states."""
        return "context"

    def adapter_targets(self, config: RunConfig) -> list[str]:
        """All attention projections."""
        return list(ATTENTION_TARGETS)

    def block_classes(self, network: nn.Module) -> tuple[type[nn.Module], ...]:
        """Both kinds of FLUX block."""
        from diffusers.models.transformers.transformer_flux import (
            FluxSingleTransformerBlock,
            FluxTransformerBlock,
        )

        return (FluxTransformerBlock, FluxSingleTransformerBlock)

    def predict_velocity(self, network: nn.Module, batch: Batch, noisy: Tensor, sigmas: Tensor) -> Tensor:
        """noise - data (B, C, H, W) from the target's tokens, which the references follow in order."""
        height, width = noisy.shape[-2:]
        references: Sequence[Tensor] = batch.conditions["references"]
        scheme = PositionScheme(batch.conditions.get("positions", PositionScheme.INDEX_OFFSET.value))
        grids = [latent_grid(*reference.shape[-2:]) for reference in references]
        ids = reference_position_ids(grids, scheme, noisy.device)
        tokens = [packed(reference) for reference in references]
        inputs = flux_inputs(network, batch, noisy, sigmas)
        if batch.conditions.get("reference_attention") == "exact" and tokens:
            from .kontext_exact import exact_velocity

            offload = bool(batch.conditions.get("offload_references"))
            answer = exact_velocity(network, inputs, tokens, ids, offload)
        else:
            inputs["hidden_states"] = torch.cat([inputs["hidden_states"], *tokens], dim=1)
            inputs["img_ids"] = torch.cat([inputs["img_ids"], *ids])
            answer = velocity_at(network, inputs)
        return unpacked(answer[:, : height * width // 4], height, width)

    def collate(
        self, samples: Sequence[Any], config: RunConfig, device: torch.device, dtype: torch.dtype
    ) -> Batch:
        """The stacked samples with the run's position scheme and reference attention."""
        batch = super().collate(samples, config, device, dtype)
        batch.conditions["positions"] = position_scheme(config)
        batch.conditions["reference_attention"] = config.memory.reference_attention
        batch.conditions["offload_references"] = config.memory.offload_activations
        return batch

    def preview_schedule(self, config: RunConfig, num_tokens: int) -> tuple[str, ScheduleSettings]:
        """FLUX's shifted schedule, as inference uses it."""
        return "flux-dynamic", ScheduleSettings(tokens=num_tokens)

    def metadata(self, config: RunConfig) -> dict[str, str]:
        """Which position ids the LoRA was trained with, and for which architecture."""
        return {
            "dreamomni.positions": position_scheme(config),
            "modelspec.architecture": "flux-1-kontext-dev/lora",
        }


def position_scheme(config: RunConfig) -> str:
    """How references are told apart: DreamOmni2's index and offset unless the run says otherwise.

    Raises ValueError for a scheme that is none.
    """
    return PositionScheme(str(config.options.get("positions", PositionScheme.INDEX_OFFSET.value))).value


def flux_inputs(network: nn.Module, batch: Batch, noisy: Tensor, sigmas: Tensor) -> dict[str, Any]:
    """The transformer's arguments without references, for noisy (B, C, H, W) and sigmas (B,)."""
    context = batch.conditions["prompt"]["context"]
    return {
        "hidden_states": packed(noisy),
        "encoder_hidden_states": context,
        "pooled_projections": batch.conditions["prompt"]["pooled"],
        "timestep": sigmas,
        "img_ids": target_position_ids(latent_grid(*noisy.shape[-2:]), noisy.device),
        "txt_ids": text_position_ids(context.shape[1], noisy.device),
        "guidance": torch.full_like(sigmas, batch.conditions["guidance"]),
    }
