"""The small VAE of small DreamOmni networks: reconstruction and a light divergence term, from pictures alone.

B batch, H W pixels. The loss (chosen) is mean absolute plus mean squared error, plus a little divergence.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ...dit.dreamomni.latent import LatentSpec
from ...dit.dreamomni.storage import load_vae, save_vae
from ...dit.dreamomni.vae import SmallVAE, SmallVAEConfig, fit_preview_colours, fit_scale
from ..config import RunConfig
from .base import Batch, CachedSample, EncodePlan, Family
from .dreamomni_setup import LATENT, write_latent

KL_WEIGHT = 1e-4
FITTED_PICTURES = 64
FIRST_LOGVAR = -6.0
SIZES = ("downscale", "latent_channels", "width", "max_width", "blocks", "norm_groups")


class KeptPictures(SmallVAE):
    """The VAE with the last pictures it was trained on, to measure its latent space by."""

    def __init__(self, config: SmallVAEConfig) -> None:
        super().__init__(config)
        self.kept: list[Tensor] = []

    def keep(self, pictures: Tensor) -> None:
        """Remember pictures (B, 3, H, W), up to `FITTED_PICTURES`."""
        self.kept = [*self.kept, *pictures.detach().cpu()][-FITTED_PICTURES:]


class SmallVaeFamily(Family):
    """A small VAE from `base["vae"]`, or new with the sizes in `options` (`downscale`, `width`, ...)."""

    name = "small_vae"
    base_role = "vae"
    uses_sigma = False

    def encode_plan(self, config: RunConfig) -> EncodePlan:
        """Pixels only; words play no part."""
        return EncodePlan(
            image_encoding="pixels",
            prompt_encoding="text",
            size_multiple=8,
            source_follows_target=True,
        )

    def load_network(self, config: RunConfig, device: torch.device) -> nn.Module:
        """The VAE in fp32; raises ValueError for a LoRA, which it has no use for."""
        if config.adapter is not None:
            raise ValueError("a small VAE is trained whole; set adapter to none")
        if "vae" in config.base:
            old = load_vae(Path(config.base["vae"]))
            vae = KeptPictures(old.config)
            vae.load_state_dict(old.state_dict())
            return vae.to(device)
        sizes = {name: int(config.options[name]) for name in SIZES if name in config.options}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            fresh = KeptPictures(SmallVAEConfig(**sizes))
        start_certain(fresh)
        return fresh.to(device)

    def adapter_targets(self, config: RunConfig) -> list[str]:
        """None: it is trained whole."""
        return []

    def signature(self, sample: CachedSample) -> Hashable:
        """Targets of equal size."""
        return tuple(sample.target.shape)

    def collate(
        self, samples: Sequence[CachedSample], config: RunConfig, device: torch.device, dtype: torch.dtype
    ) -> Batch:
        """The targets."""
        pictures = torch.stack([sample.target for sample in samples]).to(device, dtype)
        return Batch(ids=tuple(sample.id for sample in samples), target=pictures)

    def loss(
        self, network: nn.Module, batch: Batch, noise: Tensor, sigmas: Tensor, config: RunConfig
    ) -> Tensor:
        """Error of the drawn reconstruction and the divergence of each sample, (B,); sigma plays no part."""
        assert isinstance(network, KeptPictures)
        if torch.is_grad_enabled():
            network.keep(batch.target)
        drawn, divergence = network(batch.target)
        difference = (drawn.float() - batch.target.float()).flatten(1)
        return difference.abs().mean(1) + difference.square().mean(1) + KL_WEIGHT * divergence.float()

    def predict_velocity(self, network: nn.Module, batch: Batch, noisy: Tensor, sigmas: Tensor) -> Tensor:
        """A VAE has no velocity."""
        raise NotImplementedError("a VAE has no velocity")

    def sample(
        self, network: nn.Module, batch: Batch, noise: Tensor, sigmas: Tensor, config: RunConfig
    ) -> Tensor:
        """The reconstruction of the targets, for previews."""
        assert isinstance(network, KeptPictures)
        return network.decode(network.encode(batch.target))

    def metadata(self, config: RunConfig) -> dict[str, str]:
        """What it is."""
        return {"modelspec.architecture": "dreamomni-small-vae"}

    def export_full(
        self,
        network: nn.Module,
        weights: Mapping[str, Tensor],
        folder: Path,
        metadata: Mapping[str, str],
        config: RunConfig,
    ) -> list[Path]:
        """vae.safetensors, its config, and the latent space measured on the last pictures."""
        assert isinstance(network, KeptPictures)
        vae = SmallVAE(network.config)
        vae.load_state_dict({name: weights.get(name, part) for name, part in network.state_dict().items()})
        files = save_vae(folder, vae)
        # A run that was continued at its end has seen no pictures: what it measured before still holds.
        if network.kept or not (folder / LATENT).is_file():
            write_latent(folder / LATENT, measured_latent(vae, network.kept))
        return [*files, folder / LATENT]


@torch.no_grad()
def start_certain(vae: SmallVAE) -> None:
    """Let a fresh VAE draw its latents with little noise, so that pictures are learnt before noise is."""
    last = vae.encoder[-1]
    assert isinstance(last, nn.Conv2d) and last.bias is not None
    last.bias[vae.config.latent_channels :] = FIRST_LOGVAR


@torch.no_grad()
def measured_latent(vae: SmallVAE, pictures: Sequence[Tensor]) -> LatentSpec:
    """Scale, shift and preview colours from pictures (3, H, W); neutral ones if there are none."""
    config = vae.config
    channels, downscale = config.latent_channels, config.downscale
    plain = LatentSpec(kind="small", channels=channels, downscale=downscale, scale=1.0, shift=0.0)
    if not pictures:
        return plain
    vae.cpu()
    # One by one: their sizes differ, and together they would need gigabytes.
    latents = [vae.encode(picture[None])[0] for picture in pictures]
    scale, shift = fit_scale(torch.cat([latent.flatten() for latent in latents]))
    scaled = [(latent - shift) * scale for latent in latents]
    factors, bias = fit_preview_colours(scaled, pictures)
    return LatentSpec(
        kind="small",
        channels=channels,
        downscale=downscale,
        scale=scale,
        shift=shift,
        rgb_factors=tuple((row[0], row[1], row[2]) for row in factors),
        rgb_bias=(bias[0], bias[1], bias[2]),
    )
