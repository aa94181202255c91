"""Pillow's pictures as ComfyUI's IMAGE, and the sizes a prompt translator sees."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..dit.sizes import DEFAULT_SIZE, kontext_bucket, resize_pictures, shown_size


def image_of(picture: Image.Image) -> Tensor:
    """The IMAGE (1, height, width, 3), float RGB 0..1, of a picture; transparency is left out."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), np.float32) / 255)[None]


def in_bucket(image: Tensor, side: int = DEFAULT_SIZE[0]) -> Tensor:
    """A picture (1, H, W, 3) as a translator is shown it, also where resize is none.

    As large as DreamOmni2's VLM was tuned with; smaller for one taught at an area of `side` squared, through
    the same bucket: Reference Images has mostly brought it there already, and training does too.
    """
    height, width = image.shape[1:3]
    bucket = resize_pictures(image, *kontext_bucket(width, height))
    return resize_pictures(bucket, *shown_size(width, height, side))
