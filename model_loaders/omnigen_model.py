"""OmniGen as a ComfyUI MODEL: its network call, its conditioning and its memory estimate."""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.patcher_extension
import comfy.supported_models_base

from ..dit.omnigen.blocks import Attention
from ..dit.omnigen.cached import CacheUse, cached_velocity
from ..dit.omnigen.config import OmniGenConfig
from ..dit.omnigen.network import OmniGenNetwork
from ..dit.omnigen.prefix import Prefix, make_prefix, sequence_from_tensor
from ..dit.omnigen.prefix_cache import CacheSettings, PrefixCache, bytes_per_token
from .free_memory import free_memory
from .host_attention import host_attention
from .out_of_memory import raise_unless_out_of_memory
from .reference_checks import check_named, check_references
from .wrapped_call import WrappedCall

log = logging.getLogger("dreamomni")

CACHE_OPTION = "dreamomni_prefix_cache"
CACHE_KEY = "dreamomni_prefix_cache"
TOGETHER, ONE_BY_ONE = "prefixes", "prefixes_one_by_one"
"""Shapes for the memory estimate. Under two names, because ComfyUI's lower estimate is told one of each."""
KEPT_TOGETHER, KEPT_ONE_BY_ONE = "kept_prefixes", "kept_prefixes_one_by_one"
"""The same of prompts whose prefixes the cache holds from an earlier run."""
SDXL_VAE = "For OmniGen use the SDXL VAE."
DEVICE_SHARE, RAM_SHARE = 0.6, 0.4
"""Parts of the free memory the cache may take; the rest is the evaluation's and other programs'."""


class PrefixCondition(comfy.conds.CONDRegular):
    """Prefixes of one conditioning, one or as many as the batch; ComfyUI never joins two of them."""

    def process_cond(self, batch_size: int, **kwargs: Any) -> PrefixCondition:
        """The condition itself: a prefix serves every item of the batch."""
        return self

    def can_concat(self, other: comfy.conds.CONDRegular) -> bool:
        """Only with itself; prefixes of two branches have their own lengths and positions."""
        return other is self

    def concat(self, others: list[comfy.conds.CONDRegular]) -> tuple[Prefix, ...]:
        """What the network is called with."""
        return self.cond

    def size(self) -> list[int]:
        """Shape for ComfyUI's memory estimate: how many prefixes, and the tokens of one."""
        return [len(self.cond), 1, self.cond[0].length]


def placement(size: int, device: torch.device, patcher: Any = None) -> torch.device | None:
    """Where `size` bytes fit during a run of `patcher`: the device itself, RAM, or nowhere."""
    if size < DEVICE_SHARE * free_memory(patcher, device):
        return device
    ram = torch.device("cpu")
    return ram if size < RAM_SHARE * comfy.model_management.get_free_memory(ram) else None


class HostNetwork(WrappedCall, OmniGenNetwork):
    """The network with the call ComfyUI makes; a DIFFUSION_MODEL wrapper sees every evaluation."""

    def __init__(
        self,
        config: OmniGenConfig,
        image_model: str,
        dtype: torch.dtype,
        device: torch.device | None = None,
        operations: Any = None,
    ) -> None:
        super().__init__(config, operations=operations, device=device, dtype=dtype)
        self.dtype = dtype
        self.prefix_cache = PrefixCache()
        self.host: Callable[[], OmniGenModel | None] = lambda: None
        """Set by the BaseModel: a weak reference to it."""

    def _forward(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor | None,
        control: object,
        transformer_options: dict[str, Any],
        *,
        prefixes: tuple[Prefix, ...],
        **ignored: Any,
    ) -> Tensor:
        attention = host_attention(transformer_options)
        use = self.cache_use(transformer_options, x.device)
        if len(prefixes) == 1:
            return self.evaluate(x, timestep, prefixes[0], use, attention)
        # Pictures edited one by one: each item of the batch has its own references.
        items = [
            self.evaluate(x[item][None], timestep[item][None], prefixes[item % len(prefixes)], use, attention)
            for item in range(len(x))
        ]
        return torch.cat(items)

    def evaluate(
        self, latent: Tensor, sigma: Tensor, prefix: Prefix, use: CacheUse | None, attention: Attention
    ) -> Tensor:
        """Velocity through the prefix cache where it applies, through the plain pass where not."""
        if use is None:
            return self.velocity(latent, sigma, prefix, attention)
        try:
            return cached_velocity(self, latent, sigma, prefix, use, attention)
        except RuntimeError as error:
            raise_unless_out_of_memory(error)
            log.warning("No memory for OmniGen's prefix cache; this step runs without it.")
            self.prefix_cache.clear()
        return self.velocity(latent, sigma, prefix, attention)

    def cache_use(self, transformer_options: dict[str, Any], device: torch.device) -> CacheUse | None:
        """How this evaluation may use the cache; None when the weights may change behind its back."""
        settings = transformer_options.get(CACHE_OPTION, CacheSettings())
        host = self.host()
        weights = host.weights_key() if host is not None else None
        if host is None or weights is None or not settings.enabled:
            return None
        override = transformer_options.get("optimized_attention_override")
        sigmas = transformer_options.get("sample_sigmas")
        patcher = host.current_patcher
        return CacheUse(
            cache=self.prefix_cache,
            settings=settings,
            weights=(weights, override),
            schedule=lambda: [] if sigmas is None else sigmas.tolist(),
            placement=lambda size: placement(size, device, patcher),
        )


