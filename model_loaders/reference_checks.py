"""Latents that a sampler would cut or a network cannot read are refused before the first step."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def check_references(latents: Sequence[Tensor], noise: Tensor, channels: int, vae: str) -> None:
    """Raise ValueError if the noise or a reference is not a latent of the model, or would be cut.

    `channels` are the model's own. `vae` ends the message: which VAE the model needs.
    """
    check_start(noise, channels, vae)
    for order, latent in enumerate(latents, start=1):
        if not is_picture(latent, channels):
            raise ValueError(
                f"reference {order} is a latent of shape {tuple(latent.shape)}, this model takes "
                f"{channels} channels: it was encoded with the VAE of another model. {vae}"
            )
    check_batches(latents, noise)


def check_start(noise: Tensor, channels: int, vae: str) -> None:
    """Raise ValueError if what is sampled is not a picture's latent with the model's channels."""
    if not is_picture(noise, channels):
        raise ValueError(
            f"the latent to start from has shape {tuple(noise.shape)}, this model takes {channels} channels, "
            f"as (batch, {channels}, height, width). Encode it with the VAE of this model, or take an empty "
            f"latent for pictures, not for video. {vae}"
        )


def is_picture(latent: Tensor, channels: int) -> bool:
    """Whether a latent is (B, channels, H, W)."""
    return latent.ndim == 4 and latent.shape[1] == channels


def check_batches(latents: Sequence[Tensor], noise: Tensor) -> None:
    """Raise ValueError if not every picture of a reference's batch would be sampled, equally often."""
    for order, latent in enumerate(latents, start=1):
        if len(noise) % len(latent):
            raise ValueError(
                f"reference {order} is a batch of {len(latent)} but {len(noise)} picture(s) are sampled, so "
                "some would be dropped. Use the latent of Reference Conditioning or OmniGen Encode, or a "
                "batch of that size."
            )


def check_requests(tokens: Tensor, noise: Tensor) -> None:
    """The same for the VLM's tokens (requests, L, D), one request for each picture of a batch."""
    if len(noise) % len(tokens):
        raise ValueError(
            f"the conditioning is a batch of {len(tokens)}, one for each picture of image_1, but "
            f"{len(noise)} picture(s) are sampled, so some would be dropped. Use an empty latent with that "
            "batch size."
        )


def check_joined(tokens: Tensor, attention_mask: Tensor | None, image_index: Tensor | None) -> None:
    """Raise ValueError if VLM tokens (requests, L, D) have a mask or picture numbers of another length.

    A node that joins conditionings drops the second one's, and without them its pictures would be read as
    words and its padding as words too.
    """
    for part in (attention_mask, image_index):
        if part is not None and part.shape[1:2] != tokens.shape[1:2]:
            raise ValueError(
                f"the conditioning has {tokens.shape[1]} VLM tokens, but says for {part.shape[1]} of them "
                "which picture they belong to: a node like 'Conditioning (Concat)' joined two and lost the "
                "rest. Write both texts into the prompt of one 'VLM Encode' and give it all pictures."
            )


def check_named(latents: Sequence[Tensor], num_named: int) -> None:
    """Raise ValueError if OmniGen's prompt has a place for fewer pictures than the conditioning holds.

    The others would do nothing: OmniGen sees a picture only where its prompt names it.
    """
    if len(latents) > num_named:
        raise ValueError(
            f"the conditioning holds {len(latents)} reference(s), the prompt names {num_named}, and OmniGen "
            "does not see a picture that its prompt does not name. Connect the pictures to 'OmniGen Encode', "
            "not to Reference Conditioning or ReferenceLatent."
        )


def missing_latents(image_index: Tensor | None, latents: Sequence[Tensor]) -> int:
    """How many of the pictures that the VLM saw have no latent; `image_index` (requests, L), n of picture n.

    Latents without VLM tokens count for nothing here: a network may be given a source it was not told of.
    """
    seen = int(image_index.max()) if image_index is not None and image_index.numel() else 0
    return max(0, seen - len(latents))
