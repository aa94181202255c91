"""DreamOmni as a ComfyUI MODEL: its network call, its conditioning, its previews and its memory estimate."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.patcher_extension
import comfy.supported_models_base

from ..dit.dreamomni.config import DreamOmniConfig
from ..dit.dreamomni.latent import LatentSpec
from ..dit.dreamomni.network import DreamOmniNetwork
from .host_attention import host_attention
from .reference_checks import check_batches, check_joined, check_requests, missing_latents
from .wrapped_call import WrappedCall

log = logging.getLogger("dreamomni")

REFERENCES = "ref_latents"
POSITIONS = "dreamomni_positions"
"""Transformer option that places references by another scheme than the network's config."""
STOCK_FORMATS = {"flux": comfy.latent_formats.Flux, "sdxl": comfy.latent_formats.SDXL}


class LatentFormat(comfy.latent_formats.LatentFormat):
    """Scale, channels and preview colours of a network's own latent space."""

    def __init__(self, spec: LatentSpec) -> None:
        self.scale_factor, self.shift_factor = spec.scale, spec.shift
        self.latent_channels = spec.channels
        # Newer hosts size empty latents by this.
        self.spacial_downscale_ratio = spec.downscale
        self.latent_rgb_factors = [list(row) for row in spec.rgb_factors] or None
        self.latent_rgb_factors_bias = list(spec.rgb_bias)

    def process_in(self, latent: Tensor) -> Tensor:
        """VAE latents as the network sees them."""
        return (latent - self.shift_factor) * self.scale_factor

    def process_out(self, latent: Tensor) -> Tensor:
        """The inverse of `process_in`."""
        return latent / self.scale_factor + self.shift_factor


def latent_format(spec: LatentSpec) -> comfy.latent_formats.LatentFormat:
    """ComfyUI's own format for the Flux and SDXL VAEs, with their previews; the spec's for every other."""
    if spec.kind in STOCK_FORMATS and not spec.rgb_factors:
        return STOCK_FORMATS[spec.kind]()
    return LatentFormat(spec)


class HostNetwork(WrappedCall, DreamOmniNetwork):
    """The network with the call ComfyUI makes; a DIFFUSION_MODEL wrapper sees every evaluation."""

    def __init__(
        self,
        config: DreamOmniConfig,
        image_model: str,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        operations: Any = None,
    ) -> None:
        super().__init__(config, dtype=dtype, device=device, operations=operations)

    def _forward(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor | None,
        control: object,
        transformer_options: dict[str, Any],
        attention_mask: Tensor | None = None,
        image_index: Tensor | None = None,
        ref_latents: Sequence[Tensor] = (),
        **ignored: Any,
    ) -> Tensor:
        attention = host_attention(transformer_options)
        positions = transformer_options.get(POSITIONS)
        return DreamOmniNetwork.forward(
            self, x, timestep, context, attention_mask, image_index, ref_latents, attention, positions
        )


