"""FLUX-shaped weights of any layout as diffusers names them: BFL or diffusers, bf16, fp8 or scaled fp8."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...dit.flux_names import (
    DOUBLE,
    DOUBLE_NORMS,
    DOUBLE_SPLIT,
    FINAL_MODULATION,
    OUTER,
    SINGLE,
    SINGLE_NORMS,
    SINGLE_SPLIT,
    bare_names,
    flux_prefix,
)
from ...dit.flux_shape import flux_shape
from ...dit.tensor_names import SCALES
from ..base_files import base_files, opened

IGNORED = ("scaled_fp8", ".scale_input", ".input_scale", ".comfy_quant")
BFL_MARK = "double_blocks.0.img_attn.qkv.weight"

BLOCK = re.compile(r"(double_blocks|single_blocks)\.(\d+)\.(.+)")


def converted(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """diffusers' (name, tensor) pairs for one BFL tensor; ValueError on a name FLUX does not have.

    Only rows are cut and moved, so it works alike for weights, biases and scales per row.
    """
    block = BLOCK.fullmatch(name)
    if block is None:
        yield from outer_tensor(name, tensor)
        return
    kind, number, rest = block.groups()
    module, _, part = rest.rpartition(".")
    if kind == "double_blocks":
        prefix, plain, norms = f"transformer_blocks.{number}.", DOUBLE, DOUBLE_NORMS
        pieces = DOUBLE_SPLIT.get(module)
        sizes = [tensor.shape[0] // 3] * 3 if pieces else []
    else:
        prefix, plain, norms = f"single_transformer_blocks.{number}.", SINGLE, SINGLE_NORMS
        pieces = SINGLE_SPLIT.get(module)
        width = tensor.shape[0] // 7  # q, k, v and an MLP four times as wide
        sizes = [width, width, width, tensor.shape[0] - 3 * width]
    if pieces is not None:
        for piece, rows in zip(pieces, tensor.split(sizes), strict=True):
            yield f"{prefix}{piece}.{part}", rows
    elif rest in norms:
        yield prefix + norms[rest], tensor
    elif module in plain:
        yield f"{prefix}{plain[module]}.{part}", tensor
    else:
        raise ValueError(f"{name} is not a tensor of FLUX.1")


def outer_tensor(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """(diffusers' name, tensor) of one of BFL's outside the blocks; ValueError for one that is not FLUX.1's.

    The last modulation swaps shift and scale between the layouts.
    """
    module, _, part = name.rpartition(".")
    ours, theirs = FINAL_MODULATION
    if module == ours:
        shift, scale = tensor.chunk(2)
        yield f"{theirs}.{part}", torch.cat([scale, shift])
    elif module in OUTER:
        yield f"{OUTER[module]}.{part}", tensor
    else:
        raise ValueError(f"{name} is not a tensor of FLUX.1")


def transformer_names(names: Iterable[str]) -> dict[str, str]:
    """Name without prefix -> stored name of the transformer's tensors; what lies beside it is left out."""
    names = list(names)
    return bare_names(names, flux_prefix(names) or "")


def network_arguments(path: Path) -> dict[str, Any]:
    """Arguments of diffusers' FluxTransformer2DModel for a base; ValueError when it is not FLUX-shaped."""
    shapes: dict[str, list[int]] = {}
    for file in base_files(path):
        with opened(file) as tensors:
            shapes |= {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
    try:
        shape = flux_shape({name: shapes[stored] for name, stored in transformer_names(shapes).items()})
    except ValueError as error:
        raise ValueError(
            f"{path.name} is no FLUX.1 transformer in BFL's or diffusers' layout: {error}; choose a FLUX.1 "
            "Kontext file"
        ) from error
    return {
        "in_channels": shape.in_channels,
        "num_layers": shape.num_double,
        "num_single_layers": shape.num_single,
        "attention_head_dim": shape.head_dim,
        "num_attention_heads": shape.num_heads,
        "joint_attention_dim": shape.text_dim,
        "pooled_projection_dim": shape.pooled_dim,
        "guidance_embeds": True,
        "axes_dims_rope": shape.axes_dim,
    }


def base_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """(diffusers name, tensor) of a base one by one, scales multiplied in, never a whole file at once."""
    with ExitStack() as stack:
        files = [stack.enter_context(opened(file)) for file in base_files(path)]
        holders = {name: file for file in files for name in file.keys()}  # noqa: SIM118
        places = {name: (holders[stored], stored) for name, stored in transformer_names(holders).items()}
        is_bfl = BFL_MARK in places
        for name, (file, stored) in places.items():
            if name.endswith((*SCALES, *IGNORED)):
                continue
            tensor = file.get_tensor(stored)
            scale = next((n for s in SCALES if (n := name.removesuffix(".weight") + s) in places), None)
            if scale is not None and name.endswith(".weight"):
                holder, held = places[scale]
                factor = holder.get_tensor(held).float()
                factor = factor.reshape(-1, 1) if factor.numel() > 1 else factor.reshape(())
                tensor = (tensor.float() * factor).to(torch.bfloat16)
            elif tensor.element_size() == 1:
                tensor = tensor.to(torch.bfloat16)
            if is_bfl:
                yield from converted(name, tensor)
            else:
                yield name, tensor
