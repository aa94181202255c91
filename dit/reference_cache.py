"""Keys and values of reference tokens that attend to themselves only, kept between model calls.

A reference that never sees noise, time or text leaves the same keys and values in every step, seed and
prompt. They are written by one pass over the reference alone; later calls add them to their own keys and
values in every attention. RoPE works on differences of positions, so a reference that moves as a whole
changes nothing but its keys, and those by one rotation.

Shapes: B batch, H heads, L tokens, D channels of a head. Keys and values are B H L D, as FLUX.1 makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .reference_stream import Block, BlockStream, Lane
from .stored_tensor import StoredTensor

Attention = Callable[..., Tensor]
Offset = tuple[float, ...]
"""(index, row, column) of a reference's first token."""

Copied = Mapping[int, StoredTensor]
"""id of a stored tensor -> its copy on the device that computes."""
NO_COPIES: Copied = {}
MAX_MOVED = 2
"""Places besides its own that a reference keeps rotated keys for."""
OVERRIDE = "optimized_attention_override"
"""Where ComfyUI looks for another attention. Ours stay out of compiled blocks: what they read changes with
every run, and the blocks around them need not be compiled again for that."""


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

    def read(
        self, block: Block, offset: Offset, device: torch.device, copies: Copied = NO_COPIES
    ) -> tuple[Tensor, Tensor]:
        """Keys and values (1 H L D) of one attention, as if the reference had been written at `offset`.

        `copies` are on the device already, by the id of what they are copies of.
        """
        stored_keys, stored_values = self.needed(block, offset)
        keys, values = (copies.get(id(part), part).read(device) for part in (stored_keys, stored_values))
        if offset == self.offset:
            return keys, values
        moved = self.keys_at(offset)
        if block not in moved:
            change = [new - old for new, old in zip(offset, self.offset, strict=True)]
            turned = turn_keys(keys, change, self.axes, self.theta)
            moved[block] = StoredTensor.pack(turned, stored_keys.scales is not None)
            keys = moved[block].read(device)
            moved[block].move(stored_keys.values.device)
        return keys, values

    def needed(self, block: Block, offset: Offset) -> tuple[StoredTensor, StoredTensor]:
        """The stored keys and values that a reading starts from."""
        layer = self.layers[block]
        return self.moved.get(offset, {}).get(block, layer.keys), layer.values

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
    # In double precision, which some devices lack: computed on the CPU.
    angles = [
        moved / theta ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        for moved, dim in zip(change, axes, strict=True)
    ]
    angle = torch.cat(angles)
    cosine, sine = (part.float().to(keys.device) for part in (angle.cos(), angle.sin()))
    first, second = keys.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((first * cosine - second * sine, first * sine + second * cosine), dim=-1)
    return turned.flatten(-2).to(keys.dtype)


def block_of(options: dict[str, Any]) -> Block:
    """Which attention ComfyUI is in, from the transformer options it hands to every attention.

    ValueError on a host that does not say it.
    """
    if "block_type" not in options or "block_index" not in options:
        raise ValueError(
            "this ComfyUI does not tell which block its attention is in, so Reference Cache cannot work "
            "here; update ComfyUI to 0.3.76 or newer, or take the node out"
        )
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
    stream: BlockStream | None = None
    """Brings what is in host memory, a block ahead; None where nothing is."""

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
        copies = NO_COPIES if self.stream is None else self.stream.take(block)
        pairs = [read_batch(entries, block, offset, k.device, copies) for entries, offset in placed]
        keys = torch.cat((k, *(keys for keys, _ in pairs)), dim=2)
        values = torch.cat((v, *(values for _, values in pairs)), dim=2)
        if mask is not None:
            mask = open_mask(mask, keys.shape[2] - k.shape[2])
        return call_attention(self.inner, attention, q, keys, values, heads, mask=mask, **more)


def read_batch(
    entries: Sequence[KeptReference],
    block: Block,
    offset: Offset,
    device: torch.device,
    copies: Copied = NO_COPIES,
) -> tuple[Tensor, Tensor]:
    """Keys and values (B H L D) of one reference for a batch; shared by all items where they are the same."""
    if all(entry is entries[0] for entry in entries):
        keys, values = entries[0].read(block, offset, device, copies)
        return keys.expand(len(entries), -1, -1, -1), values.expand(len(entries), -1, -1, -1)
    pairs = [entry.read(block, offset, device, copies) for entry in entries]
    return torch.cat([keys for keys, _ in pairs]), torch.cat([values for _, values in pairs])


def stream_references(
    references: Sequence[Sequence[KeptReference]],
    offsets: Sequence[Offset],
    device: torch.device,
    lane: Lane | None,
) -> BlockStream | None:
    """A stream of what these references keep elsewhere than on the device; None if it has nothing to do."""
    placed = {
        (id(entry), offset): (entry, offset)
        for entries, offset in zip(references, offsets, strict=True)
        for entry in entries
    }
    away = any(part.is_away(device) for entry, _ in placed.values() for part in entry.tensors())
    if lane is None or not away:
        return None

    def parts(block: Block) -> list[StoredTensor]:
        return [part for entry, offset in placed.values() for part in entry.needed(block, offset)]

    return BlockStream(list(references[0][0].layers), parts, device, lane)


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


class NotNotedError(LookupError):
    """A block asks for what references left in an earlier step, in which it did not run."""


@dataclass
class StepReader:
    """Attention of a step without references: their keys and values of an earlier step stand in for them.

    Raises NotNotedError where there are none.
    """

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
        block = block_of(more["transformer_options"])
        if block not in self.kept:
            raise NotNotedError(f"nothing was noted by block {block}")
        keys, values = self.kept[block]
        if mask is not None:
            mask = open_mask(mask, keys.shape[2])
        k, v = torch.cat((k, keys), dim=2), torch.cat((v, values), dim=2)
        return call_attention(self.inner, attention, q, k, v, heads, mask=mask, **more)
