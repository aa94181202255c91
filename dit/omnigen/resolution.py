"""OmniGen's size rule for reference pictures (the authors' crop, Pillow in 8 bits)."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

TOKEN_PIXELS = 16
MAX_SIDE = 3072


def fit_picture(picture: Image.Image, max_size: int) -> Image.Image:
    """Halved to under twice max_size, shrunk to it, grown to 16 px, cut at the centre to whole tokens."""
    while min(picture.size) >= 2 * max_size:
        half = (picture.width // 2, picture.height // 2)
        picture = picture.resize(half, Image.Resampling.BOX)
    if max(picture.size) > max_size:
        picture = scaled(picture, max_size / max(picture.size))
    if min(picture.size) < TOKEN_PIXELS:
        picture = scaled(picture, TOKEN_PIXELS / min(picture.size))
    extra_x, extra_y = picture.width % TOKEN_PIXELS, picture.height % TOKEN_PIXELS
    left, top = extra_x // 2, extra_y // 2
    return picture.crop((left, top, picture.width - (extra_x - left), picture.height - (extra_y - top)))


def scaled(picture: Image.Image, factor: float) -> Image.Image:
    """Both sides times factor, rounded; a side never vanishes."""
    size = (max(round(picture.width * factor), 1), max(round(picture.height * factor), 1))
    return picture.resize(size, Image.Resampling.BICUBIC)


def fit_reference(image: Tensor, max_size: int) -> Tensor:
    """Pictures (B, H, W, 3) in 0..1 as OmniGen reads them; raises if a side stays over 3072 px."""
    if max_size < TOKEN_PIXELS or max_size % TOKEN_PIXELS:
        raise ValueError(
            f"max_image_size must be a multiple of {TOKEN_PIXELS} from {TOKEN_PIXELS} on, got {max_size}"
        )
    height, width = image.shape[1:3]
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    fitted = [np.asarray(fit_picture(Image.fromarray(picture), max_size)) for picture in pixels]
    if max(fitted[0].shape[:2]) > MAX_SIDE:
        raise ValueError(
            f"a picture of {width} x {height} px becomes {fitted[0].shape[1]} x {fitted[0].shape[0]} px, "
            f"because its short side must keep {TOKEN_PIXELS} px; a side may have {MAX_SIDE} px at most: "
            "crop the picture"
        )
    return torch.from_numpy(np.stack(fitted)).float() / 255
