"""Where kept references live: one store per loaded model, counted and moved by ComfyUI like a model."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from comfy.model_patcher import ModelPatcher

from ..dit.reference_cache import KeptReference

MAX_IDLE = 4
"""References that stay although the last run did not use them."""


class Same:
    """Wraps an object so that keys compare it by identity and keep it alive: no id is ever used twice."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


@dataclass(frozen=True, slots=True)
class ReferenceKey:
    """Everything the keys and values of a reference depend on, besides the model that owns the store."""

    content: str
    """Hash of the latent: values, size and number type."""
    weights: tuple[Any, ...]
    """Which patches were in the weights, and which parts of the network were replaced."""
    attention: Same
    """The attention override of another node."""
    precision: str


class ReferenceStore(nn.Module):
    """The kept references of one model, the latest used last."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: OrderedDict[ReferenceKey, KeptReference] = OrderedDict()
        self.written = 0
        """References written so far; a run that finds everything kept does not raise it."""

    def find(self, key: ReferenceKey) -> KeptReference | None:
        """The entry of this key, marked as just used."""
        if key in self.entries:
            self.entries.move_to_end(key)
        return self.entries.get(key)

    def add(self, key: ReferenceKey, entry: KeptReference) -> None:
        """Keep a written reference."""
        self.entries[key] = entry
        self.written += 1

    def shrink(self, used: set[ReferenceKey], idle: int = MAX_IDLE) -> None:
        """Let go of what was used longest ago; `used` stays."""
        spare = [key for key in self.entries if key not in used]
        for key in spare[: max(0, len(spare) - idle)]:
            del self.entries[key]

    def num_bytes(self, device: torch.device | None = None) -> int:
        """Memory of all entries, or of what lies on one device."""
        parts = [part for entry in self.entries.values() for part in entry.tensors()]
        return sum(part.num_bytes for part in parts if device is None or part.is_on(device))


class StorePatcher(ModelPatcher):
    """Lets ComfyUI's memory management count the store, move it to the device, and take it off again."""

    def model_size(self) -> int:
        """Bytes of the store now; it grows after the patcher was made."""
        return self.model.num_bytes()

    def loaded_size(self) -> int:
        """Bytes on the load device."""
        return self.model.num_bytes(self.load_device)

    def current_loaded_device(self) -> torch.device:
        """The load device: what is not there yet counts as offloaded."""
        return self.load_device

    def partially_load(
        self, device_to: torch.device, extra_memory: float = 0, force_patch_weights: bool = False, **more: Any
    ) -> int:
        """Move layers to the device while they fit; the others are read from where they are."""
        return self.shift(device_to, extra_memory, grow=True)

    def partially_unload(
        self,
        device_to: torch.device,
        memory_to_free: float = 0,
        force_patch_weights: bool = False,
        **more: Any,
    ) -> int:
        """Move layers off the device until enough memory is free."""
        return self.shift(device_to, memory_to_free, grow=False)

    def detach(self, unpatch_all: bool = True) -> nn.Module:
        """Move everything off the device; the references stay usable."""
        if unpatch_all:
            self.shift(self.offload_device, float("inf"), grow=False)
        return self.model

    def shift(self, device: torch.device, limit: float, grow: bool) -> int:
        """Move stored tensors to `device`, at most (grow) or at least `limit` bytes; returns how many."""
        moved = 0
        for entry in self.model.entries.values():
            for part in entry.tensors():
                if part.is_on(device):
                    continue
                if moved + (part.num_bytes if grow else 0) > limit or (not grow and moved >= limit):
                    return moved
                moved += part.num_bytes
                part.move(device)
        return moved


PATCHERS: weakref.WeakKeyDictionary[nn.Module, StorePatcher] = weakref.WeakKeyDictionary()
"""The store of every loaded model and its one patcher; they go when the model goes.

ComfyUI takes a store whose patcher is gone for a memory leak, so a new one for every node would not do.
"""


def store_patcher(model: Any) -> StorePatcher:
    """What `set_additional_models` wants: the model's store under ComfyUI's memory management."""
    if model.model not in PATCHERS:
        store = ReferenceStore()
        PATCHERS[model.model] = StorePatcher(
            store, load_device=model.load_device, offload_device=model.offload_device
        )
    return PATCHERS[model.model]


def store_of(model: Any) -> ReferenceStore:
    """The store of the network behind a ModelPatcher, the same for all its clones."""
    return store_patcher(model).model
