"""Pictures for the VLM: exact 8-bit values, order, batches, and the shapes that cannot be read."""

from __future__ import annotations

import pytest
import torch
from pack.vlm.images import pictures_of


def test_eight_bit_values_survive() -> None:
    pixels = torch.randint(0, 256, (1, 5, 7, 3), generator=torch.Generator().manual_seed(0))
    (picture,) = pictures_of([pixels / 255])[0]
    assert picture.size == (7, 5)
    assert torch.equal(torch.tensor(list(picture.tobytes())).reshape(5, 7, 3), pixels[0])


def test_a_batch_makes_one_request_per_picture_and_single_pictures_repeat() -> None:
    batch = torch.linspace(0, 1, 3)[:, None, None, None].expand(3, 4, 4, 3)
    requests = pictures_of([batch, torch.ones(1, 4, 4, 3)])
    assert [request[0].getpixel((0, 0))[0] for request in requests] == [0, 128, 255]
    assert all(request[1].getpixel((0, 0)) == (255, 255, 255) for request in requests)


def test_no_pictures_are_one_request() -> None:
    assert pictures_of([]) == [[]]


def test_batches_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="image 2 is a batch of 2 and another image a batch of 3"):
        pictures_of([torch.ones(3, 4, 4, 3), torch.ones(2, 4, 4, 3)])


def test_a_strip_is_refused() -> None:
    with pytest.raises(ValueError, match="image 1 is 201x1: its sides differ by more than 200 times"):
        pictures_of([torch.ones(1, 1, 201, 3)])


def test_other_channels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(1, 4, 4, 4\)"):
        pictures_of([torch.ones(1, 4, 4, 4)])
