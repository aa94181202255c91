"""Weight names of FLUX.1: which network a file holds, and diffusers' layout turned into Black Forest Labs'.

ComfyUI's network has BFL's names: one matrix for query, key and value, where diffusers has three.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from itertools import chain

import torch
from torch import Tensor

from ..dit.flux_names import FINAL_MODULATION, bare_names, diffusers_sources, flux_prefix
from ..dit.flux_shape import FluxShape, flux_shape
from ..dit.tensor_names import INPUT_SCALES, SCALES
from .weight_files import Shapes

log = logging.getLogger("dreamomni")

FP8_MARKER = "scaled_fp8"
LAYER_NOTE = ".comfy_quant"
LAYER_NOTES = "_quantization_metadata"

# Part of a weight name -> what such a file is; the first that is found names the file in an error.
RELATIVES = (
    ("quant_state.bitsandbytes", "a bitsandbytes 4-bit model; load it with the node it was made for"),
    (".wscales", "a nunchaku (SVDQuant) model; its wrapper ignores reference methods"),
    ("double_stream_modulation_img", "FLUX.2"),
    ("distilled_guidance_layer", "Chroma"),
    ("lora_", "a LoRA; put it in models/loras"),
    (".lora.", "a LoRA; put it in models/loras"),
)
"""Files that have FLUX.1's names too."""
STRANGERS = (
    ("input_blocks.0.0.weight", "a Stable Diffusion UNet"),
    ("down_blocks.0.attentions", "a diffusers Stable Diffusion UNet"),
    ("joint_blocks.0.", "Stable Diffusion 3"),
    ("transformer_blocks.0.img_mod.", "Qwen-Image"),
    ("blocks.0.cross_attn.", "a video model (Wan)"),
    ("encoder.block.0.layer.0.SelfAttention", "a T5 text encoder"),
    ("text_model.encoder", "a CLIP text encoder"),
    ("decoder.conv_in.weight", "a VAE; put it in models/vae"),
    ("decoder.up_blocks.0", "a VAE; put it in models/vae"),
)
"""Files that have names of their own."""


def kontext_shape(file_name: str, shapes: Shapes) -> tuple[FluxShape, str]:
    """(network, prefix of its names) in a file; raises ValueError saying what the file holds instead."""
    prefix = flux_prefix(shapes)
    if prefix is None or is_relative(shapes):
        raise ValueError(f"{file_name} is not a FLUX.1 Kontext model: it looks like {kind_of(shapes)}.")
    inner = {name: shapes[stored] for name, stored in bare_names(shapes, prefix).items()}
    try:
        shape = flux_shape(inner)
    except ValueError as error:
        raise ValueError(f"{file_name} is not a FLUX.1 Kontext model: {error}.") from error
    check_complete(file_name, inner, shape)
    return shape, prefix


def is_relative(names: Iterable[str]) -> bool:
    """Whether names that FLUX.1 shares with a relative belong to the relative."""
    return any(mark in name for name in names for mark, _ in RELATIVES)


def kind_of(names: Iterable[str]) -> str:
    """What a file is, in words."""
    names = list(names)
    for mark, kind in (*RELATIVES, *STRANGERS):
        if any(mark in name for name in names):
            return kind
    return f"something unknown, with weights such as {', '.join(sorted(names)[:3]) or '(none)'}"


def is_diffusers_layout(names: Iterable[str]) -> bool:
    """Whether FLUX.1's weights go by diffusers' names."""
    return any(name.startswith("transformer_blocks.0.") for name in names)


def check_complete(file_name: str, shapes: Shapes, shape: FluxShape) -> None:
    """Raise ValueError if weights of the network are missing from the file."""
    sources = diffusers_sources(shape.num_double, shape.num_single)
    wanted = set(chain(*sources.values())) if is_diffusers_layout(shapes) else set(sources)
    missing = sorted(wanted - shapes.keys())
    if missing:
        raise ValueError(
            f"{file_name} lacks {len(missing)} of {len(wanted)} weights of FLUX.1 Kontext, first "
            f"{missing[0]}. The file was cut or converted wrongly; download it again."
        )


def to_bfl_layout(
    weights: dict[str, Tensor], shape: FluxShape, prefix: str, metadata: dict[str, str]
) -> dict[str, Tensor]:
    """Weights under BFL's names without prefix; `weights` is emptied, so that no matrix is held twice.

    `metadata` loses what it says of layers that are gone. Raises ValueError for scales that cannot be kept.
    """
    inner = {name: weights[stored] for name, stored in bare_names(weights, prefix).items()}
    weights.clear()
    if is_diffusers_layout(inner):
        metadata.pop(LAYER_NOTES, None)
        inner = from_diffusers(inner, shape)
    # Layers with ComfyUI's own notes are read as these say.
    is_noted = LAYER_NOTES in metadata or any(name.endswith(LAYER_NOTE) for name in inner)
    return inner if is_noted else with_marked_scales(inner)


