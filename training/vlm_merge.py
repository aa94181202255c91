"""A VLM's LoRA worked into a copy of its folder, file by file."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..dit.safetensors_files import open_weights
from .families.vlm import copy_beside
from .files import require_space, whole_folder, write_json, write_tensors

LAYER = re.compile(r"(?:^|\.)(layers\.\d+\..+)$")
INDEX = "model.safetensors.index.json"


def layer_name(name: str) -> str | None:
    """`layers.N....` of a language model's tensor, whatever stands before it; None for the picture side."""
    match = LAYER.search(name)
    return match.group(1) if match and "visual" not in name.split(".") else None


def lora_deltas(path: Path) -> dict[str, tuple[Tensor, Tensor, float]]:
    """`layers.N.<module>.weight` -> (A, B, scaling) of a LoRA file."""
    tensors = load_file(path)
    deltas = {}
    for name, down in tensors.items():
        if not name.endswith(".lora_A.weight"):
            continue
        module = name.removesuffix(".lora_A.weight")
        scaling = tensors[f"{module}.alpha"].item() / down.shape[0]
        deltas[f"{layer_name(module)}.weight"] = (down, tensors[f"{module}.lora_B.weight"], scaling)
    return deltas


def merge_vlm(base: Path, lora: Path, folder: Path) -> Path:
    """Write `folder`: the VLM of `base` with the LoRA added; ValueError when a weight finds no place."""
    deltas = lora_deltas(lora)
    files = sorted(base.glob("*.safetensors"))
    require_space(folder.resolve().parent, sum(file.stat().st_size for file in files), "the merged VLM")
    with whole_folder(folder) as partial:
        partial.mkdir(parents=True)
        left = set(deltas)
        for file in files:
            left -= merge_file(file, partial / file.name, deltas)
        if left:
            raise ValueError(
                f"{len(left)} weights of the LoRA are not in {base.name}, first {sorted(left)[0]}"
            )
        copy_beside(base, partial)
        if (base / INDEX).is_file():
            shutil.copyfile(base / INDEX, partial / INDEX)
        with safe_open(lora, "pt") as source:
            write_json(partial / "dreamomni.json", dict(source.metadata() or {}))
    return folder


def merge_file(file: Path, target: Path, deltas: Mapping[str, tuple[Tensor, Tensor, float]]) -> set[str]:
    """Write one file of the VLM with what the LoRA adds to it; the deltas that found their place."""
    placed: set[str] = set()
    with open_weights(file) as source:
        tensors = {name: source.get_tensor(name) for name in source.keys()}  # noqa: SIM118
    for name, tensor in tensors.items():
        key = layer_name(name)
        if key is not None and key in deltas:
            down, up, scaling = deltas[key]
            merged = tensor.float() + scaling * (up.float() @ down.float())
            tensors[name] = merged.to(tensor.dtype)
            placed.add(key)
    write_tensors(target, tensors, {"format": "pt"})
    return placed
