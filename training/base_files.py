"""Which safetensors files a base is made of: one, or the shards of a folder; all there, or an error."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from ..dit.safetensors_files import indexed_shards, open_weights, require_all_shards, shard_stem
from .files import file_sha256

INDEX = "*.safetensors.index.json"
PICKLED = ("bin", "pt", "pth", "ckpt")

opened = open_weights
"""How a base's files are opened: ValueError for one that is damaged or cut short."""


def base_files(path: Path) -> tuple[Path, ...]:
    """The safetensors files of a base: itself, a shard with its brothers, or what lies in a folder.

    A folder has an index with its shards (diffusers' layout, also one folder deeper in `transformer`),
    numbered shards alone, or one file. FileNotFoundError names what is missing, ValueError another format.
    """
    if path.is_dir():
        return folder_files(path)
    if not path.is_file():
        raise FileNotFoundError(f"no base model {str(path)!r}; choose a file of models/diffusion_models")
    if path.suffix != ".safetensors":
        raise ValueError(
            f"{path.name} cannot be trained on: a base must be a .safetensors file in bf16, fp16, fp8 or "
            "scaled fp8 (GGUF works for sampling only; use the file it was made from)"
        )
    stem = shard_stem(path.name)
    if stem is None:
        return (path,)
    alike = [other for other in path.parent.glob("*.safetensors") if shard_stem(other.name) == stem]
    return numbered_shards(path.parent, alike)


def folder_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files of a folder, see `base_files`; FileNotFoundError or ValueError as there."""
    for place in (folder, folder / "transformer"):
        loose = sorted(place.glob("*.safetensors"))
        indexes = sorted(place.glob(INDEX))
        if len(indexes) == 1:
            return indexed_shards(indexes[0])
        stems = {shard_stem(file.name) for file in loose}
        if len(loose) == 1 and stems == {None}:
            return tuple(loose)
        if len(stems) == 1 and stems != {None}:
            return numbered_shards(place, loose)
    pickled = [file for suffix in PICKLED for file in folder.rglob(f"*.{suffix}")]
    if pickled:
        raise ValueError(
            f"{folder.name} holds {pickled[0].name}, which may run code when it is read; only .safetensors "
            "files are trained on. Download the safetensors version"
        )
    raise FileNotFoundError(
        f"{folder} has no single model: a folder must hold one .safetensors file, or the shards of one with "
        "their index (diffusion_pytorch_model.safetensors.index.json), in it or in its transformer folder"
    )


def numbered_shards(folder: Path, files: Sequence[Path]) -> tuple[Path, ...]:
    """The shards 1 .. count of one model, in order; FileNotFoundError unless all of them are there."""
    require_all_shards(str(folder), [file.name for file in files])
    return tuple(sorted(files))


def weights_of(path: Path) -> tuple[Path, ...]:
    """The weight files of a base of any family, without what lies beside its network; none if it is gone."""
    if path.is_dir():
        found = sorted(path.glob("*.safetensors")) or sorted((path / "transformer").glob("*.safetensors"))
        return tuple(found)
    if shard_stem(path.name) is not None:
        return base_files(path)
    return (path,) if path.is_file() else ()


def files_sha256(files: Sequence[Path], between: Callable[[], None] = lambda: None) -> str:
    """SHA-256 of an only file, or of the digests of several in order.

    `between` is called after each chunk and may raise.
    """
    digests = [file_sha256(file, between) for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