def from_diffusers(inner: dict[str, Tensor], shape: FluxShape) -> dict[str, Tensor]:
    """Weights of diffusers' layout under BFL's names; `inner` is emptied of all that is used."""
    out = {name: inner.pop(name) for name in [FP8_MARKER] if name in inner}
    for target, sources in diffusers_sources(shape.num_double, shape.num_single).items():
        parts = [inner.pop(source) for source in sources]
        scales = [pop_scale(inner, source) for source in sources]
        out[target], scale = join_rows(target, parts, scales)
        if target.startswith(FINAL_MODULATION[0]):
            out[target] = stack_rows(out[target].chunk(2)[::-1])
        if scale is not None:
            out[target.removesuffix(".weight") + SCALES[0]] = scale
    unused = [name for name in inner if not name.endswith((*INPUT_SCALES, LAYER_NOTE))]
    check_no_scale(unused)
    if unused:
        log.warning("%d weights are no part of FLUX.1 and were left out, first %s", len(unused), unused[0])
    return out


def with_marked_scales(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Scales under the name, and with the marker, without which ComfyUI passes over them."""
    unread = SCALES[1:] if FP8_MARKER in weights else SCALES
    found = {name: name.rpartition(".")[0] + ".weight" for name in weights if name.endswith(unread)}
    check_no_scale([name for name, weight in found.items() if weight not in weights])
    scaled = list(dict.fromkeys(found.values()))
    for weight in scaled:
        scale = pop_scale(weights, weight)
        weights[weight], common = join_rows(weight, [weights[weight]], [scale])
        assert common is not None, "there is a scale"
        weights[weight.removesuffix(".weight") + SCALES[0]] = common
    if scaled:
        dtypes = [weights[weight].dtype for weight in scaled]
        dtype = next((dtype for dtype in dtypes if dtype.itemsize == 1), dtypes[0])
        # Two elements: ComfyUI then multiplies in 16 bit, as the scales of the inputs may be missing.
        weights.setdefault(FP8_MARKER, torch.zeros(2).to(dtype))
    return weights


def check_no_scale(names: Sequence[str]) -> None:
    """Raise ValueError if scales are among the names of what is left out."""
    lost = [name for name in names if "scale" in name.rpartition(".")[2]]
    if lost:
        raise ValueError(
            f"{len(lost)} scales of this file fit no weight that is read, first {lost[0]}; without them its "
            "weights are noise. One scale for a matrix or one for each of its rows is known, named "
            "scale_weight or weight_scale. Take the file in bf16, fp8 or scaled fp8."
        )


def pop_scale(weights: dict[str, Tensor], name: str) -> Tensor | None:
    """The scale of a weight under either of its names, taken out; None for a weight without."""
    scales = [weights.pop(name.removesuffix(".weight") + end, None) for end in SCALES]
    return next((scale for scale in scales if scale is not None), None)


def join_rows(
    name: str, parts: Sequence[Tensor], scales: Sequence[Tensor | None]
) -> tuple[Tensor, Tensor | None]:
    """Matrices stacked by rows; scaled fp8 ones are brought to their largest scale first."""
    if all(scale is None for scale in scales):
        return stack_rows(parts), None
    factors = [row_factors(name, part, scale) for part, scale in zip(parts, scales, strict=True)]
    common = torch.cat(factors).max()
    if all(bool((factor == common).all()) for factor in factors):
        return stack_rows(parts), common
    rescaled = [
        (part.float() * (factor / common)).to(part.dtype) for part, factor in zip(parts, factors, strict=True)
    ]
    return stack_rows(rescaled), common


def row_factors(name: str, part: Tensor, scale: Tensor | None) -> Tensor:
    """The scale of a matrix, (1, 1) or (rows, 1); ValueError for what is no scaled float."""
    if scale is None:
        return torch.ones(1, 1)
    if not part.dtype.is_floating_point or scale.numel() not in (1, part.shape[0]):
        raise ValueError(
            f"{name} is made from {part.dtype} of the shape {tuple(part.shape)} with a scale of the shape "
            f"{tuple(scale.shape)}; fp8 with one scale for a matrix or one for each row is known. Take the "
            "file in bf16, fp8 or scaled fp8."
        )
    return scale.float().reshape(-1, 1)


def stack_rows(parts: Sequence[Tensor]) -> Tensor:
    """Tensors joined along the rows; a single one is not copied."""
    if len(parts) == 1:
        return parts[0]
    dtype = parts[0].dtype
    if dtype.itemsize > 1:
        return torch.cat(list(parts))
    # fp8 has few operations of its own.
    return torch.cat([part.view(torch.uint8) for part in parts]).view(dtype)
