"""DreamOmni: full training of network (and small VLM) on text-to-image and editing together, and LoRAs.

B batch, C channels, H W latent grid. On pixel blocks everything outside the network stays RGB in -1..1; the
rearrangement into blocks happens at its door and changes neither noise nor velocity.
"""

from __future__ import annotations

import shutil
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ...dit.dreamomni.blocks import DiTBlock
from ...dit.dreamomni.config import DreamOmniConfig
from ...dit.dreamomni.initialize import initialize
from ...dit.dreamomni.latent import LatentSpec
from ...dit.dreamomni.network import DreamOmniNetwork
from ...dit.dreamomni.storage import FolderIndex, load_network, load_vae, read_index, save_dreamomni
from ...samplers.flow import noised, velocity_target
from ...samplers.schedules import ScheduleSettings
from ...vlm.encoder import DEFAULT_LAYER, DEFAULT_MAX_TOKENS, DEFAULT_TEMPLATE
from ..config import RunConfig
from ..files import whole_folder
from ..frozen import hold_frozen
from ..objective import region_weights, velocity_loss
from .base import Batch, CachedSample, EncodePlan, Family
from .dreamomni_setup import network_config
from .dreamomni_vlm import UNUSED, TrainedPair, load_pair
from .vlm import copy_beside, keep_old_names

COPIED_BYTES = 200 * 2**20
"""VLMs up to this size are copied into the folder, larger ones named there."""
SHORT_PROMPT = 110
"""Characters; longer prompts (scenes, points of a drag) would pad all others to twice their length."""
PROMPT_PARTS = ("tokens", "attention_mask", "image_index")


