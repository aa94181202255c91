"""What turns pictures into latents for small networks: a small trainable VAE, or blocks of pixels.

Pictures are (B, 3, H, W) in -1..1, sides multiples of the downscale d; latents (B, C, H / d, W / d).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config_checks import known_only
from .layers import NORM_EPSILON

LOGVAR_LIMIT = 20.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SmallVAEConfig:
    """Sizes of the small VAE; chosen, nothing here is from a paper."""

    downscale: int = 4
    """Pixels per latent cell and side: 4 or 8."""
    latent_channels: int = 8
    width: int = 32
    """Channels at full resolution; doubled at each halving up to `max_width`."""
    max_width: int = 96
    blocks: int = 1
    """Residual blocks at each resolution."""
    norm_groups: int = 8

    def __post_init__(self) -> None:
        if self.downscale not in (4, 8):
            raise ValueError(f"downscale is 4 or 8, got {self.downscale}")
        for name in ("latent_channels", "width", "max_width", "blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if any(width % self.norm_groups for width in self.widths):
            raise ValueError(f"widths {self.widths} must be multiples of {self.norm_groups} norm groups")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels at each resolution, full resolution first."""
        halvings = self.downscale.bit_length() - 1
        return tuple(min(self.width * 2**level, self.max_width) for level in range(halvings + 1))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> SmallVAEConfig:
        """The config of a mapping; raises ValueError for fields it does not know."""
        known_only(cls, values, "vae/config.json")
        return cls(**values)


class ResidualBlock(nn.Module):
    """GroupNorm, SiLU, conv, twice, added to the input."""

    def __init__(self, width: int, groups: int, operations: Any, **options: Any) -> None:
        super().__init__()
        self.norm_1 = operations.GroupNorm(groups, width, eps=NORM_EPSILON, **options)
        self.conv_1 = operations.Conv2d(width, width, 3, padding=1, **options)
        self.norm_2 = operations.GroupNorm(groups, width, eps=NORM_EPSILON, **options)
        self.conv_2 = operations.Conv2d(width, width, 3, padding=1, **options)

    def forward(self, hidden: Tensor) -> Tensor:
        change = self.conv_1(F.silu(self.norm_1(hidden)))
        return hidden + self.conv_2(F.silu(self.norm_2(change)))


class Upsample(nn.Module):
    """Nearest neighbour by two, then a convolution to `width` channels."""

    def __init__(self, in_width: int, width: int, operations: Any, **options: Any) -> None:
        super().__init__()
        self.conv = operations.Conv2d(in_width, width, 3, padding=1, **options)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.conv(F.interpolate(hidden, scale_factor=2, mode="nearest"))


class SmallVAE(nn.Module):
    """A convolutional VAE without attention, for pictures of any size."""

    def __init__(
        self, config: SmallVAEConfig, dtype: Any = None, device: Any = None, operations: Any = nn
    ) -> None:
        super().__init__()
        self.config = config
        options = {"operations": operations, "dtype": dtype, "device": device}
        plain = {"dtype": dtype, "device": device}
        widths, groups, channels = config.widths, config.norm_groups, config.latent_channels
        encoder: list[nn.Module] = [operations.Conv2d(3, widths[0], 3, padding=1, **plain)]
        for width, following in zip(widths, (*widths[1:], None), strict=True):
            encoder += [ResidualBlock(width, groups, **options) for _ in range(config.blocks)]
            if following is not None:
                encoder.append(operations.Conv2d(width, following, 3, stride=2, padding=1, **plain))
        encoder += [
            operations.GroupNorm(groups, widths[-1], eps=NORM_EPSILON, **plain),
            nn.SiLU(),
            operations.Conv2d(widths[-1], 2 * channels, 3, padding=1, **plain),
        ]
        decoder: list[nn.Module] = [operations.Conv2d(channels, widths[-1], 3, padding=1, **plain)]
        for width, following in zip(widths[::-1], (*widths[-2::-1], None), strict=True):
            decoder += [ResidualBlock(width, groups, **options) for _ in range(config.blocks)]
            if following is not None:
                decoder.append(Upsample(width, following, **options))
        decoder += [
            operations.GroupNorm(groups, widths[0], eps=NORM_EPSILON, **plain),
            nn.SiLU(),
            operations.Conv2d(widths[0], 3, 3, padding=1, **plain),
        ]
        self.encoder, self.decoder = nn.Sequential(*encoder), nn.Sequential(*decoder)

    def distribution(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latent of pictures."""
        mean, logvar = self.encoder(picture).chunk(2, dim=1)
        return mean, logvar.clamp(-LOGVAR_LIMIT, LOGVAR_LIMIT)

    def encode(self, picture: Tensor) -> Tensor:
        """The latent's mean."""
        return self.distribution(picture)[0]

    def decode(self, latent: Tensor) -> Tensor:
        """Pictures of latents; not clamped."""
        return self.decoder(latent)

    def forward(self, picture: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """A drawn reconstruction (B, 3, H, W) and the divergence from a unit normal of each sample (B,)."""
        mean, logvar = self.distribution(picture)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).mean(dim=1)
        return self.decode(mean + (0.5 * logvar).exp() * noise), divergence


class PixelBlocks(nn.Module):
    """No VAE: blocks of `block` x `block` pixels as channels, and back."""

    def __init__(self, block: int) -> None:
        super().__init__()
        self.block = block

    def encode(self, picture: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3 * block * block, H / block, W / block)."""
        return F.pixel_unshuffle(picture, self.block)

    def decode(self, latent: Tensor) -> Tensor:
        """The inverse of `encode`."""
        return F.pixel_shuffle(latent, self.block)


def fit_scale(latents: Tensor) -> tuple[float, float]:
    """(scale, shift) that bring latents of any shape to mean 0 and deviation 1: (latent - shift) * scale."""
    return 1.0 / max(latents.std().item(), 1e-6), latents.mean().item()


def fit_preview_colours(
    latents: Iterable[Tensor], pictures: Iterable[Tensor]
) -> tuple[list[list[float]], list[float]]:
    """Least-squares RGB factors (C rows of 3) and bias (3) of scaled latents (C, h, w) of any sizes.

    The target is the mean colour of each cell of the pictures (3, H, W) in -1..1.
    """
    points, colours = [], []
    for latent, picture in zip(latents, pictures, strict=True):
        small = F.interpolate(picture.double()[None], latent.shape[-2:], mode="area")[0]
        points.append(latent.double().flatten(1).T)
        colours.append(small.flatten(1).T)
    cells = torch.cat(points)
    design = torch.cat([cells, torch.ones_like(cells[:, :1])], dim=1)
    solution = torch.linalg.lstsq(design, torch.cat(colours)).solution
    return solution[:-1].tolist(), solution[-1].tolist()
