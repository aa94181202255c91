"""Keys and values of reference tokens that attend to themselves only, kept between model calls.

A reference that never sees noise, time or text leaves the same keys and values in every step, seed and
prompt. They are written by one pass over the reference alone; later calls add them to their own keys and
values in every attention. RoPE works on differences of positions, so a reference that moves as a whole
changes nothing but its keys, and those by one rotation.

Shapes: B batch, H heads, L tokens, D channels of a head. Keys and values are B H L D, as FLUX.1 makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Block = tuple[str, int]
"""("double" or "single", number): which attention of the network."""
Attention = Callable[..., Tensor]
Offset = tuple[float, ...]
"""(index, row, column) of a reference's first token."""

MAX_MOVED = 2
"""Places besides its own that a reference keeps rotated keys for."""
OVERRIDE = "optimized_attention_override"
"""Where ComfyUI looks for another attention. Ours stay out of compiled blocks: what they read changes with
every run, and the blocks around them need not be compiled again for that."""
QUANTISED_GROUP = 32
"""Channels that share one 8-bit scale: 45 dB for normal values at 6 % more memory than the bytes alone."""


@dataclass(slots=True)
class StoredTensor:
    """A tensor as it is, or in 8 bit with one scale for each group of channels."""

    values: Tensor
    scales: Tensor | None
    dtype: torch.dtype

    @classmethod
    def pack(cls, tensor: Tensor, quantise: bool) -> StoredTensor:
        """Keep a copy of the tensor (... D)."""
        if not quantise:
            return cls(tensor.contiguous().clone(), None, tensor.dtype)
        channels = tensor.shape[-1]
        group = QUANTISED_GROUP if channels % QUANTISED_GROUP == 0 else channels
        groups = tensor.float().unflatten(-1, (-1, group))
        scales = (groups.abs().amax(-1, keepdim=True) / 127).clamp(min=torch.finfo(torch.float32).tiny)
        scales = scales.bfloat16()  # half precision would lose small scales
        values = (groups / scales.float()).round().clamp(-127, 127).to(torch.int8)
        return cls(values, scales, tensor.dtype)

    def read(self, device: torch.device) -> Tensor:
        """The tensor on the device in its own dtype; a transfer if it is stored elsewhere."""
        values = self.values.to(device, non_blocking=True)
        if self.scales is None:
            return values
        return (values.to(self.dtype) * self.scales.to(device, self.dtype, non_blocking=True)).flatten(-2)

    def move(self, device: torch.device) -> None:
        """Store the tensor on another device."""
        self.values = self.values.to(device)
        self.scales = None if self.scales is None else self.scales.to(device)

    @property
    def num_bytes(self) -> int:
        """Memory it takes."""
        return sum(
            part.numel() * part.element_size() for part in (self.values, self.scales) if part is not None
        )


@dataclass(slots=True)
class KeptLayer:
    """Keys (rotated to the reference's own offset) and values of one attention, each 1 H L D."""

    keys: StoredTensor
    values: StoredTensor


@dataclass(eq=False)
class KeptReference:
    """What one reference leaves in every attention of the network."""

    geometry: Tensor
    """Position ids (L, 3) relative to the first token."""
    offset: Offset
    """Where the reference was when it was written."""
    axes: tuple[int, ...]
    """Channels of a head that each position axis rotates."""
    theta: float
    layers: dict[Block, KeptLayer] = field(default_factory=dict)
    moved: dict[Offset, dict[Block, StoredTensor]] = field(default_factory=dict)
    """Rotated keys of the places it was read at besides its own, the latest last."""

    def read(self, block: Block, offset: Offset, device: torch.device) -> tuple[Tensor, Tensor]:
        """Keys and values (1 H L D) of one attention, as if the reference had been written at `offset`."""
        layer = self.layers[block]
        values = layer.values.read(device)
        if offset == self.offset:
            return layer.keys.read(device), values
        keys = self.keys_at(offset)
        if block not in keys:
            change = [new - old for new, old in zip(offset, self.offset, strict=True)]
            turned = turn_keys(layer.keys.read(device), change, self.axes, self.theta)
            keys[block] = StoredTensor.pack(turned, layer.keys.scales is not None)
            keys[block].move(layer.keys.values.device)
        return keys[block].read(device), values

    def keys_at(self, offset: Offset) -> dict[Block, StoredTensor]:
        """The rotated keys of a place; those of the place used longest ago make room."""
        self.moved[offset] = self.moved.pop(offset, {})
        while len(self.moved) > MAX_MOVED:
            del self.moved[next(iter(self.moved))]
        return self.moved[offset]

    def tensors(self) -> list[StoredTensor]:
        """Everything stored, in the order of the layers."""
        own = [part for layer in self.layers.values() for part in (layer.keys, layer.values)]
        return own + [part for keys in self.moved.values() for part in keys.values()]

    @property
    def num_bytes(self) -> int:
        """Memory of all layers and of all moved keys."""
        return sum(part.num_bytes for part in self.tensors())


def turn_keys(keys: Tensor, change: Sequence[float], axes: Sequence[int], theta: float) -> Tensor:
    """Rotated keys (... D) moved by `change` along the position axes, by RoPE with one position."""
    angles = [
        moved / theta ** (torch.arange(0, dim, 2, dtype=torch.float64, device=keys.device) / dim)
        for moved, dim in zip(change, axes, strict=True)
    ]
    angle = torch.cat(angles)
    cosine, sine = angle.cos().float(), angle.sin().float()
    first, second = keys.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((first * cosine - second * sine, first * sine + second * cosine), dim=-1)
    return turned.flatten(-2).to(keys.dtype)