class DreamOmniFamily(Family):
    """A DreamOmni network from a folder (`base["model"]`) or new (`options["preset"]`).

    `options["train_vlm"]` trains the VLM of `base["vlm"]` along with a new network.
    """

    name = "dreamomni"
    base_role = "model"
    base_folder = "dreamomni"
    trains_image_lora = True
    lora_prefix = "diffusion_model."

    def encode_plan(self, config: RunConfig) -> EncodePlan:
        """VAE latents or pixels; VLM tokens, or the words where the VLM is trained along."""
        network, along = network_config(config), trains_vlm(config)
        return EncodePlan(
            image_encoding="pixels" if network.latent.kind == "pixels" else "vae",
            prompt_encoding="text" if along else "vlm",
            prompt_sees_images=not along,
            keep_pixels=along,
            size_multiple=network.token_pixels,
            source_follows_target=True,
            vlm_layer=DEFAULT_LAYER,
            max_tokens=DEFAULT_MAX_TOKENS,
        )

    def latent_space(self, config: RunConfig) -> LatentSpec:
        """That of the network's own VAE."""
        return network_config(config).latent

    def load_network(self, config: RunConfig, device: torch.device) -> nn.Module:
        """The folder's network, or a new one from the run's seed; frozen and held small for a LoRA."""
        wanted = network_config(config)
        if "model" in config.base:
            network = load_network(Path(config.base["model"]))
            network.config = wanted
        else:
            network = DreamOmniNetwork(wanted)
            initialize(network, torch.Generator().manual_seed(config.seed))
        if config.adapter is not None:
            hold_frozen(network, config.memory, device, skip=("stem", "exit", "time_in", "roles", "vlm_in"))
            return network
        if trains_vlm(config):
            return load_pair(network, Path(config.base["vlm"]), DEFAULT_TEMPLATE).to(device)
        return network.to(device)

    def adapter_targets(self, config: RunConfig) -> list[str]:
        """Attention, feed-forward layers, merges of the skips, and what tells words and pictures apart."""
        return [
            "vlm_in",
            "roles",
            "qkv",
            "attention_out",
            "feedforward_in",
            "feedforward_out",
            "merge_noise",
            "merge_vlm",
        ]

    def trainable_parameters(self, network: nn.Module, config: RunConfig) -> list[tuple[str, nn.Parameter]]:
        """Everything but the language head, which only writes words."""
        return [(name, part) for name, part in network.named_parameters() if not name.startswith(UNUSED)]

    def is_hidden_matrix(self, name: str, parameter: nn.Parameter) -> bool:
        """Matrices of the blocks, of the network's and the VLM's; a modulation starts at zero and is none."""
        return "modulation" not in name and super().is_hidden_matrix(name, parameter)

    def block_classes(self, network: nn.Module) -> tuple[type[nn.Module], ...]:
        """The DiT blocks."""
        return (DiTBlock,)

    def token_side(self, config: RunConfig) -> int:
        """Cells of a token; pixels of a token where the network reads pixels."""
        network = network_config(config)
        return network.token_pixels if is_blocks(network) else network.cell

    def prompt_part(self, config: RunConfig) -> str:
        """The VLM's hidden states; a VLM trained along caches words only."""
        return "" if trains_vlm(config) else "tokens"

    def signature(self, sample: CachedSample) -> Hashable:
        """Pictures of equal sizes and prompts of like length, which are padded to the longest."""
        references = tuple(tuple(reference.shape) for reference in sample.references)
        shapes = tuple(sample.target.shape), references, sample.has_source, sample.mask is not None
        return *shapes, sample.has_source and len(sample.instruction) > SHORT_PROMPT

    def collate(
        self, samples: Sequence[CachedSample], config: RunConfig, device: torch.device, dtype: torch.dtype
    ) -> Batch:
        """The stacked pictures with padded VLM tokens, or the samples' words for a VLM trained along."""
        batch = super().collate([replace(sample, prompt={}) for sample in samples], config, device, dtype)
        batch.conditions["samples"] = tuple(samples)
        if not trains_vlm(config):
            batch.conditions["prompt"] = padded_prompts(samples, device, dtype)
        return batch

    def predict_velocity(self, network: nn.Module, batch: Batch, noisy: Tensor, sigmas: Tensor) -> Tensor:
        """The network's velocity, whatever it predicts itself."""
        dit, arguments = self.conditioned(network, batch, noisy)
        velocity = dit(into_blocks(dit, noisy), sigmas, **arguments)
        return out_of_blocks(dit, velocity)

    def loss(
        self, network: nn.Module, batch: Batch, noise: Tensor, sigmas: Tensor, config: RunConfig
    ) -> Tensor:
        """Weighted squared error of what the network predicts itself (velocity or picture), (B,), in fp32."""
        noisy = noised(batch.target, noise, sigmas)
        dit, arguments = self.conditioned(network, batch, noisy)
        predicted = out_of_blocks(dit, dit.predict(into_blocks(dit, noisy), sigmas, **arguments))
        is_clean = dit.config.prediction == "clean"
        wanted = batch.target if is_clean else velocity_target(batch.target, noise)
        weights = region_weights(config.objective, batch.target, batch.source, batch.mask)
        return velocity_loss(predicted, wanted, weights)

    def conditioned(
        self, network: nn.Module, batch: Batch, noisy: Tensor
    ) -> tuple[DreamOmniNetwork, dict[str, Any]]:
        """The network proper and the arguments its call takes besides noisy (B, C, H, W) and sigmas.

        A VLM that is trained along reads the prompts here.
        """
        if isinstance(network, TrainedPair):
            features = network.features(batch.conditions["samples"], noisy.device)
            dit = network.dit
            prompt = {name: getattr(features, name) for name in PROMPT_PARTS}
        else:
            assert isinstance(network, DreamOmniNetwork)
            dit, prompt = network, batch.conditions["prompt"]
        references = [into_blocks(dit, reference) for reference in batch.conditions["references"]]
        return dit, {
            "context": prompt["tokens"].to(noisy.dtype),
            "attention_mask": prompt["attention_mask"],
            "image_index": prompt["image_index"],
            "ref_latents": references,
        }

    def preview_schedule(self, config: RunConfig, num_tokens: int) -> tuple[str, ScheduleSettings]:
        """The shifted schedule ComfyUI uses for this network."""
        return "fixed", ScheduleSettings(shift_value=network_config(config).sampling_shift)

    def metadata(self, config: RunConfig) -> dict[str, str]:
        """The position scheme and the network it fits."""
        network = network_config(config)
        return {
            "dreamomni.positions": network.reference_positions,
            "modelspec.architecture": "dreamomni-v1" + ("/lora" if config.adapter is not None else ""),
        }

    def export_full(
        self,
        network: nn.Module,
        weights: Mapping[str, Tensor],
        folder: Path,
        metadata: Mapping[str, str],
        config: RunConfig,
    ) -> list[Path]:
        """A model folder in bf16 that DreamOmniLoadDreamOmni reads."""
        whole = {**network.state_dict(), **weights}
        pair = network if isinstance(network, TrainedPair) else None
        prefix = "dit." if pair is not None else ""
        own = {
            name.removeprefix(prefix): part.to(torch.bfloat16)
            for name, part in whole.items()
            if name.startswith(prefix)
        }
        names = part_names(config)
        index = FolderIndex(network=network_config(config), vlm=names["vlm"], vae=names["vae"])
        if pair is not None:
            write_vlm(pair, whole, Path(config.base["vlm"]), folder / "vlm")
        else:
            copy_vlm(config, folder / names["vlm"])
        vae = load_vae(Path(config.base["vae"])) if names["vae"] == "vae" and "vae" in config.base else None
        save_dreamomni(folder, index, own, vae=vae, metadata=metadata)
        return sorted(path for path in folder.rglob("*") if path.is_file())


