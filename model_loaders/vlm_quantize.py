"""Weights in 8 or 4 bits: ComfyUI's linear layer with a smaller store, computing as before.

Only the blocks of the language model and of the vision tower are quantised; embeddings, norms, the scores and
the picture projections keep their format. Weights are unpacked at use, so offloading moves the small form.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import comfy.ops

from ..dit.eight_bit import rows_to_eight_bit

NF4_BLOCK = 64


class RowScaledLinear(comfy.ops.manual_cast.Linear):
    """Weight (out, in) in 8 bits with one scale per row, applied to the output."""

    scale: Tensor

    def forward_comfy_cast_weights(self, input: Tensor) -> Tensor:
        """Linear of input (..., in) to (..., out) in the input's format, on its device."""
        weight, bias, stream = comfy.ops.cast_bias_weight(self, input, offloadable=True)
        output = functional.linear(input, weight) * self.scale.to(device=input.device, dtype=input.dtype)
        if bias is not None:
            output = output + bias
        comfy.ops.uncast_bias_weight(self, weight, bias, stream)
        return output


class Nf4Linear(comfy.ops.manual_cast.Linear):
    """Weight packed to 4 bits by bitsandbytes, with one scale per 64 values."""

    scale: Tensor

    def forward_comfy_cast_weights(self, input: Tensor) -> Tensor:
        """Linear of input (..., in) to (..., out) in the input's format, on its device."""
        bitsandbytes = import_bitsandbytes()
        state = bitsandbytes.functional.QuantState(
            absmax=self.scale.to(input.device),
            shape=torch.Size((self.out_features, self.in_features)),
            code=bitsandbytes.functional.get_4bit_type("nf4", device=input.device),
            blocksize=NF4_BLOCK,
            quant_type="nf4",
            dtype=input.dtype,
        )
        weight = bitsandbytes.functional.dequantize_4bit(self.weight.to(input.device), state)
        bias = None if self.bias is None else self.bias.to(device=input.device, dtype=input.dtype)
        return functional.linear(input, weight.to(input.dtype), bias)


def import_bitsandbytes() -> Any:
    """bitsandbytes; raises ValueError with the remedy when it is missing."""
    try:
        import bitsandbytes
    except ImportError as err:
        raise ValueError(
            "precision nf4 needs the package bitsandbytes, which is not installed in ComfyUI's Python. "
            "Install it there (python -m pip install bitsandbytes) and restart, or choose int8 or fp8."
        ) from err
    return bitsandbytes


def to_nf4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(weight packed two to a byte, scale per 64 values), by bitsandbytes."""
    packed, state = import_bitsandbytes().functional.quantize_4bit(
        weight.contiguous(), blocksize=NF4_BLOCK, quant_type="nf4"
    )
    return packed, state.absmax


Quantizer = Callable[[Tensor], tuple[Tensor, Tensor]]
QUANTIZERS: dict[str, tuple[type[comfy.ops.manual_cast.Linear], Quantizer]] = {
    "fp8": (RowScaledLinear, partial(rows_to_eight_bit, kind=torch.float8_e4m3fn)),
    "int8": (RowScaledLinear, partial(rows_to_eight_bit, kind=torch.int8)),
    "nf4": (Nf4Linear, to_nf4),
}


def quantize(model: Any, precision: str, device: torch.device) -> None:
    """Exchange the linear layers of `model`'s blocks for `precision`, computed on `device` one by one."""
    for blocks in (model.model.language_model.layers, model.model.visual.blocks):
        for parent in list(blocks.modules()):
            for name, layer in list(parent.named_children()):
                if isinstance(layer, nn.Linear):
                    setattr(parent, name, quantized_layer(layer, precision, device))


def quantized_layer(layer: nn.Linear, precision: str, device: torch.device) -> nn.Module:
    """`layer` with its weight in `precision`, kept on the device it was on."""
    kind, quantizer = QUANTIZERS[precision]
    home = layer.weight.device
    weight, scale = quantizer(layer.weight.detach().to(device))
    twin = kind(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    twin.weight = nn.Parameter(weight.to(home), requires_grad=False)
    twin.scale = nn.Parameter(scale.float().flatten().to(home), requires_grad=False)
    if layer.bias is not None:
        twin.bias = layer.bias
    return twin
