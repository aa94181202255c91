"""Memory of tensors, counted without a GPU."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakBytes(TorchDispatchMode):
    """Counts the bytes of all tensors made inside the block that live at once.

    What a kernel uses inside itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live, self.peak = 0, 0
        self._seen: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation; what it gives back is new unless it came in, or was counted before."""
        result = func(*args, **(kwargs or {}))
        known = {id(s) for s in storages((args, kwargs))}
        for storage in storages(result):
            if id(storage) not in known and id(storage) not in self._seen:
                self.add(storage)
        return result

    def add(self, storage: torch.UntypedStorage) -> None:
        """Count a storage until it is gone."""
        key, size = id(storage), storage.nbytes()

        def gone(_: object) -> None:
            self.live -= size
            self._seen.pop(key, None)

        self._seen[key] = weakref.ref(storage, gone)
        self.live += size
        self.peak = max(self.peak, self.live)


def storages(values: Any) -> Iterable[torch.UntypedStorage]:
    """The storages of all tensors in nested values."""
    return (leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor))