def trains_vlm(config: RunConfig) -> bool:
    """Whether the run also trains the VLM."""
    return bool(config.options.get("train_vlm")) and config.adapter is None


def padded_prompts(
    samples: Sequence[CachedSample], device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    """VLM tokens (B, L, D), mask and picture numbers (B, L), padded on the right."""
    dtypes = {"tokens": dtype, "attention_mask": torch.bool, "image_index": torch.long}
    parts = {name: [sample.prompt[name].to(kind) for sample in samples] for name, kind in dtypes.items()}
    return {name: pad_sequence(rows, batch_first=True).to(device) for name, rows in parts.items()}


def is_blocks(config: DreamOmniConfig) -> bool:
    """Whether the network's latents are blocks of pixels."""
    return config.latent.kind == "pixels"


def into_blocks(dit: DreamOmniNetwork, picture: Tensor) -> Tensor:
    """RGB (B, 3, H, W) as the network's latent; latents as they are."""
    return F.pixel_unshuffle(picture, dit.config.latent.downscale) if is_blocks(dit.config) else picture


def out_of_blocks(dit: DreamOmniNetwork, latent: Tensor) -> Tensor:
    """The network's latent (B, C, h, w) as RGB (B, 3, H, W), the inverse of `into_blocks`."""
    return F.pixel_shuffle(latent, dit.config.latent.downscale) if is_blocks(dit.config) else latent


def part_names(config: RunConfig) -> dict[str, str]:
    """What config.json calls VLM and VAE: a part of the folder, or a file or folder of ComfyUI's own."""
    if "model" in config.base:
        index = read_index(Path(config.base["model"]))
        return {"vlm": index.vlm, "vae": index.vae}
    vlm, vae = Path(config.base.get("vlm", "vlm")), Path(config.base.get("vae", "vae"))
    copied = trains_vlm(config) or not vlm.is_dir() or folder_bytes(vlm) <= COPIED_BYTES
    return {"vlm": "vlm" if copied else vlm.name, "vae": vae.name if vae.is_file() else "vae"}


def folder_bytes(folder: Path) -> int:
    """Size of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def copy_vlm(config: RunConfig, place: Path) -> None:
    """Copy a small VLM into the folder, once."""
    source = Path(config.base.get("vlm", ""))
    if "model" in config.base:
        source = Path(config.base["model"]) / read_index(Path(config.base["model"])).vlm
    if place.name != "vlm" or place.exists() or not (source / "config.json").is_file():
        return
    with whole_folder(place) as partial:
        shutil.copytree(source, partial)


def write_vlm(pair: TrainedPair, weights: Mapping[str, Tensor], base: Path, place: Path) -> None:
    """The trained VLM in bf16 with its tokenizer and settings."""
    state = {name: weights.get(f"vlm.{name}", part) for name, part in pair.vlm.state_dict().items()}
    writer: Any = pair.vlm
    with whole_folder(place) as partial:
        writer.save_pretrained(
            partial, state_dict={name: part.to(torch.bfloat16) for name, part in state.items()}
        )
        keep_old_names(partial)
        copy_beside(base, partial)
