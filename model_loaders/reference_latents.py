"""Reference pictures through a ComfyUI VAE into a CONDITIONING."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

import comfy.model_management
import node_helpers

from ..dit.references import ReferenceSet, picture_key
from .encode_cache import ENCODED

REFERENCE_METHOD = "index"


def encode_references(vae: Any, references: ReferenceSet) -> list[Tensor]:
    """Latents (B, C, h, w) of every reference, in order; what this VAE has encoded lately is not repeated."""
    latents = []
    for order, image in enumerate(references.images, start=1):
        encode = partial(encode_picture, vae, image, order)
        latents.append(ENCODED.get(vae, picture_key(image), encode))
    return latents


def encode_picture(vae: Any, image: Tensor, order: int) -> Tensor:
    """Latent (B, C, h, w) of pictures (B, H, W, 3); raises ValueError if the VAE is not one for pictures."""
    latent = vae.encode(image)
    ratio = vae.spacial_compression_encode()
    expected = (len(image), vae.latent_channels, image.shape[1] // ratio, image.shape[2] // ratio)
    if tuple(latent.shape) != expected:
        raise ValueError(
            f"this VAE made a latent of shape {tuple(latent.shape)} from image_{order} "
            f"({image.shape[2]}x{image.shape[1]} pixels), where {expected} is needed; it is a VAE for video "
            "or of another kind. For Kontext load Flux's VAE (ae.safetensors)."
        )
    return latent


def empty_latent(vae: Any, batch_size: int, width: int, height: int) -> Tensor:
    """Zeros (B, C, h, w) for a result of `width` x `height` pixels."""
    ratio = vae.spacial_compression_encode()
    shape = (batch_size, vae.latent_channels, height // ratio, width // ratio)
    return torch.zeros(shape, device=comfy.model_management.intermediate_device())


def append_reference_latents(conditioning: list, latents: list[Tensor]) -> list:
    """The conditioning with `latents` after those it has, told apart by index; unchanged when none."""
    if not latents:
        return conditioning
    appended = node_helpers.conditioning_set_values(conditioning, {"reference_latents": latents}, append=True)
    return node_helpers.conditioning_set_values(appended, {"reference_latents_method": REFERENCE_METHOD})
