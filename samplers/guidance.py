"""Combining the predictions of several conditionings; all take velocities or denoised predictions alike."""

from __future__ import annotations

from torch import Tensor


def classifier_free(positive: Tensor, negative: Tensor, scale: float) -> Tensor:
    """negative + scale * (positive - negative); scale 1 is the positive prediction itself."""
    return negative + scale * (positive - negative)


def text_and_image(
    full: Tensor, image_only: Tensor, negative: Tensor, text_scale: float, image_scale: float
) -> Tensor:
    """OmniGen's guidance with pictures: towards the pictures first, then towards the instruction.

    negative + image_scale * (image_only - negative) + text_scale * (full - image_only)
    (OmniGen, section 4; InstructPix2Pix eq. 3).
    """
    return classifier_free(image_only, negative, image_scale) + text_scale * (full - image_only)


def rescale(guided: Tensor, positive: Tensor, amount: float) -> Tensor:
    """Pull the guided prediction's standard deviation back to the positive one's (2305.08891, eq. 15-16).

    amount 0 changes nothing, 1 matches the deviation of each batch item exactly.
    """
    axes = tuple(range(1, guided.ndim))
    matched = guided * (positive.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True))
    return guided + amount * (matched - guided)


def in_interval(sigma: float, start: float, stop: float) -> bool:
    """Whether guidance is on at sigma: start >= sigma > stop, so neighbouring intervals never overlap."""
    return start >= sigma > stop
