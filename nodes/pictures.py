"""Pillow's pictures as ComfyUI's IMAGE, and the sizes a prompt translator sees."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..dit.sizes import kontext_bucket, resize_pictures


def image_of(picture: Image.Image) -> Tensor:
    """The IMAGE (1, height, width, 3), float RGB 0..1, of a picture; transparency is left out."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), np.float32) / 255)[None]


def in_bucket(image: Tensor) -> Tensor:
    """A picture (1, H, W, 3) as large as DreamOmni2's VLM was tuned with, also where resize is none."""
    return resize_pictures(image, *kontext_bucket(image.shape[2], image.shape[1]))