class DreamOmniModel(comfy.model_base.BaseModel):
    """ComfyUI's side of the network: conditioning in, memory estimate out."""

    diffusion_model: HostNetwork

    def __init__(self, model_config: DreamOmniModelConfig, device: torch.device | None = None) -> None:
        flow = comfy.model_base.ModelType.FLOW
        super().__init__(model_config, flow, device=device, unet_model=HostNetwork)
        self.memory_usage_factor_conds = (REFERENCES, "c_crossattn")
        self.told_of_missing = False

    @property
    def network_config(self) -> DreamOmniConfig:
        """The config of the network inside."""
        return self.diffusion_model.config

    def process_timestep(self, timestep: Tensor, **kwargs: Any) -> Tensor:
        """sigma itself, also under a sampling patch that multiplies it by 1000."""
        return timestep / getattr(self.model_sampling, "multiplier", 1.0)

    def extra_conds(self, **kwargs: Any) -> dict[str, comfy.conds.CONDRegular]:
        """VLM tokens, their mask and picture numbers, and the pictures' latents where the network reads them.

        Tokens are never repeated to a common length, as ComfyUI does for text: their places count. ValueError
        for a batch that the sampled one would cut, or for two conditionings joined to one.
        """
        conds: dict[str, comfy.conds.CONDRegular] = {}
        tokens = kwargs.get("cross_attn")
        mask, index = kwargs.get("attention_mask"), kwargs.get("dreamomni_image_index")
        if tokens is not None:
            check_requests(tokens, kwargs["noise"])
            check_joined(tokens, mask, index)
            conds["c_crossattn"] = comfy.conds.CONDRegular(tokens)
        if mask is not None and not bool(mask.bool().all()):
            conds["attention_mask"] = comfy.conds.CONDRegular(mask.int())
        if index is not None:
            conds["image_index"] = comfy.conds.CONDRegular(index)
        latents = self.used_references(kwargs)
        self.tell_of_missing(index, latents)
        if latents:
            check_batches(latents, kwargs["noise"])
            conds[REFERENCES] = comfy.conds.CONDList([self.process_latent_in(latent) for latent in latents])
        return conds

    def tell_of_missing(self, image_index: Tensor | None, latents: Sequence[Tensor]) -> None:
        """Log once that a network which reads pictures' latents was not given those of what its VLM saw."""
        missing = missing_latents(image_index, latents) if self.network_config.source_tokens else 0
        if missing and not self.told_of_missing:
            self.told_of_missing = True
            log.warning(
                "The VLM saw %d picture(s) that this DreamOmni network gets no latent of: their details are "
                "lost. Put Reference Conditioning between VLM Encode and the sampler.",
                missing,
            )

    def used_references(self, conditioning: dict[str, Any]) -> Sequence[Tensor]:
        """The pictures' latents of a conditioning, none if the network sees pictures through the VLM only."""
        return (conditioning.get("reference_latents") or ()) if self.network_config.source_tokens else ()

    def extra_conds_shapes(self, **kwargs: Any) -> dict[str, list[int]]:
        """The sizes of the conditions before the run, for the estimate that decides what stays loaded.

        ValueError for a ControlNet.
        """
        # Here already: ComfyUI asks the ControlNet before the network, and it would fail in its own words.
        if kwargs.get("control") is not None:
            raise ValueError("DreamOmni has no ControlNets: give the control picture as a reference instead")
        shapes: dict[str, list[int]] = {}
        tokens = kwargs.get("cross_attn")
        if tokens is not None:
            shapes["c_crossattn"] = list(tokens.shape)
        latents = self.used_references(kwargs)
        if latents:
            cells = sum(math.prod(latent.shape[2:]) for latent in latents)
            shapes[REFERENCES] = [1, self.network_config.latent.channels, cells]
        return shapes

    def memory_required(
        self, input_shape: Sequence[int], cond_shapes: dict[str, list] | None = None, **kwargs: Any
    ) -> float:
        """Bytes one evaluation needs beside the weights, references and VLM tokens counted."""
        config, shapes = self.network_config, cond_shapes or {}
        cells = math.prod(input_shape[-2:]) + max((s[-1] for s in shapes.get(REFERENCES, [])), default=0)
        text = max((s[1] for s in shapes.get("c_crossattn", [])), default=0)
        size = comfy.model_management.dtype_size(self.manual_cast_dtype or self.get_dtype())
        tokens = cells / config.cell**2 + text
        return input_shape[0] * (tokens * token_bytes(config, size) + cells * cell_bytes(config, size))


def token_bytes(config: DreamOmniConfig, size: int) -> float:
    """Bytes for each token: hidden states, q k v with their fp32 rotation, feed-forward, all saved skips."""
    kept = config.groups * config.width if config.block_skips else 0
    return 1.2 * (size * (12 * config.width + 3 * config.feedforward_width + kept) + 16 * config.width)


def cell_bytes(config: DreamOmniConfig, size: int) -> float:
    """Bytes for each latent cell: the convolution blocks and the two skips kept."""
    return 1.2 * size * 10 * config.conv_width


class DreamOmniModelConfig(comfy.supported_models_base.BASE):
    """What ComfyUI's loader would have found out about the file."""

    unet_config: dict[str, Any] = {}
    unet_extra_config: dict[str, Any] = {}
    supported_inference_dtypes = [torch.bfloat16, torch.float32]

    def __init__(self, config: DreamOmniConfig) -> None:
        super().__init__({"config": config, "image_model": "dreamomni"})
        vars(self)["latent_format"] = latent_format(config.latent)
        # The network is fed sigma itself.
        self.sampling_settings = {"shift": config.sampling_shift, "multiplier": 1.0}

    def get_model(
        self, state_dict: dict[str, Tensor], prefix: str = "", device: torch.device | None = None
    ) -> DreamOmniModel:
        """A DreamOmniModel with empty weights."""
        return DreamOmniModel(self, device=device)
