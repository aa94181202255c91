"""Safetensors files in ComfyUI's model folders: names to offer, names to paths, headers, weights."""

from __future__ import annotations

from pathlib import Path, PurePath

from torch import Tensor

import comfy.utils
import folder_paths

from ..dit.safetensors_files import open_weights, require_all_shards, shard_stem

SUFFIXES = (".safetensors", ".sft")

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
    stem = shard_stem(path.name)
    return str(path.parent) if stem is not None and path.parent.parts else stem


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
        require_all_shards(repr(name), [PurePath(part).name for part in parts])
    return [Path(folder_paths.get_full_path_or_raise(kind, part)) for part in parts]


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
