"""Encoded pictures and prompts on disk, found by what they were made of, never by step or position."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from torch import Tensor

from .files import write_tensors


def content_key(*parts: str | bytes) -> str:
    """Hex digest of all parts, each with its length so that no two lists of parts read alike."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def encoded_picture_key(image: Image.Image, encoder: str) -> str:
    """Key of a picture of the size it is encoded at, by its pixels and the encoder's identity."""
    return content_key("picture", encoder, f"{image.mode} {image.width}x{image.height}", image.tobytes())


def prompt_key(prompt: str, picture_keys: list[str], encoder: str) -> str:
    """Key of a prompt and, where the encoder sees them, of the pictures with it."""
    return content_key("prompt", encoder, prompt, *picture_keys)


class TensorCache:
    """A folder of safetensors files named by content key; several runs may share it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: str) -> Path:
        """Where the entry lies; two letters of the key as sub-folder keep folders small."""
        return self.folder / key[:2] / f"{key}.safetensors"

    def __contains__(self, key: str) -> bool:
        return self.path(key).is_file()

    def read(self, key: str) -> dict[str, Tensor]:
        """The entry's tensors; FileNotFoundError or ValueError (damaged) says what to do."""
        path = self.path(key)
        if not path.is_file():
            raise FileNotFoundError(f"cache entry {path} is gone; queue the training again to encode it anew")
        try:
            # Read, not mapped: the kernel allows a process some 65,000 maps, and samples are kept open.
            return load(path.read_bytes())
        except SafetensorError as error:
            raise self.removed(path) from error

    def shape(self, key: str, name: str = "latent") -> list[int]:
        """Shape of one tensor of an entry, from the file's header; ValueError when it is damaged."""
        path = self.path(key)
        try:
            with safe_open(path, "pt") as file:
                return list(file.get_slice(name).get_shape())
        except SafetensorError as error:
            raise self.removed(path) from error

    @staticmethod
    def removed(path: Path) -> ValueError:
        """The error for a damaged entry, which is deleted so that it is encoded anew."""
        path.unlink(missing_ok=True)
        return ValueError(f"cache entry {path} was damaged and is removed; queue the training again")

    def write(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Store the entry; a half-written one is never seen."""
        write_tensors(self.path(key), tensors)
