"""Frozen linear layers held small: bf16, fp8 or int8 with a scale per row, in device or in host memory.

The full-precision weight exists only while one layer is computed, forward and backward; it is never saved
for the backward pass. A weight kept in host memory is copied one way before it is needed and dropped after
(streaming.py), so a frozen base larger than the card can be trained through.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..dit.eight_bit import rows_from_eight_bit, rows_to_eight_bit
from .config import MemoryConfig
from .optimizers import NF4_INSTEAD, NF4_NEEDS, optional_package
from .pinned import PinnedSlabs
from .streaming import BACKWARD, Conveyor, forward_phase

WIDE = {"fp32": torch.float32, "bf16": torch.bfloat16}
EIGHT_BIT = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}


def held_weight(weight: Tensor, precision: str) -> tuple[Tensor, Tensor | None]:
    """(stored weight, scale (rows, 1) or None) of a weight (rows, columns) for fp32, bf16, fp8 or int8."""
    if precision in WIDE:
        return weight.to(WIDE[precision]), None
    return rows_to_eight_bit(weight, EIGHT_BIT[precision])


# Why int8 is ours and not torchao's: torchao 0.18 works with torch 2.11 and peft as they are, and its
# int8 weights (a scale per row) are as exact, relative error 0.0034 against 0.0035. But its linear keeps
# the weight restored to bf16 for the backward pass, where this one keeps nothing; one-way copies from host
# memory need the bare tensors; and int8 would need a package, though it is what to choose without nf4's.
class FrozenMatmul(torch.autograd.Function):
    """x W^T + b whose weight is restored in both directions instead of being kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FrozenLinear) -> Tensor:
        """Features (..., in) to (..., out)."""
        ctx.layer = layer
        bias = layer.bias
        with layer.restored(x, forward_phase()) as weight:
            return F.linear(x, weight, None if bias is None else bias.to(x))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Gradient of the features; a frozen weight has none."""
        (gradient,) = gradients
        with ctx.layer.restored(gradient, BACKWARD) as weight:
            return gradient @ weight, None


class FrozenLinear(nn.Linear):
    """A linear layer that cannot be trained; `weight` may be fp8 or int8 and lie in another memory than x."""

    scale: Tensor | None
    conveyor: Conveyor | None = None
    """Brings the weight from host memory; shared by all layers that are streamed."""

    def __init__(self, weight: Tensor, scale: Tensor | None, bias: Tensor | None) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.register_buffer("scale", scale)

    @contextmanager
    def restored(self, like: Tensor, phase: str) -> Generator[Tensor]:
        """The weight in the dtype and on the device of `like`, inside the block only."""
        if self.conveyor is None:
            yield self.scaled(self.weight.to(like.device), like.dtype)
        else:
            with self.conveyor.lent(self, phase) as weight:
                yield self.scaled(weight, like.dtype)

    def scaled(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """What the stored weight stands for."""
        if self.scale is None:
            return weight.to(dtype)
        return rows_from_eight_bit(weight, self.scale, dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Features (..., in) to (..., out), in autocast's dtype where it is on."""
        return FrozenMatmul.apply(as_autocast(input), self)


def as_autocast(x: Tensor) -> Tensor:
    """Features in autocast's dtype where it is on."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def frozen_linear(linear: nn.Linear, memory: MemoryConfig, device: torch.device) -> nn.Module:
    """The layer as `memory` wants it held: on `device`, or its weight, nearly all of it, in host memory."""
    if memory.precision == "nf4":
        return nf4_linear(linear, device)
    weight, scale = held_weight(linear.weight.data, memory.precision)
    weight = weight.to(torch.device("cpu") if memory.stream_base else device)
    bias = None if linear.bias is None else linear.bias.data.to(device)
    return FrozenLinear(weight, None if scale is None else scale.to(device), bias)


def stream_layers(network: nn.Module, device: torch.device) -> Conveyor | None:
    """Let the layers of a network that lie in host memory share a conveyor; None where there are none."""
    layers = [module for module in network.modules() if isinstance(module, FrozenLinear)]
    if not layers:
        return None
    conveyor, slabs = Conveyor(layers, device), PinnedSlabs()
    for layer in layers:
        if device.type == "cuda":
            layer.weight.data = slabs.hold(layer.weight.data)
        layer.conveyor = conveyor
    return conveyor


def nf4_linear(linear: nn.Linear, device: torch.device) -> nn.Module:
    """The layer in bitsandbytes' 4-bit normal float."""
    bitsandbytes = optional_package("bitsandbytes", NF4_NEEDS, NF4_INSTEAD)
    small = bitsandbytes.nn.Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=torch.bfloat16,
        quant_type="nf4",
        device="meta",
    )
    weight = linear.weight.data.to(torch.bfloat16).cpu()
    small.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, quant_type="nf4").to(device)
    if linear.bias is not None:
        small.bias = nn.Parameter(linear.bias.data.to(device, torch.bfloat16), requires_grad=False)
    # It answers in the dtype it is asked in, which behind a norm is fp32: twice the memory for activations.
    small.register_forward_pre_hook(lambda layer, inputs: tuple(map(as_autocast, inputs)))
    return small


