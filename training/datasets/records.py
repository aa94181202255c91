"""What one training sample is on disk: words in memory, pictures as places in files."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 64_000_000
"""Largest picture that is decoded; 8000 x 8000 px. Larger ones are refused before any pixel is read."""

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
CAMERA_SUFFIXES = frozenset({".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2"})
UNREAD_SUFFIXES = CAMERA_SUFFIXES | {
    ".heic", ".heif", ".avif", ".jxl", ".jp2", ".jfif", ".gif", ".psd", ".svg",
}  # fmt: skip
"""Pictures, too, of kinds that are not read: telephones and cameras write them."""


def told_unread(unread: Counter[str]) -> str:
    """What is left out and what to do, in words; empty where nothing is."""
    if not unread:
        return ""
    kinds = ", ".join(f"{count} {ending}" for ending, count in sorted(unread.items()))
    return f"Left out, as these kinds of pictures are not read: {kinds}. Save them as PNG or JPEG."


def words_of(data: bytes, where: str) -> str:
    """The words in a file's bytes, without the mark some editors put before them.

    Raises ValueError for what is not UTF-8; `where` names it in the message.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8 text ({error}). Save it as UTF-8.") from error


def flatten_on_white(image: Image.Image) -> Image.Image:
    """RGB of a picture of any mode; what is transparent becomes white."""
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def decode_picture(data: bytes | Path, where: str) -> Image.Image:
    """The upright picture in a file or in bytes, any mode.

    Raises ValueError for what is unreadable or larger than MAX_PIXELS; `where` names it in the message.
    """
    try:
        image = Image.open(io.BytesIO(data) if isinstance(data, bytes) else data)
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(
                f"{where} has {image.width}x{image.height} px, allowed are {MAX_PIXELS // 10**6} million "
                "pixels. Make it smaller and load again."
            )
        image.load()
        return eight_bits(ImageOps.exif_transpose(image), where)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise ValueError(f"{where} is not a readable picture ({error}). Replace or remove it.") from error


def eight_bits(image: Image.Image, where: str) -> Image.Image:
    """A grey picture of 16 bits, such as a depth map, in 8; Pillow alone would cut it off at 255.

    Raises ValueError for numbers that have no known white.
    """
    if image.mode == "F":
        raise ValueError(
            f"{where} holds floating point numbers, and which of them is white is unknown. Save it as an "
            "8 or 16 bit picture."
        )
    if not image.mode.startswith("I"):
        return image
    wide = np.asarray(image).astype(np.int64).clip(0, 65_535)
    return Image.fromarray((wide / 257).round().astype(np.uint8))


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A picture that is not read yet: a whole file, or `size` bytes at `offset` of an archive."""

    path: Path
    label: str
    """Name in error messages, for example `samples.jsonl line 7, target cat.png`."""
    offset: int = 0
    size: int | None = None

    def read_bytes(self) -> bytes:
        """The encoded picture."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                return file.read(-1 if self.size is None else self.size)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{self.label}: there is no file {self.path}.") from error

    def load(self) -> Image.Image:
        """The picture as RGB, transparency on white."""
        return flatten_on_white(decode_picture(self.read_bytes(), self.label))

    def load_mask(self) -> Image.Image:
        """The picture as one channel of 0..255."""
        return decode_picture(self.read_bytes(), self.label).convert("L")

    def require(self) -> None:
        """Raise FileNotFoundError, naming the line that wants it, if the file is missing."""
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.label}: there is no file {self.path}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleRecord:
    """One sample without its pixels."""

    id: str
    task: str
    instruction: str
    source: Picture | None
    references: tuple[Picture, ...]
    target: Picture
    mask: Picture | None = None
    scene: dict[str, Any] | None = None
    """Description of what is drawn where, written by the sticker pipeline."""
    tagged_instruction: str | None = None
    """The words with OmniGen's image tags, when the file had them."""

    @property
    def mode(self) -> str:
        """`edit` or `generate`: which of the two LoRAs the sample belongs to."""
        if self.task in {"edit", "generate"}:
            return self.task
        return "generate" if self.source is None else "edit"

    def pictures(self) -> tuple[Picture, ...]:
        """All pictures the sample needs."""
        return tuple(item for item in (self.source, *self.references, self.target, self.mask) if item)


class Records(Protocol):
    """Random access to sample records; memory does not grow with their number."""

    left_out: str
    """Which pictures belong to no sample because of their kind, in words; empty if none."""

    def __len__(self) -> int:
        """How many samples there are."""
        ...

    def record(self, index: int) -> SampleRecord:
        """The sample at `index`, 0 <= index < len."""
        ...

    def fingerprint(self) -> str:
        """A hash that changes when the samples change on disk."""
        ...
