"""OmniGen's transformer: a Phi-3 decoder between two patch embeddings and a time-modulated exit.

B batch, C channels, H W latent grid, L prefix tokens, N target tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .blocks import Attention, Decoder, KeyValueMemory, torch_attention
from .config import OmniGenConfig
from .embed import PatchEmbed, TimeEmbed, grid_positions
from .layout import Rows, sequence_rows
from .prefix import Prefix
from .rope import Rotation, rotation


class FinalLayer(nn.Module):
    """Shift and scale by time, then a linear layer to the pixels of a patch."""

    def __init__(self, config: OmniGenConfig, *, operations: Any, **factory: Any) -> None:
        super().__init__()
        width = config.patch_size**2 * config.in_channels
        self.linear = operations.Linear(config.hidden_size, width, bias=True, **factory)
        self.adaLN_modulation = nn.Sequential(
            nn.SiLU(), operations.Linear(config.hidden_size, 2 * config.hidden_size, bias=True, **factory)
        )

    def forward(self, hidden: Tensor, time: Tensor) -> Tensor:
        """(B, N, hidden) and (B, hidden) to (B, N, patch * patch * C)."""
        shift, scale = self.adaLN_modulation(time).unsqueeze(1).chunk(2, dim=-1)
        normed = F.layer_norm(hidden, hidden.shape[-1:], eps=1e-6)
        return self.linear(normed * (1 + scale) + shift)


class OmniGenNetwork(nn.Module):
    """Velocity of a noisy latent under a prefix; the modules are named as in the released file."""

    def __init__(
        self,
        config: OmniGenConfig,
        *,
        operations: Any = nn,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        factory = {"device": device, "dtype": dtype}
        patch = (config.in_channels, config.hidden_size, config.patch_size)
        self.x_embedder = PatchEmbed(*patch, operations=operations, **factory)
        self.input_x_embedder = PatchEmbed(*patch, operations=operations, **factory)
        self.time_token = TimeEmbed(config.hidden_size, operations=operations, **factory)
        self.t_embedder = TimeEmbed(config.hidden_size, operations=operations, **factory)
        self.final_layer = FinalLayer(config, operations=operations, **factory)
        self.llm = Decoder(config, operations=operations, **factory)

    def embed_picture(self, latent: Tensor, embedder: PatchEmbed) -> Tensor:
        """Tokens (B, h * w, hidden) of a latent with its place in the position table added."""
        height, width = (side // self.config.patch_size for side in latent.shape[-2:])
        tokens = embedder(latent)
        sizes = (height, width, self.config.hidden_size, self.config.max_grid)
        return tokens + grid_positions(*sizes, device=tokens.device, dtype=tokens.dtype)

    def embed_words(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows of the word table (1, L, hidden) in `dtype`."""
        table = self.llm.embed_tokens
        # torch before 2.6 does not look up 8-bit floats on CUDA: there ComfyUI's embedding, told apart by its
        # mark, casts the table first. torch's own does not know `out_dtype`: cast afterwards.
        casts_first = table.weight.element_size() == 1 and hasattr(table, "comfy_cast_weights")
        return table(ids, out_dtype=dtype) if casts_first else table(ids).to(dtype)

    def embed_prefix(self, prefix: Prefix, dtype: torch.dtype, device: torch.device) -> Tensor:
        """(1, L, hidden): words looked up, slots filled with their picture's tokens."""
        ids = torch.tensor([prefix.tokens.token_ids], dtype=torch.int64, device=device)
        words = self.embed_words(ids, dtype)
        pictures = [
            self.embed_picture(latent.to(device=device, dtype=dtype), self.input_x_embedder)
            for latent in prefix.reference_latents
        ]
        pieces, position = [], 0
        for slot in prefix.tokens.slots:
            pieces += [words[:, position : slot.start], pictures[slot.image]]
            position = slot.stop
        return torch.cat([*pieces, words[:, position:]], dim=1)

    def embed_time(self, sigma: Tensor, dtype: torch.dtype) -> Tensor:
        """Time tokens (B, hidden) at noise share sigma (B).

        OmniGen was trained with time 1 at the data, the pack's sigma is 1 at the noise: one is turned into
        the other here, and the sign of the answer in `read_velocity`.
        """
        return self.time_token(1.0 - sigma, dtype)

    def read_velocity(self, hidden: Tensor, sigma: Tensor, grid: tuple[int, int]) -> Tensor:
        """Target rows (B, N, hidden) to the velocity noise - data, (B, C, H, W)."""
        normed = self.llm.norm(hidden)
        patches = self.final_layer(normed, self.t_embedder(1.0 - sigma, hidden.dtype))
        patch, channels = self.config.patch_size, self.config.in_channels
        patches = patches.unflatten(-1, (patch, patch, channels)).unflatten(1, grid)
        image = patches.permute(0, 5, 1, 3, 2, 4)
        return -image.flatten(4, 5).flatten(2, 3)

    def rotation(self, position_ids: Tensor, sequence_length: int, device: torch.device) -> Rotation:
        """Rotary positions of tokens in a sequence of that length."""
        return rotation(self.config, position_ids, sequence_length, device)

    def run_layers(
        self,
        hidden: Tensor,
        positions: Rotation,
        rows: Sequence[Rows],
        attention: Attention,
        memory: KeyValueMemory | None = None,
    ) -> Tensor:
        """All decoder layers over the fresh tokens (B, L, hidden)."""
        for layer in self.llm.layers:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                hidden = checkpoint(layer, hidden, positions, rows, memory, attention, use_reentrant=False)
            else:
                hidden = layer(hidden, positions, rows, memory, attention)
        return hidden

    def velocity(
        self,
        latent: Tensor,
        sigma: Tensor,
        prefix: Prefix | Sequence[Prefix],
        attention: Attention = torch_attention,
    ) -> Tensor:
        """Velocity noise - data (B, C, H, W) of latents at noise share sigma (B).

        All under one prefix, or each under its own; those of equal layout run together.
        """
        if not isinstance(prefix, Prefix):
            return self.velocity_each(latent, sigma, prefix, attention)
        return self.velocity_together(latent, sigma, [prefix], attention)

    def velocity_each(
        self, latent: Tensor, sigma: Tensor, prefixes: Sequence[Prefix], attention: Attention
    ) -> Tensor:
        """One prefix for each item of the batch."""
        first = prefixes[0].tokens
        layouts = {(prefix.length, prefix.tokens.slots) for prefix in prefixes}
        if layouts == {(len(first.token_ids), first.slots)}:
            return self.velocity_together(latent, sigma, prefixes, attention)
        items = [
            self.velocity_together(latent[item][None], sigma[item][None], [prefix], attention)
            for item, prefix in enumerate(prefixes)
        ]
        return torch.cat(items)

    def velocity_together(
        self, latent: Tensor, sigma: Tensor, prefixes: Sequence[Prefix], attention: Attention
    ) -> Tensor:
        """One pass over prefixes of equal layout, one for all items or one for each."""
        latent, size = pad_to_patch(latent, self.config.patch_size)
        grid = (latent.shape[-2] // self.config.patch_size, latent.shape[-1] // self.config.patch_size)
        count = grid[0] * grid[1]
        words = [self.embed_prefix(prefix, latent.dtype, latent.device) for prefix in prefixes]
        prefix = prefixes[0]
        hidden = torch.cat(
            (
                torch.cat(words).expand(latent.shape[0], -1, -1),
                self.embed_time(sigma, latent.dtype)[:, None],
                self.embed_picture(latent, self.x_embedder),
            ),
            dim=1,
        )
        length = hidden.shape[1]
        positions = self.rotation(torch.arange(length), length, latent.device)
        rows = sequence_rows(prefix.tokens.slots, prefix.length, count, latent.device)
        hidden = self.run_layers(hidden, positions, rows, attention)
        velocity = self.read_velocity(hidden[:, -count:], sigma, grid)
        return velocity[..., : size[0], : size[1]]


def pad_to_patch(latent: Tensor, patch_size: int) -> tuple[Tensor, tuple[int, int]]:
    """The latent with its last row or column repeated up to whole patches, and its size before."""
    height, width = latent.shape[-2:]
    bottom, right = -height % patch_size, -width % patch_size
    if bottom or right:
        latent = F.pad(latent, (0, right, 0, bottom), mode="replicate")
    return latent, (height, width)
