"""The condition of one picture: token ids with slots for reference pictures, and those pictures' latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..content import tensor_key
from .layout import Slot
from .resolution import TOKEN_PIXELS

PATCH_SIZE = 2
"""Latent pixels on the side of a token."""


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """Words and picture slots of a wrapped prompt; ids inside slots are 0 and never looked up."""

    token_ids: tuple[int, ...]
    slots: tuple[Slot, ...] = ()

    def as_tensor(self) -> Tensor:
        """(1, L) int64, the form that travels on a wire: tokens of reference k (from 1) read -k."""
        ids = list(self.token_ids)
        for slot in self.slots:
            ids[slot.start : slot.stop] = [-(slot.image + 1)] * (slot.stop - slot.start)
        return torch.tensor([ids], dtype=torch.int64)


@dataclass(frozen=True, slots=True)
class Prefix:
    """A token sequence with its reference latents (1, C, H, W), each at its own size."""

    tokens: TokenSequence
    reference_latents: tuple[Tensor, ...]
    elements: tuple[int | str, ...]
    """For each token its id or its picture's hash; equal beginnings have equal keys and values."""

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.tokens.token_ids)

    def to(self, device: torch.device) -> Prefix:
        """The same prefix with its latents on `device`."""
        latents = tuple(latent.to(device) for latent in self.reference_latents)
        return Prefix(self.tokens, latents, self.elements)


def make_prefix(tokens: TokenSequence, reference_latents: Sequence[Tensor]) -> Prefix:
    """Join tokens and latents; raises if a slot and its picture do not have the same number of tokens."""
    for slot in tokens.slots:
        if slot.image >= len(reference_latents):
            raise ValueError(
                f"the prompt names reference {slot.image + 1}, "
                f"the conditioning holds {len(reference_latents)}"
            )
        height, width = reference_latents[slot.image].shape[-2:]
        count = (height // PATCH_SIZE) * (width // PATCH_SIZE)
        if slot.stop - slot.start != count:
            raise ValueError(
                f"reference {slot.image + 1} has {count} tokens, its place in the prompt "
                f"{slot.stop - slot.start}: encode it again at its present size"
            )
    elements: list[int | str] = list(tokens.token_ids)
    for slot in tokens.slots:
        picture = tensor_key(reference_latents[slot.image])
        elements[slot.start : slot.stop] = [picture] * (slot.stop - slot.start)
    return Prefix(tokens, tuple(reference_latents), tuple(elements))


def sequence_from_tensor(ids: Tensor, sizes: Sequence[tuple[int, int]]) -> TokenSequence:
    """Read `TokenSequence.as_tensor` back; `sizes` are the references' (rows, columns) in tokens.

    Two mentions of one picture side by side read as one run of -k; the sizes tell them apart.
    """
    flat = ids.flatten().tolist()
    slots, position = [], 0
    while position < len(flat):
        if flat[position] >= 0:
            position += 1
            continue
        image = -flat[position] - 1
        if image >= len(sizes):
            raise ValueError(
                f"the prompt names reference {image + 1}, the conditioning holds {len(sizes)}: "
                "give every node that changes the conditioning all reference latents"
            )
        stop = position + sizes[image][0] * sizes[image][1]
        if set(flat[position:stop]) != {-(image + 1)} or stop > len(flat):
            height, width = (side * TOKEN_PIXELS for side in sizes[image])
            raise ValueError(
                f"reference {image + 1} is {width} x {height} px, "
                "but was another size when the prompt was encoded: encode it again"
            )
        slots.append(Slot(position, stop, image))
        position = stop
    return TokenSequence(tuple(max(value, 0) for value in flat), tuple(slots))
