"""transformers' VLM with ComfyUI's layers in it, so that ComfyUI can offload each of them.

Every layer with weights is exchanged for one that computes where its input is, from weights wherever they
lie, in the input's number format. What is computed stays as in transformers; a test holds both equal.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import comfy.ops


class CastRMSNorm(nn.Module, comfy.ops.CastWeightBiasOp):
    """Qwen's RMSNorm: normalised in float32, scaled in the weight's format, as the models were trained."""

    comfy_cast_weights = True

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.weight = weight
        self.bias = None
        self.variance_epsilon = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalise over the last axis; any leading shape."""
        wide = hidden_states.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight.to(hidden_states.device) * wide.to(hidden_states.dtype)


class CastEmbedding(nn.Module, comfy.ops.CastWeightBiasOp):
    """Token embedding looked up where the table lies: only the rows that are needed travel."""

    comfy_cast_weights = True

    def __init__(self, weight: Tensor, compute_dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = weight
        self.bias = None
        self.compute_dtype = compute_dtype

    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings (..., D) of token ids (...), on the ids' device, in the compute format."""
        rows = functional.embedding(ids.to(self.weight.device), self.weight)
        return rows.to(device=ids.device, dtype=self.compute_dtype)


class PatchProjection(comfy.ops.manual_cast.Conv3d):
    """The vision tower's first layer; from here on the tower computes in `compute_dtype`."""

    compute_dtype: torch.dtype

    def forward(self, input: Tensor) -> Tensor:
        """Patches (P, C, T, H, W) to features (P, D, 1, 1, 1)."""
        return super().forward(input.to(self.compute_dtype))


def use_castable_layers(model: nn.Module, compute_dtype: torch.dtype) -> None:
    """Exchange every layer of `model` that owns weights, keeping the very same parameters (ties survive).

    Raises TypeError for a layer kind this pack does not know: left alone it would stay behind on the CPU.
    """
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if any(True for _ in layer.parameters(recurse=False)):
                setattr(parent, name, castable_layer(layer, compute_dtype))


def castable_layer(layer: nn.Module, compute_dtype: torch.dtype) -> nn.Module:
    """ComfyUI's counterpart of `layer` with the same parameters."""
    operations = operations_for(layer, compute_dtype)
    if isinstance(layer, nn.Linear):
        return linear_like(layer, operations.Linear)
    if isinstance(layer, nn.Embedding):
        return CastEmbedding(layer.weight, compute_dtype)
    if isinstance(layer, nn.LayerNorm):
        norm = operations.LayerNorm(list(layer.normalized_shape), eps=layer.eps, device="meta")
        return adopt(norm, layer)
    if isinstance(layer, nn.Conv3d):
        return patch_projection(layer, compute_dtype)
    if type(layer).__name__.endswith("RMSNorm"):
        return rms_norm(layer)
    raise TypeError(
        f"this version of transformers builds the VLM with a layer this pack does not know "
        f"({type(layer).__name__}); use a transformers version the pack names in its requirements."
    )


def operations_for(layer: nn.Module, compute_dtype: torch.dtype) -> type[comfy.ops.disable_weight_init]:
    """Layers that cast at every call, or, where there is nothing to cast, only while they are offloaded.

    The second kind costs nothing over torch's own; at one token a time the first would cost several per cent.
    """
    formats = {parameter.dtype for parameter in layer.parameters(recurse=False)}
    return comfy.ops.disable_weight_init if formats == {compute_dtype} else comfy.ops.manual_cast


def patch_projection(layer: nn.Conv3d, compute_dtype: torch.dtype) -> PatchProjection:
    """The vision tower's first layer; patches do not overlap, so its stride is its size."""
    depth, height, width = layer.kernel_size
    size = (depth, height, width)
    twin = PatchProjection(
        layer.in_channels, layer.out_channels, size, size, bias=layer.bias is not None, device="meta"
    )
    twin.compute_dtype = compute_dtype
    adopt(twin, layer)
    return twin


def rms_norm(layer: Any) -> CastRMSNorm:
    """The counterpart of transformers' RMSNorm, whose class name differs between its versions."""
    return CastRMSNorm(layer.weight, layer.variance_epsilon)


def linear_like(layer: nn.Linear, kind: type[comfy.ops.disable_weight_init.Linear]) -> nn.Module:
    """A linear layer of `kind` with the parameters of `layer`."""
    twin = kind(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    return adopt(twin, layer)


def adopt(twin: nn.Module, layer: nn.Module) -> nn.Module:
    """`twin` with the parameters of `layer` as its own."""
    for name, parameter in layer.named_parameters(recurse=False):
        setattr(twin, name, parameter)
    return twin


def move_buffers(model: nn.Module, device: torch.device) -> None:
    """Put the small tables (rotary frequencies) on `device`; ComfyUI's patcher moves only weights."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)
