"""Stored keys and values on their way from host memory: order, two slots, and the same numbers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from direct_lane import DirectLane
from pack.dit.reference_cache import KeptLayer, KeptReference, ReferenceReader, stream_references
from pack.dit.reference_stream import BlockStream, Copies, CudaLane, lane_for
from pack.dit.stored_tensor import StoredTensor
from torch import Tensor

CPU = torch.device("cpu")
BLOCKS = [("double", 0), ("double", 1), ("single", 0), ("single", 1), ("single", 2)]


class LateLane:
    """Copies at the last moment that is allowed, so that whoever reads before `finish` reads old numbers."""

    def __init__(self) -> None:
        self.waiting: dict[int, Copies] = {}
        self.events: list[tuple[str, int]] = []

    def start(self, slot: int, copies: Copies) -> None:
        self.waiting[slot] = [*self.waiting.get(slot, ()), *copies]
        self.events.append(("start", slot))

    def finish(self, slot: int) -> None:
        for source, target in self.waiting.pop(slot, ()):
            target.copy_(source)
        self.events.append(("finish", slot))


@pytest.fixture
def all_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything stored counts as being elsewhere than on the device."""
    monkeypatch.setattr(StoredTensor, "is_away", lambda *_: True)


def stored(number: int, quantise: bool = False) -> list[StoredTensor]:
    draw = torch.Generator().manual_seed(number)
    return [StoredTensor.pack(torch.randn(1, 2, 3, 32, generator=draw), quantise) for _ in range(2)]


def entry(seed: int, tokens: int = 3, quantise: bool = False) -> KeptReference:
    draw = torch.Generator().manual_seed(seed)
    kept = KeptReference(torch.zeros(tokens, 3), (1.0, 0.0, 0.0), (8, 12, 12), 10000.0)
    for block in BLOCKS:
        pair = [torch.randn(1, 2, tokens, 32, generator=draw) for _ in range(2)]
        kept.layers[block] = KeptLayer(*(StoredTensor.pack(part, quantise) for part in pair))
    return kept


@pytest.mark.parametrize("quantise", [False, True])
def test_each_block_finds_its_own_and_the_next_is_under_way(all_away: None, quantise: bool) -> None:
    lane, parts = LateLane(), {block: stored(n, quantise) for n, block in enumerate(BLOCKS)}
    stream = BlockStream(BLOCKS, parts.__getitem__, CPU, lane)
    for turn, block in enumerate(BLOCKS * 3):
        copies = stream.take(block)
        for part in parts[block]:
            assert torch.equal(copies[id(part)].read(CPU), part.read(CPU))
            assert copies[id(part)].values is not part.values
        following = BLOCKS[(turn + 1) % len(BLOCKS)]
        assert {slot.block for slot in stream.slots} == {block, following}
        assert set(lane.waiting) == {1 - stream.present}
    # One fetch for every block taken, and the one that is under way.
    assert [name for name, _ in lane.events].count("start") == 3 * len(BLOCKS) + 1
    assert lane.events[:4] == [("start", 1), ("finish", 1), ("start", 0), ("finish", 0)]


def test_never_more_than_two_blocks_of_memory(all_away: None) -> None:
    parts = {block: stored(n) for n, block in enumerate(BLOCKS)}
    stream = BlockStream(BLOCKS, parts.__getitem__, CPU, DirectLane())
    places = set()
    for block in BLOCKS * 2:
        places |= {copy.values.data_ptr() for copy in stream.take(block).values()}
    assert len(places) == 2 * 2
    assert sum(len(slot.buffers) for slot in stream.slots) == 2 * 2


def test_any_other_order_is_right_too(all_away: None) -> None:
    parts = {block: stored(n) for n, block in enumerate(BLOCKS)}
    stream = BlockStream(BLOCKS, parts.__getitem__, CPU, LateLane())
    for number in (0, 0, 3, 1, 2, 4, 4, 2, 0):
        copies = stream.take(BLOCKS[number])
        for part in parts[BLOCKS[number]]:
            assert torch.equal(copies[id(part)].read(CPU), part.read(CPU))


