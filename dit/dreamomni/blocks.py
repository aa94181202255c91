"""The blocks of the DreamOmni network: convolution block, DiT block, encoder and decoder group.

B batch, L tokens, D channels of a token, C H W latent. Published parts follow the method figure; what is not
drawn is named in `config.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import BLOCKS_PER_GROUP, DreamOmniConfig
from .layers import NORM_EPSILON, Attention, Modulation, Rotation


class BlockInputs(NamedTuple):
    """What every block of one forward pass shares."""

    time: Tensor
    """(B, time width)"""
    rotation: Rotation | None
    mask: Tensor | None
    """Additive, (B, 1, L, L)."""
    attention: Attention


def _modulation(
    config: DreamOmniConfig, width: int, parts: int, dtype: Any, device: Any, operations: Any
) -> Modulation:
    return Modulation(
        config.time_width,
        width,
        parts,
        config.modulation_order,
        config.modulation_form,
        dtype,
        device,
        operations,
    )


class ResidualConvBlock(nn.Module):
    """conv -> GroupNorm -> alpha * x + beta -> SiLU -> conv, added to the input; (B, C, H, W)."""

    def __init__(
        self,
        config: DreamOmniConfig,
        in_channels: int,
        dtype: Any = None,
        device: Any = None,
        operations: Any = nn,
    ) -> None:
        super().__init__()
        width = config.conv_width
        options = {"dtype": dtype, "device": device}
        self.conv_in = operations.Conv2d(in_channels, width, 3, padding=1, **options)
        self.norm = operations.GroupNorm(
            config.conv_norm_groups, width, eps=NORM_EPSILON, affine=True, **options
        )
        self.modulation = _modulation(config, width, 2, dtype, device, operations)
        self.conv_out = operations.Conv2d(width, width, 3, padding=1, **options)
        self.shortcut = (
            operations.Conv2d(in_channels, width, 1, **options) if in_channels != width else nn.Identity()
        )

    def forward(self, latent: Tensor, time: Tensor) -> Tensor:
        alpha, beta = (part.transpose(1, 2).unsqueeze(-1) for part in self.modulation(time))
        hidden = self.norm(self.conv_in(latent)) * alpha + beta
        return self.shortcut(latent) + self.conv_out(F.silu(hidden))


class Stem(nn.Module):
    """Convolution blocks A and B at latent resolution, 2x downsampling, patching to tokens (B, L, D)."""

    def __init__(
        self, config: DreamOmniConfig, dtype: Any = None, device: Any = None, operations: Any = nn
    ) -> None:
        super().__init__()
        width, self.patch = config.conv_width, config.patch
        options = {"dtype": dtype, "device": device, "operations": operations}
        self.block_a = ResidualConvBlock(config, config.latent.channels, **options)
        self.block_b = ResidualConvBlock(config, width, **options)
        self.shuffle = config.downsample == "pixel-unshuffle"
        if self.shuffle:
            self.down = operations.Conv2d(4 * width, width, 1, dtype=dtype, device=device)
        else:
            self.down = operations.Conv2d(width, width, 3, stride=2, padding=1, dtype=dtype, device=device)
        self.to_tokens = operations.Linear(width * self.patch**2, config.width, dtype=dtype, device=device)

    def forward(self, latent: Tensor, time: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, skip A and skip B of a latent whose sides are multiples of `config.cell`."""
        skip_a = self.block_a(latent, time)
        skip_b = self.block_b(skip_a, time)
        small = self.down(F.pixel_unshuffle(skip_b, 2) if self.shuffle else skip_b)
        patches = F.pixel_unshuffle(small, self.patch).flatten(2).transpose(1, 2)
        return self.to_tokens(patches), skip_a, skip_b


