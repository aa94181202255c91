"""Weights side by side in slabs; the tests for a card (test_streaming.py) have real page-locked memory."""

from __future__ import annotations

import pytest
import torch
from pack.training.pinned import ALIGNMENT, PinnedSlabs
from torch import Tensor


class Memory:
    """Gives plain memory, so many slabs of it, and counts the bytes."""

    def __init__(self, most: int = 100) -> None:
        self.most, self.given = most, []

    def __call__(self, size: int) -> Tensor:
        if len(self.given) == self.most:
            raise RuntimeError("CUDA error: out of memory")
        self.given.append(size)
        return torch.zeros(size, dtype=torch.uint8)


def test_weights_keep_their_values_and_lie_apart() -> None:
    torch.manual_seed(0)
    kinds = (torch.bfloat16, torch.int8, torch.float8_e4m3fn, torch.float32)
    weights = [(torch.randn(7, 11) * 9).to(kinds[number % 4]) for number in range(20)]
    memory = Memory()
    slabs = PinnedSlabs(slab_bytes=8 * ALIGNMENT, allocate=memory)
    held = [slabs.hold(weight) for weight in weights]
    for weight, copy in zip(weights, held, strict=True):
        assert copy.dtype == weight.dtype and copy.shape == weight.shape
        assert torch.equal(copy.view(torch.uint8), weight.view(torch.uint8))
        assert copy.untyped_storage().data_ptr() != weight.untyped_storage().data_ptr()
        assert copy.storage_offset() * copy.element_size() % ALIGNMENT == 0
    assert len(memory.given) < len(weights) / 4, "several in each slab"
    assert set(memory.given) == {8 * ALIGNMENT}


def test_a_weight_larger_than_a_slab_gets_its_own() -> None:
    memory = Memory()
    slabs = PinnedSlabs(slab_bytes=ALIGNMENT, allocate=memory)
    weight = torch.arange(1000.0)
    assert torch.equal(slabs.hold(weight), weight)
    assert memory.given == [16 * ALIGNMENT]


def test_weights_stay_where_they_are_when_the_system_gives_no_more(caplog: pytest.LogCaptureFixture) -> None:
    memory = Memory(most=1)
    slabs = PinnedSlabs(slab_bytes=ALIGNMENT, allocate=memory)
    weights = [torch.full((64,), float(number)) for number in range(4)]
    with caplog.at_level("WARNING", logger="dreamomni"):
        held = [slabs.hold(weight) for weight in weights]
    assert [copy is weight for copy, weight in zip(held, weights, strict=True)] == [False, True, True, True]
    assert caplog.text.count("the rest of the base is not page-locked") == 1
