"""Pillow's pictures as ComfyUI's IMAGE."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.host


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_a_picture_becomes_an_image(mode: str) -> None:
    from pack.nodes.pictures import image_of

    picture = Image.new("RGB", (3, 2), (255, 0, 51))
    picture.putpixel((2, 1), (0, 255, 0))
    image = image_of(picture.convert(mode))
    expected = torch.tensor([1.0, 0.0, 0.2]).repeat(1, 2, 3, 1)
    expected[0, 1, 2] = torch.tensor([0.0, 1.0, 0.0])
    torch.testing.assert_close(image, expected, atol=0, rtol=1e-6)
