"""Sizes of pictures: Kontext's buckets, and padding to whole tokens.

Pictures are float tensors B H W C in 0..1, sizes are (width, height) in pixels.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

TOKEN_PIXELS = 16
MAX_SIDE = 16384
DEFAULT_SIZE = (1024, 1024)

# FLUX.1 Kontext's training sizes (width, height), about one megapixel each.
KONTEXT_BUCKETS = (
    (672, 1568),
    (688, 1504),
    (720, 1456),
    (752, 1392),
    (800, 1328),
    (832, 1248),
    (880, 1184),
    (944, 1104),
    (1024, 1024),
    (1104, 944),
    (1184, 880),
    (1248, 832),
    (1328, 800),
    (1392, 752),
    (1456, 720),
    (1504, 688),
    (1568, 672),
)


def kontext_bucket(width: int, height: int) -> tuple[int, int]:
    """The bucket nearest in aspect ratio; of two equally near ones the narrower, then the lower."""
    aspect = width / height
    _, bucket_width, bucket_height = min((abs(aspect - w / h), w, h) for w, h in KONTEXT_BUCKETS)
    return floor_to_token(bucket_width), floor_to_token(bucket_height)


def shown_size(width: int, height: int, side: int) -> tuple[int, int]:
    """Size in which a prompt translator is shown a picture: its bucket, at most of the area `side` squared.

    A translator that was taught with smaller pictures than DreamOmni2's is asked about such.
    """
    factor = min(1.0, side / DEFAULT_SIZE[0])
    bucket_width, bucket_height = kontext_bucket(width, height)
    return max(1, round(bucket_width * factor)), max(1, round(bucket_height * factor))


def published_target_size(width: int, height: int) -> tuple[int, int]:
    """Size of the picture that DreamOmni2's own pipeline makes for a first picture of `width` x `height`.

    It works the size out again from the aspect ratio and one megapixel. For 672x1568, 800x1328 and their
    transposes the result is 16 pixels smaller per side than the bucket, for the others it is the bucket.
    """
    aspect, area = width / height, DEFAULT_SIZE[0] * DEFAULT_SIZE[1]
    return floor_to_token(round(math.sqrt(area * aspect))), floor_to_token(round(math.sqrt(area / aspect)))


def floor_to_token(pixels: int) -> int:
    """Whole tokens in `pixels`, in pixels; never less than one token."""
    return max(TOKEN_PIXELS, pixels // TOKEN_PIXELS * TOKEN_PIXELS)


def resize_pictures(images: Tensor, width: int, height: int) -> Tensor:
    """Pictures (B, H, W, 3) resized without crop by Pillow's LANCZOS in 8 bits, as DreamOmni2 does."""
    if tuple(images.shape[1:3]) == (height, width):
        return images
    pixels = (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    resized = [
        Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS) for picture in pixels
    ]
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in resized])).float() / 255


def pad_to_token(images: Tensor) -> Tensor:
    """Pictures (B, H, W, C) with their last row and column repeated until both sides are whole tokens."""
    height, width = images.shape[1:3]
    down, right = -height % TOKEN_PIXELS, -width % TOKEN_PIXELS
    if not (down or right):
        return images
    channels_first = images.movedim(-1, 1)
    return functional.pad(channels_first, (0, right, 0, down), mode="replicate").movedim(1, -1).contiguous()
