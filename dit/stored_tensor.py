"""A tensor that is kept for later: as it is or in 8 bit, on the device or in host memory."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from .eight_bit import rows_from_eight_bit, rows_to_eight_bit

log = logging.getLogger("dreamomni")
QUANTISED_GROUP = 32
"""Channels that share one 8-bit scale: 45 dB for normal values at 6 % more memory than the bytes alone."""
SCALE_DTYPE = torch.bfloat16
"""Half precision would lose small scales."""


@dataclass(slots=True)
class StoredTensor:
    """A tensor as it is, or in 8 bit with one scale for each group of channels."""

    values: Tensor
    scales: Tensor | None
    dtype: torch.dtype

    @classmethod
    def pack(cls, tensor: Tensor, quantise: bool) -> StoredTensor:
        """Keep a copy of the tensor (... D)."""
        if not quantise:
            return cls(tensor.contiguous().clone(), None, tensor.dtype)
        groups = tensor.unflatten(-1, (-1, group_size(tensor.shape[-1])))
        # Many groups: their scales in two bytes each.
        values, scales = rows_to_eight_bit(groups, torch.int8, scale_dtype=SCALE_DTYPE)
        return cls(values, scales, tensor.dtype)

    def read(self, device: torch.device) -> Tensor:
        """The tensor on the device in its own dtype; a transfer if it is stored elsewhere."""
        values = self.values.to(device, non_blocking=True)
        if self.scales is None:
            return values
        scales = self.scales.to(device, self.dtype, non_blocking=True)
        return rows_from_eight_bit(values, scales, self.dtype).flatten(-2)

    def move(self, device: torch.device) -> None:
        """Store the tensor on another device."""
        self.values = moved_to(self.values, device)
        self.scales = None if self.scales is None else moved_to(self.scales, device)

    def is_on(self, device: torch.device) -> bool:
        """Whether it lies on the device, which may be named without its number, as Apple's is."""
        here = self.values.device
        return here.type == device.type and (device.index is None or here.index in (None, device.index))

    def is_away(self, device: torch.device) -> bool:
        """Whether it must travel to be read on the device."""
        return self.values.device.type != device.type

    def tensors(self) -> list[Tensor]:
        """What is in memory: the values, and their scales in 8 bit."""
        return [self.values] if self.scales is None else [self.values, self.scales]

    @property
    def num_bytes(self) -> int:
        """Memory it takes."""
        return sum(part.numel() * part.element_size() for part in self.tensors())


def group_size(channels: int) -> int:
    """Channels that share one scale."""
    return QUANTISED_GROUP if channels % QUANTISED_GROUP == 0 else channels


def packed_bytes(num_values: int, channels: int, dtype: torch.dtype, quantise: bool) -> int:
    """Memory that so many values (... D), D of them `channels`, take once they are packed."""
    if not quantise:
        return num_values * dtype.itemsize
    return num_values + num_values // group_size(channels) * SCALE_DTYPE.itemsize


def moved_to(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; from a CUDA card into pinned memory, which it can fetch while it computes."""
    if not tensor.is_cuda or device.type != "cpu":
        return tensor.to(device)
    try:
        pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    except RuntimeError:  # the system has no more of it
        log.debug("no pinned memory left; what is kept is read from ordinary memory")
        return tensor.to(device)
    return pinned.copy_(tensor)
