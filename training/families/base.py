"""What a network must offer to be trained: its base, its trainable parts, its batches and its velocity.

B batch, C channels, H W latent grid. sigma 1 = noise, velocity = noise - data, for every family.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...dit.dreamomni.latent import LatentSpec
from ...samplers.flow import denoised_from_velocity, noised, velocity_target
from ...samplers.schedules import ScheduleSettings, make_sigmas
from ...samplers.solvers import SOLVERS
from ..config import RunConfig, one_of
from ..objective import region_weights, velocity_loss

if TYPE_CHECKING:
    from ..samples import SampleStore

IMAGE_ENCODINGS = ("vae", "pixels", "none")
PROMPT_ENCODINGS = ("clip", "vlm", "processor", "text", "answers")
TEXT_TOKENS = 512
"""Taken for a prompt whose length is not known before it is read."""
PROMPT_VARIANTS = ("full", "no_caption", "no_references", "no_condition")


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodePlan:
    """What the node encodes of every sample with the user's own models before the worker starts.

    `vae` stores latents (C, H, W) as the network sees them (scaled and shifted), `pixels` RGB in -1..1.
    `clip` stores `context` (L, D) and `pooled` (P,); `vlm` stores `tokens` (L, D), `attention_mask` (L,) and
    `image_index` (L,); `processor` stores what the wired processor's `training_entry(prompt, image_sizes)`
    returns; `text` stores `utf8` (bytes as uint8); `answers` the tokens of a request and its answer.
    """

    image_encoding: str
    prompt_encoding: str
    size_multiple: int = 16
    """Every picture's sides are multiples of this many pixels."""
    kontext_sizes: bool = False
    """At 1024 pixels every picture takes one of Kontext's sizes, as Reference Images gives them."""
    asked_sizes: bool = False
    """Every picture takes the size in which the translator is asked about it, by way of Kontext's."""
    prompt_sees_images: bool = False
    """The prompt's encoding depends on the references (a VLM, image slots)."""
    prompt_sees_originals: bool = False
    """These are the dataset's own pictures, whose size the prompt encoder chooses (a prompt translator)."""
    source_follows_target: bool = False
    """The first reference of an edit gets exactly the target's size instead of its own bucket."""
    dropped_caption: str = ""
    """The caption used where dropout removes the real one (OmniGen: `<cfg>`)."""
    keep_pixels: bool = False
    """Also store the references as RGB in -1..1 (for a language model that is trained along)."""
    vlm_layer: int = -1
    max_tokens: int = 512

    def __post_init__(self) -> None:
        one_of("image encoding", self.image_encoding, IMAGE_ENCODINGS)
        one_of("prompt encoding", self.prompt_encoding, PROMPT_ENCODINGS)


@dataclass(frozen=True, kw_only=True, slots=True)
class CachedSample:
    """One sample as read from the cache; dropout has already chosen its prompt and references."""

    id: str
    task: str
    instruction: str
    target: Tensor
    """(C, H, W)"""
    references: tuple[Tensor, ...]
    """Each (C, h, w) with its own size; the source of an edit is the first."""
    prompt: Mapping[str, Tensor]
    mask: Tensor | None = None
    """(1, H, W), 1 where the edit may change the picture."""
    has_source: bool = False
    """The first reference is the picture being edited."""
    reference_pixels: tuple[Tensor, ...] = ()

    @property
    def source(self) -> Tensor | None:
        """The latent being edited, or None."""
        return self.references[0] if self.has_source and self.references else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Samples of one signature on one device; `conditions` is what the family's `predict_velocity` reads."""

    ids: tuple[str, ...]
    target: Tensor
    """(B, C, H, W)"""
    conditions: dict[str, Any] = field(default_factory=dict)
    source: Tensor | None = None
    mask: Tensor | None = None


