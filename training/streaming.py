"""Weights that lie in host memory, copied to the device before their turn, one way.

A ring of buffers on the device holds the layer in use and the next ones. Which come next is learnt: a layer
is followed by the one that followed it last time, separately for the forward pass, its repetition inside the
backward pass, and the backward pass itself. A wrong guess costs one copy and changes no number.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

AHEAD = 2
"""Layers copied before they are needed; chosen. One is enough while a copy takes less than a layer's work."""
FORWARD, AGAIN, BACKWARD = "forward", "again", "backward"


class Streamed(Protocol):
    """A layer with a weight in host memory."""

    weight: Any


Use = tuple[Streamed, str]


def forward_phase() -> str:
    """`again` while a checkpointed block is repeated inside the backward pass."""
    return AGAIN if torch._C._current_graph_task_id() != -1 else FORWARD


class Slot:
    """One buffer of the ring, and the layer whose weight is in it or on its way."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.buffer = torch.empty(size, dtype=torch.uint8, device=device)
        self.layer: Streamed | None = None
        self.is_lent = False
        self.used = 0
        self.copied: Any = None
        self.consumed: Any = None

    def shaped(self, like: Tensor) -> Tensor:
        """The front of the buffer with the dtype and shape of `like`."""
        return self.buffer[: like.nbytes].view(like.dtype).view(like.shape)


class DirectLane:
    """Copies at once: for the CPU, and to test the ring's order."""

    def copy(self, slot: Slot, weight: Tensor) -> None:
        """Bring a weight into a slot."""
        slot.shaped(weight).copy_(weight)

    def wait(self, slot: Slot) -> None:
        """Have what follows wait until the slot is filled."""

    def done(self, slot: Slot) -> None:
        """The slot may be filled anew once what was started before is over."""


class CudaLane:
    """Copies on a stream of its own, beside the computation; the two wait for each other on the device."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)
        # The ring's memory may have had another use, whose kernels still run.
        self.stream.wait_stream(torch.cuda.current_stream(device))

    def copy(self, slot: Slot, weight: Tensor) -> None:
        """Start to bring a weight from pinned memory into a slot nothing reads any more."""
        with torch.cuda.stream(self.stream):
            if slot.consumed is not None:
                self.stream.wait_event(slot.consumed)
            slot.shaped(weight).copy_(weight, non_blocking=True)
            slot.copied = self.stream.record_event()

    def wait(self, slot: Slot) -> None:
        """Have the computation wait until the slot is filled."""
        torch.cuda.current_stream(self.device).wait_event(slot.copied)

    def done(self, slot: Slot) -> None:
        """Remember after which computation the slot is free."""
        slot.consumed = torch.cuda.current_stream(self.device).record_event()


class Conveyor:
    """The ring for all streamed layers of a network; `copies` and `in_time` count what it did."""

    def __init__(
        self,
        layers: Iterable[Streamed],
        device: torch.device,
        ahead: int = AHEAD,
        lane: DirectLane | CudaLane | None = None,
    ) -> None:
        largest = max(layer.weight.nbytes for layer in layers)
        self.ahead = ahead
        self.slots = [Slot(largest, device) for _ in range(ahead + 1)]
        self.lane = lane or (CudaLane(device) if device.type == "cuda" else DirectLane())
        self.follows: dict[Use, Use] = {}
        self.last: Use | None = None
        self.clock = self.copies = self.in_time = 0

    @contextmanager
    def lent(self, layer: Streamed, phase: str) -> Generator[Tensor]:
        """The layer's weight on the device, inside the block only; the next ones are copied meanwhile."""
        slot = self.holding(layer)
        self.in_time += slot is not None
        slot = slot or self.fill(layer, keep=())
        assert slot is not None  # only the layer in use is lent, and there are two slots at least
        self.lane.wait(slot)
        slot.is_lent, slot.used = True, self.clock
        self.clock += 1
        self.learn((layer, phase))
        self.look_ahead((layer, phase))
        try:
            yield slot.shaped(layer.weight)
        finally:
            slot.is_lent = False
            self.lane.done(slot)

    def learn(self, use: Use) -> None:
        """Remember what came after the layer before."""
        if self.last is not None:
            self.follows[self.last] = use
        self.last = use

    def coming(self, use: Use) -> list[Streamed]:
        """The layers that are expected next, nearest first."""
        found: list[Streamed] = []
        while len(found) < self.ahead and (following := self.follows.get(use)) is not None:
            found.append(following[0])
            use = following
        return found

    def look_ahead(self, use: Use) -> None:
        """Start the copies of what comes next and is not there yet."""
        coming = self.coming(use)
        for layer in coming:
            if self.holding(layer) is None:
                self.fill(layer, keep=coming)

    def holding(self, layer: Streamed) -> Slot | None:
        """The slot with this layer's weight."""
        return next((slot for slot in self.slots if slot.layer is layer), None)

    def fill(self, layer: Streamed, keep: Collection[Streamed]) -> Slot | None:
        """Copy into the slot that was not used for longest; None if all are lent or to be kept."""
        free = [slot for slot in self.slots if not slot.is_lent and slot.layer not in keep]
        if not free:
            return None
        slot = min(free, key=lambda slot: slot.used)
        slot.layer, slot.used = layer, self.clock
        self.lane.copy(slot, layer.weight)
        self.copies += 1
        return slot