def block_of(options: dict[str, Any]) -> Block:
    """Which attention ComfyUI is in, from the transformer options it hands to every attention."""
    return str(options["block_type"]), int(options["block_index"])


def call_attention(
    inner: Attention | None, attention: Attention, q: Tensor, k: Tensor, v: Tensor, heads: int, **more: Any
) -> Tensor:
    """The attention that would have run without us: the user's override if there is one."""
    if inner is not None:
        return inner(attention, q, k, v, heads, **more)
    return attention(q, k, v, heads, **more)


@dataclass
class ReferenceWriter:
    """Attention of the writing pass: the reference's tokens see each other and nothing else."""

    kept: KeptReference
    num_text: int
    quantise: bool
    inner: Attention | None = None
    device: torch.device | None = None
    """Where to store; None leaves everything where it was made."""

    @torch.compiler.disable
    def __call__(
        self, attention: Attention, q: Tensor, k: Tensor, v: Tensor, heads: int, **more: Any
    ) -> Tensor:
        """Keep the reference's keys and values, then attend to them alone."""
        query, keys, values = (part[:, :, self.num_text :] for part in (q, k, v))
        layer = KeptLayer(StoredTensor.pack(keys, self.quantise), StoredTensor.pack(values, self.quantise))
        if self.device is not None:
            layer.keys.move(self.device)
            layer.values.move(self.device)
        self.kept.layers[block_of(more["transformer_options"])] = layer
        out = call_attention(self.inner, attention, query, keys, values, heads, **more)
        return torch.cat((out.new_zeros(len(out), self.num_text, out.shape[-1]), out), dim=1)


@dataclass
class ReferenceReader:
    """Attention of every step: text and noise also see the kept references, in order."""

    references: Sequence[Sequence[KeptReference]]
    """For each reference one entry per batch item, often the same one."""
    offsets: Sequence[Offset]
    """Where each reference is."""
    inner: Attention | None = None

    @torch.compiler.disable
    def __call__(
        self,
        attention: Attention,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        heads: int,
        mask: Tensor | None = None,
        **more: Any,
    ) -> Tensor:
        """Attend to the call's own tokens and to all references."""
        block = block_of(more["transformer_options"])
        placed = zip(self.references, self.offsets, strict=True)
        pairs = [read_batch(entries, block, offset, k.device) for entries, offset in placed]
        keys = torch.cat((k, *(keys for keys, _ in pairs)), dim=2)
        values = torch.cat((v, *(values for _, values in pairs)), dim=2)
        if mask is not None:
            mask = open_mask(mask, keys.shape[2] - k.shape[2])
        return call_attention(self.inner, attention, q, keys, values, heads, mask=mask, **more)


def read_batch(
    entries: Sequence[KeptReference], block: Block, offset: Offset, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Keys and values (B H L D) of one reference for a batch; shared by all items where they are the same."""
    if all(entry is entries[0] for entry in entries):
        keys, values = entries[0].read(block, offset, device)
        return keys.expand(len(entries), -1, -1, -1), values.expand(len(entries), -1, -1, -1)
    pairs = [entry.read(block, offset, device) for entry in entries]
    return torch.cat([keys for keys, _ in pairs]), torch.cat([values for _, values in pairs])


def open_mask(mask: Tensor, added: int) -> Tensor:
    """An attention mask (boolean or additive, ... L) whose rows also see `added` further keys."""
    seen = mask.new_ones if mask.dtype == torch.bool else mask.new_zeros
    return torch.cat((mask, seen(*mask.shape[:-1], added)), dim=-1)


def split_ids(ids: Tensor, lengths: Sequence[int]) -> list[tuple[Tensor, Offset]]:
    """For each reference its ids (L, 3) relative to its first token, and where that token is."""
    parts = ids.split(list(lengths))
    return [(part - part[0], tuple(part[0].tolist())) for part in parts]


@dataclass
class StepRecorder:
    """Attention of a full step: everything sees everything, and the references' keys and values are noted."""

    num_tokens: int
    """Reference tokens, the last of the sequence."""
    kept: dict[Block, tuple[Tensor, Tensor]]
    inner: Attention | None = None

    @torch.compiler.disable
    def __call__(
        self, attention: Attention, q: Tensor, k: Tensor, v: Tensor, heads: int, **more: Any
    ) -> Tensor:
        """The attention as it is."""
        own = (part[:, :, -self.num_tokens :].clone() for part in (k, v))
        self.kept[block_of(more["transformer_options"])] = (next(own), next(own))
        return call_attention(self.inner, attention, q, k, v, heads, **more)


@dataclass
class StepReader:
    """Attention of a step without references: their keys and values of an earlier step stand in for them."""

    kept: dict[Block, tuple[Tensor, Tensor]]
    inner: Attention | None = None

    @torch.compiler.disable
    def __call__(
        self,
        attention: Attention,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        heads: int,
        mask: Tensor | None = None,
        **more: Any,
    ) -> Tensor:
        """Attend to the call's own tokens and to the noted ones."""
        keys, values = self.kept[block_of(more["transformer_options"])]
        if mask is not None:
            mask = open_mask(mask, keys.shape[2])
        k, v = torch.cat((k, keys), dim=2), torch.cat((v, values), dim=2)
        return call_attention(self.inner, attention, q, k, v, heads, mask=mask, **more)
