"""Buckets, padding and resizing of pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pack.dit.sizes import (
    KONTEXT_BUCKETS,
    kontext_bucket,
    pad_to_token,
    published_target_size,
    resize_pictures,
    shown_size,
)
from PIL import Image


def test_seventeen_buckets_closed_under_transposing() -> None:
    assert len(set(KONTEXT_BUCKETS)) == 17
    assert {(h, w) for w, h in KONTEXT_BUCKETS} == set(KONTEXT_BUCKETS)
    assert all(side % 16 == 0 for size in KONTEXT_BUCKETS for side in size)


@pytest.mark.parametrize(
    ("size", "bucket"),
    [
        ((512, 512), (1024, 1024)),
        ((1920, 1080), (1392, 752)),
        ((1080, 1920), (752, 1392)),
        ((100, 5000), (672, 1568)),
        ((5000, 100), (1568, 672)),
        ((4000, 3000), (1184, 880)),
        ((2, 3), (832, 1248)),
    ],
)
def test_bucket_of_a_size(size: tuple[int, int], bucket: tuple[int, int]) -> None:
    assert kontext_bucket(*size) == bucket


@pytest.mark.parametrize("size", [(512, 512), (1920, 1080), (7, 900)])
def test_a_translator_is_shown_the_bucket_at_the_area_it_was_taught_with(size: tuple[int, int]) -> None:
    bucket = kontext_bucket(*size)
    assert shown_size(*size, 1024) == shown_size(*size, 2048) == bucket, "never larger than the bucket"
    assert shown_size(*size, 512) == (bucket[0] // 2, bucket[1] // 2)
    assert min(shown_size(*size, 1)) == 1
    assert all(shown_size(*bucket, side) == shown_size(*size, side) for side in (64, 500, 1024))


@pytest.mark.parametrize(
    ("shape", "bucket", "percent"),
    [
        ((1, 1), "1024x1024", 0.0),
        ((3, 2), "1248x832", 0.0),
        ((2, 3), "832x1248", 0.0),
        ((4, 3), "1184x880", 0.9),
        ((3, 4), "880x1184", -0.9),
        ((16, 10), "1328x800", 3.8),
        ((10, 16), "800x1328", -3.6),
        ((16, 9), "1392x752", 4.1),
        ((9, 16), "752x1392", -4.0),
        ((5, 4), "1104x944", -6.4),
        ((4, 5), "944x1104", 6.9),
    ],
)
def test_how_much_the_help_page_says_a_shape_changes(
    shape: tuple[int, int], bucket: str, percent: float
) -> None:
    width, height = kontext_bucket(shape[0] * 120, shape[1] * 120)
    assert f"{width}x{height}" == bucket
    change = (width / height) / (shape[0] / shape[1]) - 1
    assert change * 100 == pytest.approx(percent, abs=0.05 + 1e-9)
    page = (Path(__file__).parents[2] / "web" / "docs" / "DreamOmniReferenceSet.md").read_text("utf-8")
    rows = [line for line in page.splitlines() if line.startswith("  |")]
    (row,) = (row for row in rows if f"{shape[0]}:{shape[1]}" in row.split("|")[1].strip().split(", "))
    assert bucket in row and (f"{percent:+.1f} %" if percent else "the same") in row


@pytest.mark.parametrize("bucket", KONTEXT_BUCKETS)
def test_a_bucket_stays_itself_and_the_narrow_ones_are_published_one_token_smaller(
    bucket: tuple[int, int],
) -> None:
    assert kontext_bucket(*bucket) == bucket
    narrow = {(672, 1568): (656, 1552), (1568, 672): (1552, 656)}
    narrow |= {(800, 1328): (784, 1312), (1328, 800): (1312, 784)}
    assert published_target_size(*bucket) == narrow.get(bucket, bucket)


def test_resizing_is_pillows_lanczos_without_crop() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize((32, 48), Image.Resampling.LANCZOS))
    resized = resize_pictures(torch.from_numpy(pixels)[None].float() / 255, 32, 48)
    assert (resized[0] * 255).round().to(torch.uint8).numpy().tolist() == expected.tolist()


def test_a_picture_of_the_right_size_keeps_its_precision() -> None:
    image = torch.rand(1, 16, 16, 3)
    assert resize_pictures(image, 16, 16) is image


def test_padding_repeats_the_last_row_and_column() -> None:
    image = torch.rand(2, 17, 31, 3)
    padded = pad_to_token(image)
    assert padded.shape == (2, 32, 32, 3)
    assert torch.equal(padded[:, :17, :31], image)
    assert torch.equal(padded[:, 20, :31], image[:, 16])
    assert torch.equal(padded[:, :17, 31], image[:, :, 30])
    assert pad_to_token(padded) is padded
