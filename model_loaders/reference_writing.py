"""Writing references that are computed once: one pass of the network over each, alone.

Shapes: B batch, L tokens, C channels, h w latent grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import comfy.model_management as management

from ..dit.reference_branch import REFERENCE_GUIDANCE, REFERENCE_POOLED, REFERENCE_SIGMA
from ..dit.reference_cache import OVERRIDE, KeptReference, Offset, ReferenceWriter
from ..dit.stored_tensor import packed_bytes
from .base_weights import without_patches
from .free_memory import free_memory
from .out_of_memory import raise_unless_out_of_memory
from .reference_store import ReferenceKey, ReferenceStore, fits_in_ram
from .run_references import Wanted, num_values

PRECISIONS = ("bf16", "8bit")
NUM_TEXT = 1
"""Text tokens of the writing pass; the network needs one, the reference does not see it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheSettings:
    """How references are kept."""

    precision: str = "bf16"
    """bf16 keeps the model's own number type, 8bit half of it."""
    lora_on_references: bool = False
    """Whether LoRAs act on the reference branch; the exact training preset leaves it to the base."""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"unknown precision {self.precision!r}; choose {' or '.join(PRECISIONS)}")

    @property
    def quantise(self) -> bool:
        """Whether 8 bit are kept."""
        return self.precision == "8bit"


@dataclass(frozen=True, slots=True)
class WritingPass:
    """What makes a kept reference of a latent."""

    network: Any
    settings: CacheSettings

    def write_missing(
        self, model: Any, store: ReferenceStore, missing: dict[ReferenceKey, Wanted], options: dict[str, Any]
    ) -> bool:
        """Load the weights the reference branch uses and write. True if it was written to system memory."""
        writer = model if self.settings.lora_on_references else without_patches(model)
        shape = max((item.latent.shape for item in missing.values()), key=lambda size: size[-1] * size[-2])
        needed = sum(kept_bytes(self.network, item.latent, self.settings) for item in missing.values())
        working = model.memory_required(shape)
        management.load_models_gpu([writer, *model.get_additional_models()], memory_required=needed + working)

        def is_full(freed: int = 0) -> bool:
            return free_memory(model, model.load_device) < needed + working

        store.drop_idle(model.load_device, is_full)
        full = is_full()
        for key, item in missing.items():
            management.throw_exception_if_processing_interrupted()
            latent = item.latent.to(model.load_device)
            entry = None
            try:
                place = self.place_in_ram(model, store, latent) if full else None
                entry = self.write(latent, item.offset, None, options, place)
            except RuntimeError as error:
                raise_unless_out_of_memory(error)
                full = True
            if entry is None:
                # Not in the handler: the error holds on to what the pass had made.
                store.drop_idle(model.load_device, lambda _: True)
                management.soft_empty_cache()
                place = self.place_in_ram(model, store, latent)
                entry = self.write(latent, item.offset, None, options, place)
            store.add(key, entry)
        return full and model.offload_device != model.load_device

    def place_in_ram(self, model: Any, store: ReferenceStore, latent: Tensor) -> torch.device:
        """The offload device, for what does not fit beside the weights; ValueError if it is full too."""
        needed = kept_bytes(self.network, latent, self.settings)
        if not fits_in_ram(store, model.offload_device, needed):
            smaller = "" if self.settings.quantise else "its precision '8bit', "
            raise ValueError(
                f"Reference Cache needs {needed / 2**20:.0f} MB for a reference; the GPU is full and system "
                f"memory has less free. Choose {smaller}fewer or smaller references, or its mode 'off'."
            )
        return model.offload_device

    def write(
        self,
        latent: Tensor,
        offset: Offset,
        geometry: Tensor | None,
        options: dict[str, Any],
        device: torch.device | None = None,
    ) -> KeptReference:
        """One pass over a latent (1, C, h, w) alone, at its fixed time, guidance and pooled text."""
        network, params = self.network, self.network.params
        entry = KeptReference(torch.empty(0), offset, tuple(params.axes_dim), float(params.theta))
        place = placer(entry, geometry)
        attention = ReferenceWriter(entry, NUM_TEXT, self.settings.quantise, options.get(OVERRIDE), device)
        time = torch.full((1,), REFERENCE_SIGMA, device=latent.device)
        with torch.no_grad():
            network(
                latent,
                time,
                latent.new_zeros(1, NUM_TEXT, params.context_in_dim),
                latent.new_full((1, params.vec_in_dim), REFERENCE_POOLED),
                latent.new_full((1,), REFERENCE_GUIDANCE),
                transformer_options={OVERRIDE: attention, "patches": {"post_input": [place]}},
            )
        return entry


def placer(entry: KeptReference, ids: Tensor | None) -> Callable[[dict], dict]:
    """A patch that puts the written picture at the entry's offset, or at the given ids (L, 3)."""

    def place(tokens: dict[str, Any]) -> dict[str, Any]:
        own = tokens["img_ids"]
        placed = own + own.new_tensor(entry.offset) if ids is None else ids[None].to(own)
        entry.geometry = (placed[0] - placed[0, 0]).cpu()
        return {**tokens, "img_ids": placed}

    return place


def kept_bytes(network: Any, latent: Tensor, settings: CacheSettings) -> int:
    """Memory the keys and values of a latent (1, C, h, w) will take."""
    channels = network.hidden_size // network.num_heads
    return packed_bytes(num_values(network, latent), channels, latent.dtype, settings.quantise)
