"""Guidance formulas by hand and at their fixed points."""

from __future__ import annotations

import pytest
import torch
from pack.samplers import guidance


def test_scale_one_is_the_positive_and_zero_the_negative() -> None:
    positive, negative = torch.randn(2, 4), torch.randn(2, 4)
    torch.testing.assert_close(guidance.classifier_free(positive, negative, 1.0), positive)
    assert torch.equal(guidance.classifier_free(positive, negative, 0.0), negative)


def test_two_scales_by_hand() -> None:
    full, image, negative = (torch.tensor([[value]]) for value in (10.0, 4.0, 1.0))
    assert guidance.text_and_image(
        full, image, negative, text_scale=2.5, image_scale=1.6
    ).item() == pytest.approx(1 + 1.6 * 3 + 2.5 * 6)


def test_rescale_matches_the_deviation_of_each_item() -> None:
    guided, positive = 3 * torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    out = guidance.rescale(guided, positive, 1.0)
    torch.testing.assert_close(out.std(dim=(1, 2, 3)), positive.std(dim=(1, 2, 3)))
    assert torch.equal(guidance.rescale(guided, positive, 0.0), guided)


def test_neighbouring_intervals_do_not_overlap() -> None:
    assert [guidance.in_interval(sigma, 0.8, 0.4) for sigma in (0.9, 0.8, 0.5, 0.4)] == [
        False,
        True,
        True,
        False,
    ]
