"""Stickers and photos from the user's folders, decoded when drawn; the last few are kept."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..datasets.records import IMAGE_SUFFIXES, decode_picture, flatten_on_white, words_of
from .stickers import MissingPackageError, StickerFile, find_stickers, is_picture, load_sticker

Kept = TypeVar("Kept")

KEPT = 32
"""Decoded pictures kept in memory, each no larger than the canvas needs."""

SMALLEST_CROP = 0.7
"""Least part of a photo that a background shows."""

MOST_FAULTS = 10
"""Bad stickers that one message names."""

LARGEST_STICKER = 1024
"""Pixels a sticker is kept at, longer side."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Photo:
    """A background picture, what it shows and its depth map, if there are any."""

    path: Path
    caption: str | None
    depth: Path | None


def find_photos(folder: Path) -> dict[str, Photo]:
    """The photos of a folder; `NAME.txt` holds a caption, `NAME.depth.png` a depth map."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no background folder {folder}.")
    photos = {}
    for path in sorted(folder.rglob("*")):
        if path.stem.endswith(".depth") or not is_picture(path, IMAGE_SUFFIXES):
            continue
        note, depth = path.with_suffix(".txt"), path.with_name(f"{path.stem}.depth.png")
        caption = words_of(note.read_bytes(), str(note)).strip() if note.is_file() else None
        photos[path.relative_to(folder).as_posix()] = Photo(
            path=path, caption=caption or None, depth=depth if depth.is_file() else None
        )
    if not photos:
        raise ValueError(
            f"{folder} holds no pictures. Put photos into it or leave the background folder empty."
        )
    return photos


class Library:
    """What scenes may be made of besides the procedural shapes."""

    def __init__(self, stickers_folder: Path | None = None, backgrounds_folder: Path | None = None) -> None:
        found = find_stickers(stickers_folder) if stickers_folder else []
        self.stickers: dict[str, StickerFile] = {file.key: file for file in found}
        self.photos: dict[str, Photo] = find_photos(backgrounds_folder) if backgrounds_folder else {}
        self._kept: OrderedDict[tuple, object] = OrderedDict()
        self._lock = threading.Lock()

    def sticker(self, key: str, radius: float) -> tuple[Image.Image, float]:
        """The RGBA sticker scaled to a circle of about `radius` pixels, and the exact radius it has."""
        image, extent = self._remember(("sticker", key), lambda: self._measured(key))
        factor = min(radius / extent, 4.0)
        size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
        return image.resize(size, Image.Resampling.LANCZOS), extent * size[0] / image.width

    def photo(
        self, key: str, size: tuple[int, int], crop: tuple[float, float, float], depth: bool = False
    ) -> NDArray[np.uint8]:
        """(height, width, 3) part of a photo, or of its depth map, that fills a canvas of `size`."""
        image = self._remember(("photo", key, depth, size), lambda: self._photo(key, depth, size))
        share = min(image.width / size[0], image.height / size[1]) * crop[2]
        wide, high = size[0] * share, size[1] * share
        left, top = (image.width - wide) * crop[0], (image.height - high) * crop[1]
        box = (left, top, left + wide, top + high)
        return np.asarray(image.resize(size, Image.Resampling.LANCZOS, box=box))

    def check_stickers(self, between: Callable[[], None]) -> None:
        """Read every sticker once; `between` may raise to stop.

        Raises ValueError that names the bad ones, before a dataset depends on their being there.
        """
        faults = []
        for key in self.stickers:
            between()
            try:
                self._measured(key)
            except MissingPackageError:
                raise
            except ValueError as error:
                faults.append(str(error))
        if faults:
            more = f"\n... and {len(faults) - MOST_FAULTS} more" if len(faults) > MOST_FAULTS else ""
            raise ValueError("\n".join(faults[:MOST_FAULTS]) + more)

    def fingerprint(self) -> str:
        """A hash of the names and sizes of all files."""
        digest = hashlib.sha256()
        for key, file in self.stickers.items():
            digest.update(f"sticker {key} {file.path.stat().st_size}\n".encode())
        for key, photo in self.photos.items():
            digest.update(f"photo {key} {photo.path.stat().st_size}\n".encode())
        return digest.hexdigest()

    def _measured(self, key: str) -> tuple[Image.Image, float]:
        image = load_sticker(self.stickers[key])
        image.thumbnail((LARGEST_STICKER, LARGEST_STICKER), Image.Resampling.LANCZOS)
        rows, columns = np.nonzero(np.asarray(image.getchannel("A")) > 8)
        distances = np.hypot(columns + 0.5 - image.width / 2, rows + 0.5 - image.height / 2)
        return image, float(distances.max()) + 0.5

    def _photo(self, key: str, depth: bool, size: tuple[int, int]) -> Image.Image:
        photo = self.photos[key]
        path = photo.depth if depth else photo.path
        if path is None:
            raise FileNotFoundError(f"{photo.path} has no depth map {photo.path.stem}.depth.png beside it.")
        image = decode_picture(path, str(path))
        if depth and image.mode.startswith("I"):
            image = Image.fromarray((np.asarray(image, np.float64) / 257).round().astype(np.uint8))
        image = flatten_on_white(image)
        # The smallest crop still fills the canvas; a whole folder of camera pictures would not fit in memory.
        factor = min(image.width / size[0], image.height / size[1]) * SMALLEST_CROP
        return (
            image.resize((round(image.width / factor), round(image.height / factor))) if factor > 1 else image
        )

    def _remember(self, key: tuple, load: Callable[[], Kept]) -> Kept:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return cast(Kept, self._kept[key])
        loaded = load()  # outside the lock, so that threads need not wait for each other's files
        with self._lock:
            self._kept[key] = loaded
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return loaded
