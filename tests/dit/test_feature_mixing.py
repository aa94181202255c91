"""The attention of pairs against the formula, with tensors alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pack.dit.feature_mixing import PairAttention
from torch import Tensor

TEXT, NOISE, HEADS, CHANNELS = 3, 4, 2, 8


def plain(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, **_: Any) -> Tensor:
    """ComfyUI's layout: B H L D in, B L (H D) out, a mask of 3 axes without heads."""
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if mask is not None:
        mask = mask[:, None] if mask.ndim == 3 else mask
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def drawn(batch: int, tokens: int = TEXT + NOISE, seed: int = 0) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, HEADS, tokens, CHANNELS, generator=draw) for _ in range(3)]


def by_the_formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attn_tar of section 3.1, one head and one query at a time."""
    out = torch.zeros(1, q.shape[2], HEADS * CHANNELS)
    for head in range(HEADS):
        keys = [*k[1, head], *k[0, head, TEXT:]]
        values = [*v[1, head], *v[0, head, TEXT:]]
        for row, query in enumerate(q[1, head]):
            weights = torch.stack([query @ key / CHANNELS**0.5 for key in keys]).exp()
            mixed = sum(weight * value for weight, value in zip(weights, values, strict=True)) / weights.sum()
            out[0, row, head * CHANNELS : (head + 1) * CHANNELS] = mixed
    return out


def test_the_target_sees_the_sources_noise_and_the_source_itself() -> None:
    q, k, v = drawn(2)
    out = PairAttention(num_noise=NOISE, is_mixing=True)(plain, q, k, v, HEADS)
    torch.testing.assert_close(out[1:], by_the_formula(q, k, v), atol=1e-6, rtol=0)
    torch.testing.assert_close(out[:1], plain(q[:1], k[:1], v[:1], HEADS), atol=1e-6, rtol=0)


def test_the_sources_text_is_not_shared_and_the_target_tells_it_nothing() -> None:
    q, k, v = drawn(2)
    mix = PairAttention(num_noise=NOISE, is_mixing=True)
    before = mix(plain, q, k, v, HEADS)
    v[0, :, :TEXT] += 1
    k[0, :, :TEXT] += 1
    assert torch.equal(mix(plain, q, k, v, HEADS)[1], before[1])
    q, k, v = drawn(2)
    v[1] += 1
    assert torch.equal(mix(plain, q, k, v, HEADS)[0], before[0])


def test_without_mixing_it_is_the_networks_own_attention() -> None:
    q, k, v = drawn(4)
    out = PairAttention(num_noise=NOISE, is_mixing=False)(plain, q, k, v, HEADS)
    torch.testing.assert_close(out, plain(q, k, v, HEADS), atol=1e-6, rtol=0)


def test_every_pair_of_a_batch_is_by_itself() -> None:
    q, k, v = drawn(6)
    mix = PairAttention(num_noise=NOISE, is_mixing=True)
    alone = [mix(plain, *(part[n : n + 2] for part in (q, k, v)), HEADS) for n in (0, 2, 4)]
    torch.testing.assert_close(mix(plain, q, k, v, HEADS), torch.cat(alone), atol=1e-6, rtol=0)


@pytest.mark.parametrize("lengths", [(3, 1), (1, 3)])
def test_padding_of_the_shorter_text_is_not_seen(lengths: tuple[int, int]) -> None:
    q, k, v = drawn(2)
    mix = PairAttention(num_noise=NOISE, is_mixing=True, text_lengths=lengths)
    before = mix(plain, q, k, v, HEADS)
    shorter = lengths.index(1)
    for part in (k, v):
        part[shorter, :, 1:TEXT] = 100
    out = mix(plain, q, k, v, HEADS)
    assert torch.equal(out, before)
    assert not out[shorter, 1:TEXT].any()
    cut = [torch.cat((part[:, :, :1], part[:, :, TEXT:]), 2) for part in (q, k, v)]
    if shorter == 0:
        torch.testing.assert_close(out[:1, TEXT:], plain(*(p[:1] for p in cut), HEADS)[:, 1:])


@pytest.mark.parametrize("shape", [(7, 7), (1, 7, 7), (2, 7, 7), (2, 1, 7, 7)])
@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
def test_a_mask_holds_for_the_own_tokens(shape: tuple[int, ...], kind: torch.dtype) -> None:
    q, k, v = drawn(2)
    closed = torch.zeros(shape, dtype=torch.bool)
    closed[..., 0] = True  # nobody sees the first text token
    mask = ~closed if kind == torch.bool else torch.zeros(shape).masked_fill(closed, float("-inf"))
    seen = [q, k[:, :, 1:], v[:, :, 1:]]
    out = PairAttention(num_noise=NOISE, is_mixing=True)(plain, q, k, v, HEADS, mask=mask)
    expected = PairAttention(num_noise=NOISE, is_mixing=True)(plain, *seen, HEADS)
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=0)


def test_the_attention_of_another_node_is_asked_for_both() -> None:
    asked = []

    def other(attention: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, **more: Any) -> Tensor:
        asked.append((q.shape[2], k.shape[2], more["extra"]))
        return attention(q, k, v, heads, mask=more["mask"])

    mix = PairAttention(num_noise=NOISE, is_mixing=True, inner=other)
    mix(plain, *drawn(2), HEADS, extra=5)
    assert asked == [(7, 7, 5), (7, 11, 5)]
