"""The size rule for reference pictures against diffusers' copy of the authors' crop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pack.dit.omnigen.resolution import fit_reference
from PIL import Image


@pytest.mark.parametrize("size", [(40, 70), (300, 200), (130, 131), (128, 64), (9, 100), (48, 48), (700, 90)])
def test_pictures_are_halved_shrunk_grown_and_cut_as_the_authors_do(size: tuple[int, int]) -> None:
    from diffusers.pipelines.omnigen.processor_omnigen import crop_image

    width, height = size
    noise = np.random.default_rng(5).integers(0, 256, (height, width, 3), dtype=np.uint8)
    wanted = np.asarray(crop_image(Image.fromarray(noise), 64))
    fitted = fit_reference(torch.from_numpy(noise)[None].float() / 255, 64)[0]
    assert torch.equal((fitted * 255).round().to(torch.uint8), torch.from_numpy(wanted.copy()))
