"""Safetensors files in ComfyUI's model folders: names to offer, names to paths, headers, weights."""

from __future__ import annotations

import re
from pathlib import Path, PurePath
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

import comfy.utils
import folder_paths

SUFFIXES = (".safetensors", ".sft")
SHARD = re.compile(r"^(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors$")

Shapes = dict[str, tuple[int, ...]]


def weight_names(kind: str) -> list[str]:
    """What a node offers from folder `kind`: each safetensors file, and each set of shards under one name."""
    names = {shard_set(name) or name for name in safetensors_names(kind)}
    return sorted(names)


def safetensors_names(kind: str) -> list[str]:
    """Every safetensors file below the roots of `kind`."""
    return [name for name in folder_paths.get_filename_list(kind) if name.lower().endswith(SUFFIXES)]


def shard_set(name: str) -> str | None:
    """The name shards go by: their folder, or without one their common stem; None for a whole file."""
    path = PurePath(name)
    match = SHARD.match(path.name)
    if match is None:
        return None
    return str(path.parent) if path.parent.parts else match["stem"]


def weight_paths(kind: str, name: str) -> list[Path]:
    """The files of one entry of `weight_names`, in order.

    Raises ValueError for a name that leaves the folders, FileNotFoundError for an unknown one or a gap.
    """
    if PurePath(name).is_absolute() or ".." in PurePath(name.replace("\\", "/")).parts:
        raise ValueError(f"{name!r} leaves the model folders; choose a file from the list")
    known = safetensors_names(kind)
    parts = [name] if name in known else sorted(part for part in known if shard_set(part) == name)
    if not parts:
        raise FileNotFoundError(
            f"no safetensors file {name!r} in {', '.join(folder_paths.get_folder_paths(kind))}; "
            f"found: {', '.join(weight_names(kind)) or 'none'}. Put it there and press R to refresh."
        )
    if name not in known:
        check_shards(name, parts)
    return [Path(folder_paths.get_full_path_or_raise(kind, part)) for part in parts]


def check_shards(name: str, parts: list[str]) -> None:
    """Raise FileNotFoundError unless the shards are exactly 1 .. count of one model."""
    matches = [match for part in parts if (match := SHARD.match(PurePath(part).name))]
    count = int(matches[0]["count"])
    found = {int(match["number"]) for match in matches}
    missing = sorted(set(range(1, count + 1)) - found)
    if missing or len(matches) != count:
        wanted = ", ".join(map(str, missing)) or "none"
        raise FileNotFoundError(
            f"{name!r} has {len(matches)} of {count} shards, missing: {wanted}. Download the missing "
            "files; a folder may hold the shards of one model only."
        )


def read_shapes(paths: list[Path]) -> Shapes:
    """Name and shape of every weight, from the files' headers alone."""
    shapes: Shapes = {}
    for path in paths:
        with open_weights(path) as file:
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return shapes


def read_weights(paths: list[Path]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights of all files (mapped, not copied, where ComfyUI does so) and their metadata."""
    weights: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for path in paths:
        open_weights(path)
        part, notes = comfy.utils.load_torch_file(str(path), return_metadata=True)
        weights |= part
        metadata |= notes or {}
    return weights, metadata


def open_weights(path: Path) -> Any:
    """A safetensors file opened for reading; raises ValueError for one that is damaged or cut short."""
    try:
        return safe_open(str(path), framework="pt")
    except SafetensorError as error:
        raise ValueError(
            f"{path.name} is damaged or incomplete ({error}); its size is {path.stat().st_size:,} bytes. "
            "Download it again."
        ) from error
