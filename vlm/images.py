"""Pictures for a vision language model: float BHWC tensors in 0..1 to checked 8-bit RGB."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

# Qwen's own resizing refuses a longer side of more than 200 times the shorter one.
MAX_ASPECT = 200


def pictures_of(images: Sequence[Tensor | Image.Image]) -> list[list[Image.Image]]:
    """One list of RGB pictures per request, from B H W C batches in order.

    A batch of one is used in every request; any other batch must be as long as the longest.
    Raises ValueError for batches that do not fit each other and for pictures too narrow to read.
    """
    batches = [
        [image.convert("RGB")] if isinstance(image, Image.Image) else to_pil(image) for image in images
    ]
    count = max((len(batch) for batch in batches), default=1)
    for order, batch in enumerate(batches, start=1):
        if len(batch) not in (1, count):
            raise ValueError(
                f"image {order} is a batch of {len(batch)} and another image a batch of {count}: "
                "give one picture, or as many as the other has."
            )
        check_aspect(batch[0], order)
    return [[batch[index % len(batch)] for batch in batches] for index in range(count)]


def to_pil(images: Tensor) -> list[Image.Image]:
    """8-bit RGB pictures of a float tensor (B, H, W, 3) in 0..1."""
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(
            f"got pictures of the shape {tuple(images.shape)}; the VLM reads RGB tensors (B, H, W, 3). "
            "Pass them through the Reference Images node."
        )
    pixels = (images.detach().float().clamp(0, 1) * 255).round().cpu().numpy().astype(np.uint8)
    return [Image.fromarray(picture) for picture in pixels]


def check_aspect(picture: Image.Image, order: int) -> None:
    """Raise ValueError when `picture` is too narrow for the VLM's patches."""
    width, height = picture.size
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(
            f"image {order} is {width}x{height}: its sides differ by more than {MAX_ASPECT} times, which the "
            "VLM cannot read. Crop it, or let the Reference Images node resize it (resize: kontext)."
        )