class Exit(nn.Module):
    """Unpatching, 2x upsampling, a convolution block with skip B, one with skip A, and the output."""

    def __init__(
        self, config: DreamOmniConfig, dtype: Any = None, device: Any = None, operations: Any = nn
    ) -> None:
        super().__init__()
        width, self.patch = config.conv_width, config.patch
        options = {"dtype": dtype, "device": device}
        self.skips, self.concat = config.conv_skips, config.conv_skip_merge == "concat"
        self.sources = config.source_exit_skips
        parts = 2 + self.sources if self.skips and self.concat else 1
        merged = parts * width
        self.norm = (
            operations.LayerNorm(config.width, elementwise_affine=False, eps=NORM_EPSILON, **options)
            if config.exit_norm
            else nn.Identity()
        )
        self.from_tokens = operations.Linear(config.width, width * self.patch**2, **options)
        self.shuffle = config.upsample == "pixel-shuffle"
        if self.shuffle:
            self.up = operations.Conv2d(width, 4 * width, 1, **options)
        else:
            self.up = operations.Conv2d(width, width, 3, padding=1, **options)
        self.block_b = ResidualConvBlock(config, merged, operations=operations, **options)
        self.block_a = ResidualConvBlock(config, merged, operations=operations, **options)
        self.out_norm = operations.GroupNorm(
            config.conv_norm_groups, width, eps=NORM_EPSILON, affine=True, **options
        )
        painted = config.latent.channels * (1 + config.source_matte)
        self.out = operations.Conv2d(width, painted, 3, padding=1, **options)

    def forward(
        self,
        tokens: Tensor,
        time: Tensor,
        skip_a: Tensor,
        skip_b: Tensor,
        source_skips: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Output (B, C, H, W) of the noise tokens (B, L, D), with a matte (B, 2 C, H, W); the skips fix H, W.

        `source_skips` are skips A and B of the source for `source_exit_skips`; None stands for zeros.
        """
        rows = skip_b.shape[-2] // (2 * self.patch)
        patches = self.from_tokens(self.norm(tokens)).transpose(1, 2).unflatten(2, (rows, -1))
        small = F.pixel_shuffle(patches, self.patch)
        if self.shuffle:
            current = F.pixel_shuffle(self.up(small), 2)
        else:
            current = self.up(F.interpolate(small, scale_factor=2, mode="nearest"))
        source_a, source_b = source_skips or (None, None)
        current = self.block_b(self.merge(current, skip_b, source_b), time)
        current = self.block_a(self.merge(current, skip_a, source_a), time)
        return self.out(F.silu(self.out_norm(current)))

    def merge(self, current: Tensor, skip: Tensor, source: Tensor | None) -> Tensor:
        """The current latent with the stem's skips, on the channel axis or added."""
        if not self.skips:
            return current
        parts = [current, skip]
        if self.sources:
            parts.append(torch.zeros_like(skip) if source is None else source)
        return torch.cat(parts, dim=1) if self.concat else sum(parts[1:], parts[0])


class DiTBlock(nn.Module):
    """LayerNorm, alpha * x + beta, joint self-attention, residual; the same around one feed-forward layer."""

    def __init__(
        self, config: DreamOmniConfig, dtype: Any = None, device: Any = None, operations: Any = nn
    ) -> None:
        super().__init__()
        width, inner = config.width, config.feedforward_width
        options = {"dtype": dtype, "device": device}
        parts = 3 if config.residual_gate else 2
        self.heads = config.heads
        self.attention_norm = operations.LayerNorm(
            width, elementwise_affine=False, eps=NORM_EPSILON, **options
        )
        self.attention_modulation = _modulation(config, width, parts, dtype, device, operations)
        self.qkv = operations.Linear(width, 3 * width, bias=config.qkv_bias, **options)
        self.query_norm, self.key_norm = (
            operations.RMSNorm(config.head_width, eps=NORM_EPSILON, **options)
            if config.qk_norm
            else nn.Identity()
            for _ in range(2)
        )
        self.attention_out = operations.Linear(width, width, **options)
        self.feedforward_norm = operations.LayerNorm(
            width, elementwise_affine=False, eps=NORM_EPSILON, **options
        )
        self.feedforward_modulation = _modulation(config, width, parts, dtype, device, operations)
        self.feedforward_in = operations.Linear(width, inner, **options)
        self.feedforward_out = operations.Linear(inner, width, **options)

    def forward(self, tokens: Tensor, inputs: BlockInputs) -> Tensor:
        """Tokens (B, L, D) of noise, pictures and VLM together."""
        alpha, beta, *gate = self.attention_modulation(inputs.time)
        change = self.attend(self.attention_norm(tokens) * alpha + beta, inputs)
        tokens = tokens + (change * gate[0] if gate else change)
        alpha, beta, *gate = self.feedforward_modulation(inputs.time)
        hidden = self.feedforward_in(self.feedforward_norm(tokens) * alpha + beta)
        change = self.feedforward_out(F.gelu(hidden, approximate="tanh"))
        return tokens + (change * gate[0] if gate else change)

    def attend(self, tokens: Tensor, inputs: BlockInputs) -> Tensor:
        """Joint self-attention over all tokens."""
        split = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = split.unbind(0)
        query, key = self.query_norm(query), self.key_norm(key)
        if inputs.rotation is not None:
            query, key = inputs.rotation.apply(query), inputs.rotation.apply(key)
        return self.attention_out(inputs.attention(query, key, value, inputs.mask))


class Group(nn.Module):
    """Two DiT blocks (published); a decoder group first merges the mirrored encoder group's output.

    Noise (and picture) tokens and VLM tokens have each a merging Linear of their own.
    """

    def __init__(
        self,
        config: DreamOmniConfig,
        merges: bool,
        dtype: Any = None,
        device: Any = None,
        operations: Any = nn,
    ) -> None:
        super().__init__()
        options = {"dtype": dtype, "device": device}
        self.blocks = nn.ModuleList(
            DiTBlock(config, operations=operations, **options) for _ in range(BLOCKS_PER_GROUP)
        )
        self.merges = merges
        if merges:
            self.merge_noise = operations.Linear(2 * config.width, config.width, **options)
            self.merge_vlm = operations.Linear(2 * config.width, config.width, **options)

    def forward(
        self, tokens: Tensor, num_image: int, inputs: BlockInputs, skip: Tensor | None = None
    ) -> Tensor:
        """Tokens (B, L, D), the first `num_image` of noise and pictures; `skip` is the mirrored output."""
        if self.merges and skip is not None:
            both = torch.cat([tokens, skip], dim=-1)
            image, vlm = both[:, :num_image], both[:, num_image:]
            tokens = torch.cat([self.merge_noise(image), self.merge_vlm(vlm)], dim=1)
        for block in self.blocks:
            tokens = block(tokens, inputs)
        return tokens
