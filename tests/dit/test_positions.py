"""Position ids against tables written by hand."""

from __future__ import annotations

import pytest
import torch
from pack.dit.positions import (
    Grid,
    PositionScheme,
    latent_grid,
    reference_placements,
    reference_position_ids,
    target_position_ids,
    text_position_ids,
)

# Grids of different sizes; by hand: first and last id of each reference under index+offset.
REFERENCES = [Grid(2, 3), Grid(3, 5), Grid(4, 1), Grid(1, 2), Grid(2, 2)]
BY_HAND = [
    ((1, 0, 0), (1, 1, 2)),
    ((2, 0, 3), (2, 2, 7)),
    ((3, 0, 8), (3, 3, 8)),
    ((4, 0, 9), (4, 0, 10)),
    ((5, 0, 11), (5, 1, 12)),
]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_first_and_last_token_of_each_reference(count: int) -> None:
    ids = reference_position_ids(REFERENCES[:count], PositionScheme.INDEX_OFFSET)
    ends = [(tuple(one[0].tolist()), tuple(one[-1].tolist())) for one in ids]
    assert ends == BY_HAND[:count]
    assert [len(one) for one in ids] == [6, 15, 4, 2, 4][:count]


def test_all_ids_of_two_references_in_row_major_order() -> None:
    first, second = reference_position_ids([Grid(2, 2), Grid(2, 1)], PositionScheme.INDEX_OFFSET)
    assert first.tolist() == [[1, 0, 0], [1, 0, 1], [1, 1, 0], [1, 1, 1]]
    assert second.tolist() == [[2, 0, 2], [2, 1, 2]]


@pytest.mark.parametrize(
    ("scheme", "starts"),
    [
        ("index+offset", [(1, 0), (2, 52), (3, 116)]),
        ("index", [(1, 0), (2, 0), (3, 0)]),
        ("offset", [(1, 0), (1, 52), (1, 116)]),
        ("none", [(1, 0), (1, 0), (1, 0)]),
    ],
)
def test_schemes_at_kontext_sizes(scheme: str, starts: list[tuple[int, int]]) -> None:
    """832x1248, 1024x1024 and 672x1568 pixels: 52, 64 and 42 tokens wide."""
    grids = [latent_grid(156, 104), latent_grid(128, 128), latent_grid(196, 84)]
    placements = reference_placements(grids, PositionScheme(scheme))
    assert [(placement.index, placement.column) for placement in placements] == starts


def test_target_and_text_have_index_zero_and_do_not_move_the_references() -> None:
    assert target_position_ids(Grid(2, 2)).tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]]
    assert torch.equal(text_position_ids(3), torch.zeros(3, 3))


def test_an_incomplete_patch_counts_as_a_token() -> None:
    assert latent_grid(3, 5) == Grid(2, 3)


def test_an_empty_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one row and column"):
        Grid(0, 4)
