"""Kept keys and values without a network: 8 bit, rotation, batches, masks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
import torch
from pack.dit.reference_cache import (
    KeptLayer,
    KeptReference,
    ReferenceReader,
    ReferenceWriter,
    StoredTensor,
    block_of,
    open_mask,
    split_ids,
    turn_keys,
)
from pack.dit.stored_tensor import packed_bytes
from torch import Tensor

AXES, THETA = (16, 56, 56), 10000.0
CPU = torch.device("cpu")


def rope(x: Tensor, ids: Tensor) -> Tensor:
    """RoPE by complex numbers, x (..., L, D), ids (L, 3)."""
    angles = [
        ids[:, axis, None].double() * THETA ** -(torch.arange(0, dim, 2).double() / dim)
        for axis, dim in enumerate(AXES)
    ]
    turn = torch.polar(torch.ones(1).double(), torch.cat(angles, -1))
    return torch.view_as_real(torch.view_as_complex(x.double().unflatten(-1, (-1, 2))) * turn).flatten(-2)


def plain_attention(
    q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, **more: object
) -> Tensor:
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.transpose(1, 2).flatten(2)


def options(kind: str = "double", index: int = 0) -> dict:
    return {"transformer_options": {"block_type": kind, "block_index": index}}


def kept(
    offset: tuple = (1.0, 0.0, 0.0), tokens: int = 5, quantise: bool = False, seed: int = 0
) -> KeptReference:
    draw = torch.Generator().manual_seed(seed)
    entry = KeptReference(torch.zeros(tokens, 3), offset, AXES, THETA)
    keys, values = (torch.randn(1, 2, tokens, 128, generator=draw) for _ in range(2))
    entry.layers["double", 0] = KeptLayer(
        StoredTensor.pack(keys, quantise), StoredTensor.pack(values, quantise)
    )
    return entry


def decibels(result: Tensor, exact: Tensor) -> float:
    return float(10 * torch.log10(exact.square().mean() / (result - exact).square().mean()))


def test_a_moved_reference_is_one_rotation() -> None:
    keys = torch.randn(1, 2, 6, 128)
    ids = torch.tensor([[1.0, row, column] for row in range(2) for column in range(3)])
    change = torch.tensor([2.0, -3.0, 64.0])
    expected = rope(keys, ids + change).float()
    turned = turn_keys(rope(keys, ids).float(), change.tolist(), AXES, THETA)
    torch.testing.assert_close(turned, expected, atol=1e-5, rtol=0)


def test_eight_bits_hold_45_decibels_in_half_the_memory() -> None:
    keys = torch.randn(1, 24, 512, 128, dtype=torch.bfloat16)
    stored = StoredTensor.pack(keys, quantise=True)
    assert stored.read(CPU).dtype == torch.bfloat16
    assert decibels(stored.read(CPU).float(), keys.float()) >= 45.0
    assert stored.num_bytes <= 0.54 * StoredTensor.pack(keys, quantise=False).num_bytes


def test_attention_on_eight_bits_holds_40_decibels() -> None:
    q, k, v = torch.randn(3, 1, 2, 200, 128).unbind(0)
    packed_k, packed_v = (StoredTensor.pack(part, quantise=True).read(CPU) for part in (k, v))
    assert decibels(plain_attention(q, packed_k, packed_v, 2), plain_attention(q, k, v, 2)) >= 40.0


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e3])
def test_eight_bits_take_any_size_of_values(scale: float) -> None:
    values = scale * torch.randn(1, 1, 4, 128)
    stored = StoredTensor.pack(values, quantise=True).read(CPU)
    torch.testing.assert_close(stored, values, atol=max(scale * 0.05, 1e-7), rtol=0)


def test_groups_of_channels_are_rounded_apart() -> None:
    values = torch.randn(1, 1, 4, 128)
    values[..., 64:] *= 1e-3
    stored = StoredTensor.pack(values, quantise=True).read(CPU)
    assert decibels(stored[..., 64:], values[..., 64:]) > 40


@pytest.mark.parametrize("channels", [16, 32, 48, 128])
@pytest.mark.parametrize("quantise", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_known_before_packing(channels: int, quantise: bool, dtype: torch.dtype) -> None:
    values = torch.randn(1, 2, 5, channels, dtype=dtype)
    expected = StoredTensor.pack(values, quantise).num_bytes
    assert packed_bytes(values.numel(), channels, dtype, quantise) == expected


@pytest.mark.parametrize(
    ("named", "expected"), [("mps", True), ("mps:0", True), ("mps:1", False), ("cpu", False)]
)
def test_a_device_may_be_named_without_its_number(named: str, expected: bool) -> None:
    """ComfyUI says "mps", the tensors there say "mps:0"."""
    there = cast(Tensor, SimpleNamespace(device=torch.device("mps", 0)))
    assert StoredTensor(there, None, torch.float32).is_on(torch.device(named)) is expected


def test_the_writer_keeps_the_reference_and_blinds_the_text() -> None:
    entry = KeptReference(torch.zeros(5, 3), (0.0, 0.0, 0.0), AXES, THETA)
    q, k, v = torch.randn(3, 1, 2, 6, 128).unbind(0)
    out = ReferenceWriter(entry, num_text=1, quantise=False)(
        plain_attention, q, k, v, 2, **options("single", 3)
    )
    keys, values = entry.read(("single", 3), (0.0, 0.0, 0.0), CPU)
    assert torch.equal(keys, k[:, :, 1:]) and torch.equal(values, v[:, :, 1:])
    assert not out[:, 0].any()
    torch.testing.assert_close(out[:, 1:], plain_attention(q[:, :, 1:], keys, values, 2))


def test_the_reader_adds_references_in_order_for_every_batch_item() -> None:
    shared, one, two = kept(seed=1), kept(seed=2), kept(seed=3)
    place = (1.0, 0.0, 0.0)
    q, k, v = torch.randn(3, 2, 2, 4, 128).unbind(0)
    reader = ReferenceReader([[shared, shared], [one, two]], [place, place])
    out = reader(plain_attention, q, k, v, 2, **options())
    for item, own in enumerate((one, two)):
        pairs = [entry.read(("double", 0), place, CPU) for entry in (shared, own)]
        keys, values = (
            torch.cat([new[item : item + 1], *parts], 2)
            for new, parts in zip((k, v), zip(*pairs, strict=True), strict=True)
        )
        torch.testing.assert_close(out[item : item + 1], plain_attention(q[item : item + 1], keys, values, 2))


@pytest.mark.parametrize("quantise", [False, True])
def test_a_reference_at_several_places_stays_what_it_was(quantise: bool) -> None:
    entry, block = kept(quantise=quantise), ("double", 0)
    home = entry.read(block, (1.0, 0.0, 0.0), CPU)[0].clone()
    bytes_at_home = entry.num_bytes
    for column in (3.0, 5.0, 7.0, 3.0):
        moved = entry.read(block, (2.0, 0.0, column), CPU)[0]
        expected = turn_keys(home, (1.0, 0.0, column), AXES, THETA)
        assert decibels(moved, expected) > (40 if quantise else 90)
    assert len(entry.moved) == 2
    assert entry.num_bytes == 2 * bytes_at_home
    assert torch.equal(entry.read(block, (1.0, 0.0, 0.0), CPU)[0], home)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_a_mask_sees_the_references(dtype: torch.dtype) -> None:
    mask = torch.ones(3, 3, dtype=dtype).tril()
    opened = open_mask(mask, 2)
    assert opened.shape == (3, 5) and torch.equal(opened[:, :3], mask)
    assert bool((opened[:, 3:] == (1 if dtype == torch.bool else 0)).all())


def test_ids_are_split_into_shape_and_place() -> None:
    ids = torch.tensor([[1.0, 0, 4], [1, 0, 5], [2, 0, 6], [2, 1, 6], [2, 2, 6]])
    (first, place), (second, other) = split_ids(ids, [2, 3])
    assert place == (1.0, 0.0, 4.0) and other == (2.0, 0.0, 6.0)
    assert first.tolist() == [[0, 0, 0], [0, 0, 1]]
    assert second.tolist() == [[0, 0, 0], [0, 1, 0], [0, 2, 0]]


def test_a_host_that_does_not_name_its_blocks_is_told_apart() -> None:
    assert block_of({"block_type": "single", "block_index": 3}) == ("single", 3)
    for known in ({}, {"block_type": "double"}, {"block_index": 0}):
        with pytest.raises(ValueError, match=r"update ComfyUI to 0\.3\.76 or newer"):
            block_of(known)
