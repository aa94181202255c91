"""The latent space a DreamOmni network denoises in: a stock VAE's, the small VAE's, or blocks of pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .config_checks import known_only, one_of

LATENT_KINDS = ("flux", "sdxl", "small", "pixels")


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentSpec:
    """The space the network denoises in and how it is shown before the VAE has decoded it."""

    kind: str = "flux"
    """`flux` or `sdxl`: those VAE files; `small`: the VAE of this package; `pixels`: no VAE, whole blocks of
    `downscale` x `downscale` RGB pixels as channels."""
    channels: int = 16
    downscale: int = 8
    """Pixels per latent cell and side."""
    scale: float = 0.3611
    """The network sees (latent - shift) * scale."""
    shift: float = 0.1159
    rgb_factors: tuple[tuple[float, float, float], ...] = ()
    """Preview colours: RGB in -1..1 as a linear function of what the network sees, fitted to the VAE."""
    rgb_bias: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        one_of("latent kind", self.kind, LATENT_KINDS)
        if self.channels < 1 or self.downscale < 1:
            raise ValueError(
                f"latent channels and downscale must be positive: {self.channels}, {self.downscale}"
            )
        if self.kind == "pixels" and self.channels != 3 * self.downscale**2:
            raise ValueError(
                f"pixel blocks of {self.downscale} x {self.downscale} have {3 * self.downscale**2} channels, "
                f"the config says {self.channels}"
            )
        if self.scale == 0:
            raise ValueError("latent scale must not be 0")
        if self.rgb_factors and (
            len(self.rgb_factors) != self.channels or any(len(row) != 3 for row in self.rgb_factors)
        ):
            raise ValueError(
                f"rgb_factors must be {self.channels} rows of 3, got {len(self.rgb_factors)} rows"
            )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], place: str) -> LatentSpec:
        """The latent space in `place`'s JSON; missing fields take their default, an unknown one raises."""
        known_only(cls, values, place)
        spec = dict(values)
        if "rgb_factors" in spec:
            spec["rgb_factors"] = tuple(tuple(row) for row in spec["rgb_factors"])
        if "rgb_bias" in spec:
            spec["rgb_bias"] = tuple(spec["rgb_bias"])
        return cls(**spec)


def pixel_latent(block: int) -> LatentSpec:
    """No VAE: blocks of `block` x `block` pixels as channels, values in -1..1, with exact preview colours."""
    share = 1.0 / block**2
    rows = tuple(
        (share * (colour == 0), share * (colour == 1), share * (colour == 2))
        for colour in range(3)
        for _ in range(block**2)
    )
    return LatentSpec(
        kind="pixels", channels=3 * block**2, downscale=block, scale=1.0, shift=0.0, rgb_factors=rows
    )