def test_blocks_of_different_sizes_share_the_slots(all_away: None) -> None:
    parts = {block: [StoredTensor.pack(torch.rand(1, 1, n + 1, 4), False)] for n, block in enumerate(BLOCKS)}
    stream = BlockStream(BLOCKS, parts.__getitem__, CPU, LateLane())
    for block in BLOCKS * 2:
        copies = stream.take(block)
        assert torch.equal(copies[id(parts[block][0])].read(CPU), parts[block][0].read(CPU))


def test_what_is_on_the_device_stays_where_it_is() -> None:
    lane = LateLane()
    stream = BlockStream(BLOCKS, lambda block: stored(0), CPU, lane)
    assert [stream.take(block) for block in BLOCKS] == [{}] * len(BLOCKS)
    assert lane.events == []
    assert stream_references([[entry(0)]], [(1.0, 0.0, 0.0)], CPU, lane) is None


def test_without_a_lane_nothing_is_streamed(all_away: None) -> None:
    assert lane_for(CPU) is None
    assert stream_references([[entry(0)]], [(1.0, 0.0, 0.0)], CPU, None) is None


def attended(reader: ReferenceReader, steps: int = 2) -> list[Tensor]:
    """The reader's keys and values in every block of some steps, joined."""
    out: list[Tensor] = []

    def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, **_: object) -> Tensor:
        out.append(torch.cat((k, v), dim=2))
        return q

    for block in BLOCKS * steps:
        own = torch.ones(len(reader.references[0]), 2, 4, 32)
        options = {"block_type": block[0], "block_index": block[1]}
        reader(attention, own, own, own, 2, transformer_options=options)
    return out


@pytest.mark.parametrize("quantise", [False, True])
@pytest.mark.parametrize("offsets", [[(1.0, 0.0, 0.0)] * 2, [(2.0, 0.0, 4.0), (1.0, 0.0, 0.0)]])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_streamed_reader_sees_what_a_direct_one_sees(
    all_away: None, quantise: bool, offsets: Sequence, batch: int
) -> None:
    def references() -> list[list[KeptReference]]:
        first, second = entry(1, 3, quantise), entry(2, 5, quantise)
        return [[first] * batch, [second, *[entry(3, 5, quantise)] * (batch - 1)]]

    direct = references()
    expected = attended(ReferenceReader(direct, offsets))
    kept = references()
    stream = stream_references(kept, offsets, CPU, LateLane())
    assert stream is not None
    found = attended(ReferenceReader(kept, offsets, stream=stream))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert len(found) == len(expected) == 2 * len(BLOCKS)


@pytest.mark.gpu
@pytest.mark.parametrize("quantise", [False, True])
def test_cuda_streams_the_same_numbers_within_two_blocks_of_memory(quantise: bool) -> None:
    device = torch.device("cuda")
    kept = entry(1, 4096, quantise)
    for part in kept.tensors():
        part.values = part.values.pin_memory()
        part.scales = None if part.scales is None else part.scales.pin_memory()
    expected = attended(ReferenceReader([[kept]], [kept.offset]))
    stream = stream_references([[kept]], [kept.offset], device, lane_for(device))
    assert stream is not None
    assert isinstance(stream.lane, CudaLane)
    reader = ReferenceReader([[kept]], [kept.offset], stream=stream)
    found = []

    def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, **_: object) -> Tensor:
        found.append(torch.cat((k, v), dim=2).cpu())
        return q

    for block in BLOCKS * 2:
        own = torch.ones(1, 2, 4, 32, device=device)
        options = {"block_type": block[0], "block_index": block[1]}
        reader(attention, own, own, own, 2, transformer_options=options)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    held = sum(buffer.nbytes for slot in stream.slots for buffer in slot.buffers)
    assert held == 2 * kept.num_bytes // len(BLOCKS)


@pytest.mark.gpu
def test_what_leaves_a_card_is_pinned() -> None:
    part = StoredTensor.pack(torch.rand(1, 1, 4, 32, device="cuda"), True)
    part.move(CPU)
    assert part.values.is_pinned()
    assert part.scales is not None and part.scales.is_pinned()
