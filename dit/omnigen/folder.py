"""Where an OmniGen folder keeps its parts: official layout, diffusers' (sharded too), one fp8 file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..safetensors_files import indexed_shards
from ..tensor_names import INPUT_SCALES, SCALES, tensor_faults
from .config import OmniGenConfig, config_from_json
from .embed import grid_positions
from .network import OmniGenNetwork
from .state_dict import is_diffusers, to_official

INDEX = "diffusion_pytorch_model.safetensors.index.json"
TABLE = "pos_embed"


@dataclass(frozen=True, slots=True)
class OmniGenFiles:
    """The files of one model; all exist."""

    config: Path
    weights: tuple[Path, ...]
    tokenizer: Path
    """tokenizer.json"""


def first_file(folder: Path, names: Iterable[str], what: str) -> Path:
    """The first of `names` that exists in the folder; raises with all of them otherwise."""
    names = list(names)
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f"{folder} has no {what} ({' or '.join(names)}). Put the whole folder of OmniGen-v1 "
        "(model.safetensors, config.json, tokenizer.json, tokenizer_config.json) or of its diffusers "
        "version (transformer/, tokenizer/) there."
    )


def find_weights(folder: Path) -> tuple[Path, ...]:
    """The weight files: official, diffusers', sharded, or the only safetensors file of the folder."""
    for place in (folder, folder / "transformer"):
        if (place / INDEX).is_file():
            return indexed_shards(place / INDEX)
    single = ("model.safetensors", "transformer/diffusion_pytorch_model.safetensors")
    loose = sorted(path.name for path in folder.glob("*.safetensors"))
    if not any((folder / name).is_file() for name in single) and len(loose) > 1:
        raise FileNotFoundError(f"{folder} holds {', '.join(loose)}: keep one, or name it model.safetensors")
    return (first_file(folder, (*single, *loose), "weights"),)


def find_files(folder: Path) -> OmniGenFiles:
    """The parts of an OmniGen folder; FileNotFoundError names what is missing."""
    return OmniGenFiles(
        config=first_file(folder, ("transformer/config.json", "config.json"), "config"),
        weights=find_weights(folder),
        tokenizer=first_file(folder, ("tokenizer.json", "tokenizer/tokenizer.json"), "tokenizer"),
    )


def read_config(path: Path) -> OmniGenConfig:
    """The network's sizes; ValueError if the file is not an OmniGen config."""
    try:
        fields = json.loads(path.read_text("utf-8"))
    except ValueError as err:
        raise ValueError(f"{path} is not readable JSON ({err}); download it again") from err
    return config_from_json(fields)


def network_weights(weights: dict[str, Tensor], config: OmniGenConfig) -> dict[str, Tensor]:
    """A file's tensors as the network names them, without the position table; raises on any other set."""
    weights = unscaled({name.removeprefix("model.diffusion_model."): part for name, part in weights.items()})
    if is_diffusers(weights):
        weights = to_official(weights)
    check_table(weights.pop(TABLE, None), config)
    check_tensors(weights, config)
    return weights


def unscaled(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """fp8 tensors with a scale beside them as bf16; the tensors themselves otherwise, input scales left out.

    ValueError for a scale that is not for a matrix or its rows.
    """
    plain = {}
    for name, tensor in weights.items():
        if (
            name.endswith((*SCALES, *INPUT_SCALES))
            or name in ("scaled_fp8", "_quantization_metadata")
            or ".comfy_quant" in name
        ):
            continue
        base = name.removesuffix(".weight")
        scale = next((weights[base + end] for end in SCALES if base + end in weights), None)
        plain[name] = tensor if scale is None else multiplied(name, tensor, scale)
    return plain


def multiplied(name: str, tensor: Tensor, scale: Tensor) -> Tensor:
    """A tensor (rows, ...) times its scale, or the scale of each row, as bf16."""
    if scale.numel() not in (1, tensor.shape[0]):
        raise ValueError(
            f"{name} of the shape {tuple(tensor.shape)} has a scale of the shape {tuple(scale.shape)}; one "
            "scale for a matrix or one for each row is known. Take the file in bf16, fp8 or scaled fp8."
        )
    rows = scale.float().reshape(-1, *(1,) * (tensor.ndim - 1))
    return (tensor.float() * rows).to(torch.bfloat16)


def check_table(table: Tensor | None, config: OmniGenConfig) -> None:
    """Raise unless the file's position table is the published formula, which we compute instead."""
    if table is None:
        return
    sizes = (1, config.max_grid**2, config.hidden_size)
    # One row of the table is enough to tell another formula; the whole is 450 MB for the released model.
    row = table[:, : config.max_grid].float() if tuple(table.shape) == sizes else None
    expected = grid_positions(1, config.max_grid, config.hidden_size, config.max_grid)
    half = config.hidden_size // 2
    if row is None or (row[0, :, :half] - expected[:, :half]).abs().max() > 0.05:
        raise ValueError(
            f"the file's position table {tuple(table.shape)} is not OmniGen v1's {sizes}: "
            "this is another model, or the file is damaged"
        )


def check_tensors(weights: dict[str, Tensor], config: OmniGenConfig) -> None:
    """Raise ValueError, listing names, unless the tensors are exactly those of the network."""
    expected = OmniGenNetwork(config, device="meta").state_dict()
    faults = tensor_faults(
        {name: tuple(part.shape) for name, part in weights.items()},
        {name: tuple(part.shape) for name, part in expected.items()},
    )
    if faults:
        raise ValueError(
            f"the weights are not those of this OmniGen ({faults}). Is the file complete, "
            "and does config.json belong to it?"
        )