class OmniGenModel(comfy.model_base.BaseModel):
    """ComfyUI's side of the network: conditioning in, memory estimate out."""

    diffusion_model: HostNetwork

    def __init__(self, model_config: OmniGenModelConfig, device: torch.device | None = None) -> None:
        flow = comfy.model_base.ModelType.FLOW
        super().__init__(model_config, flow, device=device, unet_model=HostNetwork)
        self.memory_usage_factor_conds = ("prefixes",)
        self.cache_settings = CacheSettings()
        """The loader's choice; ComfyUI's memory estimate is not told the options of a run."""
        # Here too: another node may put something else in the network's place.
        self.prefix_cache = self.diffusion_model.prefix_cache
        # Weak, or the host would see a model that never dies.
        self.diffusion_model.host = weakref.ref(self)

    def weights_key(self) -> Hashable | None:
        """Changes with every LoRA or strength; None under hooks, which change weights while sampling."""
        patcher = self.current_patcher
        if patcher is None or getattr(patcher, "current_hooks", None) is not None:
            return None
        replaced = any(name.startswith("diffusion_model") for name in patcher.object_patches)
        if replaced or any(getattr(patcher, "injections", {}).values()):
            return None
        return patcher.patches_uuid

    def process_timestep(self, timestep: Tensor, **kwargs: Any) -> Tensor:
        """sigma itself, also under a sampling patch that multiplies it by 1000."""
        return timestep / getattr(self.model_sampling, "multiplier", 1.0)

    def extra_conds(self, **kwargs: Any) -> dict[str, comfy.conds.CONDRegular]:
        """The prefixes of one conditioning.

        ValueError if it is not OmniGen's, would be cut to the batch, or has pictures without a place.
        """
        ids = checked_ids(kwargs.get("cross_attn"))
        references = kwargs.get("reference_latents") or []
        check_references(references, kwargs["noise"], self.latent_format.latent_channels, SDXL_VAE)
        prefixes = self.make_prefixes(ids, references)
        check_named(references, len({slot.image for slot in prefixes[0].tokens.slots}))
        return {"prefixes": PrefixCondition(tuple(prefix.to(kwargs["device"]) for prefix in prefixes))}

    def make_prefixes(self, ids: Tensor, references: Sequence[Tensor]) -> list[Prefix]:
        """The prefixes of token ids and their reference latents, one for each picture of a batch."""
        latents = [self.process_latent_in(latent) for latent in references]
        patch = self.diffusion_model.config.patch_size
        tokens = sequence_from_tensor(
            ids, [(latent.shape[-2] // patch, latent.shape[-1] // patch) for latent in latents]
        )
        return [
            make_prefix(tokens, [latent[item % len(latent)][None] for latent in latents])
            for item in range(num_prefixes(latents))
        ]

    def is_kept(self, ids: Tensor, references: Sequence[Tensor]) -> bool:
        """Whether the cache holds every prefix of a conditioning, in RAM or on the device.

        With another LoRA they are written again all the same; then the cache drops old ones for room.
        """
        if not self.cache_settings.enabled or not self.prefix_cache.entries:
            return False
        try:
            prefixes = self.make_prefixes(ids, references)
        except ValueError:
            return False  # the run says what is wrong, after checks that this estimate does not make
        return all(self.prefix_cache.holds(prefix.elements) for prefix in prefixes)

    def extra_conds_shapes(self, **kwargs: Any) -> dict[str, list[int]]:
        """The same shapes before the run, for the estimate that decides what stays loaded.

        ValueError for a ControlNet.
        """
        # Here already: ComfyUI asks the ControlNet before the network, and it would fail in its own words.
        if kwargs.get("control") is not None:
            raise ValueError("OmniGen has no ControlNets: give it the control picture as a reference instead")
        ids, references = checked_ids(kwargs.get("cross_attn")), kwargs.get("reference_latents") or []
        count = num_prefixes(references)
        names = (KEPT_TOGETHER, KEPT_ONE_BY_ONE) if self.is_kept(ids, references) else (TOGETHER, ONE_BY_ONE)
        return {names[count > 1]: [count, 1, ids.numel()]}

    def memory_required(
        self, input_shape: Sequence[int], cond_shapes: dict[str, list] | None = None, **kwargs: Any
    ) -> float:
        """Bytes one evaluation needs beside the weights, references and what their cache has yet to hold.

        One prefix serves the whole batch at once; of several, each runs alone with its picture.
        """
        config = self.diffusion_model.config
        target = math.prod(side // config.patch_size + 1 for side in input_shape[-2:])
        told = cond_shapes or {}
        new = [*told.get(TOGETHER, []), *told.get(ONE_BY_ONE, [])]
        shapes = [*new, *told.get(KEPT_TOGETHER, []), *told.get(KEPT_ONE_BY_ONE, [])] or [[1, 1, 0]]
        rows = max((input_shape[0] if count == 1 else 1) * (target + length) for count, _, length in shapes)
        dtype = self.manual_cast_dtype or self.get_dtype()
        kept = sum(count * length for count, _, length in new)
        return rows * activation_bytes(config, dtype) + self.kept_bytes(kept, dtype)

    def kept_bytes(self, length: int, dtype: torch.dtype) -> int:
        """What the prefix cache is going to hold of `length` tokens under the loader's settings."""
        settings = self.cache_settings
        if not settings.enabled:
            return 0
        item_size = comfy.model_management.dtype_size(dtype)
        size = bytes_per_token(self.diffusion_model.config, item_size, settings.eight_bit)
        return min(length * size, settings.max_bytes)


def num_prefixes(reference_latents: Sequence[Tensor]) -> int:
    """How many prefixes one conditioning makes: batches of several sizes meet in every pair."""
    return math.lcm(*(len(latent) for latent in reference_latents))


def activation_bytes(config: OmniGenConfig, dtype: torch.dtype) -> float:
    """Bytes of activations for each token: hidden states, q k v with their fp32 rotation, the gated MLP."""
    size = comfy.model_management.dtype_size(dtype)
    return 1.2 * (size * (12 * config.hidden_size + 5 * config.intermediate_size) + 24 * config.hidden_size)


def checked_ids(conditioning: Tensor | None) -> Tensor:
    """The token ids (1, L) of a conditioning.

    ValueError if it was made for another model, or a stock node took OmniGen's words out, mixed them or put
    two together.
    """
    if conditioning is not None and conditioning.is_floating_point() and conditioning.ndim == 2:
        raise ValueError(
            "this conditioning was mixed, as 'Conditioning (Average)' does; OmniGen's are words, not "
            "vectors. Use Conditioning (Combine) or one prompt."
        )
    if conditioning is None or conditioning.dtype != torch.int64 or conditioning.ndim != 2:
        shape = None if conditioning is None else tuple(conditioning.shape)
        raise ValueError(
            f"this conditioning (tensor {shape}) is not OmniGen's, which reads words and pictures itself. "
            "Use the node 'OmniGen Encode' instead of a CLIP text encoder."
        )
    if not conditioning.any():
        raise ValueError(
            "this conditioning was emptied, as 'ConditioningZeroOut' does: OmniGen would read its zeros as "
            "words it was never taught. Use OmniGen Encode's negative output for the negative side."
        )
    # The prompt begins with a word no user can write, so it begins once.
    if (conditioning[:, 1:] == conditioning[:, :1]).any():
        raise ValueError(
            "this conditioning holds more than one prompt, as 'Conditioning (Concat)' makes it: OmniGen "
            "reads a single one. Write both texts into the prompt of one 'OmniGen Encode'."
        )
    return conditioning


class OmniGenModelConfig(comfy.supported_models_base.BASE):
    """What ComfyUI's loader would have found out about the file."""

    unet_config = {}
    unet_extra_config = {}
    latent_format = comfy.latent_formats.SDXL
    sampling_settings = {"shift": 1.0, "multiplier": 1.0}
    supported_inference_dtypes = [torch.bfloat16, torch.float32]

    def get_model(
        self, state_dict: dict[str, Tensor], prefix: str = "", device: torch.device | None = None
    ) -> OmniGenModel:
        """An OmniGenModel with empty weights."""
        return OmniGenModel(self, device=device)
