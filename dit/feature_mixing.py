"""Feature Mixing, the first stage of DreamOmni2's data pipeline (arXiv 2510.06679, section 3.1).

Two pictures are denoised together so that they share something. In every attention

    Attn_tar = softmax(Q K^T / sqrt d) V,   Q = [Q_n_tar; Q_t_tar],
    K = [K_n_tar; K_t_tar; K_n_src],        V = [V_n_tar; V_t_tar; V_n_src]

with noise tokens n and text tokens t: the target also sees the noise tokens of the source in the same layer,
not its text. The source sees itself only. Keys come rotated: that a source token keeps the position it has in
its own picture, the position of the target's token at the same place, is chosen, not published.

Shapes: B batch, H heads, L tokens (text, then noise), D channels of a head. Keys and values are B H L D, as
FLUX.1 makes them. Rows 0, 2, 4 ... of a batch are sources, rows 1, 3, 5 ... their targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .reference_cache import Attention, call_attention, open_mask

SOURCE, TARGET = 0, 1


@dataclass
class PairAttention:
    """Attention of a batch of pairs, in place of the network's own."""

    num_noise: int
    """Noise tokens of one picture, the last of its sequence."""
    is_mixing: bool
    """Whether the targets see their sources."""
    text_lengths: tuple[int, int] | None = None
    """Text tokens of (source, target) where they differ; the shorter text is padded, which nobody sees."""
    inner: Attention | None = None
    was_reached: bool = False
    """Whether the network ever asked."""

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
        """Attend in each source alone, and in each target with its source beside it."""
        self.was_reached = True
        masks = [rows_of(mask, branch, len(q)) for branch in (SOURCE, TARGET)]
        source, target = ([part[branch::2] for part in (q, k, v)] for branch in (SOURCE, TARGET))
        shared = [part[:, :, -self.num_noise :] for part in source[1:]] if self.is_mixing else []
        found = (
            self.attend(SOURCE, attention, source, [], masks[SOURCE], heads, more),
            self.attend(TARGET, attention, target, shared, masks[TARGET], heads, more),
        )
        return torch.stack(found, dim=1).flatten(0, 1)

    def attend(
        self,
        branch: int,
        attention: Attention,
        tokens: list[Tensor],
        shared: list[Tensor],
        mask: Tensor | None,
        heads: int,
        more: dict[str, Any],
    ) -> Tensor:
        """Attention of one side of the pairs (B L HD); `shared` are further keys and values."""
        start, stop = self.padding(branch)
        q, k, v = (without(part, start, stop, dim=2) for part in tokens)
        if mask is not None:
            mask = without(mask, start, stop, dim=-1)
            mask = without(mask, start, stop, dim=-2) if mask.shape[-2] > 1 else mask
        if shared:
            k, v = (torch.cat(pair, dim=2) for pair in zip((k, v), shared, strict=True))
            mask = mask if mask is None else open_mask(mask, self.num_noise)
        out = call_attention(self.inner, attention, q, k, v, heads, mask=mask, **more)
        if start == stop:
            return out
        # What padding becomes does not matter, as nothing sees it.
        return torch.cat(
            (out[:, :start], out.new_zeros(len(out), stop - start, out.shape[-1]), out[:, start:]), dim=1
        )

    def padding(self, branch: int) -> tuple[int, int]:
        """First and last + 1 of the text tokens that only fill up."""
        if self.text_lengths is None:
            return 0, 0
        return self.text_lengths[branch], max(self.text_lengths)


def without(tokens: Tensor, start: int, stop: int, dim: int) -> Tensor:
    """The tokens along `dim` without those from `start` up to `stop`."""
    if start == stop:
        return tokens
    parts = (tokens.narrow(dim, 0, start), tokens.narrow(dim, stop, tokens.shape[dim] - stop))
    return torch.cat(parts, dim=dim)


def rows_of(mask: Tensor | None, branch: int, batch: int) -> Tensor | None:
    """The mask (L L, or B ... L L) of one side of the pairs."""
    if mask is None or mask.ndim < 3 or len(mask) != batch:
        return mask
    return mask[branch::2]
