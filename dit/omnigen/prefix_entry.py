"""What is kept of one prefix: its keys and values, in full precision or 8 bit, and the rows it shares.

L prefix tokens, K key heads, D channels of a head.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..eight_bit import rows_to_eight_bit
from ..stored_tensor import moved_to
from .layout import Slot

SIGMA_STEPS = 1_000_000
"""Sigmas closer than a millionth share a time token; float32 schedules differ by less between solvers."""
MAX_TIMES = 256


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor (1, K, rows, D) as it is or as int8 with a scale for each row."""

    numbers: Tensor
    scale: Tensor | None = None

    def copy_to(self, target: Tensor, rows: int) -> None:
        """Write the first `rows` rows into target (B, K, rows, D), the same for every item of the batch."""
        numbers = self.numbers[:, :, :rows]
        if self.scale is None:
            target.copy_(numbers, non_blocking=True)
            return
        scale = self.scale[:, :, :rows].to(target.device, non_blocking=True)
        # int8 times fp32 is fp32: rounded once, and no wide copy of the numbers at every step.
        target.copy_(numbers.to(target.device, non_blocking=True) * scale)

    @property
    def num_bytes(self) -> int:
        """Memory held."""
        return self.numbers.nbytes + (self.scale.nbytes if self.scale is not None else 0)


def store(rows: Tensor, eight_bit: bool, device: torch.device) -> Stored:
    """Keep (1, K, rows, D) on `device`; pinned when it waits in RAM for a CUDA card."""
    scale = None
    if eight_bit:
        rows, scale = rows_to_eight_bit(rows, torch.int8)
        scale = keep(scale, device)
    return Stored(keep(rows, device), scale)


def keep(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on `device` that shares no memory with the layer's own tensor."""
    moved = moved_to(tensor, device)
    return moved.clone(memory_format=torch.contiguous_format) if moved is tensor else moved.contiguous()


@dataclass(eq=False, slots=True)
class Entry:
    """The layers' keys and values of one prefix, from row `shared` on; the rows before are its parent's."""

    elements: tuple[int | str, ...]
    slots: tuple[Slot, ...]
    context: Hashable
    parent: Entry | None
    shared: int
    device: torch.device
    layers: list[tuple[Stored, Stored]] = field(default_factory=list)
    times: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Keys and values (layers, K, D) of the time token of each sigma met so far."""
    used_in_run: int = 0

    def spans(self, stop: int) -> Iterator[tuple[Entry, int, int]]:
        """(owner, first row, last row) that together hold the rows 0..stop."""
        if self.parent is not None:
            yield from self.parent.spans(min(stop, self.shared))
        if stop > self.shared:
            yield self, self.shared, stop

    def copy_to(self, layer: int, keys: Tensor, values: Tensor, stop: int) -> None:
        """Write the rows 0..stop of one layer into buffers (B, K, at least stop, D)."""
        for owner, first, last in self.spans(stop):
            key, value = owner.layers[layer]
            key.copy_to(keys[:, :, first:last], last - first)
            value.copy_to(values[:, :, first:last], last - first)

    def add_time(self, sigma_key: int, keys: Tensor, values: Tensor) -> None:
        """Remember a time token; the oldest is forgotten when there are too many."""
        while len(self.times) >= MAX_TIMES:
            self.times.pop(next(iter(self.times)))
        self.times[sigma_key] = (keys.clone(), values.clone())

    @property
    def num_bytes(self) -> int:
        """Memory of its own rows and time tokens."""
        rows = sum(key.num_bytes + value.num_bytes for key, value in self.layers)
        return rows + sum(keys.nbytes + values.nbytes for keys, values in self.times.values())


def sigma_key(sigma: float) -> int:
    """The number under which a sigma's time token is kept."""
    return round(sigma * SIGMA_STEPS)


def shared_rows(mine: tuple[int | str, ...], theirs: tuple[int | str, ...], slots: tuple[Slot, ...]) -> int:
    """Rows in common, cut before a picture that only begins alike; 0 without one whole picture."""
    pairs = zip(mine, theirs, strict=False)
    count = next((row for row, (one, other) in enumerate(pairs) if one != other), min(len(mine), len(theirs)))
    for slot in slots:
        if slot.start < count < slot.stop:
            count = slot.start
    return count if any(slot.stop <= count for slot in slots) else 0


def with_ancestors(entries: Iterable[Entry]) -> set[Entry]:
    """The entries and all whose rows they share."""
    alive: set[Entry] = set()
    for entry in entries:
        current: Entry | None = entry
        while current is not None:
            alive.add(current)
            current = current.parent
    return alive
