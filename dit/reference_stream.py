"""Kept keys and values that wait in host memory, on their way to the device one block before they are used.

While a block computes, the next block's tensors are copied beside it. Two slots on the device take turns, so
never more than two blocks are there, however many references and blocks the network has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from .stored_tensor import StoredTensor

Block = tuple[str, int]
"""("double" or "single", number): which attention of the network."""
NUM_SLOTS = 2
Copies = Sequence[tuple[Tensor, Tensor]]
"""(source in host memory, target on the device)."""


class Lane(Protocol):
    """How copies reach the device."""

    def start(self, slot: int, copies: Copies) -> None:
        """Begin to fill a slot, once the work queued so far no longer reads it."""
        ...

    def finish(self, slot: int) -> None:
        """Let the work queued from now on wait until the slot is filled."""
        ...


class CudaLane:
    """Copies on a stream of their own, beside the computing."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.filled = [torch.cuda.Event() for _ in range(NUM_SLOTS)]

    def start(self, slot: int, copies: Copies) -> None:
        """Queue the copies behind all work that is queued now, the slot's last reader among it."""
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            for source, target in copies:
                target.copy_(source, non_blocking=True)
                # Freed while the copy runs, its memory must not be given away yet.
                target.record_stream(self.stream)
            self.filled[slot].record(self.stream)

    def finish(self, slot: int) -> None:
        """Computing waits for the slot; the program goes on."""
        torch.cuda.current_stream(self.device).wait_event(self.filled[slot])


@dataclass
class Slot:
    """Room on the device for what one block reads."""

    block: Block | None = None
    sources: list[StoredTensor] = field(default_factory=list)
    """Held, so that their ids stay theirs."""
    copies: dict[int, StoredTensor] = field(default_factory=dict)
    """id of a stored tensor -> its copy on the device."""
    buffers: list[Tensor] = field(default_factory=list)


@dataclass
class BlockStream:
    """Stored tensors of the blocks of a network, in the order in which the blocks run, over and over."""

    order: Sequence[Block]
    parts: Callable[[Block], Sequence[StoredTensor]]
    """What a block reads, wherever it is."""
    device: torch.device
    lane: Lane
    slots: list[Slot] = field(default_factory=lambda: [Slot() for _ in range(NUM_SLOTS)])
    present: int = 0
    """The slot of the block that runs."""

    def take(self, block: Block) -> dict[int, StoredTensor]:
        """Copies on the device of what the block reads from elsewhere, by id; the next block is sent for."""
        following = self.order[(self.order.index(block) + 1) % len(self.order)]
        held = next((place for place, slot in enumerate(self.slots) if slot.block == block), None)
        if held is None:
            held = self.present ^ 1
            self.fetch(block, held)
        self.present = held
        if self.slots[held].copies:
            self.lane.finish(held)
        if following != block and self.slots[held ^ 1].block != following:
            self.fetch(following, held ^ 1)
        return self.slots[held].copies

    def fetch(self, block: Block, place: int) -> None:
        """Begin to fill a slot with what a block will read."""
        slot = self.slots[place]
        slot.sources = [part for part in self.parts(block) if part.is_away(self.device)]
        tensors = [tensor for part in slot.sources for tensor in part.tensors()]
        slot.buffers = fitting_buffers(slot.buffers, tensors, self.device)
        room = iter(slot.buffers)
        slot.block = block
        slot.copies = {
            id(part): StoredTensor(next(room), None if part.scales is None else next(room), part.dtype)
            for part in slot.sources
        }
        if tensors:
            self.lane.start(place, list(zip(tensors, slot.buffers, strict=True)))


def fitting_buffers(
    buffers: Sequence[Tensor], tensors: Sequence[Tensor], device: torch.device
) -> list[Tensor]:
    """Buffers on the device of the tensors' shapes and types, those at hand where they fit."""
    if len(buffers) == len(tensors) and all(
        buffer.shape == tensor.shape and buffer.dtype == tensor.dtype
        for buffer, tensor in zip(buffers, tensors, strict=True)
    ):
        return list(buffers)
    return [torch.empty(tensor.shape, dtype=tensor.dtype, device=device) for tensor in tensors]


def lane_for(device: torch.device) -> Lane | None:
    """A way onto the device that runs beside the computing; None where there is none."""
    return CudaLane(device) if device.type == "cuda" else None