def hold_frozen(
    network: nn.Module, memory: MemoryConfig, device: torch.device, skip: tuple[str, ...] = ()
) -> None:
    """Freeze `network` and hold its linear layers as `memory` says; everything else goes to `device`.

    Layers whose name starts with an entry of `skip` stay in bf16 (fp32 for precision fp32): small ones that
    set the scale of all others.
    """
    network.requires_grad_(False)
    wide = torch.float32 if memory.precision == "fp32" else torch.bfloat16
    for name, module in list(network.named_modules()):
        for child_name, child in list(module.named_children()):
            path = f"{name}.{child_name}".lstrip(".")
            if type(child) is nn.Linear and not (skip and path.startswith(skip)):
                setattr(module, child_name, frozen_linear(child, memory, device))
    for module in network.modules():
        if not is_held(module):
            place(module, device, wide)
    if memory.stream_base and device.type == "cuda":
        stream_layers(network, device)


class FrozenBuilder:
    """Fills a network built on the meta device, tensor by tensor, each held as `memory` says at once.

    So the whole base is never in memory in full precision. Modules whose name starts with an entry of `wide`
    keep bf16 (fp32 for precision fp32).
    """

    def __init__(
        self, network: nn.Module, memory: MemoryConfig, device: torch.device, wide: tuple[str, ...] = ()
    ) -> None:
        self.network, self.memory, self.device, self.wide = network, memory, device, wide
        self.dtype = torch.float32 if memory.precision == "fp32" else torch.bfloat16
        self.unknown: list[str] = []

    def add(self, name: str, tensor: Tensor) -> None:
        """Put one tensor where its name says."""
        path, _, key = name.rpartition(".")
        try:
            module = self.network.get_submodule(path)
            known = getattr(module, key)
        except AttributeError:
            self.unknown.append(name)
            return
        if known is not None and known.shape != tensor.shape:
            self.unknown.append(f"{name} {tuple(tensor.shape)} instead of {tuple(known.shape)}")
            return
        holds = (
            type(module) is nn.Linear and key == "weight" and not (self.wide and path.startswith(self.wide))
        )
        if not holds:
            setattr(module, key, nn.Parameter(tensor.to(self.device, self.dtype), requires_grad=False))
            return
        full = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
        full.weight = nn.Parameter(tensor, requires_grad=False)
        held = frozen_linear(full, self.memory, self.device)
        held.bias = module.bias
        parent, _, child = path.rpartition(".")
        setattr(self.network.get_submodule(parent), child, held)

    def finish(self, source: str) -> None:
        """Raise ValueError naming what was missing or did not fit; then the network is ready and frozen."""
        missing = [name for name, parameter in self.network.named_parameters() if parameter.is_meta]
        if missing or self.unknown:
            raise ValueError(
                f"{source} does not fit the network: {len(missing)} tensors are missing "
                f"({', '.join(missing[:3]) or 'none'}), {len(self.unknown)} are unknown or of another size "
                f"({', '.join(self.unknown[:3]) or 'none'})"
            )
        self.network.requires_grad_(False)
        if self.memory.stream_base and self.device.type == "cuda":
            stream_layers(self.network, self.device)


def place(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Bring a module's own parameters (in `dtype`) and buffers to `device`."""
    for parameter in module.parameters(recurse=False):
        parameter.data = parameter.data.to(device, dtype)
    for buffer in module.buffers(recurse=False):
        buffer.data = buffer.data.to(device)


def is_held(module: nn.Module) -> bool:
    """Whether `hold_frozen` has already placed this layer."""
    return isinstance(module, FrozenLinear) or type(module).__name__ == "Linear4bit"
