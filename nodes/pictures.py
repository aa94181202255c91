"""Pillow's pictures as ComfyUI's IMAGE."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def image_of(picture: Image.Image) -> Tensor:
    """The IMAGE (1, height, width, 3), float RGB 0..1, of a picture; transparency is left out."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), np.float32) / 255)[None]
