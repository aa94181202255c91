"""Who may look at whom: [words and pictures][time][target], and which rows one attention call covers.

L tokens of the prefix (words and reference pictures), S time tokens, N tokens of the target.
Prefix rows are causal, except that a picture's tokens all see each other; the time token sees the prefix and
itself; target rows see everything (OmniGen, section 2.2). No prefix row sees time or target: that is why
its keys and values never change while sampling.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Slot:
    """Where the tokens of one picture stand in the prefix: rows start..stop, of reference number `image`."""

    start: int
    stop: int
    image: int
    """0-based place in the list of references."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Query rows start..stop look at the first `key_stop` keys, through `mask` (rows, keys) if not at all."""

    start: int
    stop: int
    key_stop: int
    mask: Tensor | None = None
    """True where a row may look."""


def causal_mask(start: int, stop: int, device: torch.device) -> Tensor:
    """Rows start..stop, each of which sees the keys up to and including itself: (stop - start, stop) bool."""
    rows = torch.arange(start, stop, device=device)
    return rows[:, None] >= torch.arange(stop, device=device)[None, :]


def prefix_rows(slots: tuple[Slot, ...], length: int, first: int, device: torch.device) -> list[Rows]:
    """Attention calls of the prefix rows first..length; queries count from `first`, which is in no slot."""
    calls, position = [], first
    for slot in slots:
        if slot.stop <= first:
            continue
        if slot.start > position:
            mask = causal_mask(position, slot.start, device)
            calls.append(Rows(position - first, slot.start - first, slot.start, mask))
        calls.append(Rows(slot.start - first, slot.stop - first, slot.stop))
        position = slot.stop
    if position < length:
        mask = causal_mask(position, length, device)
        calls.append(Rows(position - first, length - first, length, mask))
    return calls


def time_rows(prefix_length: int, first_row: int, count: int, device: torch.device) -> Rows:
    """The call of `count` time tokens that share one place: each sees the prefix and itself only."""
    if count == 1:
        return Rows(first_row, first_row + 1, prefix_length + 1)
    prefix = torch.ones(count, prefix_length, dtype=torch.bool, device=device)
    mask = torch.cat((prefix, torch.eye(count, dtype=torch.bool, device=device)), dim=1)
    return Rows(first_row, first_row + count, prefix_length + count, mask)


def sequence_rows(
    slots: tuple[Slot, ...], prefix_length: int, target_length: int, device: torch.device
) -> list[Rows]:
    """Attention calls of a whole sequence [prefix][time][target]."""
    end = prefix_length + 1 + target_length
    return [
        *prefix_rows(slots, prefix_length, 0, device),
        time_rows(prefix_length, prefix_length, 1, device),
        Rows(prefix_length + 1, end, end),
    ]
