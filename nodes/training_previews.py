"""Sample pictures that a run has drawn, decoded for the node and the training report."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Protocol

from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from ..training.trainer import SAMPLES

log = logging.getLogger("dreamomni")
STRIP_HEIGHT = 256


class Decoder(Protocol):
    """What has encoded the pictures of a run and can turn one back."""

    def decode(self, latent: Tensor) -> Image.Image: ...


def decode_samples(folder: Path, decoder: Decoder, step: int) -> Image.Image | None:
    """Decode the newest drawn latents to PNG strips (references, sample, target); the first one.

    None where it failed, which is logged and never ends the run.
    """
    first = None
    for path in sorted((folder / SAMPLES).glob(f"step-{step:09d}-*.safetensors")):
        try:
            strip = sample_strip(decoder, path)
            strip.save(path.with_suffix(".png"))
        except (RuntimeError, ValueError, OSError) as error:  # a full card, a full disk: the run goes on
            log.warning("no preview of step %d: %s", step, error)
            return first
        first = first or strip
    return first


def sample_strip(decoder: Decoder, path: Path) -> Image.Image:
    """References, the drawn sample and the target of one file, side by side."""
    latents = load_file(path)
    names = [*sorted(name for name in latents if name.startswith("reference")), "sample", "target"]
    pictures = [decoder.decode(latents[name]) for name in names]
    sized = [p.resize((max(1, p.width * STRIP_HEIGHT // p.height), STRIP_HEIGHT)) for p in pictures]
    strip = Image.new("RGB", (sum(p.width for p in sized), STRIP_HEIGHT))
    left = 0
    for picture in sized:
        strip.paste(picture, (left, 0))
        left += picture.width
    return strip
