"""Drag points as text, and the black areas of in- and outpainting."""

from __future__ import annotations

import pytest
import torch
from pack.dit.dreamomni.drag import DragOperation, rotated_points, scaled_points
from pack.dit.dreamomni.drag_points import points_from_text
from pack.dit.dreamomni.masking import Border, masked_source

MOVE, SCALE, ROTATE = DragOperation.MOVE, DragOperation.SCALE, DragOperation.ROTATE


def test_lines_become_points() -> None:
    assert points_from_text("10, 20 -> 40, 10\n5 6\n\n1,2->3,4", MOVE) == [
        (10, 20, 30, -10),
        (5, 6, 30, -10),
        (1, 2, 2, 2),
    ]
    assert points_from_text("10, 10; 20, 10 -> 30, 10", SCALE) == [(10, 10, 0, 0), (20, 10, 10, 0)]
    assert points_from_text("10, 10; 20, 10", SCALE, factor=1.5) == scaled_points((10, 10), [(20, 10)], 1.5)
    assert points_from_text("10, 10\n20.5, 10", ROTATE, angle=-62) == rotated_points(
        (10, 10), [(20.5, 10)], -62
    )


def test_points_of_an_editor_are_read_as_lines_without_goals() -> None:
    edited = '[{"x": 10, "y": 10.0}, {"x": 20.5, "y": 10, "other": null}]'
    assert points_from_text(edited, ROTATE, angle=-62) == points_from_text("10, 10\n20.5, 10", ROTATE, -62)


@pytest.mark.parametrize(
    ("text", "operation", "message"),
    [
        ("ten, 5", MOVE, "line 1 of points is 'ten, 5'; write it like"),
        ("1, 2 -> 3", MOVE, "line 1 of points is"),
        (" \n ", MOVE, "no points given"),
        ("1, 2", MOVE, "move needs a goal"),
        ("1, 1; 2, 2 -> 3, 3; 4, 4", SCALE, "line 3 of points does not say where it goes"),
        ("1, 1 -> 2, 2; 3, 3 -> 4, 4", ROTATE, "the first point of rotate is the centre"),
        ("1, 1; 2, 2", ROTATE, "the rotation is 0 degrees"),
        ("1, 1; 2, 2", SCALE, "the scale factor is 1"),
        ('[{"x": 1, "y": 2}]', MOVE, "move needs a goal"),
        ('[{"x": 1}]', SCALE, "begin with '\\[' but are no list .* per line"),
        ("[1, 2]", SCALE, "begin with '\\[' but are no list"),
        ("[1, 2", SCALE, "begin with '\\[' but are no list"),
        ("[]", SCALE, "no points given"),
    ],
)
def test_bad_lines_are_named(text, operation, message) -> None:
    with pytest.raises(ValueError, match=message):
        points_from_text(text, operation)


def test_masked_areas_become_black_and_nothing_else_changes() -> None:
    image = torch.rand(2, 6, 8, 3, generator=torch.Generator().manual_seed(0)) + 0.1
    mask = torch.zeros(1, 6, 8)
    mask[0, 1:3, 2:5] = 1.0
    source, area = masked_source(image, mask, Border())
    assert torch.equal(area, mask.expand(2, -1, -1))
    assert source[:, 1:3, 2:5].abs().max() == 0
    outside = area == 0
    assert torch.equal(source[outside], image[outside])


def test_a_border_is_black_and_masked() -> None:
    image = torch.ones(1, 4, 5, 3)
    source, area = masked_source(image, None, Border(left=2, top=1, right=0, bottom=3))
    assert source.shape == (1, 8, 7, 3)
    assert torch.equal(source[0, 1:5, 2:], torch.ones(4, 5, 3))
    assert source.sum() == 4 * 5 * 3
    assert area.sum() == 8 * 7 - 4 * 5


def test_a_mask_of_another_size_is_fitted_and_made_hard() -> None:
    mask = torch.zeros(2, 2)
    mask[:, 1] = 1.0
    _, area = masked_source(torch.ones(1, 8, 8, 3), mask, Border())
    assert set(area.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(area[0, :, 4:], torch.ones(8, 4))


def test_bad_masks_and_borders_are_named() -> None:
    image = torch.ones(3, 4, 4, 3)
    with pytest.raises(ValueError, match="2 masks for 3 pictures"):
        masked_source(image, torch.ones(2, 4, 4), Border())
    with pytest.raises(ValueError, match="a border cannot be negative"):
        masked_source(image, None, Border(left=-1))
    with pytest.raises(ValueError, match="would become 16388 x 4 px"):
        masked_source(image, None, Border(left=16384))
