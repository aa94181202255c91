"""Words and pictures to OmniGen's three conditionings: all of it, a negative prompt, pictures only."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any

import torch
from torch import Tensor

import comfy.model_management

from ..dit.omnigen.prompt import check_mentions, few_shot_prompt, image_only_prompt, tag_mentions
from ..dit.omnigen.resolution import TOKEN_PIXELS, fit_reference
from ..dit.references import MAX_REFERENCES, ReferenceSet, Task, picture_key
from .encode_cache import ENCODED
from .omnigen_processor import OmniGenProcessor

LATENT_PIXELS = 8
LATENT_CHANNELS = 4


class PromptStyle(str, Enum):
    """How the user names pictures in the prompt."""

    TAGS = "tags"
    MENTIONS = "mentions"
    FEW_SHOT = "few-shot"


class OutputSize(str, Enum):
    """Where the result's size comes from."""

    AUTO = "auto"
    IMAGE_1 = "image 1"
    FIELDS = "width and height"


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodeRequest:
    """What the encode node was asked for."""

    prompt: str
    negative_prompt: str
    max_image_size: int = 1024
    prompt_style: PromptStyle = PromptStyle.TAGS
    output_size: OutputSize = OutputSize.AUTO
    width: int = 1024
    height: int = 1024

    def __post_init__(self) -> None:
        if self.width % TOKEN_PIXELS or self.height % TOKEN_PIXELS:
            raise ValueError(
                f"width and height must be multiples of {TOKEN_PIXELS}, got {self.width} x {self.height}"
            )


@dataclass(frozen=True, slots=True)
class Conditionings:
    """ComfyUI conditionings of the branches, and the latent to start from."""

    positive: list
    negative: list
    image_only: list
    latent: Tensor


def encode_request(
    processor: OmniGenProcessor, vae: Any, request: EncodeRequest, references: ReferenceSet | None
) -> Conditionings:
    """All branches of guidance; without pictures `image_only` is the negative one and adds nothing."""
    given = references.images if references is not None else ()
    images = [fit_reference(image, request.max_image_size) for image in given]
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    height, width = result_size(request, references, sizes)
    target = height * width // TOKEN_PIXELS**2
    prompt = styled_prompt(request, len(images))
    ids = [
        processor.tokenize(text, shown, target).as_tensor()
        for text, shown in (
            (prompt, sizes),
            (request.negative_prompt, []),
            (image_only_prompt(len(images)), sizes),
        )
    ]
    # Encoded after the prompt was found right, and once for all branches. ComfyUI's VAE gives the mean of the
    # latents; the authors' code draws them (`latent_dist.sample()`).
    latents = {"reference_latents": [kept_latent(vae, image) for image in images]} if images else {}
    negative = [[ids[1], {}]]
    batch = max((len(image) for image in images), default=1)
    return Conditionings(
        positive=[[ids[0], dict(latents)]],
        negative=negative,
        image_only=[[ids[2], dict(latents)]] if images else negative,
        latent=torch.zeros(
            (batch, LATENT_CHANNELS, height // LATENT_PIXELS, width // LATENT_PIXELS),
            device=comfy.model_management.intermediate_device(),
        ),
    )


def styled_prompt(request: EncodeRequest, num_images: int) -> str:
    """The prompt with picture tags, whichever way the user wrote it."""
    if request.prompt_style is PromptStyle.MENTIONS:
        check_mentions(request.prompt, num_images, MAX_REFERENCES)
        return tag_mentions(request.prompt, MAX_REFERENCES)
    if request.prompt_style is PromptStyle.FEW_SHOT:
        return few_shot_prompt(request.prompt, num_images)
    return request.prompt


def result_size(
    request: EncodeRequest, references: ReferenceSet | None, sizes: list[tuple[int, int]]
) -> tuple[int, int]:
    """(height, width) in px of the result; an edit keeps the size of its picture unless told otherwise."""
    wants_image = request.output_size is OutputSize.IMAGE_1
    if wants_image and not sizes:
        raise ValueError("output_size 'image 1' needs a picture: wire one or choose 'width and height'")
    is_edit = references is not None and references.task is Task.EDIT
    if sizes and (wants_image or (request.output_size is OutputSize.AUTO and is_edit)):
        return sizes[0]
    return request.height, request.width


def kept_latent(vae: Any, image: Tensor) -> Tensor:
    """Latents of fitted pictures; what this VAE has encoded lately is not repeated."""
    # Its own keys: Reference Conditioning keeps latents that only its own check has seen.
    return ENCODED.get(vae, f"omnigen {picture_key(image)}", partial(encode_image, vae, image))


def encode_image(vae: Any, image: Tensor) -> Tensor:
    """Latents (B, 4, H/8, W/8) of pictures (B, H, W, 3); ValueError if the VAE is not SDXL's kind."""
    latent = vae.encode(image)
    expected = (LATENT_CHANNELS, image.shape[1] // LATENT_PIXELS, image.shape[2] // LATENT_PIXELS)
    if tuple(latent.shape[1:]) != expected:
        raise ValueError(
            f"this VAE makes latents of shape {tuple(latent.shape[1:])} where OmniGen needs {expected}: "
            "load the SDXL VAE (sdxl_vae.safetensors)"
        )
    return latent
