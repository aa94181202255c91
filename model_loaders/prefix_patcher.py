"""OmniGen's kept prefixes under ComfyUI's memory management, for hosts that leave its weights loaded.

Newer hosts do not unload such a model for another one: its weights make way by themselves, piece by piece.
The prefixes do not, so ComfyUI is shown them as a small model of their own, which it unloads when it needs
the room.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from comfy.model_patcher import ModelPatcher

from ..dit.omnigen.prefix_cache import PrefixCache
from ..dit.omnigen.prefix_entry import with_ancestors
from .omnigen_model import CACHE_KEY


class PrefixStore(nn.Module):
    """What a ModelPatcher wants to hold: a module, here around the cache."""

    def __init__(self, cache: PrefixCache) -> None:
        super().__init__()
        self.cache = cache


class PrefixPatcher(ModelPatcher):
    """Lets ComfyUI count the prefixes that lie on the device, and drop them where it needs the memory."""

    def model_size(self) -> int:
        """Bytes on the device; what waits in RAM is read from there and never asks to be loaded."""
        # By type, for a device may be named with its number or without.
        entries = with_ancestors(self.model.cache.entries.values())
        return sum(entry.num_bytes for entry in entries if entry.device.type == self.load_device.type)

    def loaded_size(self) -> int:
        """The same: all of it is loaded."""
        return self.model_size()

    def current_loaded_device(self) -> torch.device:
        """The load device."""
        return self.load_device

    def partially_load(
        self, device_to: torch.device, extra_memory: float = 0, force_patch_weights: bool = False, **more: Any
    ) -> int:
        """Nothing: prefixes are written where they are going to stay."""
        return 0

    def partially_unload(
        self,
        device_to: torch.device,
        memory_to_free: float = 0,
        force_patch_weights: bool = False,
        **more: Any,
    ) -> int:
        """Drop what was longest unused until enough memory is free; returns how much that gave."""
        before, entries = self.model_size(), self.model.cache.entries
        while entries and before - self.model_size() < memory_to_free:
            entries.popitem(last=False)
        return before - self.model_size()

    def detach(self, unpatch_all: bool = True) -> nn.Module:
        """Drop everything, unless a clone only takes this one's place."""
        if unpatch_all:
            self.model.cache.clear()
        return self.model

    def deepclone_multigpu(self, *args: Any, **kwargs: Any) -> Any:
        """A clone: the network on another card has a cache of its own."""
        return self.clone()


def count_prefixes(patcher: Any) -> None:
    """Have ComfyUI count the prefixes of a ModelPatcher and its clones where it leaves the model loaded."""
    # The pinned host unloads it, which frees the prefixes too (omnigen.follow_runs).
    is_dynamic = getattr(patcher, "is_dynamic", None)
    if is_dynamic is None or not is_dynamic():
        return
    store = PrefixStore(patcher.model.prefix_cache)
    counted = PrefixPatcher(store, load_device=patcher.load_device, offload_device=patcher.offload_device)
    patcher.set_additional_models(CACHE_KEY, [counted])
