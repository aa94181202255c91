"""Everything about a DreamOmni network that its paper's figures do not fix, as a frozen config; presets.

Published (method figure): the wiring, two blocks in a group, one Linear for the VLM's tokens, separate merge
Linears for noise and VLM tokens, `alpha * x + beta` from time embedding -> Linear -> SiLU, no gate.
Every field below is chosen, not published, unless it says otherwise; the paper's text was not at hand.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..positions import PositionScheme
from .config_checks import known_only, one_of
from .latent import LatentSpec, pixel_latent

BLOCKS_PER_GROUP = 2
"""Published: every group holds exactly two DiT blocks."""
POSITION_ENCODINGS = ("rope", "sincos", "rope+sincos", "none")
MODULATION_ORDERS = ("linear-silu", "silu-linear")
MODULATION_FORMS = ("alpha", "one-plus-alpha")
SKIP_MERGES = ("concat", "add")
DOWNSAMPLERS = ("conv", "pixel-unshuffle")
UPSAMPLERS = ("nearest-conv", "pixel-shuffle")
PREDICTIONS = ("velocity", "clean")


@dataclass(frozen=True, kw_only=True, slots=True)
class DreamOmniConfig:
    """Sizes and switches of one DreamOmni network; chosen, not published, unless a field says otherwise."""

    latent: LatentSpec = field(default_factory=LatentSpec)
    width: int = 2048
    """Channels of a token."""
    heads: int = 16
    groups: int = 9
    """Groups in each half; the decoder mirrors the encoder (the mirroring is published)."""
    feedforward_ratio: float = 4.0
    vlm_width: int = 3584
    """Channels of the VLM's hidden states (3584 is Qwen2-VL 7B, which is published)."""
    vlm_norm: bool = True
    """LayerNorm without weights before the published Linear: VLM states have a few huge channels."""
    conv_width: int = 320
    """Channels of the convolution blocks at latent resolution."""
    conv_norm_groups: int = 32
    conv_skips: bool = True
    """Skips A and B between the convolution blocks (published: on)."""
    conv_skip_merge: str = "concat"
    downsample: str = "conv"
    upsample: str = "nearest-conv"
    patch: int = 1
    """Side of the patch taken behind the published 2x downsampling."""
    block_skips: bool = True
    """Skips between mirrored groups (published: on); off for the ablation."""
    qkv_bias: bool = True
    qk_norm: bool = True
    exit_norm: bool = True
    """LayerNorm without weights before unpatching."""
    time_width: int = 2048
    time_frequencies: int = 256
    time_layers: int = 1
    """1 is published (t -> Linear -> embedding); 2 adds SiLU and a second Linear."""
    modulation_order: str = "linear-silu"
    """Published as drawn: Linear, then SiLU."""
    modulation_form: str = "alpha"
    """Published: alpha * x + beta; `one-plus-alpha` is (1 + alpha) * x + beta."""
    residual_gate: bool = False
    """A learned gate on each residual branch (published: none)."""
    position_encoding: str = "rope"
    rope_axes: tuple[int, int, int] = (16, 56, 56)
    """Channels of a head for the axes index, row, column."""
    rope_theta: float = 10000.0
    vlm_image_index: bool = False
    """VLM tokens of picture n get index n on the first axis instead of 0."""
    role_embeddings: bool = False
    """Learned vectors for target, text, and the tokens of picture n (VLM's and VAE's apart)."""
    max_images: int = 5
    source_tokens: bool = False
    """Also feed pictures as VAE tokens; off is the figure, where they enter through the VLM only."""
    source_exit_skips: bool = False
    """The stem's features of the first picture, where it has the target's size, also enter the exit's two
    convolution blocks; off is the figure. Needs `source_tokens`."""
    source_matte: bool = False
    """The network also paints a matte m, and its clean picture is m * painted + (1 - m) * source wherever the
    first picture has the target's size; off is the figure. Needs `source_tokens` and `prediction="clean"`."""
    reference_positions: str = PositionScheme.INDEX_OFFSET.value
    """Position scheme of the VAE tokens of pictures (DreamOmni2's, arXiv 2510.06679 section 3.2)."""
    prediction: str = "velocity"
    """`clean`: the network paints the picture and the velocity follows from it."""
    clean_sigma_floor: float = 0.02
    """Smallest sigma the clean prediction is divided by."""
    sampling_shift: float = 3.0
    """Time shift ComfyUI's schedulers use for this network."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "rope_axes", tuple(self.rope_axes))
        one_of("conv_skip_merge", self.conv_skip_merge, SKIP_MERGES)
        one_of("downsample", self.downsample, DOWNSAMPLERS)
        one_of("upsample", self.upsample, UPSAMPLERS)
        one_of("modulation_order", self.modulation_order, MODULATION_ORDERS)
        one_of("modulation_form", self.modulation_form, MODULATION_FORMS)
        one_of("position_encoding", self.position_encoding, POSITION_ENCODINGS)
        one_of("prediction", self.prediction, PREDICTIONS)
        one_of("reference_positions", self.reference_positions, tuple(s.value for s in PositionScheme))
        self._check_sizes()

    def _check_sizes(self) -> None:
        for name in (
            "width",
            "heads",
            "groups",
            "vlm_width",
            "conv_width",
            "patch",
            "max_images",
            "time_width",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} cannot be divided among {self.heads} heads")
        if "rope" in self.position_encoding and (
            sum(self.rope_axes) != self.head_width or any(axis % 2 for axis in self.rope_axes)
        ):
            raise ValueError(
                f"rope_axes {self.rope_axes} must be even and add up to the head's {self.head_width} channels"
            )
        if "sincos" in self.position_encoding and self.width % 4:
            raise ValueError(f"sincos positions need a width divisible by 4, got {self.width}")
        if self.conv_width % self.conv_norm_groups:
            raise ValueError(f"conv_width {self.conv_width} is no multiple of {self.conv_norm_groups} groups")
        if self.time_frequencies < 2 or self.time_frequencies % 2:
            raise ValueError(f"time_frequencies must be even and at least 2, got {self.time_frequencies}")
        if self.time_layers not in (1, 2):
            raise ValueError(f"time_layers is 1 or 2, got {self.time_layers}")
        if self.source_exit_skips and not (self.source_tokens and self.conv_skips):
            raise ValueError("source_exit_skips needs source_tokens and conv_skips; switch both on")
        if self.source_matte and not (self.source_tokens and self.prediction == "clean"):
            raise ValueError("source_matte needs source_tokens and prediction clean; switch both on")
        if not 0 < self.clean_sigma_floor < 1:
            raise ValueError(f"clean_sigma_floor must lie between 0 and 1, got {self.clean_sigma_floor}")

    @property
    def head_width(self) -> int:
        """Channels of one attention head."""
        return self.width // self.heads

    @property
    def feedforward_width(self) -> int:
        """Channels between the two Linears of the feed-forward layer."""
        return int(self.width * self.feedforward_ratio)

    @property
    def cell(self) -> int:
        """Latent cells per token and side: the 2x downsampling times the patch."""
        return 2 * self.patch

    @property
    def token_pixels(self) -> int:
        """Pixels per token and side."""
        return self.cell * self.latent.downscale

    def to_json(self) -> str:
        """The config as JSON text, every field."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> DreamOmniConfig:
        """The config of a mapping; missing fields take their default, an unknown one raises ValueError."""
        known_only(cls, values, "config.json")
        latent = LatentSpec.from_mapping(values.get("latent", {}), "config.json, latent")
        whole: dict[str, Any] = {**values, "latent": latent}
        return cls(**whole)


