"""Position ids of the target and of its references on the token grid.

Axes of a position id: (index, row, column). `index` says which picture a token belongs to (0 is the target
and the text, n is reference n), `row` and `column` are counted in tokens; a token is 16 pixels (VAE 8 x
patch 2). DreamOmni2 (arXiv 2510.06679, section 3.2) trained with both the index and a column offset:
reference n starts at the column where references 1 .. n-1, laid side by side, end. The target does not move
the references.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor


class PositionScheme(str, Enum):
    """How references are told apart; the four rows of the paper's Table 5.

    Kontext itself gives its one picture index 1; the paper does not say which index Table 5 used where the
    index is off, so index 1 for every reference is chosen, not published.
    """

    INDEX_OFFSET = "index+offset"
    INDEX = "index"
    OFFSET = "offset"
    NONE = "none"

    @property
    def has_index(self) -> bool:
        """Whether every reference has an index of its own."""
        return self in (PositionScheme.INDEX_OFFSET, PositionScheme.INDEX)

    @property
    def has_offset(self) -> bool:
        """Whether a reference starts at the column where the ones before it end."""
        return self in (PositionScheme.INDEX_OFFSET, PositionScheme.OFFSET)


@dataclass(frozen=True)
class Grid:
    """Height and width of a picture in tokens."""

    height: int
    width: int

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"a token grid has at least one row and column, got {self.height}x{self.width}")

    @property
    def num_tokens(self) -> int:
        """Tokens of the picture."""
        return self.height * self.width


@dataclass(frozen=True)
class Placement:
    """Where a reference starts: its index and the column of its first token."""

    index: int
    column: int


def latent_grid(height: int, width: int, patch: int = 2) -> Grid:
    """Grid of a latent of `height` x `width`; a last incomplete patch counts, as the network pads it."""
    return Grid(-(-height // patch), -(-width // patch))


def reference_placements(grids: Sequence[Grid], scheme: PositionScheme) -> list[Placement]:
    """Index and first column of each reference, in order (the source picture of an edit comes first)."""
    placements, column = [], 0
    for order, grid in enumerate(grids, start=1):
        index = order if scheme.has_index else 1
        placements.append(Placement(index, column if scheme.has_offset else 0))
        column += grid.width
    return placements


def grid_position_ids(grid: Grid, placement: Placement, device: torch.device | None = None) -> Tensor:
    """Ids (tokens, 3) of one picture in row-major order, float32."""
    ids = torch.zeros(grid.height, grid.width, 3, device=device)
    ids[..., 0] = placement.index
    ids[..., 1] = torch.arange(grid.height, device=device)[:, None]
    ids[..., 2] = torch.arange(grid.width, device=device)[None, :] + placement.column
    return ids.reshape(grid.num_tokens, 3)


def target_position_ids(grid: Grid, device: torch.device | None = None) -> Tensor:
    """Ids (tokens, 3) of the picture being made: index 0, no offset."""
    return grid_position_ids(grid, Placement(0, 0), device)


def text_position_ids(num_tokens: int, device: torch.device | None = None) -> Tensor:
    """Ids (tokens, 3) of the text: all zero."""
    return torch.zeros(num_tokens, 3, device=device)


def reference_position_ids(
    grids: Sequence[Grid], scheme: PositionScheme, device: torch.device | None = None
) -> list[Tensor]:
    """Ids (tokens, 3) of every reference, in order."""
    placements = reference_placements(grids, scheme)
    return [
        grid_position_ids(grid, placement, device) for grid, placement in zip(grids, placements, strict=True)
    ]
