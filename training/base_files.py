"""Which safetensors files a base is made of: one, or the shards of a folder; all there, or an error."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..dit.weight_format import require_safetensors
from .files import file_sha256

INDEX = "*.safetensors.index.json"
SHARD = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
PICKLED = ("bin", "pt", "pth", "ckpt")


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
    shard = SHARD.fullmatch(path.name)
    if shard is None:
        return (path,)
    alike = [other for other in path.parent.glob("*.safetensors") if shard_stem(other) == shard["stem"]]
    return numbered_shards(path.parent, alike)


def folder_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files of a folder, see `base_files`."""
    for place in (folder, folder / "transformer"):
        loose = sorted(place.glob("*.safetensors"))
        indexes = sorted(place.glob(INDEX))
        if len(indexes) == 1:
            return indexed_shards(indexes[0])
        if len(loose) == 1 and shard_stem(loose[0]) is None:
            return tuple(loose)
        if len({shard_stem(file) for file in loose} - {None}) == 1 and all(map(shard_stem, loose)):
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


def shard_stem(file: Path) -> str | None:
    """What the shards of one model share; None for a whole file."""
    match = SHARD.fullmatch(file.name)
    return None if match is None else match["stem"]


def indexed_shards(index: Path) -> tuple[Path, ...]:
    """The files an index names."""
    try:
        named = sorted(
            {Path(name).name for name in json.loads(index.read_text("utf-8"))["weight_map"].values()}
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is no readable index of shards ({error!r}); download it again") from error
    require_safetensors(named, str(index))
    missing = [name for name in named if not (index.parent / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{index.parent} lacks {', '.join(missing)}, of {len(named)} files that {index.name} names; "
            "download the rest"
        )
    return tuple(index.parent / name for name in named)


def numbered_shards(folder: Path, files: Sequence[Path]) -> tuple[Path, ...]:
    """The shards 1 .. count of one model, in order, all of them there."""
    matches = [match for file in files if (match := SHARD.fullmatch(file.name))]
    count = int(matches[0]["count"])
    missing = sorted(set(range(1, count + 1)) - {int(match["number"]) for match in matches})
    if missing or len(matches) != count:
        names = ", ".join(f"{matches[0]['stem']}-{n:05}-of-{count:05}.safetensors" for n in missing) or "none"
        raise FileNotFoundError(
            f"{folder} has {len(matches)} of {count} shards, missing: {names}; download the rest"
        )
    return tuple(sorted(files))


def weights_of(path: Path) -> tuple[Path, ...]:
    """The weight files of a base of any family, without what lies beside its network; none if it is gone."""
    if path.is_dir():
        found = sorted(path.glob("*.safetensors")) or sorted((path / "transformer").glob("*.safetensors"))
        return tuple(found)
    if SHARD.fullmatch(path.name):
        return base_files(path)
    return (path,) if path.is_file() else ()


def files_sha256(files: Sequence[Path], between: Callable[[], None] = lambda: None) -> str:
    """SHA-256 of an only file, or of the digests of several in order.

    `between` is called after each chunk and may raise.
    """
    digests = [file_sha256(file, between) for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def opened(file: Path) -> Any:
    """A safetensors file opened for reading; ValueError for one that is damaged or cut short."""
    try:
        return safe_open(str(file), framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{file.name} is damaged or incomplete ({error}); download it again") from error