def paper_preset() -> DreamOmniConfig:
    """About 2.6 B parameters (published: 2.5 B) on Qwen2-VL 7B and the Flux VAE, wired like the figure."""
    return DreamOmniConfig()


def small_preset() -> DreamOmniConfig:
    """About 0.16 B parameters on Qwen2-VL 2B and the Flux VAE, for training at home."""
    return DreamOmniConfig(
        width=768,
        heads=12,
        groups=4,
        vlm_width=1536,
        conv_width=96,
        time_width=768,
        rope_axes=(8, 28, 28),
        role_embeddings=True,
        source_tokens=True,
    )


def tiny_preset() -> DreamOmniConfig:
    """About 4.8 M parameters on pixel blocks and a small VLM, for pictures of 32 to 128 pixels on a CPU."""
    return DreamOmniConfig(
        latent=pixel_latent(4),
        width=192,
        heads=6,
        groups=2,
        vlm_width=128,
        conv_width=64,
        conv_norm_groups=8,
        time_width=64,
        time_frequencies=128,
        position_encoding="rope+sincos",
        rope_axes=(8, 12, 12),
        rope_theta=100.0,
        vlm_image_index=True,
        role_embeddings=True,
        source_tokens=True,
        prediction="clean",
        sampling_shift=1.0,
    )


PRESETS: dict[str, Callable[[], DreamOmniConfig]] = {
    "paper-2.5b": paper_preset,
    "small": small_preset,
    "tiny": tiny_preset,
}
