"""Page-locked host memory for a base that is streamed to a card."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

log = logging.getLogger("dreamomni")

SLAB_BYTES = 2**30
ALIGNMENT = 256


def pinned_bytes(size: int) -> Tensor:
    """`size` bytes of page-locked memory; RuntimeError when the system gives no more."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)


class PinnedSlabs:
    """Holds weights side by side in large page-locked slabs.

    PyTorch rounds every request for page-locked memory up to a power of two: layer by layer FLUX would take
    half as much again as its weights have.
    """

    def __init__(
        self, slab_bytes: int = SLAB_BYTES, allocate: Callable[[int], Tensor] = pinned_bytes
    ) -> None:
        self.slab_bytes, self.allocate = slab_bytes, allocate
        self.rest = torch.empty(0, dtype=torch.uint8)
        self.is_full = False

    def hold(self, weight: Tensor) -> Tensor:
        """The weight in page-locked memory; as it is where the system gives no more, which is only slower."""
        size = weight.numel() * weight.element_size()
        taken = -(-size // ALIGNMENT) * ALIGNMENT
        if taken > len(self.rest) and not self.grow(taken):
            return weight
        place, self.rest = self.rest[:size], self.rest[taken:]
        return place.view(weight.dtype).view(weight.shape).copy_(weight)

    def grow(self, size: int) -> bool:
        """Take another slab, of at least `size` bytes; False when there is none."""
        if self.is_full:
            return False
        try:
            self.rest = self.allocate(max(self.slab_bytes, size))
        except RuntimeError as error:
            log.warning("the rest of the base is not page-locked, steps are slower: %s", error)
            self.is_full = True
        return not self.is_full
