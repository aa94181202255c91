"""The DreamOmni network: a diffusion transformer with UNet-like skips on tokens of noise and of a VLM.

Convention: sigma 1 is noise, velocity = noise - data, x = (1 - sigma) data + sigma noise (the paper's own
direction is not published). B batch, L tokens, D channels of a token, C H W latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..positions import (
    Grid,
    PositionScheme,
    reference_position_ids,
    target_position_ids,
    text_position_ids,
)
from .blocks import BlockInputs, Exit, Group, Stem
from .config import DreamOmniConfig
from .layers import Attention, TimeEmbedding, grid_embedding, rotation, scaled_dot_product

ROLE_TARGET, ROLE_TEXT = 0, 1


class DreamOmniNetwork(nn.Module):
    """Velocity of a noisy latent given the VLM's tokens and, if `source_tokens`, the pictures' latents."""

    def __init__(
        self, config: DreamOmniConfig, dtype: Any = None, device: Any = None, operations: Any = nn
    ) -> None:
        super().__init__()
        self.config = config
        self.dtype = dtype
        options = {"dtype": dtype, "device": device, "operations": operations}
        width = config.width
        self.time_in = TimeEmbedding(
            config.time_frequencies, config.time_width, config.time_layers, **options
        )
        self.stem = Stem(config, **options)
        self.vlm_in = operations.Linear(config.vlm_width, width, dtype=dtype, device=device)
        num_roles = 2 + 2 * config.max_images
        self.roles = (
            operations.Linear(num_roles, width, bias=False, dtype=dtype, device=device)
            if config.role_embeddings
            else None
        )
        self.encoder = nn.ModuleList(Group(config, False, **options) for _ in range(config.groups))
        self.decoder = nn.ModuleList(
            Group(config, config.block_skips, **options) for _ in range(config.groups)
        )
        self.exit = Exit(config, **options)

    def forward(
        self,
        latent: Tensor,
        sigma: Tensor,
        context: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_index: Tensor | None = None,
        ref_latents: Sequence[Tensor] = (),
        attention: Attention = scaled_dot_product,
        positions: str | None = None,
    ) -> Tensor:
        """Velocity (B, C, H, W), in at least float32.

        latent (B, C, H, W), sigma (B,) in 0..1, context (B, L, VLM width), attention_mask (B, L) bool with
        True for real tokens, image_index (B, L) with 0 for text and n for picture n, ref_latents (B, C, h, w)
        each with its own size, placed by `positions` or else the config's scheme. Raises ValueError where
        context or a picture does not fit the network.
        """
        predicted = self.predict(
            latent, sigma, context, attention_mask, image_index, ref_latents, attention, positions
        )
        return self.as_velocity(predicted, latent, sigma)

    def as_velocity(self, predicted: Tensor, latent: Tensor, sigma: Tensor) -> Tensor:
        """The velocity of what `predict` returned: the one place where the kind of prediction matters."""
        precise = torch.promote_types(predicted.dtype, torch.float32)
        predicted = predicted.to(precise)
        if self.config.prediction == "velocity":
            return predicted
        share = sigma.to(precise).clamp(min=self.config.clean_sigma_floor).view(-1, 1, 1, 1)
        return (latent.to(precise) - predicted) / share

    def predict(
        self,
        latent: Tensor,
        sigma: Tensor,
        context: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_index: Tensor | None = None,
        ref_latents: Sequence[Tensor] = (),
        attention: Attention = scaled_dot_product,
        positions: str | None = None,
    ) -> Tensor:
        """The network's own output (B, C, H, W): velocity or clean latent, as the config says."""
        vlm = self.embed_vlm(context, len(latent))
        references = list(ref_latents) if self.config.source_tokens else []
        self.check_latents(latent, references)
        height, width = latent.shape[-2:]
        time = self.time_in(sigma, latent.dtype)
        noise_tokens, skip_a, skip_b = self.stem(self.padded(latent), time)
        clean = self.time_in(torch.zeros_like(sigma), latent.dtype) if references else time
        stems = [self.stem(self.padded(picture), clean) for picture in references]
        pictures = [tokens for tokens, _, _ in stems]
        source = references[0] if references and references[0].shape == latent.shape else None
        source_skips = stems[0][1:] if source is not None else None
        if image_index is None:
            image_index = torch.zeros(vlm.shape[:2], dtype=torch.long, device=vlm.device)
        tokens = torch.cat([noise_tokens, *pictures, vlm], dim=1)
        tokens, inputs = self.place(
            tokens,
            [latent, *references],
            image_index,
            attention_mask,
            time,
            attention,
            PositionScheme(positions or self.config.reference_positions),
        )
        tokens = self.run_groups(tokens, tokens.shape[1] - vlm.shape[1], inputs)
        output = self.exit(tokens[:, : noise_tokens.shape[1]], time, skip_a, skip_b, source_skips)
        output = output[..., :height, :width]
        return composed(output, source) if self.config.source_matte else output

    def run_groups(self, tokens: Tensor, num_image: int, inputs: BlockInputs) -> Tensor:
        """Encoder groups, then decoder groups: the first encoder output meets the last decoder group."""
        saved = []
        for group in self.encoder:
            tokens = group(tokens, num_image, inputs)
            saved.append(tokens)
        for group, skip in zip(self.decoder, reversed(saved), strict=True):
            tokens = group(tokens, num_image, inputs, skip)
        return tokens

    def embed_vlm(self, context: Tensor | None, batch: int) -> Tensor:
        """VLM tokens (B, L, VLM width) -> (B, L, D)."""
        if context is None or context.ndim != 3 or context.shape[-1] != self.config.vlm_width:
            got = "nothing" if context is None else f"a tensor of shape {tuple(context.shape)}"
            raise ValueError(
                f"this DreamOmni network reads VLM tokens with {self.config.vlm_width} channels, got {got}. "
                "Connect the conditioning of 'VLM Encode' with the VLM of the same model folder."
            )
        if len(context) != batch:
            raise ValueError(f"{len(context)} conditionings for {batch} latents")
        if self.config.vlm_norm:
            context = F.layer_norm(context, (self.config.vlm_width,))
        return self.vlm_in(context)

    def check_latents(self, latent: Tensor, references: Sequence[Tensor]) -> None:
        """Raise ValueError where the target or a picture is not in this network's latent space."""
        channels = self.config.latent.channels
        for order, item in enumerate([latent, *references]):
            if item.ndim != 4 or item.shape[1] != channels:
                name = f"the latent of picture {order}" if order else "the latent"
                raise ValueError(
                    f"{name} has shape {tuple(item.shape)}, this network works on {channels} channels. "
                    "Encode with the VAE of the same model folder."
                )
        if len(references) > self.config.max_images:
            raise ValueError(
                f"{len(references)} pictures given, this network takes {self.config.max_images} at most"
            )

    def padded(self, latent: Tensor) -> Tensor:
        """The latent with its last row and column repeated up to whole tokens."""
        cell = self.config.cell
        bottom, right = -latent.shape[-2] % cell, -latent.shape[-1] % cell
        return F.pad(latent, (0, right, 0, bottom), mode="replicate") if bottom or right else latent

    def grid(self, latent: Tensor) -> Grid:
        """Rows and columns of tokens of a latent."""
        cell = self.config.cell
        return Grid(-(-latent.shape[-2] // cell), -(-latent.shape[-1] // cell))

    def place(
        self,
        tokens: Tensor,
        latents: Sequence[Tensor],
        image_index: Tensor,
        attention_mask: Tensor | None,
        time: Tensor,
        attention: Attention,
        scheme: PositionScheme,
    ) -> tuple[Tensor, BlockInputs]:
        """Tokens with role and grid embeddings, and the rotation and mask the blocks need."""
        config, grids = self.config, [self.grid(latent) for latent in latents]
        num_image = sum(grid.num_tokens for grid in grids)
        precise = torch.promote_types(tokens.dtype, torch.float32)
        ids = self.position_ids(grids, image_index, scheme).to(precise)
        if self.roles is not None:
            tokens = tokens + self.roles(self.role_one_hot(grids, image_index).to(tokens.dtype))
        if "sincos" in config.position_encoding:
            placed = grid_embedding(ids[:, :num_image], config.width, config.rope_theta).to(tokens.dtype)
            tokens = torch.cat([tokens[:, :num_image] + placed, tokens[:, num_image:]], dim=1)
        turns = (
            rotation(ids, config.rope_axes, config.rope_theta) if "rope" in config.position_encoding else None
        )
        mask = None if attention_mask is None else key_mask(attention_mask, num_image, tokens.dtype)
        return tokens, BlockInputs(time, turns, mask, attention)

    def position_ids(self, grids: Sequence[Grid], image_index: Tensor, scheme: PositionScheme) -> Tensor:
        """Ids (B, L, 3) of noise, pictures and VLM tokens, in the order of the token stream."""
        device = image_index.device
        image = [
            target_position_ids(grids[0], device),
            *reference_position_ids(grids[1:], scheme, device),
        ]
        batch, length = image_index.shape
        text = text_position_ids(length, device).expand(batch, -1, -1)
        if self.config.vlm_image_index:
            text = torch.cat([image_index[..., None].to(text.dtype), text[..., 1:]], dim=-1)
        return torch.cat([torch.cat(image).expand(batch, -1, -1), text], dim=1)

    def role_one_hot(self, grids: Sequence[Grid], image_index: Tensor) -> Tensor:
        """(B, L, roles): target, text, VLM tokens of picture n, VAE tokens of picture n."""
        most = self.config.max_images
        roles = [torch.full((grids[0].num_tokens,), ROLE_TARGET)]
        roles += [torch.full((grid.num_tokens,), 1 + most + n) for n, grid in enumerate(grids[1:], start=1)]
        image = torch.cat(roles).to(image_index.device).expand(len(image_index), -1)
        vlm = ROLE_TEXT + image_index.long().clamp(0, most)
        return F.one_hot(torch.cat([image, vlm], dim=1), 2 + 2 * most)


def composed(output: Tensor, source: Tensor | None) -> Tensor:
    """Painted latent and matte (B, 2 C, H, W) over the source (B, C, H, W); without one the paint alone."""
    painted, matte = output.chunk(2, dim=1)
    if source is None:
        return painted
    # In at least float32: where the matte is shut, the source comes back exactly.
    painted, share = (part.to(torch.promote_types(part.dtype, torch.float32)) for part in (painted, matte))
    return torch.lerp(source.to(share.dtype), painted, share.sigmoid())


def key_mask(attention_mask: Tensor, num_image: int, dtype: torch.dtype) -> Tensor:
    """Additive mask (B, 1, L, L) that hides padded VLM tokens from every query."""
    hidden = F.pad(~attention_mask.bool(), (num_image, 0), value=False)
    keys = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    keys = keys.masked_fill(hidden, torch.finfo(dtype).min)
    return keys[:, None, None, :].expand(-1, 1, hidden.shape[1], -1)