def shape_signature(sample: CachedSample) -> Hashable:
    """Samples with equal signatures can be stacked: same sizes everywhere."""
    prompt = tuple((name, tuple(value.shape)) for name, value in sorted(sample.prompt.items()))
    references = tuple(tuple(reference.shape) for reference in sample.references)
    return tuple(sample.target.shape), references, prompt, sample.has_source, sample.mask is not None


def stacked(samples: Sequence[CachedSample], device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Target, source, mask, `references` (a list of (B, C, h, w)) and `prompt` (name -> (B, ...))."""

    def stack(parts: list[Tensor]) -> Tensor:
        whole = torch.stack(parts).to(device)
        return whole.to(dtype) if whole.is_floating_point() else whole

    first = samples[0]
    references = [stack(list(parts)) for parts in zip(*(s.references for s in samples), strict=True)]
    prompt = {name: stack([sample.prompt[name] for sample in samples]) for name in first.prompt}
    masks = [sample.mask for sample in samples if sample.mask is not None]
    return {
        "target": stack([sample.target for sample in samples]),
        "source": references[0] if first.source is not None else None,
        "mask": stack(masks) if len(masks) == len(samples) else None,
        "references": references,
        "prompt": prompt,
    }


class Family(ABC):
    """A network that can be trained; subclasses hold no state.

    What presets and nodes must know about a kind of network is an attribute here; they never compare names.
    """

    name: str
    base_role = "transformer"
    """The key of `config.base` that names the network which is trained."""
    base_folder = ""
    """Key of the model folders that are its bases; empty where a base is a file of the diffusion models."""
    trains_image_lora = False
    """Its LoRAs edit, generate or extract pictures, so Train LoRA offers it."""
    reads_translations = False
    """Its prompts may come from a prompt translator (a VLM that saw the pictures)."""
    has_exact_references = False
    """Its references may take a pass of their own: `memory.reference_attention` "exact"."""
    drops_condition = False
    """Its LoRA runs drop caption and references together at the preset's rate; others never do."""
    lora_prefix = "transformer."
    """Put before the adapter's module names in the saved file, so that ComfyUI's key map finds them."""
    uses_sigma = True
    """Whether the loss depends on the noise level; where not, one level tells the held-out loss."""
    prompt_holds_references = False
    """Whether the tokens of the references are counted among the prompt's."""

    @abstractmethod
    def encode_plan(self, config: RunConfig) -> EncodePlan:
        """What has to be encoded for this run."""

    def latent_space(self, config: RunConfig) -> LatentSpec:
        """The VAE's latents as the network sees them; only asked where `encode_plan` wants them."""
        raise NotImplementedError(f"{self.name} is not trained on latents of a VAE")

    @abstractmethod
    def load_network(self, config: RunConfig, device: torch.device) -> nn.Module:
        """The base network from the files of `config.base`, frozen parts in `config.memory.precision`.

        Raises FileNotFoundError or ValueError for a missing or unknown file.
        """

    @abstractmethod
    def adapter_targets(self, config: RunConfig) -> list[str]:
        """Endings of the module names a LoRA adapts when the run names none."""

    @abstractmethod
    def predict_velocity(self, network: nn.Module, batch: Batch, noisy: Tensor, sigmas: Tensor) -> Tensor:
        """noise - data as the network sees it, (B, C, H, W), for noisy (B, C, H, W) and sigmas (B,)."""

    def trainable_parameters(self, network: nn.Module, config: RunConfig) -> list[tuple[str, nn.Parameter]]:
        """(name, parameter) that a run without adapter trains; all by default."""
        return list(network.named_parameters())

    def is_hidden_matrix(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether Muon trains this parameter: a Linear's matrix inside a block, no embedding, no exit."""
        parts = set(name.split("."))
        inside = bool(parts & {"blocks", "layers", "transformer_blocks", "single_transformer_blocks"})
        return inside and parameter.ndim == 2

    def block_classes(self, network: nn.Module) -> tuple[type[nn.Module], ...]:
        """Classes of the blocks whose activations gradient checkpointing may recompute."""
        return ()

    def signature(self, sample: CachedSample) -> Hashable:
        """Samples with equal signatures may share a batch."""
        return shape_signature(sample)

    def num_tokens(self, sample: CachedSample) -> int:
        """Tokens of the target alone, as the dynamic shift counts them."""
        return sample.target.shape[-1] * sample.target.shape[-2] // 4

    def token_side(self, config: RunConfig) -> int:
        """Latent cells (or pixels, where those are trained on) per token and side."""
        return 2

    def largest_sample(self, store: SampleStore, config: RunConfig) -> int:
        """Tokens of the largest sample, words and pictures together: what activations grow with."""
        side = self.token_side(config)
        shapes = store.shapes()
        if self.prompt_holds_references:
            shapes = [sample[:1] for sample in shapes]
        pictures = [sum(-(-h // side) * -(-w // side) for _, h, w in sample) for sample in shapes]
        words = store.prompt_lengths(self.prompt_part(config)) or [TEXT_TOKENS] * len(pictures)
        return max(map(sum, zip(pictures, words, strict=True)), default=0)

    def prompt_part(self, config: RunConfig) -> str:
        """The tensor of a cached prompt with one row for each of its tokens; empty where there is none."""
        return ""

    def collate(
        self, samples: Sequence[CachedSample], config: RunConfig, device: torch.device, dtype: torch.dtype
    ) -> Batch:
        """Samples of one signature as a batch on `device`."""
        parts = stacked(samples, device, dtype)
        return Batch(
            ids=tuple(sample.id for sample in samples),
            target=parts["target"],
            source=parts["source"],
            mask=parts["mask"],
            conditions={
                "references": parts["references"],
                "prompt": parts["prompt"],
                "guidance": config.objective.guidance,
                "samples": tuple(samples),
            },
        )

    def loss(
        self, network: nn.Module, batch: Batch, noise: Tensor, sigmas: Tensor, config: RunConfig
    ) -> Tensor:
        """Weighted squared error of the velocity of each sample, (B,), in fp32."""
        noisy = noised(batch.target, noise, sigmas)
        velocity = self.predict_velocity(network, batch, noisy, sigmas)
        weights = region_weights(config.objective, batch.target, batch.source, batch.mask)
        return velocity_loss(velocity, velocity_target(batch.target, noise), weights)

    def sample(
        self, network: nn.Module, batch: Batch, noise: Tensor, sigmas: Tensor, config: RunConfig
    ) -> Tensor:
        """Latents (B, C, H, W) from noise of that shape by inference's Euler along `sigmas` (steps + 1,)."""

        def denoised(noisy: Tensor, share: Tensor) -> Tensor:
            velocity = self.predict_velocity(network, batch, noisy, share)
            return denoised_from_velocity(noisy, velocity.to(noisy.dtype), share)

        return SOLVERS["euler"](denoised, noise, sigmas.to(noise), disable=True)

    def preview_schedule(self, config: RunConfig, num_tokens: int) -> tuple[str, ScheduleSettings]:
        """Name and settings of the schedule its pictures are drawn with, for a target of `num_tokens`."""
        return "linear", ScheduleSettings()

    def preview_sigmas(self, config: RunConfig, num_tokens: int) -> Tensor:
        """Falling sigmas (steps + 1,) of a sample picture, from 1 to 0."""
        name, settings = self.preview_schedule(config, num_tokens)
        return make_sigmas(name, config.output.sample_steps, settings)

    def metadata(self, config: RunConfig) -> dict[str, str]:
        """Family facts for the saved file: position scheme, reference attention, ..."""
        return {}

    def export_full(
        self,
        network: nn.Module,
        weights: Mapping[str, Tensor],
        folder: Path,
        metadata: Mapping[str, str],
        config: RunConfig,
    ) -> list[Path]:
        """Write fully trained `weights` as the family's loader expects them; the files written."""
        raise NotImplementedError(f"{self.name} is trained as a LoRA only")
