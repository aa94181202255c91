"""Where kept references live: one store per loaded model, counted and moved by ComfyUI like a model."""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import comfy.model_management as management
from comfy.model_patcher import ModelPatcher

from ..dit.reference_cache import KeptReference

log = logging.getLogger("dreamomni")
MAX_IDLE = 4
"""References that stay although the last run did not use them."""
NO_RAM = (
    "Reference Cache: %.0f MB of references go to system memory, which has less free. Choose its precision "
    "'8bit', or fewer or smaller references."
)
ONE_GPU = (
    "Reference Cache in its mode 'exact' works on one GPU, MultiGPU CFG Split uses several: take one of the "
    "two nodes out, or set the mode to 'off'"
)


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
        self.used: set[ReferenceKey] = set()
        """What the latest run reads. The others may go at any time: they can be written again."""
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
        """Let go of what was used longest ago; `used`, what a run is going to read, stays."""
        self.used = set(used)
        spare = self.idle()
        for key in spare[: max(0, len(spare) - idle)]:
            del self.entries[key]

    def idle(self) -> list[ReferenceKey]:
        """What the latest run does not read, the longest unused first."""
        return [key for key in self.entries if key not in self.used]

    def drop_idle(self, device: torch.device, is_short: Callable[[int], bool]) -> int:
        """Let go of unused references on a device while it is short; returns, and tells it, the bytes."""
        freed = 0
        for key in self.idle():
            size = num_bytes(self.entries[key], device)
            if size and is_short(freed):
                freed += size
                del self.entries[key]
        return freed

    def num_bytes(self, device: torch.device | None = None) -> int:
        """Memory of all entries, or of what lies on one device."""
        return sum(num_bytes(entry, device) for entry in self.entries.values())


def num_bytes(entry: KeptReference, device: torch.device | None = None) -> int:
    """Memory of a reference, or of what of it lies on one device."""
    return sum(part.num_bytes for part in entry.tensors() if device is None or part.is_on(device))


def fits_in_ram(store: ReferenceStore, device: torch.device, size: float) -> bool:
    """Whether system memory takes so many bytes more, at the cost of unused references that lie there."""
    if device.type != "cpu":
        return True
    # Asked once: pinned memory that was let go of stays with PyTorch, for the next that wants some.
    free = management.get_free_memory(device)
    freed = store.drop_idle(device, lambda freed: free + freed < size)
    return free + freed >= size


def check_one_gpu(model: Any) -> None:
    """Raise ValueError if a run would go on several GPUs: their threads cannot share what a run reads."""
    additional = getattr(model, "get_additional_models_with_key", None)
    if additional is not None and additional("multigpu"):
        raise ValueError(ONE_GPU)


class StorePatcher(ModelPatcher):
    """Lets ComfyUI's memory management count the store, move it to the device, and take it off again."""

    def model_size(self) -> int:
        """Bytes of the store now, which grows after the patcher was made.

        Unused references count where they lie: off the device they do not ask to be loaded.
        """
        entries, used = self.model.entries.items(), self.model.used
        return sum(num_bytes(entry, None if key in used else self.load_device) for key, entry in entries)

    def loaded_size(self) -> int:
        """Bytes on the load device."""
        return self.model.num_bytes(self.load_device)

    def current_loaded_device(self) -> torch.device:
        """The load device: what is not there yet counts as offloaded."""
        return self.load_device

    def partially_load(
        self, device_to: torch.device, extra_memory: float = 0, force_patch_weights: bool = False, **more: Any
    ) -> int:
        """Move layers to the device while they fit; the others are read from where they are.

        ComfyUI asks for less than nothing where what is loaded has to shrink.
        """
        if extra_memory < 0:
            return -self.release(self.offload_device, -extra_memory)
        return self.shift(device_to, extra_memory, grow=True)

    def partially_unload(
        self,
        device_to: torch.device,
        memory_to_free: float = 0,
        force_patch_weights: bool = False,
        **more: Any,
    ) -> int:
        """Take references off the device until enough memory is free."""
        return self.release(device_to, memory_to_free)

    def detach(self, unpatch_all: bool = True) -> nn.Module:
        """Take everything off the device; what the latest run reads stays usable."""
        if unpatch_all:
            self.release(self.offload_device, float("inf"))
        return self.model

    def deepclone_multigpu(self, *args: Any, **kwargs: Any) -> Any:
        """ValueError: newer hosts ask for a store on another GPU."""
        raise ValueError(ONE_GPU)

    def release(self, device: torch.device, limit: float) -> int:
        """Free at least `limit` bytes of the load device; returns how many.

        Unused references are dropped: moved, they would fill the system memory. The others go to `device`.
        """
        freed = self.model.drop_idle(self.load_device, lambda freed: freed < limit)
        moving = min(limit - freed, self.model.num_bytes() - self.model.num_bytes(device))
        if moving > 0 and not fits_in_ram(self.model, device, moving):
            # Moved all the same: ComfyUI counts on the room, and a run may read them.
            log.warning(NO_RAM, moving / 2**20)
        return freed + self.shift(device, limit - freed, grow=False)

    def shift(self, device: torch.device, limit: float, grow: bool) -> int:
        """Move what the latest run reads to `device`, at most (grow) or at least `limit` bytes; how many."""
        moved = 0
        used = [entry for key, entry in self.model.entries.items() if key in self.model.used]
        for part in (part for entry in used for part in entry.tensors()):
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
